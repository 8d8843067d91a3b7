"""How the learning rate follows the batch.

power q:  lr ~ (planned / lr_batch)^q (batch / planned)^p      none q = 0, linear q = 1, sqrt q = 1/2
gain:     AdaScale (Johnson et al. 2020, arXiv 2007.05105), lr ~ r, on a clock that runs r times as fast

p is the noise exponent of the optimizer: growth that the cap forbids becomes decay of equal noise (science:
lr is proportional to ratio_actual^q (ratio_actual / ratio_planned)^(p - q)).
"""

from adabatch.errors import UserError, suggest
from adabatch.noise import Average

SCALINGS = ("auto", "none", "linear", "sqrt", "gain")
NAMES = {0.0: "no", 1.0: "linear", 0.5: "square-root"}


def scaling_exponent(scaling: str | float, noise_exponent: float) -> float:
    """Exponent q of the learning rate's growth with the batch, lr ~ (batch / lr_batch)^q.

    auto: linear for SGD (Goyal et al. 2017, arXiv 1706.02677), square root for Adam-type optimizers.
    """
    if isinstance(scaling, (int, float)) and not isinstance(scaling, bool):
        return float(scaling)
    named = {"none": 0.0, "linear": 1.0, "sqrt": 0.5, "auto": noise_exponent}
    if scaling not in named:
        raise UserError(
            f"schedule.scaling is one of {', '.join(SCALINGS)} or a power, got "
            f"{scaling!r}.{suggest(scaling, SCALINGS)}"
        )
    return named[scaling]


class Power:
    """A power of the batch; no state."""

    needs: frozenset = frozenset()

    def __init__(self, exponent: float, noise_exponent: float, lr_batch: int):
        self.exponent, self.noise_exponent, self.lr_batch = exponent, noise_exponent, lr_batch

    def __call__(self, planned: int, batch: int) -> tuple[float, float]:
        """(scaling of the planned batch, decay for what the cap forbids)."""
        return (planned / self.lr_batch) ** self.exponent, (batch / planned) ** self.noise_exponent

    def clock(self, time: float) -> float:
        """The position in samples at which decay and warm-up are read."""
        return time

    ends_early = False  # whether the run may end before its budget of samples

    def finished(self) -> bool:
        """Whether it ends now."""
        return False

    def observe(self, setting, average: Average | None) -> None:
        """Nothing to learn."""

    @property
    def name(self) -> str:
        return f"{NAMES.get(self.exponent, f'power {self.exponent:g}')} scaling"

    def words(self) -> str:
        return f"{self.name}: lr x (batch / {self.lr_batch})^{self.exponent:g}"

    def figures(self) -> dict:
        return {}

    def state_dict(self) -> dict:
        return {}

    def load_state_dict(self, state: dict) -> None:
        """Nothing to restore."""


class Gain(Power):
    """AdaScale's gain r = (s2 + g2) / (s2 / S + g2), S = batch / lr_batch, s2 = tr(S) / lr_batch, g2 = |G|^2,
    averages of samples; between 1 and S. A step counts as r steps of the original schedule (its tau), so the
    schedule ends early by the source; `stop`: samples = at the budget of samples, as every other arm, or
    gained = when the original schedule is through. While |G|^2 is unresolved the last averages stay (at
    the start the smaller of 1 and S).

    For Adam-type optimizers the root of the gain of the preconditioned gradient (AdaptDL): its power is the
    noise exponent.
    """

    needs = frozenset({"trace", "sq_norm"})

    def __init__(self, noise_exponent: float, lr_batch: int, budget: int, stop: str = "samples"):
        super().__init__(noise_exponent, noise_exponent, lr_batch)
        self.stop, self.budget = stop, budget
        self.gained, self.noise = 0.0, None

    def gain(self, batch: int) -> float:
        """r at a batch size, from the averages last resolved."""
        if self.noise is None:
            return min(1.0, batch / self.lr_batch)
        variance, sq_norm, ratio = self.noise[0] / self.lr_batch, self.noise[1], batch / self.lr_batch
        return (variance + sq_norm) / (variance / ratio + sq_norm)

    def __call__(self, planned: int, batch: int) -> tuple[float, float]:
        return self.gain(batch) ** self.noise_exponent, 1.0

    def clock(self, time: float) -> float:
        return self.gained

    @property
    def ends_early(self) -> bool:
        return self.stop == "gained"

    def finished(self) -> bool:
        return self.ends_early and self.gained >= self.budget

    def observe(self, setting, average: Average | None) -> None:
        self.gained += self.gain(setting.divisor) * self.lr_batch * setting.batch_size / setting.divisor
        if average is not None and average.resolved:
            self.noise = [average.trace, average.sq_norm]

    name = "AdaScale's gain"

    def words(self) -> str:
        return f"AdaScale's gain, between 1 and batch / {self.lr_batch}"

    def figures(self) -> dict:
        return {"gained": self.gained}

    def state_dict(self) -> dict:
        return {"gained": self.gained, "noise": self.noise and list(self.noise)}

    def load_state_dict(self, state: dict) -> None:
        self.gained, self.noise = state["gained"], state["noise"]
