"""What a schedule says and what it is told."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Setting:
    """How one batch is trained. `divisor` is the size that its gradient is divided by: `batch_size`, but for
    the last batch of a run, which is cut to end at the budget and keeps the divisor it would have had."""

    batch_size: int
    lr: float
    divisor: int
    stage: tuple = ()  # equal for positions under one batch size and one rule of the learning rate


@dataclass(frozen=True)
class Observation:
    """What one finished step tells the schedule. position: the batch's first sample. loss: mean over the
    batch."""

    position: int
    setting: Setting
    loss: float | None = None
