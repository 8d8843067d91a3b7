"""Growth of the batch, or decay of the learning rate, where the validation loss no longer falls: the counting
of torch.optim.lr_scheduler.ReduceLROnPlateau (mode min, relative threshold), by evaluations."""

import math

from adabatch.errors import UserError
from adabatch.schedules.closed import Rule, Seen
from adabatch.schedules.factors import Factor


class Patience:
    """Counts plateaus. An evaluation is better if it is below the best so far times (1 - threshold); after
    more than `patience` worse ones in a row a plateau is counted, and the next `cooldown` do not count. The
    evaluation before training does not count either (torch's user has none)."""

    def __init__(self, patience: int, threshold: float, cooldown: int, key: str):
        for name, value in dict(patience=patience, cooldown=cooldown).items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise UserError(f"{key}.{name} is a whole number of evaluations from 0, got {value!r}")
        if not 0 <= threshold < 1:
            raise UserError(f"{key}.threshold is a share of the loss from 0 to below 1, got {threshold}")
        self.patience, self.threshold, self.cooldown = patience, threshold, cooldown
        self.best, self.worse, self.resting, self.plateaus = math.inf, 0, 0, 0

    def evaluated(self, position: int, loss: float) -> int:
        """The plateaus up to now."""
        if position == 0:
            return self.plateaus
        if loss < self.best * (1 - self.threshold):
            self.best, self.worse = loss, 0
        else:
            self.worse += 1
        if self.resting:
            self.resting, self.worse = self.resting - 1, 0
        if self.worse > self.patience:
            self.plateaus += 1
            self.resting, self.worse = self.cooldown, 0
        return self.plateaus

    def state_dict(self) -> dict:
        return dict(best=self.best, worse=self.worse, resting=self.resting, plateaus=self.plateaus)

    def load_state_dict(self, state: dict) -> None:
        self.best, self.worse = state["best"], state["worse"]
        self.resting, self.plateaus = state["resting"], state["plateaus"]


class Plateau(Rule):
    """batch = base_batch * factor^plateaus."""

    needs = frozenset({"validation"})
    memory = "the best validation loss and three counts"

    def __init__(self, factor: float = 2, patience: int = 2, threshold: float = 1e-4, cooldown: int = 0):
        if not factor > 1:
            raise UserError(f"schedule.growth.factor is above 1, got {factor}")
        self.factor = factor
        self.watch = Patience(patience, threshold, cooldown, "schedule.growth")

    def wish(self, seen: Seen) -> float | None:
        plateaus = self.watch.evaluated(seen.position, seen.validation[0])
        try:
            return seen.frame.base_batch * float(self.factor) ** plateaus
        except OverflowError:
            return math.inf

    def state_dict(self) -> dict:
        return self.watch.state_dict()

    def load_state_dict(self, state: dict) -> None:
        self.watch.load_state_dict(state)


class PlateauDecay(Factor):
    """Decay of the learning rate: factor^plateaus, for `schedule.decay` of any schedule."""

    needs = frozenset({"validation"})
    closed = True

    def __init__(self, factor: float = 0.1, patience: int = 10, threshold: float = 1e-4, cooldown: int = 0):
        if not 0 < factor < 1:
            raise UserError(f"schedule.decay.factor of a plateau lies between 0 and 1, got {factor}")
        self.factor = factor
        self.watch = Patience(patience, threshold, cooldown, "schedule.decay")

    def __call__(self, position: float) -> float:
        return self.factor**self.watch.plateaus

    def stage(self, position: float) -> int:
        return self.watch.plateaus

    def evaluated(self, position: int, loss: float, error: float | None) -> None:
        self.watch.evaluated(position, loss)

    def state_dict(self) -> dict:
        return self.watch.state_dict()

    def load_state_dict(self, state: dict) -> None:
        self.watch.load_state_dict(state)
