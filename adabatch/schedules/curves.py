"""Multipliers that follow a curve: learning rates that fall smoothly, batches that rise.

Learning rate (x = position / run): Cosine, OneCycle, PiecewiseLinear. Batch: LinearRamp, PadaDamp. Either:
CosineSteps. All are functions of position, fixed when they are bound to a run. A learning rate is read at a
batch's first sample, so the value at the very end of a run is never trained with.
"""

import bisect
import copy
import math

from adabatch.errors import UserError, suggest
from adabatch.schedules.factors import Factor, need, need_list, one_of
from adabatch.schedules.setting import Frame

COSINES = ("half", "quarter")


def between(start: float, stop: float, share: float) -> float:
    """From start to stop along half a cosine, share from 0 to 1."""
    return stop + (start - stop) * (1 + math.cos(math.pi * share)) / 2


class Cosine(Factor):
    """From 1 to `end` along half a cosine over the run: end + (1 - end) (1 + cos(pi x)) / 2 (Loshchilov and
    Hutter 2017, arXiv 1608.03983, without restarts)."""

    def __init__(self, end: float = 0.0):
        need("the end of a cosine", end, lambda v: 0 <= v <= 1, "from 0 to 1")
        self.end, self.budget = end, 1

    def bind(self, frame: Frame) -> "Cosine":
        bound = copy.copy(self)
        bound.budget = frame.budget
        return bound

    def __call__(self, position: float) -> float:
        return between(1.0, self.end, min(1.0, position / self.budget))


class OneCycle(Factor):
    """One cycle (Smith and Topin, arXiv 1708.07120): from `start` to 1 over the share `rise` of the run, then
    to `end`, along half cosines. The defaults are torch.optim.lr_scheduler.OneCycleLR's: start = 1 /
    div_factor, end = start / final_div_factor. torch's lies on its N steps, peak at step rise * N - 1; this
    one on samples, peak at rise * budget. base_lr is the peak; momentum stays as it is.
    """

    def __init__(self, rise: float = 0.3, start: float = 0.04, end: float = 4e-6):
        need("the rise of one cycle", rise, lambda v: 0 < v < 1, "a share of the run between 0 and 1")
        for name, value in dict(start=start, end=end).items():
            need(f"the {name} of one cycle", value, lambda v: 0 <= v <= 1, "from 0 to 1")
        self.rise, self.start, self.end, self.budget = rise, start, end, 1

    def bind(self, frame: Frame) -> "OneCycle":
        bound = copy.copy(self)
        bound.budget = frame.budget
        return bound

    def __call__(self, position: float) -> float:
        share = min(1.0, position / self.budget)
        if share < self.rise:
            return between(self.start, 1.0, share / self.rise)
        return between(1.0, self.end, (share - self.rise) / (1 - self.rise))

    def stage(self, position: float) -> int:
        return int(position / self.budget >= self.rise)


class PiecewiseLinear(Factor):
    """Straight lines from knot to knot, constant before the first and after the last.

    values: the multiplier at each knot, from 0. Where the knots are, one of: fractions of the run, epochs,
    samples. The triangles of the 94 % CIFAR-10 recipes: fractions 0, 0.23, 1 and values 0.2, 1, 0.07 (Jordan
    2024, arXiv 2404.00498).
    """

    def __init__(
        self,
        values: list[float],
        epochs: list[float] | None = None,
        samples: list[int] | None = None,
        fractions: list[float] | None = None,
    ):
        ((self.unit, self.knots),) = one_of(
            "where the knots lie", dict(epochs=epochs, samples=samples, fractions=fractions)
        ).items()
        need_list(self.unit, self.knots, lambda v: v >= 0, "0 or more", rising=True)
        need_list("values", values, lambda v: v >= 0, "0 or more")
        if not values or len(values) != len(self.knots) or len(set(self.knots)) != len(self.knots):
            raise UserError(
                "piecewise-linear values stand at as many different knots, got "
                f"values={list(values)} at {self.unit}={list(self.knots)}"
            )
        if not any(values):
            raise UserError(f"one of the values must be above 0, got values={list(values)}")
        self.values, self.at = list(values), list(self.knots)

    def bind(self, frame: Frame) -> "PiecewiseLinear":
        bound = copy.copy(self)
        unit = {"epochs": frame.samples, "samples": 1, "fractions": frame.budget}[self.unit]
        bound.at = [knot * unit for knot in self.knots]
        return bound

    def __call__(self, position: float) -> float:
        passed = self.stage(position)
        if passed == 0 or passed == len(self.at):
            return self.values[max(0, passed - 1)]
        left, right = self.at[passed - 1], self.at[passed]
        share = (position - left) / (right - left)
        return self.values[passed - 1] * (1 - share) + self.values[passed] * share

    def stage(self, position: float) -> int:
        return bisect.bisect_right(self.at, position)


