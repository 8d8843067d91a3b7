"""Other ways to cut a run's batches."""

from adabatch import cutting
from adabatch.verify.recorded import Recorded


def micro_batches(reference: Recorded) -> list[int]:
    """Two micro-batches, if there are so many, that cut the reference's batches otherwise than it did: about
    halves, and one that does not divide the batch."""
    unit, sizes = reference.meta["unit"], sorted({step.batch for step in reference.steps})

    def cut(micro: int) -> list[tuple]:
        return [tuple(p.stop for p in cutting.passes(slice(0, b), b, unit, micro)) for b in sizes]

    def usable(micro: int) -> bool:  # a pass of a single sample has no variance in a plain batch norm
        ends = [(0, *row) for row in cut(micro)]
        return unit > 1 or all(b - a > 1 for row in ends for a, b in zip(row, row[1:]))

    smallest = next((b for b in sizes if b >= 2 * unit), sizes[-1])
    halves = cutting.whole_groups(smallest // 2, unit)
    near = {b: sorted(range(unit, b, unit), key=lambda m, b=b: abs(m - 2 * b / 3)) for b in sizes}
    odd = [m for b in (smallest, sizes[-1]) for m in near[b] if b % m]
    found, known = [], [cut(reference.meta["micro_batch"])]
    for micro in (halves, *odd, *(m for m in (unit,) if unit > 1)):
        if usable(micro) and cut(micro) not in known and len(found) < 2:
            found.append(micro)
            known.append(cut(micro))
    return found
