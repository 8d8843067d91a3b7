"""How a global batch is cut: whole ghost groups, never within one. Arithmetic alone, so that a plan needs no
torch."""

from dataclasses import dataclass
from functools import lru_cache

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


def shared(parts: list, rank: int, world: int) -> tuple[int, list]:
    """(index of the first, all) of the parts that a rank has: contiguous runs, as even as can be."""
    first = len(parts) * rank // world
    return first, parts[first : len(parts) * (rank + 1) // world]


@dataclass(frozen=True)
class Parts:
    """A rank's share of a batch. parts: what is added up from zero each, as lists of forward passes (rows of
    the batch). first: the index of the first of them in the batch. count: how many the batch has. Where a
    rank's passes begin with its own first row, both count its own parts only."""

    parts: list
    first: int
    count: int

    @property
    def passes(self) -> list[slice]:
        return [p for part in self.parts for p in part]


def parts(
    batch: int,
    unit: int,
    micro_batch: int,
    rank: int,
    world: int,
    group: int | None = None,
    grid: bool = False,
) -> Parts:
    """How a rank goes through a batch with ghost groups of `unit` samples.

    group: samples in a noise group, where the batch is measured: a part is a group. grid=True: a part is a
    forward pass of a grid that begins with the batch, so that all ranks together make the same passes on any
    number of ranks. Otherwise a rank's passes begin with its own first row, which loads the ranks more
    evenly.
    """
    if group:
        count = groups_in(batch, group)
        borders = [slice(i * group, batch if i == count - 1 else (i + 1) * group) for i in range(count)]
        first, mine = shared(borders, rank, world)
        return Parts([passes(rows, batch, unit, micro_batch) for rows in mine], first, count)
    if not grid:
        mine = passes(rows(batch, unit, rank, world), batch, unit, micro_batch)
        return Parts([[p] for p in mine], 0, len(mine))
    whole = passes(slice(0, batch), batch, unit, micro_batch)
    first, mine = shared(whole, rank, world)
    return Parts([[p] for p in mine], first, len(whole))


@lru_cache(maxsize=64)
def share(
    batch: int, unit: int, micro_batch: int, world: int, group: int | None = None, grid: bool = False
) -> tuple[int, int]:
    """(the most forward passes of a rank, samples in the largest of any), for `world` ranks: see `parts`."""
    each = [parts(batch, unit, micro_batch, rank, world, group, grid).passes for rank in range(world)]
    return max(map(len, each)), max(p.stop - p.start for passes in each for p in passes)


def whole_groups(micro_batch: int, unit: int) -> int:
    """A forward pass holds whole ghost groups of `unit` samples, one at the least: what that makes of a
    wish."""
    return max(1, micro_batch // unit) * unit


def longest(
    batch: int,
    unit: int,
    world: int,
    ordered: bool = False,
    compiled: bool = False,
    group: int | None = None,
) -> int:
    """The samples beyond which a forward pass cannot grow in a run, in whole ghost groups of `unit`.

    batch: the run's largest; where every batch should be made of equal passes, its first. compiled: so that
    a growing batch keeps the one compiled shape (and no more than `group`, the noise group of a run that
    measures, at whose borders passes end). ordered: passes are dealt out whole, so a quarter of the first
    batch on any number of ranks: bits depend on the micro-batch, and shall not on the ranks.
    """
    groups = groups_in(batch, unit)
    if ordered:
        return unit * max(1, groups // 4)
    if not compiled:
        return unit * -(-groups // world)
    most = unit * max(1, groups // world)
    return min(most, group) if group else most


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
