"""Closed-loop schedules: a rule says which batch size it would choose, this file decides whether it is taken.

Rounding, the cap, dwell (no change within so many samples), hysteresis (a change must be worth more than a
share) and whether the batch may shrink live here, once, for every rule. A rule of your own is a class with
one method:

    class Mine(Rule):
        needs = frozenset({"trace", "sq_norm"})
        def wish(self, seen):
            return seen.scale          # None: no decision
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

from adabatch.errors import UserError
from adabatch.noise import Average, Noise
from adabatch.schedules.core import Schedule, refuse_sizes
from adabatch.schedules.factors import Factor
from adabatch.schedules.foreign import answer
from adabatch.schedules.measuring import Measuring
from adabatch.schedules.setting import Frame, Observation

# What a rule may ask for, and what it costs on a measuring step.
NEEDS = {
    "trace": "tr(S): the norm of each group's gradient",
    "sq_norm": "|G|^2: the same",
    "halves": "cosine of two halves: one gradient more in memory",
    "inner": "<g_i, g>: a second pass over the batch, two gradients in double precision in memory",
    "per_sample": "|g_i|^2 of single samples: a pass over the batch sample by sample, norms in "
    "evaluation mode",
    "epoch_sum": "sum of the gradients of an epoch: one gradient more in memory and checkpoint",
    "loss": "the batch's loss: a wait for the device",
    "validation": "dataset.validation: loss and error of an evaluation",
}


@dataclass(frozen=True)
class Seen:
    """What a rule sees when it is asked. batch: the size it chose last (before the cap of dampers), lr: of
    the batch that was trained; end: the position after it."""

    position: int
    end: int
    batch: int
    lr: float
    updates: int  # finished steps of the run; at an evaluation 0, and lr nan
    frame: Frame  # samples, base_batch, cap
    noise: Noise | None = None  # this measurement
    average: Average | None = None
    loss: float | None = None  # training loss of this batch
    validation: tuple | None = None  # (loss, error) of an evaluation

    @property
    def resolved(self) -> bool:
        return self.average is not None and self.average.resolved

    @property
    def trace(self) -> float | None:
        """tr(S), averaged; None before the first measurement."""
        return self.average.trace if self.average else None

    @property
    def sq_norm(self) -> float | None:
        """|G|^2, averaged."""
        return self.average.sq_norm if self.average else None

    @property
    def scale(self) -> float | None:
        """tr(S) / |G|^2 in samples; None while unresolved: then decide nothing."""
        return self.average.scale if self.average else None


class Rule(ABC):
    """Which batch size a published rule would choose."""

    needs: frozenset = frozenset()  # names of NEEDS
    memory: str = "none"  # what it keeps beside the averages, for the plan
    rounding: str = "nearest"  # as its source rounds: down, nearest, up
    above_cap: bool = False  # dampers: what the cap forbids becomes decay of the learning rate

    @abstractmethod
    def wish(self, seen: Seen) -> float | None:
        """The batch size that it would choose now, in samples; None: no decision."""

    def worth(self, seen: Seen, batch: int) -> float:
        """By which share a change to `batch` would pay, compared with `hysteresis`: the change itself, unless
        the rule knows better."""
        return max(batch / seen.batch, seen.batch / batch) - 1

    def bind(self, frame: Frame) -> None:
        """Called once, before the run, with its samples, base_batch and cap."""

    def state_dict(self) -> dict:
        return {}

    def load_state_dict(self, state: dict) -> None:
        """Nothing to restore in a rule without memory."""


class Controller(Factor):
    """Growth by a rule. dwell: samples between two changes. hysteresis: share that a change must be worth.
    shrink: whether the batch may fall (never below base_batch)."""

    closed = True
    rounding = "nearest"  # what it returns is whole already

    def __init__(self, rule: Rule, dwell: int = 0, hysteresis: float = 0.0, shrink: bool = False):
        if not (dwell >= 0 and hysteresis >= 0):
            raise UserError(
                f"schedule.dwell and schedule.hysteresis are 0 or more, got {dwell} and {hysteresis}"
            )
        unknown = set(rule.needs) - set(NEEDS)
        if unknown:
            known = ", ".join(NEEDS)
            raise UserError(f"{type(rule).__name__}.needs names {', '.join(unknown)}; there is: {known}")
        self.rule, self.dwell, self.hysteresis, self.shrink = rule, dwell, hysteresis, shrink
        self.batch, self.changed, self.wished = 0, None, None

    @property
    def needs(self) -> frozenset:
        return frozenset(self.rule.needs)

    def bind(self, frame: Frame) -> "Controller":
        self.frame, self.batch, self.heard = frame, frame.planned(frame.base_batch), None
        self.rule.bind(frame)
        return self

    def __call__(self, position: float) -> float:
        return self.batch / self.frame.base_batch

    def observe(self, seen: Observation, average: Average | None, updates: int) -> None:
        self.wished, self.heard = self.heard, None  # what an evaluation said is logged with the next step
        needs = self.needs
        if "validation" in needs or (seen.noise is None and needs - {"loss"}):
            return
        if "loss" in needs and seen.loss is None:
            return
        s = seen.setting
        end, lr = seen.position + s.batch_size, s.lr if s.untwinned is None else s.untwinned
        view = Seen(seen.position, end, self.batch, lr, updates, self.frame, seen.noise, average, seen.loss)
        self.wished = self._ask(view)

    def evaluated(self, position: int, loss: float, error: float | None) -> None:
        if "validation" in self.needs:
            view = Seen(position, position, self.batch, math.nan, 0, self.frame, validation=(loss, error))
            self.heard = self._ask(view)

    def _ask(self, view: Seen) -> float | None:
        """The rule's wish; it is followed as far as it may."""
        wish = answer(self.rule, view, f"at position {view.position}")
        if wish is None:
            return None
        batch = self.frame.planned(max(wish, 0), self.rule.rounding)
        floor = self.frame.planned(self.frame.base_batch)
        batch = max(batch, floor if self.shrink else self.batch)
        if not self.rule.above_cap:
            # A base_batch above the cap was planned so, and its learning rate is lowered: that stays.
            batch = min(batch, max(self.frame.cap, self.batch))
        rested = self.changed is None or view.end - self.changed >= self.dwell * self.frame.stretch
        if batch != self.batch and rested and self.rule.worth(view, batch) > self.hysteresis:
            self.batch, self.changed = batch, view.end
        return wish

    def figures(self) -> dict:
        return {} if self.wished is None else {"wish": self.wished}

    def state_dict(self) -> dict:
        return dict(batch=self.batch, changed=self.changed, rule=self.rule.state_dict())

    def load_state_dict(self, state: dict) -> None:
        self.batch, self.changed = state["batch"], state["changed"]
        self.rule.load_state_dict(state["rule"])


