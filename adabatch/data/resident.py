"""Pictures that live in memory, cropped and mirrored as they are read.

Costs memory: every picture padded, and its mirror image, as stored (CIFAR-10 in bytes, pad 4: 480 MB next to
154 MB, which are no longer touched). Made at the first reading.
"""

import copy
import math
from functools import cached_property

from adabatch.data.augment import Augment, Prepare
from adabatch.data.samples import Samples, TensorSamples

MOST = 1 << 30  # bytes; larger sets are padded batch by batch, as pictures from elsewhere are


class Resident(Samples):
    """`whole`, whose pictures come as `augment` crops and mirrors them by their keys: what is left for
    `Prepare` is the rest of it."""

    def __init__(self, whole: TensorSamples, augment: Augment, memory_format):
        self.whole, self.labels = whole, whole.labels
        self.augment, self.memory_format = augment, memory_format

    def __len__(self) -> int:
        return len(self.whole)

    @cached_property
    def windows(self):
        return self.augment.windows(self.whole.inputs, self.memory_format)

    def read(self, indices, keys=None):
        if keys is None:
            return self.whole.read(indices)
        labels = self.labels.index_select(0, indices.to(self.labels.device, non_blocking=True))
        return self.augment.read(self.windows, indices.numpy(), keys), labels

    def close(self) -> None:
        self.whole.close()


def resident(samples: Samples, prepare: Prepare) -> tuple[Samples, Prepare]:
    """What a stream reads from and prepares with, given what it would: the same pictures, sooner."""
    augment = prepare.augment
    if not isinstance(samples, TensorSamples) or samples.inputs.dim() != 4 or not augment:
        return samples, prepare
    if augment.scale or not (augment.pad or augment.flip) or size(samples.inputs, augment) > MOST:
        return samples, prepare
    rest = copy.copy(prepare)
    rest.augment = Augment(cutout=augment.cutout)
    return Resident(samples, augment, prepare.memory_format), rest


def size(inputs, augment: Augment) -> int:
    """Bytes that the pictures take when they are laid out."""
    sides = (side + 2 * augment.pad for side in inputs.shape[2:])
    return math.prod((*inputs.shape[:2], *sides)) * inputs.element_size() * (1 + augment.flip)
