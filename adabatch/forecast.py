"""The training time of a schedule before it is run: the sum over its exact steps of what each takes
(`pace.py`). No torch.

The interval is exp(log T +- `Pace.doubt`), 5 % at least: what a step's time rests on, how far it was
repeated, and how the machine's speed moved meanwhile.
"""

import math
import random
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace

from adabatch import profiles
from adabatch.errors import UserError
from adabatch.pace import TRIFLE, Pace

LEAST = 0.05  # no interval is narrower, to either side
DRAWS = 2000
AUDITS = 10  # finished runs with a forecast after which their own errors tell the interval


@dataclass(frozen=True)
class Stretch:
    """Steps of one batch size. last: samples of the last batch where that is cut; start: the position.
    measured: how many of the steps measure the gradient for a closed loop."""

    start: int
    batch_size: int
    steps: int
    last: int | None = None
    measured: int = 0

    def counted(self) -> list[tuple[int, int]]:
        """[(batch size, steps), ...]."""
        cut = self.steps > 0 and self.last not in (None, self.batch_size)
        whole = [(self.batch_size, self.steps - cut)] if self.steps > cut else []
        return whole + ([(self.last, 1)] if cut else [])


@dataclass(frozen=True)
class Forecast:
    """Of training time (`train_seconds` of a summary). low, high: the 95 % interval, None where the profile
    cannot tell. phases: seconds of each stretch. extrapolated: the share of the time that lies beyond what
    was measured."""

    seconds: float
    low: float | None
    high: float | None
    phases: tuple[float, ...]
    causes: dict
    extrapolated: float


@dataclass(frozen=True)
class Measuring:
    """What a closed loop measures of gradients, and at how many of so many steps of a batch size from a
    position on: times(start, batch_size, steps)."""

    needs: frozenset = frozenset()
    times: Callable[[int, int, int], int] = lambda start, batch, steps: steps

    def of(self, stretch: Stretch) -> Stretch:
        """With the number of its steps that measure."""
        often = self.times(stretch.start, stretch.batch_size, stretch.steps) if self.needs else 0
        return replace(stretch, measured=often)


def measuring_of(schedule) -> Measuring:
    loop = getattr(schedule, "measuring", None)
    return Measuring(frozenset(schedule.needs) - {"validation", "loss"}, loop.times) if loop else Measuring()


def forecast(
    pace, stretches: list[Stretch], audits: list[float] = (), measuring: Measuring = Measuring()
) -> Forecast:
    """Of a run over these stretches, with what the first step of each new size takes longer. audits: measured
    / forecast of finished runs on this device. measuring: its cost is in it where the profile knows it."""
    phases, beyond, extra = [], 0.0, dict(pace.first)
    data = waiting = gradients = 0.0
    for stretch in map(measuring.of, stretches):
        seconds = 0.0
        if stretch.measured and (more := pace.measuring(measuring.needs, stretch.batch_size)):
            seconds = stretch.measured * more
            gradients += seconds
        for batch, count in stretch.counted():
            step = pace.step(batch)
            own = count * step.seconds
            data, waiting = data + count * step.data, waiting + count * step.communication
            beyond += own * step.extrapolated
            seconds += own + extra.pop(pace.cut(batch)[0], 0.0)
        phases.append(seconds)
    total = math.fsum(phases)
    half = pace.doubt([each for stretch in stretches for each in stretch.counted()])
    low, high = (None, None) if half is None else interval(total, half)
    if factors := empirical(audits):
        low, high = (total * factor for factor in factors)
    causes = {"compute": total - data - waiting - gradients, "data": data}
    causes |= {"exposed_communication": waiting, "measuring": gradients}
    return Forecast(total, low, high, tuple(phases), causes, beyond / total if total else 0.0)


def stretches_of(found) -> list[Stretch]:
    """Of a plan's phases (`phases.py`)."""
    return [Stretch(p.start, p.batch_size, p.steps, p.trained - (p.steps - 1) * p.batch_size) for p in found]


def between(
    pace, smallest: int, largest: int, samples: int, measuring: Measuring = Measuring()
) -> tuple[float, float]:
    """The least and the most seconds of runs under one batch size: of a closed loop nobody knows more."""
    sizes = [b for b in pace.measured if smallest <= b <= largest]
    seconds = [
        forecast(pace.alone(b), fixed_arm(b, samples), measuring=measuring).seconds
        for b in {smallest, *sizes, largest}
    ]
    return min(seconds), max(seconds)