class CosineSteps(Factor):
    """A staircase at the positions where a cosine has fallen by 1 / factor, 1 / factor^2, ...: there the
    value is multiplied by `factor` (Seesaw, Meterez et al. 2025, arXiv 2510.14717).

    factor: a step of the staircase; one below 1 falls, and so does any with falls=True: the positions are the
    same. cosine: half = end + (1 - end) (1 + cos(pi x)) / 2; quarter = end + (1 - end) cos(pi x / 2).
    Small steps without a cap save 1/2 of the updates of a fixed batch, or 1 - 2/pi = 36 % (end = 0).
    """

    def __init__(self, factor: float, cosine: str = "half", end: float = 0.0, falls: bool = False):
        rule = "positive and at least 0.1 % away from 1"
        need("the factor of cosine steps", factor, lambda v: v > 0 and max(v, 1 / v) > 1.001, rule)
        need("the end of a cosine", end, lambda v: 0 <= v < 1, "from 0 to below 1")
        if cosine not in COSINES:
            raise UserError(f"cosine is half or quarter, got {cosine!r}.{suggest(cosine, COSINES)}")
        self.level, self.falls = max(factor, 1 / factor), falls or factor < 1
        self.cosine, self.end, self.at = cosine, end, []

    def bind(self, frame: Frame) -> "CosineSteps":
        bound = copy.copy(self)
        bound.at = []
        while True:
            level = self.level ** -(len(bound.at) + 1)
            reached = (level - self.end) / (1 - self.end)  # of the cosine itself
            if reached <= 0:
                return bound
            half = self.cosine == "half"
            share = (math.acos(2 * reached - 1) if half else 2 * math.acos(reached)) / math.pi
            position = math.ceil(share * frame.budget - 1e-9)  # the first at which it has fallen so far
            if position >= frame.budget:
                return bound
            bound.at.append(position)

    def __call__(self, position: float) -> float:
        return self.level ** (-self.stage(position) if self.falls else self.stage(position))

    def stage(self, position: float) -> int:
        return bisect.bisect_right(self.at, position)

    def milestones(self) -> list[int]:
        return list(self.at)


