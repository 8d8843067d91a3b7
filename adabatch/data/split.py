"""Which samples are held out and which are kept: fixed rules that depend on the data and on no seed.

Validation is taken first, from the whole training split; `limit` then keeps the first N of what is left. So a
validation set is the same for every limit, and smaller limits are subsets of larger ones.
"""

import torch

from adabatch import draws
from adabatch.data.samples import Samples, Subset, TensorSamples
from adabatch.errors import UserError

SPLIT = 0x53504C4954  # sets these permutations apart from those that a run's seed makes
TEST, VALIDATION, LIMIT = 1, 2, 3


def stratified(labels, count: int, purpose: int):
    """Hold out `count` of the samples, of each class in proportion. Returns (rest, held), int64, ascending.

    labels: int64 [n]. Every class gives floor(count * share); the samples still missing come one each from
    the classes with the largest remainders, ties to the smaller class number. Within a class a fixed
    permutation decides.
    """
    total = len(labels)
    order = draws.permutation(draws.key(SPLIT, purpose), total)
    classes, sizes = torch.unique(labels, return_counts=True)
    quotas = sizes * count // total
    remainders = sizes * count % total  # integers: no rounding decides who is held out
    missing = count - int(quotas.sum())
    quotas[torch.argsort(-remainders, stable=True)[:missing]] += 1
    held = torch.zeros(total, dtype=torch.bool)
    for label, quota in zip(classes.tolist(), quotas.tolist(), strict=True):
        held[order[labels[order] == label][:quota]] = True
    return torch.nonzero(~held).flatten(), torch.nonzero(held).flatten()


def held_out(total: int, labels, count: int, purpose: int):
    """`stratified` where labels are class numbers (integers [n]), else the first `count` of a permutation."""
    if labels is not None and labels.ndim == 1 and not labels.is_floating_point():
        return stratified(labels.cpu(), count, purpose)
    order = draws.permutation(draws.key(SPLIT, purpose), total)
    return order[count:].sort().values, order[:count].sort().values


def split_indices(total: int, labels=None, limit=None, validation=0):
    """The samples to train on and those to validate on: (int64 [n], int64 [validation] or None), ascending.

    Raises UserError where `validation` or `limit` is not a whole number, or asks for more than there is.
    """
    validation = _whole("dataset.validation", validation or 0)
    if not 0 <= validation < total:
        raise UserError(
            f"dataset.validation must leave samples to train on: it is {validation:,} of {total:,} training "
            f"samples; choose 0 to {total - 1:,}"
        )
    rest, held = torch.arange(total), None
    if validation:
        rest, held = held_out(total, labels, validation, VALIDATION)
    if limit is None:
        return rest, held
    limit = _whole("dataset.limit", limit)
    if not 1 <= limit <= len(rest):
        after = f" after {validation:,} for validation" if validation else ""
        raise UserError(
            f"dataset.limit must be 1 to {len(rest):,}, the training samples there are{after}; it is "
            f"{limit:,} (null keeps all)"
        )
    chosen = torch.zeros(total, dtype=torch.bool)
    chosen[rest] = True
    order = draws.permutation(draws.key(SPLIT, LIMIT), total)
    return order[chosen[order]][:limit].sort().values, held


def split_train(samples: Samples, limit=None, validation=0):
    """(train, validation or None) of a training split; `samples` itself where nothing is taken from it."""
    train, held = split_indices(len(samples), samples.labels, limit, validation)
    if held is None and len(train) == len(samples):
        return samples, None
    return select(samples, train), None if held is None else select(samples, held)


def select(samples: Samples, indices) -> Samples:
    """The samples at `indices` (int64 [n] on the CPU): copied where they are tensors, else read through."""
    if isinstance(samples, TensorSamples):
        return TensorSamples(*samples.read(indices))
    return Subset(samples, indices)


def _whole(name: str, value) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise UserError(f"{name} must be a whole number of samples; it is {value!r}")
    return value
