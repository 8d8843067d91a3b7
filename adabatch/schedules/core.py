"""Schedules: the batch size and learning rate at every position of a run (position = samples seen).

    planned(t) = base_batch * growth(t), rounded to a multiple of `multiple` as the rule's source rounds
    batch(t)   = min(planned, cap)            cap = min(max_batch, samples) rounded down to `multiple`
    lr(t)      = base_lr * decay(t) * scaling(planned / lr_batch) * (batch / planned)^p * warmup(t)

p is the noise exponent of the optimizer (1 for SGD, 1/2 for Adam-type): growth that the cap forbids becomes
decay of the learning rate with equal gradient noise. AdaBatch (Devarakonda, Naumov, Garland, arXiv
1712.02029) is growth 2 and decay 0.375 at the same positions with linear scaling: the learning rate falls by
0.75 while lr/batch falls by 0.375, exactly as in the fixed-batch baseline.

Everything here is plain Python: a plan needs no torch.
"""

import math
from dataclasses import replace

from adabatch.errors import UserError, suggest
from adabatch.schedules.factors import Constant, Steps, bound
from adabatch.schedules.scaling import Gain, Power, scaling_exponent
from adabatch.schedules.setting import Frame, Observation, Setting

CHOICES = {
    "compat": (None, "nvlabs"),
    "twin": (None, "lr", "batch"),
    "warmup_rule": ("step", "epoch", "legw"),
    "stop": ("samples", "gained"),
}


def refuse_sizes(whole: dict, others: dict) -> None:
    """UserError for a batch size that is no whole number, and for anything that is not positive. None is
    absent."""
    for name, value in (whole | others).items():
        if value is not None and (isinstance(value, str) or not value > 0):
            raise UserError(f"{name} is positive, got {value}")
    for name, value in whole.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise UserError(f"schedule.{name} is a whole number of samples, got {value!r}")


def refuse_choices(**given) -> None:
    """UserError for a name that stands for nothing."""
    for name, value in given.items():
        known = CHOICES[name]
        if value not in known:
            words = ", ".join("null" if k is None else k for k in known)
            near = suggest(str(value), [k for k in known if k])
            raise UserError(f"schedule.{name} is one of {words}, got {value!r}.{near}")


