"""The gradient noise scale (McCandlish et al. 2018, arXiv 1812.06162)."""

from adabatch.errors import UserError
from adabatch.schedules.closed import Rule, Seen


class NoiseScale(Rule):
    """batch = factor * tr(S) / |G|^2, the batch at which noise and signal of a gradient are equally large;
    the source's critical batch is of this order (its section 2.2)."""

    needs = frozenset({"trace", "sq_norm"})

    def __init__(self, factor: float = 1.0):
        if not factor > 0:
            raise UserError(f"schedule.growth.factor is positive, got {factor}")
        self.factor = factor

    def wish(self, seen: Seen) -> float | None:
        return None if seen.scale is None else self.factor * seen.scale
