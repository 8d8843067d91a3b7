"""CABS, the batch coupled to the learning rate (Balles, Romero, Hennig 2017, arXiv 1612.05086,
github.com/ProbabilisticNumerics/cabs)."""

import math

from adabatch.errors import UserError, suggest
from adabatch.schedules.closed import Rule, Seen


class CABS(Rule):
    """wish = c lr xi / (L + eps), xi = tr(S) (m - 1) / m: the source's variance has divisor m, the batch.

    lr is that of plain SGD. momentum: None, or m to take lr / (1 - m) (10 times the batch at 0.9).
    loss_floor: subtracted from the loss L, whose optimum must be near 0 (the entropy of smoothed labels).

    Averages run in samples: tr(S) of the schedule's, L with the same horizon H and weights 1 - exp(-n / H)
    after n samples. compat="source": per measurement, xi and L by 0.95, from 0 and 1, not debiased.
    """

    needs = frozenset({"trace", "sq_norm", "loss"})
    memory = "an average of the loss"
    MU = 0.95

    def __init__(
        self,
        c: float = 1.0,
        eps: float = 0.0,
        momentum: float | None = None,
        loss_floor: float = 0.0,
        compat: str | None = None,
    ):
        if not c > 0 or not eps >= 0:
            raise UserError(
                f"schedule.growth.c is positive and schedule.growth.eps 0 or more, got {c} and {eps}"
            )
        if momentum is not None and not 0 <= momentum < 1:
            raise UserError(
                f"schedule.growth.momentum is null or from 0 to below 1, got {momentum}: lr / (1 - momentum)"
            )
        if compat not in (None, "source"):
            raise UserError(
                f"schedule.growth.compat is null or source, got {compat!r}.{suggest(str(compat), ['source'])}"
            )
        self.c, self.eps, self.floor, self.compat = c, eps, loss_floor, compat
        self.factor = 1.0 if momentum is None else 1 / (1 - momentum)
        self.xi, self.loss = 0.0, 1.0  # compat
        self.weight, self.weighted, self.end = 0.0, 0.0, 0  # of the loss

    def wish(self, seen: Seen) -> float | None:
        xi, loss = self._by_update(seen) if self.compat else self._by_samples(seen)
        least = loss - self.floor + self.eps
        # A loss at or below its floor: the floor is wrong, or there is nothing left to learn.
        return self.c * seen.lr * self.factor * xi / least if least > 0 else None

    def _by_update(self, seen: Seen) -> tuple[float, float]:
        self.xi = self.MU * self.xi + (1 - self.MU) * self._xi(seen.noise.trace, seen.batch)
        self.loss = self.MU * self.loss + (1 - self.MU) * seen.loss
        return self.xi, self.loss

    def _by_samples(self, seen: Seen) -> tuple[float, float]:
        elapsed, self.end = seen.end - self.end, seen.end
        share = -math.expm1(-elapsed / seen.average.horizon)
        self.weight += share * (1 - self.weight)
        self.weighted += share * (seen.loss - self.weighted)
        return self._xi(seen.trace, seen.batch), self.weighted / self.weight

    @staticmethod
    def _xi(trace: float, batch: int) -> float:
        return trace * (batch - 1) / batch

    def state_dict(self) -> dict:
        return dict(xi=self.xi, loss=self.loss, weight=self.weight, weighted=self.weighted, end=self.end)

    def load_state_dict(self, state: dict) -> None:
        self.xi, self.loss, self.end = state["xi"], state["loss"], state["end"]
        self.weight, self.weighted = state["weight"], state["weighted"]
