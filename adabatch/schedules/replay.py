"""A recorded trajectory as a schedule, and the controls that can be made of it.

A finished run says which batch size and learning rate every position had. Replayed with the same seed it is
that run again, bit for bit; with another seed (*yoked*) it has the shape without the feedback. The controls
ask what it was in the shape that helped (q = 1 for SGD, 1/2 for Adam-type; P samples in U updates):

    mean_matched   the fixed batch of as many updates, B = P / U        lr(p) (B / B(p))^q
    reversed       the same batches in the opposite order               lr(p) (B'(p) / B(p))^q
    lr_twin        the first batch throughout, noise as recorded        lr(p) (B_0 / B(p))^q
    batch_twin     the highest learning rate throughout, noise by the batch: B(p) (lr_max / lr(p))^(1/q)
"""

import bisect
from itertools import accumulate

from adabatch.errors import UserError, suggest
from adabatch.schedules.core import Schedule
from adabatch.schedules.factors import Factor

CONTROLS = ("none", "mean_matched", "reversed", "lr_twin", "batch_twin")


class Line(Factor):
    """Piecewise constant: values[i] from starts[i] on."""

    def __init__(self, starts: list[int], values: list[float]):
        self.starts, self.values = starts, values

    def __call__(self, position: float) -> float:
        return self.values[max(0, bisect.bisect_right(self.starts, position) - 1)]

    def milestones(self) -> list[int]:
        pairs = zip(self.starts[1:], self.values, self.values[1:])
        return [start for start, before, after in pairs if before != after]


class Batches(Line):
    """Recorded batch sizes, as multiples of the first."""

    def __call__(self, position: float) -> float:
        return super().__call__(position) / self.values[0]


class Rates(Line):
    """Recorded learning rates, moved from the recorded batches to others at equal noise. fields: what else of
    each setting was recorded: `growth` and `lr_growth` where horizons were held, `group` where the step
    measured (its gradient was added up group by group, and a replay does too, or its bits would differ; a
    control does not: it would pay for what it does not measure)."""

    def __init__(self, trajectory: list, recorded: Line, others: Line, exponent: float, control: bool):
        starts, _, _, rates, fields = (list(column) for column in zip(*trajectory))
        super().__init__(starts, rates)
        self.before, self.others, self.exponent, self.control = recorded, others, exponent, control
        self.fields = Line(starts, fields)
        # A learning rate that falls from a level is a step; one that moves with every batch is none.
        self.steps = [starts[i] for i in range(2, len(rates)) if rates[i] != rates[i - 1] == rates[i - 2]]

    def __call__(self, position: float) -> float:
        rate = super().__call__(position)
        ratio = self.ratio(position)
        return rate if ratio == 1 else rate * ratio**self.exponent

    def ratio(self, position: float) -> float:
        """Batch here over batch recorded."""
        return Line.__call__(self.others, position) / Line.__call__(self.before, position)

    def recorded(self, position: float) -> dict:
        found, ratio = dict(self.fields(position)), self.ratio(position)
        if self.control:
            found.pop("group", None)
        if "growth" in found:
            found["growth"] *= ratio
            found["lr_growth"] *= ratio**self.exponent
        return found

    def stage(self, position: float) -> int:
        return bisect.bisect_right(self.steps, position)

    def milestones(self) -> list[int]:
        return list(self.steps)


def others(trajectory: list, control: str, exponent: float, cap: int) -> Line:
    """The batch sizes of a control. trajectory: (start, samples, divisor, lr, fields) of
    each batch."""
    starts, sizes, divisors, rates, _ = (list(column) for column in zip(*trajectory))
    if control == "none":
        return Batches(starts, divisors)
    if control == "lr_twin":
        return Batches([0], divisors[:1])
    if control == "mean_matched":
        return Batches([0], [max(1, round(sum(sizes) / len(sizes)))])
    if control == "batch_twin":
        top = max(rates)
        grown = [
            min(cap, int(d * (top / r) ** (1 / exponent) * (1 + 1e-12))) if r else cap
            for d, r in zip(divisors, rates)
        ]
        return Batches(starts, grown)
    backwards = sizes[::-1]
    return Batches([0, *accumulate(backwards[:-1])], backwards)


def with_tails(trajectory: list, samples: int) -> list:
    """With an entry where a tail was dropped: a batch of all samples, which does not fit into it."""
    found = []
    for before, after in zip(trajectory, [*trajectory[1:], (None,)]):
        found.append(before)
        if (end := before[0] + before[1]) != after[0]:
            found.append((end, samples, samples, before[3], {}))
    return found


def replay(
    *,
    samples: int,
    epochs: float,
    trajectory: list,
    compat: str | None = None,
    control: str = "none",
    max_batch: int | None = None,
    noise_exponent: float = 1.0,
) -> Schedule:
    """The schedule of a recorded run. trajectory: (start, samples, divisor, lr, fields) of each batch;
    compat: as it was recorded. UserError: another number of samples than recorded."""
    if control not in CONTROLS:
        raise UserError(
            f"schedule.control is one of {', '.join(CONTROLS)}, got {control!r}.{suggest(control, CONTROLS)}"
        )
    if compat and control != "none":
        raise UserError(f"schedule.control={control} needs a run that dropped no tails, got compat={compat}")
    recorded_samples = trajectory[-1][0] + trajectory[-1][1]
    if not compat and round(epochs * samples) != recorded_samples:
        raise UserError(
            f"the recorded run saw {recorded_samples} samples, epochs={epochs:g} of {samples} are "
            f"{round(epochs * samples)}: set epochs={recorded_samples / samples:.12g}"
        )
    largest = max(divisor for _, _, divisor, *_ in trajectory)
    if largest > min(max_batch or samples, samples):
        raise UserError(
            f"the recorded run had batches of {largest} samples, more than max_batch or the {samples} "
            "samples here"
        )
    if compat:
        trajectory = with_tails(trajectory, samples)
    recorded = Batches([t[0] for t in trajectory], [t[2] for t in trajectory])
    batches = others(trajectory, control, noise_exponent, min(max_batch or samples, samples))
    return Schedule(
        samples=samples,
        epochs=epochs,
        growth=batches,
        decay=Rates(trajectory, recorded, batches, noise_exponent, control != "none"),
        base_batch=int(batches.values[0]),
        base_lr=1.0,  # the recorded learning rates are whole
        scaling="none",
        max_batch=max_batch,
        compat=compat,
        noise_exponent=noise_exponent,
    )
