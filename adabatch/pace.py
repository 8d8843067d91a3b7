"""How long a step takes by its batch, from a profile (`profiles.py`). No torch.

A step takes the passes of the rank with most work, one after the other, and what it costs however large it
is:

    T(batch) = sum over its forward passes of t(m) + c

c (optimizer, buffers, the reduction over ranks) is told apart from t by points with several passes: least
squares of T = p t(m) + c over all of them. t is interpolated between the measured sizes, linearly in log m
and log t, because throughput may fall again with the size, which no line a + b m can follow. Beyond the
measured sizes that line is used, scaled to meet the nearest point, and what it gave is called extrapolated.
"""

import bisect
import math
import statistics
from dataclasses import dataclass
from functools import cached_property

from adabatch import cutting
from adabatch.profiles import Profile
from adabatch.student import quantile

LEVEL = 0.975  # of a two-sided interval of 95 %
TRIFLE = 0.01  # of the time: less between measured sizes needs no interpolation to be known
MOST = 1000  # degrees of freedom: more change nothing, and a stranger's file may claim any number


@dataclass(frozen=True)
class Step:
    """Seconds of one step, and what of them goes into reading samples and waiting for other ranks."""

    seconds: float
    data: float
    communication: float
    extrapolated: bool


def fixed_part(points: list[tuple[int, int, float]]) -> float:
    """c of T = p t(m) + c by least squares of relative errors, t(m) free for each m; 0 where all points have
    equally many passes. points: [(m, p, T), ...]."""
    by: dict[int, list] = {}
    for m, p, seconds in points:
        by.setdefault(m, []).append((p, seconds, 1 / seconds**2))
    above = below = 0.0
    most = math.inf  # noise must not leave a pass without any time
    for rows in by.values():
        square = sum(w * p * p for p, _, w in rows)
        mean = sum(w * p * s for p, s, w in rows) / square
        share = sum(w * p for p, _, w in rows) / square
        above += sum(w * (s - p * mean) * (1 - p * share) for p, s, w in rows)
        below += sum(w * (1 - p * share) ** 2 for p, s, w in rows)
        most = min(most, 0.99 * mean / share)
    if below < 1e-9 * sum(w for rows in by.values() for _, _, w in rows):
        return 0.0
    return min(max(above / below, 0.0), most)


def line(knots: list[tuple[int, float]]) -> tuple[float, float]:
    """(a, b) of t = a + b m, neither below 0, by least squares of relative errors."""
    ones = [1 / t for _, t in knots]
    sizes = [m / t for m, t in knots]
    xx, xy, yy = (sum(a * b for a, b in zip(u, v)) for u, v in ((ones, ones), (ones, sizes), (sizes, sizes)))
    x, y, det = sum(ones), sum(sizes), xx * yy - xy * xy
    if det > 1e-12 * xx * yy:
        a, b = (x * yy - y * xy) / det, (y * xx - x * xy) / det
        if a >= 0 and b >= 0:
            return a, b
        if b < 0:
            return x / xx, 0.0
    return 0.0, y / yy


class Curve:
    """t(m) through measured points."""

    def __init__(self, knots: list[tuple[int, float]]):
        self.knots = sorted(knots)
        self.sizes = [m for m, _ in self.knots]
        self.fit = line(self.knots)

    def weights(self, m: int) -> dict[int, float]:
        """The shares of the points, by index, in log t at m."""
        after = bisect.bisect_left(self.sizes, m)
        if after == len(self.sizes) or self.sizes[after] == m or after == 0:
            return {min(after, len(self.sizes) - 1): 1.0}
        a, b = self.sizes[after - 1], self.sizes[after]
        share = math.log(m / a) / math.log(b / a)
        return {after - 1: 1 - share, after: share}

    def __call__(self, m: int) -> float:
        log = sum(share * math.log(self.knots[i][1]) for i, share in self.weights(m).items())
        if not self.beyond(m):
            return math.exp(log)
        nearest = self.sizes[0] if m < self.sizes[0] else self.sizes[-1]
        a, b = self.fit
        return math.exp(log) * (a + b * m) / (a + b * nearest)

    def beyond(self, m: int) -> bool:
        return not self.sizes[0] <= m <= self.sizes[-1]

    def left_out(self) -> list[float]:
        """log(interpolated / measured) of each point but the ends, without that point."""
        found = []
        for i in range(1, len(self.knots) - 1):
            rest = Curve(self.knots[:i] + self.knots[i + 1 :])
            found.append(math.log(rest(self.knots[i][0]) / self.knots[i][1]))
        return found


