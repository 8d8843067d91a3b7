"""How a global batch is cut: whole ghost groups, never within one. Arithmetic alone, so that a plan needs no
torch."""

from adabatch.errors import UserError


def groups_in(count: int, unit: int) -> int:
    """Ghost groups of `unit` samples in a batch of `count`: a remainder below half a group joins the last."""
    whole, rest = divmod(count, unit)
    return max(1, whole + (rest > 0 and 2 * rest >= unit))


def rows(batch_size: int, unit: int, rank: int, world: int) -> slice:
    """The rows of a global batch that a rank has: contiguous, cut at borders of ghost groups of `unit`
    samples; more ranks than groups leave some empty."""
    groups = groups_in(batch_size, unit)

    def border(rank: int) -> int:
        index = groups * rank // world
        return batch_size if index == groups else index * unit

    return slice(border(rank), border(rank + 1))


def passes(rows: slice, batch_size: int, unit: int, micro_batch: int) -> list[slice]:
    """The forward passes over `rows`: as many whole groups as fit in `micro_batch` (one at the least). The
    last may be longer by a remainder that joined its last group."""
    groups = groups_in(batch_size, unit)
    step = whole_groups(micro_batch, unit)
    starts = [s for s in range(rows.start, rows.stop, step) if s // unit < groups]
    return [slice(a, b) for a, b in zip(starts, [*starts[1:], rows.stop], strict=False)]


def whole_groups(micro_batch: int, unit: int) -> int:
    """A forward pass holds whole ghost groups of `unit` samples, one at the least: what that makes of a
    wish."""
    return max(1, micro_batch // unit) * unit


def noise_group(wanted: int | None, unit: int, base_batch: int) -> int:
    """Samples in a noise group: `schedule.noise_group`, or where that is null half of base_batch in whole
    ghost groups of `unit`, one at least. UserError: it would cut a ghost group."""
    group = wanted or max(unit, base_batch // 2 // unit * unit, 1)
    if group % unit:
        raise UserError(
            f"schedule.noise_group={group} is not a multiple of the ghost group of {unit} samples: take "
            f"{whole_groups(group, unit)}, or another model.ghost or model.norm"
        )
    return group