class Schedule:
    """Growth x decay x scaling x warm-up. See the module for the formula.

    samples: training samples in an epoch. epochs: of the run. growth, decay: factors (`factors.py`); a growth
    that measures is a `Controller` (`closed.py`). lr_batch: the batch at which base_lr was tuned (None:
    base_batch). max_batch: None = the dataset. scaling: auto, none, linear, sqrt, a power, or gain
    (AdaScale). warmup_from: fraction of the scaled learning rate at the start; None = 1/s, that is from
    base_lr to s * base_lr with s = max(1, scaling(planned / lr_batch)) (Goyal et al. 2017). warmup_rule: step
    = linear per step; epoch = once per epoch (NVlabs/AdaBatch); legw = per step, over warmup_epochs *
    base_batch / lr_batch epochs (You et al. 2019, arXiv 1901.08256). stretch: regime adaptation, everything
    takes `stretch` times as long (Hoffer et al. 2017, arXiv 1705.08741); auto = base_batch / lr_batch,
    rounded up. twin: lr = the fixed base_batch with the learning rate lowered where the schedule would grow;
    batch = the reverse; both at equal noise lr / batch^p. compat="nvlabs": the tail of each epoch is dropped
    and warm-up is per epoch. measuring: what a closed loop needs (`measuring.py`).
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
        warmup_rule: str = "step",
        stretch: float | str = 1.0,
        twin: str | None = None,
        compat: str | None = None,
        noise_exponent: float = 1.0,
        stop: str = "samples",
        measuring=None,
    ):
        lr_batch = lr_batch or base_batch
        whole = dict(base_batch=base_batch, lr_batch=lr_batch, max_batch=max_batch, multiple=multiple)
        refuse_sizes(whole, dict(base_lr=base_lr, epochs=epochs))
        if stretch == "auto":
            stretch = max(1, math.ceil(base_batch / lr_batch))
        refuse_sizes({}, dict(stretch=stretch, noise_exponent=noise_exponent))
        refuse_choices(compat=compat, twin=twin, warmup_rule=warmup_rule, stop=stop)
        if warmup_rule == "legw":
            warmup_epochs *= base_batch / lr_batch
        if not 0 <= warmup_epochs < epochs and warmup_epochs:
            raise UserError(f"schedule.warmup_epochs is less than epochs={epochs}, got {warmup_epochs:g}")
        self.samples, self.epochs, self.stretch, self.compat = samples, epochs, stretch, compat
        self.base_batch, self.base_lr, self.lr_batch = base_batch, base_lr, lr_batch
        self.noise_exponent, self.twin = noise_exponent, twin
        self.warmup_epochs, self.warmup_from = warmup_epochs, warmup_from
        self.per_epoch = bool(compat) or warmup_rule == "epoch"
        self.measuring, self.updates = measuring, 0
        self.frame = self._frame(max_batch, multiple)
        self.cap, self.budget = self.frame.cap, round(epochs * samples * stretch)
        self.growth, self.decay = (bound(factor, self.frame) for factor in (growth, decay))
        if scaling == "gain":
            if stretch != 1 or compat:
                given = f"got stretch={stretch:g} and compat={compat}"
                raise UserError(f"AdaScale has a clock of its own: schedule.stretch=1, compat=null; {given}")
            self.scaling = Gain(noise_exponent, lr_batch, self.frame.budget, stop)
            if stop == "gained":  # a gain is at least 1: it is through after so many samples at most
                largest = base_batch if isinstance(growth, Constant) and not twin else self.cap
                self.budget = math.ceil(self.frame.budget * max(1, largest / lr_batch))
        else:
            self.scaling = Power(scaling_exponent(scaling, noise_exponent), noise_exponent, lr_batch)
        if self.needs - {"validation"} and measuring is None:
            raise UserError(
                "this schedule measures: take schedule=adascale, or in Python schedules.closed_loop"
            )

    def _frame(self, max_batch: int | None, multiple: int) -> Frame:
        largest, budget = min(max_batch or self.samples, self.samples), round(self.epochs * self.samples)
        if largest < multiple:
            raise UserError(f"schedule.multiple={multiple} is larger than the largest batch {largest}")
        if budget < 1:
            raise UserError(
                f"a run sees at least one sample, got epochs={self.epochs} of {self.samples} samples"
            )
        cap = largest // multiple * multiple
        return Frame(self.samples, budget, self.base_batch, cap, multiple, self.stretch)

    @property
    def needs(self) -> frozenset:
        """What must be measured for it; empty for an open loop, which is a function of position."""
        return self.growth.needs | self.decay.needs | self.scaling.needs

    def start(self, position: int) -> int:
        """Where the next batch starts: `position`, but with compat the next epoch if too little of this one
        is left."""
        if self.compat and self.samples - position % self.samples < self(position).divisor:
            return (position // self.samples + 1) * self.samples
        return position

    def done(self, position: int) -> bool:
        return self.start(position) >= self.budget or self.scaling.finished()

    def __call__(self, position: int) -> Setting:
        time = position / self.stretch
        planned = self.frame.planned(self.base_batch * self.growth(time), self.growth.rounding)
        batch = min(planned, self.cap)
        clock = self.scaling.clock(time)
        scaled, capped = self.scaling(planned, batch)
        warmup, rising = self._warmup(clock, scaled)
        decayed = self.decay(clock)
        plain = lr = self.base_lr * decayed * scaled * capped * warmup
        grown = scaled * capped / self.scaling(self.base_batch, self.base_batch)[0]
        if self.twin:
            other = self._twin(batch, decayed)
            moved = (other / batch) ** self.noise_exponent
            batch, lr, grown = other, lr * moved, grown * moved
        stage = (batch, self.growth.stage(time), self.decay.stage(clock), rising)
        size = min(batch, self.budget - position)
        setting = Setting(size, lr, batch, stage, batch / self.base_batch, grown, plain)
        return replace(setting, **self.decay.recorded(time))

    def _twin(self, batch: int, decayed: float) -> int:
        """The batch of the schedule's other half, whose noise lr / batch^p is equal: growth as decay, or
        decay as growth."""
        if self.twin == "lr":
            return min(self.frame.planned(self.base_batch), self.cap)
        grown = decayed ** (-1 / self.noise_exponent) if decayed > 1e-150 else math.inf
        return min(self.frame.planned(batch * grown), self.cap)

    def _warmup(self, time: float, scaled: float) -> tuple[float, int]:
        """The multiplier, and a number that is constant while one rule holds."""
        if not self.warmup_epochs:
            return 1.0, 0
        epoch = time / self.samples
        if self.per_epoch:  # NVlabs: once per epoch, and at the target in 0-based epoch warmup - 1
            last = max(1, math.ceil(self.warmup_epochs) - 1)
            risen = min(1.0, math.floor(epoch) / last)
        else:
            risen = min(1.0, epoch / self.warmup_epochs)
        floor = 1 / max(1.0, scaled) if self.warmup_from is None else self.warmup_from
        rule = min(math.floor(epoch), last) if self.per_epoch else int(risen < 1)
        return floor + (1 - floor) * risen, rule

    # -- closed loop -------------------------------------------------------------------------------

    def measures(self, start: int, setting: Setting) -> frozenset:
        """What the step at `start` must measure: `needs` where a measurement is due, otherwise nothing."""
        if self.measuring and self.measuring.due(start, setting.batch_size):
            return self.needs - {"validation"}  # which evaluations bring
        return frozenset()

    def observe(self, seen: Observation) -> None:
        """One finished step; decisions hold from the next batch on."""
        self.updates += 1
        average = self.measuring.add(seen) if self.measuring else None
        self.scaling.observe(seen.setting, average)
        for factor in (self.growth, self.decay):
            factor.observe(seen, average, self.updates)

    def evaluated(self, position: int, loss: float, error: float | None) -> None:
        """An evaluation on the validation split; never on test."""
        for factor in (self.growth, self.decay):
            factor.evaluated(position, loss, error)

    def figures(self) -> dict:
        """What the last observation left to be logged, beside batch size and learning rate."""
        if not self.measuring:
            return {}
        return self.measuring.figures(self.samples) | self.growth.figures() | self.scaling.figures()

    def warnings(self) -> list[str]:
        """What a user should know before the run starts."""
        found = []
        positions = sorted({round(m * self.stretch) for m in self.growth.milestones()})
        sizes = {self(position).divisor for position in [0, *positions]}
        open_loop = not isinstance(self.growth, Constant) and not self.growth.closed
        if open_loop and self.twin != "lr" and len(sizes) == 1:
            found.append(
                f"the batch size cannot change in this run: it stays {self(0).divisor} over "
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
        parts = {name: part.state_dict() if part else {} for name, part in self._parts().items()}
        return {"updates": self.updates} | parts

    def _parts(self) -> dict:
        return dict(growth=self.growth, decay=self.decay, scaling=self.scaling, measuring=self.measuring)

    def load_state_dict(self, state: dict) -> None:
        self.updates = state["updates"]
        for name, part in self._parts().items():
            if part:
                part.load_state_dict(state[name])


def walk(schedule: Schedule, stop: int | None = None):
    """Every batch of an open-loop schedule up to `stop` (None: the end): yields (start, skipped, setting)."""
    position, stop = 0, schedule.budget if stop is None else stop
    while (start := schedule.start(position)) < stop:
        setting = schedule(start)
        yield start, start - position, setting
        position = start + setting.batch_size
