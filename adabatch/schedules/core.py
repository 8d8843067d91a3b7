"""Schedules: the batch size and learning rate at every position of a run (position = samples seen).

    planned(t) = base_batch * growth(t), rounded down to a multiple of `multiple`
    batch(t)   = min(planned, cap)            cap = min(max_batch, samples) rounded down to `multiple`
    lr(t)      = base_lr * decay(t) * scaling(planned / lr_batch) * (batch / planned)^p * warmup(t)

p is the noise exponent of the optimizer (1 for SGD, 1/2 for Adam-type): growth that the cap forbids becomes
decay of the learning rate with equal gradient noise. AdaBatch (Devarakonda, Naumov, Garland, arXiv
1712.02029) is growth 2 and decay 0.375 at the same positions with linear scaling: the learning rate falls by
0.75 while lr/batch falls by 0.375, exactly as in the fixed-batch baseline.

Everything here is plain Python: a plan needs no torch.
"""

import math

from adabatch.errors import UserError, suggest
from adabatch.schedules.factors import Constant, Steps
from adabatch.schedules.setting import Observation, Setting

SCALINGS = ("auto", "none", "linear", "sqrt")


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


def refuse_sizes(whole: dict, others: dict) -> None:
    """UserError for a batch size that is no whole number, and for anything that is not positive. None is
    absent."""
    for name, value in (whole | others).items():
        if value is not None and not value > 0:
            raise UserError(f"{name} is positive, got {value}")
    for name, value in whole.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise UserError(f"schedule.{name} is a whole number of samples, got {value!r}")


