"""One line of the verdict."""

import dataclasses
import math
from dataclasses import dataclass

KINDS = ("twice", "killed", "micro-batch", "processes", "elastic")  # of comparisons: what --only chooses from


@dataclass(frozen=True)
class Check:
    """max_relative_difference: of the weights after the run, or of what the name says; None where nothing of
    the kind is compared. promised: its largest value, 0 = the same bits, None = nothing is promised. reason:
    what parted first, or why nothing is promised. position: where weights part first."""

    name: str
    max_relative_difference: float | None
    promised: float | None
    passed: bool
    reason: str | None = None
    position: int | None = None

    def json(self) -> dict:
        found, far = dataclasses.asdict(self), self.max_relative_difference
        return found | {"max_relative_difference": far if far is None or math.isfinite(far) else None}
