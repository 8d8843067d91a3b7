"""Multipliers along a run: growth of the batch and decay of the learning rate."""

import bisect
import copy
import math
from abc import ABC, abstractmethod

from adabatch.errors import UserError
from adabatch.schedules.setting import Frame, Observation


class Factor(ABC):
    """One multiplier along a run: growth of the batch or decay of the learning rate."""

    needs: frozenset = frozenset()  # what must be measured for it
    rounding: str = "down"  # of base_batch times this factor, as its source rounds: down, nearest, up

    def bind(self, frame: Frame) -> "Factor":
        """The same factor for a run of `frame.budget` samples, `frame.samples` in an epoch."""
        return self

    @abstractmethod
    def __call__(self, position: float) -> float:
        """The multiplier at a position in samples."""

    def stage(self, position: float) -> int:
        """Equal for positions between which the factor does not step."""
        return 0

    def milestones(self) -> list[int]:
        """Positions at which it steps, within the run; empty where it never does."""
        return []

    def observe(self, seen: Observation, average, updates: int) -> None:
        """Closed-loop factors learn here. average: of the noise; updates: finished steps."""

    def evaluated(self, position: int, loss: float, error: float | None) -> None:
        """Factors that follow the validation loss learn here."""

    def figures(self) -> dict:
        """What is worth logging of the last observation."""
        return {}

    def state_dict(self) -> dict:
        return {}

    def load_state_dict(self, state: dict) -> None:
        """Nothing to restore in a factor that is a function of position."""


class Constant(Factor):
    """1 at every position."""

    def __call__(self, position: float) -> float:
        return 1.0


class Steps(Factor):
    """Multiplied by `factor` at every milestone (inclusive).

    every: epochs between milestones; every_samples: the same in samples; milestones: a list of epochs. At
    most one of the three; none means a fifth of the run.
    """

    def __init__(
        self,
        factor: float,
        every: float | None = None,
        every_samples: int | None = None,
        milestones: list[float] | None = None,
    ):
        given = {"every": every, "every_samples": every_samples, "milestones": milestones}
        self.given = {name: value for name, value in given.items() if value is not None}
        if len(self.given) > 1:
            raise UserError(
                f"a step factor takes one of every, every_samples, milestones; got {' and '.join(self.given)}"
            )
        if not factor > 0:
            raise UserError(f"a step factor is positive, got factor={factor}")
        for name, value in self.given.items():
            if not (all(v > 0 for v in value) if name == "milestones" else value > 0):
                raise UserError(f"{name} is positive, got {value}")
        self.factor, self.at = factor, []

    def bind(self, frame: Frame) -> "Steps":
        bound, samples, budget = copy.copy(self), frame.samples, frame.budget
        if "milestones" in self.given:
            at = sorted(round(epoch * samples) for epoch in self.given["milestones"])
        else:
            distance = (
                self.given.get("every_samples")
                or self.given.get("every", max(budget / 5, 1) / samples) * samples
            )
            if distance < 1:
                raise UserError(
                    f"steps are at least one sample apart, got {self.given}, which is {distance:g} samples"
                )
            at = [round(k * distance) for k in range(1, math.ceil(budget / distance) + 1)]
        bound.at = [position for position in at if position < budget]
        return bound

    def __call__(self, position: float) -> float:
        return self.factor ** self.stage(position)

    def stage(self, position: float) -> int:
        return bisect.bisect_right(self.at, position)

    def milestones(self) -> list[int]:
        return list(self.at)
