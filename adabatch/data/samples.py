"""Sources of samples: read by index; what is random about one is a function of the key that comes with it."""

import torch

from adabatch.errors import UserError


class Samples:
    """A split of a dataset. `labels`: int64 [n] on the CPU where they are known in advance, else None."""

    labels = None
    look_ahead = 0  # how many samples `expect` wants to know of in advance

    def __len__(self) -> int:
        raise NotImplementedError

    def read(self, indices, keys=None):
        """indices: int64 [n] on the CPU; keys: int64 [n], random per sample (None in evaluation)
        -> inputs [n, ...], labels [n, ...]."""
        raise NotImplementedError

    def expect(self, indices, keys=None) -> None:
        """A hint of what will be read next, in this order, instead of what was expected before; sources on
        disk start reading it."""

    def close(self) -> None:
        """Release threads and files."""


class TensorSamples(Samples):
    """A split that lives on one device. inputs: [n, ...], labels: [n, ...]."""

    def __init__(self, inputs, labels):
        if len(inputs) != len(labels):
            raise UserError(
                f"a dataset needs one label per input, got {len(inputs)} inputs and {len(labels)} labels"
            )
        self.inputs, self.labels = inputs, labels

    def __len__(self) -> int:
        return len(self.inputs)

    def read(self, indices, keys=None):
        indices = indices.to(self.inputs.device, non_blocking=True)
        return self.inputs.index_select(0, indices), self.labels.index_select(0, indices)

    def to(self, device) -> "TensorSamples":
        return TensorSamples(self.inputs.to(device), self.labels.to(device))


class MapSamples(Samples):
    """A map-style dataset of the user's: `len(dataset)` and `dataset[i] -> (input, label)`. Read one by one,
    in this thread."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def read(self, indices, keys=None):
        pairs = [self.dataset[i] for i in indices.tolist()]
        inputs, labels = ([torch.as_tensor(part) for part in parts] for parts in zip(*pairs, strict=True))
        return torch.stack(inputs), torch.stack(labels)


class Subset(Samples):
    """The samples of `whole` at `indices` (int64 [n]), in that order."""

    def __init__(self, whole: Samples, indices):
        self.whole, self.indices = whole, indices
        self.labels = None if whole.labels is None else whole.labels[indices]
        self.look_ahead = whole.look_ahead

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, indices, keys=None):
        return self.whole.read(self.indices[indices], keys)

    def expect(self, indices, keys=None) -> None:
        self.whole.expect(self.indices[indices], keys)

    def close(self) -> None:
        self.whole.close()


def as_samples(split) -> Samples:
    """What a loader returned for one split: a pair of tensors, a map-style dataset, or Samples already."""
    if isinstance(split, Samples):
        return split
    pair = isinstance(split, (tuple, list)) and len(split) == 2
    if pair and all(hasattr(part, "__len__") for part in split):
        return TensorSamples(*(torch.as_tensor(part) for part in split))
    if hasattr(split, "__getitem__") and hasattr(split, "__len__"):
        return MapSamples(split)
    raise UserError(
        "a dataset returns (train, test), each a pair of tensors or a map-style dataset; "
        f"got {type(split).__name__} for a split"
    )