class Schedule:
    """Growth x decay x scaling x warm-up. See the module for the formula.

    samples: training samples in an epoch. epochs: of the run. lr_batch: the batch at which base_lr was tuned
    (None: base_batch). max_batch: None = the dataset. warmup_from: fraction of the scaled learning rate at
    the start; None = 1/s, that is from base_lr to s * base_lr with s = max(1, scaling(planned / lr_batch))
    (Goyal et al. 2017). stretch: regime adaptation, everything takes `stretch` times as long (Hoffer et al.
    2017, arXiv 1705.08741). compat="nvlabs": the tail of each epoch is dropped and the warm-up moves once per
    epoch, as in NVlabs/AdaBatch.
    """

    def __init__(
        self,
        *,
        samples: int,
        epochs: float,
        growth,
        decay,
        base_batch: int,
        base_lr: float,
        lr_batch: int | None = None,
        max_batch: int | None = None,
        multiple: int = 1,
        scaling: str | float = "auto",
        warmup_epochs: float = 0.0,
        warmup_from: float | None = None,
        stretch: float = 1.0,
        compat: str | None = None,
        noise_exponent: float = 1.0,
    ):
        whole = dict(base_batch=base_batch, lr_batch=lr_batch, max_batch=max_batch, multiple=multiple)
        refuse_sizes(whole, dict(base_lr=base_lr, epochs=epochs, stretch=stretch))
        if compat not in (None, "nvlabs"):
            raise UserError(
                f"schedule.compat is null or nvlabs, got {compat!r}.{suggest(compat, ['nvlabs'])}"
            )
        if not 0 <= warmup_epochs < epochs and warmup_epochs:
            raise UserError(f"schedule.warmup_epochs is less than epochs={epochs}, got {warmup_epochs}")
        self.samples, self.epochs, self.stretch, self.compat = samples, epochs, stretch, compat
        self.base_batch, self.base_lr, self.lr_batch = base_batch, base_lr, lr_batch or base_batch
        self.multiple, self.noise_exponent = multiple, noise_exponent
        self.exponent = scaling_exponent(scaling, noise_exponent)
        self.warmup_epochs, self.warmup_from = warmup_epochs, warmup_from
        self.cap = min(max_batch or samples, samples) // multiple * multiple
        if not self.cap:
            raise UserError(
                f"schedule.multiple={multiple} is larger than the largest batch "
                f"{min(max_batch or samples, samples)}"
            )
        self.budget = round(epochs * samples * stretch)
        if self.budget < 1:
            raise UserError(f"a run sees at least one sample, got epochs={epochs} of {samples} samples")
        self.growth, self.decay = (
            factor.bind(samples, round(epochs * samples)) for factor in (growth, decay)
        )
        self.updates = 0

    @property
    def needs(self) -> frozenset:
        return self.growth.needs | self.decay.needs

    def start(self, position: int) -> int:
        """Where the next batch starts: `position`, but with compat the next epoch if too little of this one
        is left."""
        if self.compat and self.samples - position % self.samples < self._batch(position)[1]:
            return (position // self.samples + 1) * self.samples
        return position

    def done(self, position: int) -> bool:
        return self.start(position) >= self.budget

    def __call__(self, position: int) -> Setting:
        planned, batch = self._batch(position)
        time = position / self.stretch
        scaled = (planned / self.lr_batch) ** self.exponent
        capped = (batch / planned) ** self.noise_exponent
        warmup, rising = self._warmup(time, scaled)
        lr = self.base_lr * self.decay(time) * scaled * capped * warmup
        stage = (batch, self.growth.stage(time), self.decay.stage(time), rising)
        return Setting(min(batch, self.budget - position), lr, batch, stage)

    def _batch(self, position: int) -> tuple[int, int]:
        """(planned, actual) batch size at a position."""
        wanted = self.base_batch * self.growth(position / self.stretch)
        # Float noise must not round 256 down: a relative 1e-12 is far below one sample.
        planned = max(1, math.floor(wanted / self.multiple * (1 + 1e-12))) * self.multiple
        return planned, min(planned, self.cap)

    def _warmup(self, time: float, scaled: float) -> tuple[float, int]:
        """The multiplier, and a number that is constant while one rule holds."""
        if not self.warmup_epochs:
            return 1.0, 0
        epoch = time / self.samples
        if self.compat:  # NVlabs moves it once per epoch and reaches the target at 0-based epoch warmup - 1
            last = max(1, math.ceil(self.warmup_epochs) - 1)
            risen = min(1.0, math.floor(epoch) / last)
        else:
            risen = min(1.0, epoch / self.warmup_epochs)
        floor = 1 / max(1.0, scaled) if self.warmup_from is None else self.warmup_from
        rule = min(math.floor(epoch), last) if self.compat else int(risen < 1)
        return floor + (1 - floor) * risen, rule

    def observe(self, seen: Observation) -> None:
        self.updates += 1
        self.growth.observe(seen)
        self.decay.observe(seen)

    def warnings(self) -> list[str]:
        """What a user should know before the run starts."""
        found = []
        positions = sorted({round(m * self.stretch) for m in self.growth.milestones()})
        if not isinstance(self.growth, Constant) and not self.growth.needs:
            if len({self._batch(position)[1] for position in [0, *positions]}) == 1:
                found.append(
                    f"the batch size cannot change in this run: it stays {self._batch(0)[1]} over "
                    f"{self.epochs:g} epochs "
                    f"(growth at epochs {[p / self.samples for p in positions]}, cap {self.cap})"
                )
        if isinstance(self.decay, Steps) and not self.decay.milestones() and not self.warmup_epochs:
            found.append(
                f"schedule.decay never steps in {self.epochs:g} epochs: it has no effect in this run"
            )
        if self.base_batch > self.cap:
            found.append(
                f"base_batch={self.base_batch} is above the cap {self.cap}: the learning rate is lowered "
                "instead"
            )
        return found

    def state_dict(self) -> dict:
        return dict(updates=self.updates, growth=self.growth.state_dict(), decay=self.decay.state_dict())

    def load_state_dict(self, state: dict) -> None:
        self.updates = state["updates"]
        self.growth.load_state_dict(state["growth"])
        self.decay.load_state_dict(state["decay"])


def walk(schedule: Schedule, stop: int | None = None):
    """Every batch of an open-loop schedule up to `stop` (None: the end): yields (start, skipped, setting)."""
    position, stop = 0, schedule.budget if stop is None else stop
    while (start := schedule.start(position)) < stop:
        setting = schedule(start)
        yield start, start - position, setting
        position = start + setting.batch_size