def closed_loop(
    *,
    samples: int,
    epochs: float,
    growth,
    base_batch: int,
    dwell: int = 0,
    hysteresis: float = 0.0,
    shrink: bool = False,
    measure_every: int | str = 0,
    noise_group: int | None = None,
    noise_horizon: float | None = None,
    differenced: bool = True,
    preconditioned: bool = False,
    **schedule,
) -> Schedule:
    """A schedule whose growth is a rule (or whose scaling measures). noise_horizon: None = 1,000 batches of
    base_batch (AdaptDL's 0.999 per batch). The other arguments: `Schedule`, `Controller`, `Measuring`."""
    refuse_sizes({"base_batch": base_batch}, {})
    if isinstance(growth, Rule):
        growth = Controller(growth, dwell, hysteresis, shrink)
    if "epoch_sum" in getattr(growth, "needs", ()) and (measure_every != 0 or preconditioned):
        raise UserError(
            "a rule that sums up an epoch sees every step and plain gradients: schedule.measure_every=0 and "
            f"preconditioned=false, got {measure_every} and {preconditioned}"
        )
    horizon = 1000 * base_batch if noise_horizon is None else noise_horizon
    measuring = Measuring(measure_every, noise_group, horizon, differenced, preconditioned)
    return Schedule(
        samples=samples, epochs=epochs, growth=growth, base_batch=base_batch, measuring=measuring, **schedule
    )
