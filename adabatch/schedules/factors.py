"""Multipliers along a run: growth of the batch and decay of the learning rate."""

import bisect
import copy
import math
from abc import ABC, abstractmethod
from itertools import accumulate

from adabatch.errors import UserError, suggest
from adabatch.schedules.setting import Frame, Observation

ROUNDINGS = ("down", "nearest", "up")


class Factor(ABC):
    """One multiplier along a run: growth of the batch or decay of the learning rate."""

    needs: frozenset = frozenset()  # what must be measured for it
    closed: bool = False  # whether it learns while training: then it is no function of position
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

    def recorded(self, position: float) -> dict:
        """Fields of the setting that only a recorded trajectory knows."""
        return {}

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


def bound(factor, frame: Frame) -> Factor:
    """The factor bound to a run. UserError: it is none."""
    if not isinstance(factor, Factor):
        name = factor.__name__ if isinstance(factor, type) else type(factor).__name__
        raise UserError(
            "growth and decay derive from adabatch.schedules.Factor; in adabatch.schedules.closed_loop, "
            f"growth may derive from adabatch.schedules.Rule; got {name}"
        )
    return factor.bind(frame)


class Constant(Factor):
    """1 at every position."""

    def __call__(self, position: float) -> float:
        return 1.0


def need(name: str, value, fits=lambda v: v > 0, rule: str = "positive") -> None:
    """UserError unless `value` is a finite number that fits. rule: what fits, in words."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not number or not fits(value):
        raise UserError(f"{name} is {rule}, got {value!r}")


def need_list(name: str, values, fits=lambda v: v > 0, rule: str = "positive", rising: bool = False) -> None:
    """UserError unless `values` is a list of finite numbers that fit, none smaller than the one before if
    `rising`."""
    if not isinstance(values, (list, tuple)):
        raise UserError(f"{name} is a list of numbers, got {values!r}")
    for value in values:
        need(f"each of {name}", value, fits, rule)
    if rising and list(values) != sorted(values):
        raise UserError(f"{name} is in rising order, got {list(values)}")


def one_of(what: str, given: dict, least: int = 1) -> dict:
    """The one argument that is not None. UserError: more than one, or fewer than `least`."""
    found = {name: value for name, value in given.items() if value is not None}
    if not least <= len(found) <= 1:
        names = list(given)
        known = f"{', '.join(names[:-1])} and {names[-1]}"
        got = " and ".join(found) or "none"
        raise UserError(f"{what} is said by one of {known}, got {got}: set the others to null")
    return found


class Steps(Factor):
    """Multiplied by `factor` at every milestone (inclusive).

    How much, one of: factor: a number, or a list with one for each milestone; values: the multiplier itself
    from each milestone on (1 before the first); batches: for growth, the batch size in samples from each
    milestone on. Lists go with a list of milestones.
    Where, at most one of: every: epochs between milestones; every_samples: the same in samples; milestones: a
    list of epochs; milestones_samples: the same in samples. None means a fifth of the run.
    rounding: of a batch size that is no whole number: down, nearest, up.
    """

    def __init__(
        self,
        factor: float | list[float] | None = None,
        every: float | None = None,
        every_samples: int | None = None,
        milestones: list[float] | None = None,
        milestones_samples: list[int] | None = None,
        values: list[float] | None = None,
        batches: list[int] | None = None,
        rounding: str = "down",
    ):
        where = dict(every=every, every_samples=every_samples)
        where |= dict(milestones=milestones, milestones_samples=milestones_samples)
        self.given = one_of("where steps lie", where, least=0)
        ((self.kind, self.size),) = one_of(
            "the height of steps", dict(factor=factor, values=values, batches=batches)
        ).items()
        self.rounding, self.at, self.levels = rounding, [], None
        self._check()

    def _check(self) -> None:
        if self.rounding not in ROUNDINGS:
            known, near = ", ".join(ROUNDINGS), suggest(self.rounding, ROUNDINGS)
            raise UserError(f"rounding is one of {known}, got {self.rounding!r}.{near}")
        marks = None
        for name, value in self.given.items():
            if name.startswith("every"):
                need(name, value)
            else:
                need_list(name, marks := value)
        if self.kind == "factor" and not isinstance(self.size, (list, tuple)):
            need("a step factor", self.size)
            return
        if self.kind == "batches":
            rule = "a positive whole number of samples"
            need_list(self.kind, self.size, lambda v: v >= 1 and v == int(v), rule)
        else:
            need_list(self.kind, self.size)
        if marks is None or len(marks) != len(self.size):
            raise UserError(
                f"a list of {self.kind} goes with a list of as many milestones (or milestones_samples), got "
                f"{self.kind}={list(self.size)} and {self.given or 'none'}"
            )
        need_list("milestones", marks, rising=True)

    def bind(self, frame: Frame) -> "Steps":
        bound, samples, budget = copy.copy(self), frame.samples, frame.budget
        if "milestones" in self.given:
            at = sorted(round(epoch * samples) for epoch in self.given["milestones"])
        elif "milestones_samples" in self.given:
            at = sorted(round(position) for position in self.given["milestones_samples"])
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
        if self.kind == "batches":
            bound.levels = [1.0, *(batch / frame.base_batch for batch in self.size)]
        elif self.kind == "values":
            bound.levels = [1.0, *self.size]
        elif isinstance(self.size, (list, tuple)):
            bound.levels = list(accumulate(self.size, lambda a, b: a * b, initial=1.0))
        return bound

    def __call__(self, position: float) -> float:
        stage = self.stage(position)
        return power(self.size, stage) if self.levels is None else self.levels[stage]

    def stage(self, position: float) -> int:
        return bisect.bisect_right(self.at, position)

    def milestones(self) -> list[int]:
        return list(self.at)


def power(factor: float, count: int) -> float:
    """factor^count; where that leaves the range of floats, a number far beyond any batch."""
    try:
        return float(factor) ** count
    except OverflowError:
        return 1e300