class LinearRamp(Factor):
    """A batch that rises in a straight line of position from base_batch to `to` samples, then stays (GPT-3,
    arXiv 2005.14165; MT-NLG, arXiv 2201.11990; Megatron-LM's --rampup-batch-size).

    over: epochs that it takes; over_samples: the same in samples; none means a fifth of the run. increment:
    the batch grows by whole increments of so many samples; None = the schedule's `multiple`.
    """

    def __init__(
        self,
        to: int,
        over: float | None = None,
        over_samples: int | None = None,
        increment: int | None = None,
    ):
        whole = "a positive whole number of samples"
        for name, value in dict(to=to, increment=1 if increment is None else increment).items():
            need(f"{name} of a ramp", value, lambda v: v >= 1 and v == int(v), whole)
        self.given = one_of("the length of a ramp", dict(over=over, over_samples=over_samples), least=0)
        for name, value in self.given.items():
            need(f"{name} of a ramp", value)
        self.to, self.increment = int(to), increment and int(increment)
        self.start, self.length, self.budget = to, 1, 1

    def bind(self, frame: Frame) -> "LinearRamp":
        if self.to < frame.base_batch:
            raise UserError(f"a ramp rises: its end to={self.to} is below base_batch={frame.base_batch}")
        bound = copy.copy(self)
        epochs = self.given.get("over", frame.budget / 5 / frame.samples)
        bound.length = max(1, round(self.given.get("over_samples", epochs * frame.samples)))
        bound.start, bound.budget = frame.base_batch, frame.budget
        bound.increment = self.increment or frame.multiple
        return bound

    def __call__(self, position: float) -> float:
        return min(self.start + self.stage(position) * self.increment, self.to) / self.start

    def stage(self, position: float) -> int:
        """Increments up to here, the last one cut to end at `to`."""
        rise = self.to - self.start
        if position >= self.length:
            return math.ceil(rise / self.increment)
        return int(rise * position // (self.length * self.increment))

    def milestones(self) -> list[int]:
        rise = self.to - self.start
        grown = range(self.increment, rise + self.increment, self.increment)
        at = (-(-min(by, rise) * self.length // rise) for by in grown)  # rounded up
        return [position for position in at if position < self.budget]


class PadaDamp(Factor):
    """PadaDamp (Sievert and Shah, arXiv 1910.08222; code stsievert/adadamp): the batch is
    ceil(base_batch + rate * k) after k updates, looked at every `dwell` updates from the `wait`-th on. The
    growth that the cap forbids lowers the learning rate, as in the source.

    The source counts updates, so these three do as well. Updates follow from positions: bind walks through
    the run with the batches that will be trained, from one change to the next (cost: one step per change).
    With `stretch` it is the run before stretching that is walked; tails that compat=nvlabs drops are not
    taken out.
    """

    rounding = "up"

    def __init__(self, rate: float = 1e-3, dwell: int = 20, wait: int = 100):
        need("the rate of PadaDamp", rate)
        need("the dwell of PadaDamp", dwell, lambda v: v >= 1 and v == int(v), "a whole number from 1")
        need("the wait of PadaDamp", wait, lambda v: v >= 0 and v == int(v), "a whole number from 0")
        self.rate, self.dwell, self.wait = rate, dwell, wait
        self.base, self.at, self.planned = 1, [], [1]

    def bind(self, frame: Frame) -> "PadaDamp":
        bound = copy.copy(self)
        bound.base, position, updates = frame.base_batch, 0, 0
        bound.at, bound.planned = [], [frame.planned(frame.base_batch, self.rounding)]
        while True:
            ahead = self._change(updates, bound.planned[-1], frame)
            position += (ahead - updates) * min(bound.planned[-1], frame.cap)
            if position >= frame.budget:
                return bound
            updates = ahead
            bound.at.append(position)
            bound.planned.append(self._planned(updates, frame))

    def _planned(self, updates: int, frame: Frame) -> int:
        return frame.planned(frame.base_batch + self.rate * updates, self.rounding)

    def _change(self, updates: int, planned: int, frame: Frame) -> int:
        """The first update after `updates` at which a look at the batch finds it larger than `planned`."""
        least = (planned - frame.base_batch) / self.rate * (1 - 1e-9)
        looks = math.ceil(max(least, self.wait, updates + 1) / self.dwell)
        while self._planned(looks * self.dwell, frame) <= planned:
            looks += 1
        return looks * self.dwell

    def __call__(self, position: float) -> float:
        return self.planned[self.stage(position)] / self.base

    def stage(self, position: float) -> int:
        return bisect.bisect_right(self.at, position)

    def milestones(self) -> list[int]:
        return list(self.at)