def fixed_arm(batch: int, samples: int) -> list[Stretch]:
    """A run of so many samples under one batch size."""
    steps = -(-samples // batch)
    return [Stretch(0, batch, steps, samples - (steps - 1) * batch)]


def interval(seconds: float, half: float) -> tuple[float, float]:
    """exp(log T +- half), 5 % at least."""
    return (
        min(seconds * math.exp(-half), seconds * (1 - LEAST)),
        max(seconds * math.exp(half), seconds * (1 + LEAST)),
    )


def speed_up(slow: tuple, fast: tuple) -> tuple[float, float | None, float | None]:
    """(T(slow) / T(fast), and its 95 % interval) of two arms, (pace, stretches) each, by one profile: both
    are drawn with the same errors of the measured sizes, so that what they share, drift above all,
    cancels."""
    pace = slow[0]
    a, b = (own.parts([each for s in arm for each in s.counted()]) for own, arm in (slow, fast))
    ratio = forecast(*slow).seconds / forecast(*fast).seconds
    weights = {m: pace.curve.weights(m) for m in {*a[0], *b[0]}}
    unknown = sorted(m for m in weights if m not in pace.curve.sizes)
    between = sum(passes[m] for passes in (a[0], b[0]) for m in unknown if m in passes)
    trifle = between < TRIFLE * (sum(a[0].values()) + sum(b[0].values()))
    known, whole = (pace.half_width(share, drift=False) for share in (0.0, 0.0 if trifle else 1.0))
    if known is None or whole is None:
        return ratio, None, None
    # Of normal errors that are as wide: of a measured size, and of what lies between two of them.
    spread, joined = known / 1.959964, math.sqrt(max(whole**2 - known**2, 0.0)) / 1.959964
    generator = random.Random(0)
    base = (sum(a[0].values()) + a[1]) / (sum(b[0].values()) + b[1])
    drawn = []
    for _ in range(DRAWS):
        errors = [generator.gauss(0, spread) for _ in pace.curve.knots]
        fixed = math.exp(generator.gauss(0, spread))
        own = {m: generator.gauss(0, joined) for m in unknown}
        moved = {
            m: math.exp(own.get(m, 0.0) + sum(w * errors[i] for i, w in near.items()))
            for m, near in weights.items()
        }
        times = [sum(s * moved[m] for m, s in passes.items()) + rest * fixed for passes, rest in (a, b)]
        drawn.append(times[0] / times[1] / base)
    drawn.sort()
    return ratio, ratio * drawn[round(0.025 * DRAWS)], ratio * drawn[round(0.975 * DRAWS) - 1]


@dataclass(frozen=True)
class Bound:
    """The most that this hardware can gain over `slow` at equal samples, and the batch that gains it. reach:
    the largest batch that the claim is for, where larger ones were asked for and not measured."""

    ratio: float
    batch_size: int
    slow: int
    reach: int | None = None


def upper_bound(pace: Pace, smallest: int, largest: int) -> Bound:
    """max over fixed batches of throughput(B) / throughput(smallest): no schedule between these sizes trains
    as many samples faster. It does not bound the time to a target. Sizes beyond the measured ones claim
    nothing, unless all are."""
    sizes = {smallest, largest, *(b for b in pace.measured if smallest <= b <= largest)}
    known = sorted(b for b in sizes if not pace.alone(b).step(b).extrapolated) or sorted(sizes)
    rates = {b: pace.alone(b).throughput(b) for b in {*known, smallest}}
    best = max(known, key=rates.get)
    return Bound(rates[best] / rates[smallest], best, smallest, known[-1] if known[-1] < largest else None)


def empirical(audits: list[float]) -> tuple[float, float] | None:
    """The 5 % and 95 % quantiles of measured / forecast over finished runs; None for fewer than ten."""
    if len(audits) < AUDITS:
        return None
    cuts = statistics.quantiles(audits, n=20, method="inclusive")
    return cuts[0], cuts[-1]


def differences(ours: dict, theirs: dict, path: str = "") -> list[str]:
    """Dotted keys in which two configurations differ, each with both values."""
    found = []
    for name in sorted({*ours, *theirs}):
        a, b, at = ours.get(name), theirs.get(name), f"{path}.{name}" if path else str(name)
        if isinstance(a, dict) and isinstance(b, dict):
            found += differences(a, b, at)
        elif a != b:
            found.append(
                f"{profiles.printable(at)}: {profiles.printable(a)}, the profile has {profiles.printable(b)}"
            )
    return found


def fitting(
    found: list[profiles.Profile], configuration: dict, source, processes=None, threads=None
) -> profiles.Profile:
    """The profile of this configuration, measured on as many processes and, where they are given, threads.
    UserError: there is none, or there are several."""
    same = [p for p in found if p.configuration == configuration]
    if not same:
        nearest = min((differences(configuration, p.configuration) for p in found), key=len)
        more = f" and {len(nearest) - 3} more" if len(nearest) > 3 else ""
        raise UserError(
            f"{source} was not measured for this run: {'; '.join(nearest[:3])}{more}. Profile it with the "
            "same overrides: adabatch-profile ..."
        )
    wanted = [p for p in same if p.world == (processes or 1)]
    held = "; ".join(f"@{p.key} ({p.words()})" for p in (wanted or same))
    if wanted and threads is not None:
        wanted = [p for p in wanted if p.machine["threads"] == threads]
        if not wanted:
            raise UserError(
                f"{source} was not measured with {threads} thread(s), but: {held}. Profile it with "
                f"hardware.threads={threads}, or plan for those that were measured: hardware.threads=N"
            )
    if len(wanted) == 1:
        return wanted[0]
    if wanted:
        raise UserError(f"{source} holds several profiles of this run, name one: {held}")
    raise UserError(
        f"{source} was not measured on {processes or 1} process(es), but: {held}. Profile that number too "
        "and merge the files, or plan for one that was measured: hardware.processes=N"
    )
