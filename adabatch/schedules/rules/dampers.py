"""Dampers: the batch grows as the loss falls (Sievert and Shah 2019, arXiv 1910.08222; code
github.com/stsievert/adadamp). Beyond the largest batch the learning rate falls instead, by largest / wished.
"""

import math

from adabatch.errors import UserError
from adabatch.schedules.closed import Rule, Seen
from adabatch.schedules.setting import Frame


class AdaDamp(Rule):
    """batch = ceil(base_batch (F(w_0) - F*) / (F(w_k) - F*)), on the loss of the validation split: of raw or
    averaged weights, as evaluated. w_0: before training. The source takes the loss of the whole training set,
    every 20 updates after the first 100; here it is decided at each evaluation.

    best: F*, the smallest loss there can be; at or below it nothing is decided.
    """

    needs = frozenset({"validation"})
    memory = "the first validation loss"
    rounding, above_cap = "up", True

    def __init__(self, best: float = 0.0):
        self.best, self.first = best, None

    def wish(self, seen: Seen) -> float | None:
        loss = seen.validation[0]
        if self.first is None:
            if not math.isfinite(loss):
                return None
            if not loss > self.best:
                raise UserError(
                    f"schedule.growth.best is below every loss of the run, got {self.best} and a first "
                    f"validation loss of {loss:g}"
                )
            self.first = loss
        if loss <= self.best:
            return None  # the formula has no value; the batch of the last one stays
        return seen.frame.base_batch * (self.first - self.best) / (loss - self.best)

    def state_dict(self) -> dict:
        return {"first": self.first}

    def load_state_dict(self, state: dict) -> None:
        self.first = state["first"]


class RadaDamp(Rule):
    """batch = ceil(base_batch / ((L / L_0 + N / N_0) / 2)), never below base_batch; L the loss of a training
    batch, N the squared norm of its gradient.

    Both are the smallest values since the last decision, smoothed: L <- rho L + (1 - rho) min. L_0, N_0: the
    smallest of the first `wait` samples (which the first decision sees too). window: samples from decision to
    decision. None: 100 and 20 batches of base_batch; the source counts 100 and 20 updates of whatever size,
    which is the same until the batch grows.
    """

    needs = frozenset({"trace", "sq_norm", "loss"})
    memory = "two losses and norms"
    rounding, above_cap = "up", True

    def __init__(self, rho: float = 0.2, wait: int | None = None, window: int | None = None):
        if not 0 <= rho < 1:
            raise UserError(f"schedule.growth.rho is a number from 0 to below 1, got {rho}")
        for name, value in (("wait", wait), ("window", window)):
            if value is not None and not value > 0:
                raise UserError(f"schedule.growth.{name} is a positive number of samples, got {value}")
        self.rho, self.wait, self.window = rho, wait, window
        self.passed, self.first, self.smooth, self.lowest = 0, None, None, None  # pairs of (loss, norm)

    def bind(self, frame: Frame) -> None:
        self.wait = (self.wait or 100 * frame.base_batch) * frame.stretch
        self.window = (self.window or 20 * frame.base_batch) * frame.stretch

    def wish(self, seen: Seen) -> float | None:
        # At the trained batch this is the measured norm; a shadow has a batch of its own.
        norm = seen.noise.raw(min(seen.batch, seen.frame.cap))
        now = (seen.loss, norm)
        self.lowest = now if self.lowest is None else tuple(map(min, self.lowest, now))
        passed = seen.end // self.window
        if seen.end < self.wait or passed <= self.passed:
            return None
        self.passed = passed
        if self.first is None:
            self.first = self.smooth = self.lowest
            return seen.frame.base_batch
        self.smooth = tuple(
            self.rho * old + (1 - self.rho) * new for old, new in zip(self.smooth, self.lowest)
        )
        self.lowest = None
        damping = sum(value / first for value, first in zip(self.smooth, self.first)) / 2
        return max(seen.frame.base_batch / damping, seen.frame.base_batch) if damping > 0 else math.inf

    def state_dict(self) -> dict:
        pairs = dict(first=self.first, smooth=self.smooth, lowest=self.lowest)
        return {"passed": self.passed} | {name: pair and list(pair) for name, pair in pairs.items()}

    def load_state_dict(self, state: dict) -> None:
        self.passed = state["passed"]
        for name in ("first", "smooth", "lowest"):
            setattr(self, name, state[name] and tuple(state[name]))