class Pace:
    """How fast one network goes on one machine. micro_batch: what its run takes, None = what fits. asked:
    whether the user named it, so that every other run takes it too."""

    def __init__(self, profile: Profile, micro_batch: int | None = None, asked: bool = False):
        self.profile, self.asked, self._others = profile, asked, {}
        self.micro_batch = cutting.whole_groups(micro_batch or profile.fits, profile.unit)
        self._cuts: dict[tuple, tuple] = {}
        self._steps: dict[int, Step] = {}
        self.measured = sorted({p.batch_size for p in profile.points})
        passes = [(point, self.cut(point.batch_size, point.micro_batch)) for point in profile.points]
        self._usable = [(point, cut) for point, cut in passes if len(set(cut)) == 1] or passes
        equal = [(round(sum(cut) / len(cut)), len(cut), point.seconds) for point, cut in self._usable]
        self.fixed = fixed_part(equal)
        self.identified = any(p > 1 for _, p, _ in equal)
        self.curve = Curve(self._knots(equal))
        # What the first step of a size takes longer; one that compiles is no training time.
        first = [] if self._compiles else self._usable
        self.first = {cut[0]: max(0.0, point.first_step_seconds - point.seconds) for point, cut in first}

    def _knots(self, points) -> list[tuple[int, float]]:
        """t at each measured size, with c taken out: the same least squares."""
        by: dict[int, list] = {}
        for m, p, seconds in points:
            by.setdefault(m, []).append((p, seconds))
        found = []
        for m, rows in by.items():
            above = sum(p * (s - self.fixed) / s**2 for p, s in rows)
            found.append((m, above / sum(p * p / s**2 for p, s in rows)))
        return found

    def cut(self, batch: int, micro_batch: int | None = None) -> tuple[int, ...]:
        """The forward passes, in samples, of the rank that has most to do."""
        micro, world, unit = micro_batch or self.micro_batch, self.profile.world, self.profile.unit
        if (batch, micro) not in self._cuts:
            if self.profile.ordered:
                whole = cutting.passes(slice(0, batch), batch, unit, micro)
                each = [cutting.shared(whole, rank, world)[1] for rank in range(world)]
            else:
                rows = (cutting.rows(batch, unit, rank, world) for rank in range(world))
                most = max(rows, key=lambda r: r.stop - r.start)
                each = [cutting.passes(most, batch, unit, micro)]
            sizes = (tuple(p.stop - p.start for p in passes) for passes in each)
            self._cuts[batch, micro] = max(sizes, key=lambda cut: (sum(cut), len(cut)))
        return self._cuts[batch, micro]

    def step(self, batch: int) -> Step:
        """One step over a global batch."""
        if batch not in self._steps:
            cut = self.cut(batch)
            seconds = (sum(map(self.curve, cut)) + self.fixed) * self.profile.sustained_ratio
            data, communication = self._shares(batch)
            beyond = any(map(self.curve.beyond, cut))
            self._steps[batch] = Step(seconds, data * seconds, communication * seconds, beyond)
        return self._steps[batch]

    def _shares(self, batch: int) -> tuple[float, float]:
        """What part of a step goes into data and communication: that of the points around this batch."""
        points = sorted(self.profile.points, key=lambda p: abs(math.log(p.batch_size / batch)))
        near = [p for p in points if p.batch_size == points[0].batch_size]
        return tuple(
            statistics.fmean(min(getattr(p, name) / p.seconds, 1.0) for p in near)
            for name in ("data", "communication")
        )

    def measuring(self, needs, batch: int) -> float | None:
        """Seconds that a step takes longer which measures this of its gradient; None where that was not
        timed."""
        known, points = self.profile.measuring
        if not points or not set(needs) <= known:
            return None
        return Curve(list(points))(batch) * self.profile.sustained_ratio

    def throughput(self, batch: int) -> float:
        """Samples per second."""
        return batch / self.step(batch).seconds

    def alone(self, batch: int) -> "Pace":
        """That of a run under this batch size alone, which chooses its micro-batch by it."""
        p = self.profile
        longest = cutting.longest(batch, p.unit, p.world, p.ordered, self._compiles)
        if self.asked or (micro := min(p.fits, longest)) == self.micro_batch:
            return self
        if micro not in self._others:
            self._others[micro] = Pace(p, micro)
        return self._others[micro]

    @cached_property
    def errors(self) -> tuple[list[float], float, float]:
        """(errors of the points left out, s_rep, s_drift), on the log scale."""
        rep, drift = (math.sqrt(variance) for variance, _ in (self._rep, self._drift))
        return self.curve.left_out(), rep, drift

    @cached_property
    def _rep(self) -> tuple[float, int]:
        """(variance of a point's time between its visits, degrees of freedom)."""
        spreads, freedom = [], 0
        for p in self.profile.points:
            if len(p.rounds) >= 2:  # the standard error of the visits' median; of two it is their mean
                logs = [math.log(r) for r in p.rounds]
                median = 1.2533 if len(logs) > 2 else 1.0  # at most so much wider than the mean's
                spreads.append(median * statistics.stdev(logs) / math.sqrt(len(logs)))
                freedom += len(logs) - 1
            elif p.steps >= 2:  # that of a median, from quartiles
                spreads.append(1.2533 * (p.high - p.low) / 1.349 / p.seconds / math.sqrt(p.steps))
                freedom += p.steps - 1
        return (statistics.fmean(s * s for s in spreads) if spreads else 0.0), freedom

    @cached_property
    def _drift(self) -> tuple[float, int]:
        """(variance of the reference's time, degrees of freedom)."""
        logs = [math.log(s) for s in self.profile.reference]
        return (statistics.variance(logs), len(logs) - 1) if len(logs) > 1 else (0.0, 0)

    @cached_property
    def _fit(self) -> tuple[float, int]:
        """(mean square of log(measured / T = p t(m) + c) over the points, degrees of freedom)."""
        errors = [
            math.log(point.seconds / (sum(map(self.curve, cut)) + self.fixed)) for point, cut in self._usable
        ]
        freedom = len(errors) - len(self.curve.knots) - 1
        return (sum(e * e for e in errors) / freedom, freedom) if freedom > 0 else (0.0, 0)

    def doubt(self, counted: list[tuple[int, int]]) -> float | None:
        """`half_width` of the time of [(batch size, steps), ...]."""
        timed, total, joined, made = {cut for _, cut in self._usable}, 0.0, 0.0, 0.0
        for batch, steps in counted:
            cut = self.cut(batch)
            total += (seconds := steps * self.step(batch).seconds)
            if any(m not in self.curve.sizes for m in cut):
                joined += seconds
            elif cut not in timed:
                made += seconds
        return self.half_width(*((joined / total, made / total) if total else (0.0, 0.0)))

    def half_width(self, joined: float = 1.0, made: float = 0.0, drift: bool = True) -> float | None:
        """Of the interval, on the log scale; None where the profile cannot tell.

        t sqrt(V), V the sum of variances: of a point between its visits; of the machine's speed meanwhile; of
        interpolation, in the share `joined` of the time that goes into passes between measured sizes; and of
        T = p t(m) + c itself, in the share `made` that goes into numbers of passes that were not timed. Each
        is known with degrees of freedom of its own: t has those of the sum (Satterthwaite 1946).
        """
        out = self.curve.left_out()
        if joined < TRIFLE:  # a cut last batch
            joined = 0.0
        elif not out:
            return None
        found = [self._rep, (self._fit[0] * made**2, self._fit[1]), *([self._drift] if drift else [])]
        if joined:
            found.append((joined**2 * statistics.fmean(e * e for e in out), len(out)))
        found = [(variance, min(freedom, MOST)) for variance, freedom in found if freedom]
        if not found:
            return None
        if not (total := sum(variance for variance, _ in found)):
            return 0.0
        freedom = total**2 / sum(variance**2 / freedom for variance, freedom in found)
        return quantile(LEVEL, int(freedom + 1e-9)) * math.sqrt(total)

    @property
    def _compiles(self) -> bool:
        return bool((self.profile.configuration.get("hardware") or {}).get("compile"))

    def parts(self, counted: list[tuple[int, int]]) -> tuple[dict[int, float], float]:
        """(seconds in passes of each size, seconds in fixed parts) of [(batch size, steps), ...]."""
        passes, fixed = {}, 0.0
        for batch, steps in counted:
            cut = self.cut(batch)
            fixed += steps * self.fixed
            for m in set(cut):
                passes[m] = passes.get(m, 0.0) + steps * cut.count(m) * self.curve(m)
        return passes, fixed
