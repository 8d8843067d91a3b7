"""Gradient diversity (DiveBatch: Chen, Wang, Sundaram 2025, arXiv 2509.16173)."""

import math

from adabatch.errors import UserError
from adabatch.schedules.closed import Rule, Seen
from adabatch.schedules.setting import Frame


class Diversity(Rule):
    """batch = delta * n * Delta every `resize` epochs, n samples in the training set,

        Delta = sum_i |g_i|^2 / |sum_i g_i|^2 over the samples of an epoch, along the moving weights.

    exact: from the gradients of single samples (`persample.py`), Delta of the last epoch that ended; a value
    that is not finite asks for the largest batch, as in the source. Otherwise an approximation from the noise
    scale phi of groups, n Delta = (1 + phi) / (1 + phi / n), which holds for fixed weights; decided at the
    first measurement after the epochs at which |G|^2 is resolved.

    resize: epochs; None = a fifth of the run (exact: in whole epochs, one at least). The source never lets
    the batch fall (schedule.shrink=false) and cuts to whole samples.
    """

    rounding = "down"

    def __init__(self, delta: float, resize: float | None = None, exact: bool = False):
        if not delta > 0 or (resize is not None and not resize > 0):
            raise UserError(
                f"schedule.growth.delta and resize are positive (resize: epochs), got {delta} and {resize}"
            )
        self.delta, self.resize, self.exact = delta, resize, exact
        self.needs = frozenset({"per_sample", "epoch_sum"} if exact else {"trace", "sq_norm"})
        self.memory = "the sum of an epoch's gradients" if exact else "none"
        self.passed, self.last = 0, None  # intervals decided; Delta of the last epoch that ended

    def bind(self, frame: Frame) -> None:
        self.samples = frame.samples
        epochs = self.resize or frame.budget / 5 / frame.samples
        if self.exact and not self.resize:
            epochs = max(1, round(epochs))
        self.interval = epochs * frame.samples * frame.stretch

    def wish(self, seen: Seen) -> float | None:
        if self.exact and seen.noise is not None and seen.noise.diversity is not None:
            self.last = seen.noise.diversity
        passed = int(seen.end // self.interval)
        diverse = self._diverse(seen)
        if passed <= self.passed or diverse is None:
            return None
        self.passed = passed
        wish = self.delta * diverse
        return wish if math.isfinite(wish) else math.inf

    def _diverse(self, seen: Seen) -> float | None:
        """n * Delta, in samples."""
        if self.exact:
            return None if self.last is None else self.samples * self.last
        return None if seen.scale is None else (1 + seen.scale) / (1 + seen.scale / self.samples)

    def state_dict(self) -> dict:
        return {"passed": self.passed, "last": self.last}

    def load_state_dict(self, state: dict) -> None:
        self.passed, self.last = state["passed"], state["last"]
