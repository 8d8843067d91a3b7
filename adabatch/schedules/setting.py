"""What a schedule says and what it is told."""

import math
from dataclasses import dataclass

from adabatch.noise import Noise


@dataclass(frozen=True)
class Setting:
    """How one batch is trained. `divisor` is the size that its gradient is divided by: `batch_size`, but for
    the last batch of a run, which is cut to end at the budget and keeps the divisor it would have had."""

    batch_size: int
    lr: float
    divisor: int
    stage: tuple = ()  # equal for positions under one batch size and one rule of the learning rate
    growth: float = 1.0  # divisor / base_batch
    lr_growth: float = 1.0  # the part of lr that follows the batch, 1 at base_batch
    untwinned: float | None = None  # lr before a twin moved it; None = lr
    group: int = 0  # a replay of a measuring step: the gradient is summed up over groups of so many samples


@dataclass(frozen=True)
class Observation:
    """What one finished step tells the schedule. position: the batch's first sample. loss: mean over the
    batch, and noise: of its gradient, where they were asked for (`Schedule.measures`)."""

    position: int
    setting: Setting
    loss: float | None = None
    noise: Noise | None = None


@dataclass(frozen=True)
class Frame:
    """The run that a factor is bound to. budget: samples of the run before `stretch`; a rule, which sees real
    positions, multiplies its intervals by `stretch`."""

    samples: int
    budget: int
    base_batch: int
    cap: int
    multiple: int = 1
    stretch: float = 1.0

    def planned(self, wanted: float, rounding: str = "down") -> int:
        """`wanted` samples as a positive multiple of `multiple`; rounding: down, nearest (halves to even) or
        up, as the rule's source rounds."""
        if wanted == math.inf:
            return self.cap
        count = wanted / self.multiple
        # Float noise must not round 256 down nor 128 up: a relative 1e-12 is far below one sample.
        if rounding == "down":
            whole = math.floor(count * (1 + 1e-12))
        elif rounding == "up":
            whole = math.ceil(count * (1 - 1e-12))
        else:
            whole = round(count)
        return max(1, whole) * self.multiple
