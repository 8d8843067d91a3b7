"""Which ways of taking a step are timed: plain numbers."""

from dataclasses import dataclass

from adabatch import cutting

DOUBLINGS = 5  # from the first batch on, unless the schedule goes further
ACCUMULATED = (2, 4)


@dataclass(frozen=True)
class Way:
    """A global batch, and the largest forward pass it is cut into. plain: as a run would cut it."""

    batch_size: int
    micro_batch: int
    plain: bool


def sizes(first: int, largest: int, cap: int) -> list[int]:
    """first * 2^k up to 32 * first or to `largest`, whichever is more, and never above the cap."""
    most, found = min(cap, max(first << DOUBLINGS, largest)), [min(first, cap)]
    while 2 * found[-1] <= most:
        found.append(2 * found[-1])
    return found


def ways(batches, fits: int, unit: int, world: int, counts=ACCUMULATED) -> list[Way]:
    """Each batch as a run would cut it, and, so that what a step costs whatever its size can be told apart
    from its passes, the smallest, the middle and the largest pass also several times in one step.

    fits: the largest pass that a run takes; unit: samples of a ghost group; counts: numbers of passes.
    """
    plain = [Way(b, min(fits, cutting.longest(b, unit, world)), True) for b in sorted(set(batches))]
    passes = sorted({way.micro_batch for way in plain})
    chosen = sorted({passes[0], passes[len(passes) // 2], passes[-1]})
    largest, found = max(way.batch_size for way in plain), {(w.batch_size, w.micro_batch): w for w in plain}
    for micro in chosen:
        for count in counts:
            batch = micro * count * world
            # The largest pass is repeated beyond the largest batch where nothing else would repeat it.
            if batch <= largest or (micro == passes[0] and count == min(counts)):
                found.setdefault((batch, micro), Way(batch, micro, False))
    return list(found.values())
