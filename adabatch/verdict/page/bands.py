"""Means over the seeds of an arm with their 95 % t intervals, and fractions of them."""

import math
from dataclasses import dataclass

from adabatch import statistics
from adabatch.verdict.arms import Arm, Run
from adabatch.verdict.traces import thinned

POINTS = 120  # of a curve
CLOCKS = ("epochs", "updates", "seconds")


@dataclass(frozen=True)
class Point:
    """A mean over n seeds at x; low, high: the 95 % t interval of the mean, None for one seed."""

    x: float
    y: float
    low: float | None
    high: float | None
    n: int

    @property
    def band(self) -> tuple[float, float] | None:
        """What is drawn around a curve. Of two seeds (12.7 standard errors) it would hide all else."""
        return None if self.low is None or self.n < 3 else (self.low, self.high)


def mean(x: float, values: list[float]) -> Point:
    """t interval: percentiles of a bootstrap of 3 to 10 runs cover far less than they say."""
    if len(values) < 2:
        return Point(x, values[0], None, None, 1)
    made = statistics.mean(values)
    low, high = (float(end) for end in made.interval(0.95))
    return Point(x, float(made.mean), low, high, len(values))


def going_on(arm: Arm) -> list[Run]:
    """Runs whose curves say something of the arm: not those that diverged."""
    return [run for run in arm.runs if run.state != "diverged"]


def errors(arm: Arm, clock: str) -> list[Point]:
    """The error at each mark of the evaluation grid, at the mean of the seeds' epochs, updates or seconds
    there. Marks that fewer than half of the runs have reached are left out."""
    traces = [run.traces.evaluations for run in going_on(arm)]
    began = sum(bool(each) for each in traces)
    marks: dict[float, list] = {}
    for each in traces:
        for at in each:
            marks.setdefault(at.mark, []).append(at)
    found = []
    for _, seen in sorted(marks.items()):
        times = [getattr(at, clock) for at in seen]
        if 2 * len(seen) >= began and None not in times:
            found.append(mean(math.fsum(times) / len(times), [at.error for at in seen]))
    return thinned(found, POINTS, lambda point: point.y)


def stretches(arm: Arm, name: str) -> list[Point]:
    """Of what is averaged over stretches of the run: "rate", "distance" (over log10 of the updates), or
    "noise" (geometric means)."""
    groups: dict[int, list[tuple[float, float]]] = {}
    runs = going_on(arm)
    for run in runs:
        for stretch, epoch, value in getattr(run.traces, name):
            groups.setdefault(stretch, []).append((epoch, value))
    began = sum(bool(getattr(run.traces, name)) for run in runs)
    found = []
    for _, group in sorted(groups.items()):
        if 2 * len(group) < began:
            continue
        epoch = math.fsum(e for e, _ in group) / len(group)
        if name != "noise":
            found.append(mean(epoch, [value for _, value in group]))
        else:
            made = mean(epoch, [math.log(value) for _, value in group])
            found.append(Point(epoch, *map(_exp, (made.y, made.low, made.high)), made.n))
    return found


def _exp(log: float | None) -> float | None:
    return None if log is None else math.exp(min(max(log, -300.0), 300.0))  # of a stranger's figures


def reached(arm: Arm) -> list[tuple[float, float]]:
    """[(seconds, fraction of the runs that had reached the target by then)], a staircase from (0, 0)."""
    times = sorted(run.target for run in arm.runs if run.target is not None)
    hits = [t for t in times if math.isfinite(t)]
    return [(0.0, 0.0), *((t, (i + 1) / len(times)) for i, t in enumerate(hits))] if times else []


def trajectories(arm: Arm, name: str, most: int = 4) -> tuple[list[list[tuple[float, float]]], int]:
    """The arm's "batch" or "lr" over epochs: one staircase where all seeds agree, else `most` of them; and
    how many different ones there are."""
    found = list(dict.fromkeys(getattr(run.traces, name) for run in going_on(arm)))
    found = [each for each in found if each]
    longest = max(found, key=lambda each: each[-1][0], default=())
    if all(_begins(longest, each) for each in found):  # runs in progress have a shorter part of the same
        found = [longest] if longest else []
    return [list(each) for each in found[:most]], len(found)


def _begins(whole: tuple, part: tuple) -> bool:
    """Whether a staircase is the beginning of another; its end may lie on a step of that one."""
    if len(part) > len(whole):
        return False
    same = [a[1] == b[1] and abs(a[0] - b[0]) < 1e-6 for a, b in zip(whole, part)]
    last = len(part) - 1
    held = last > 0 and part[last][1] == part[last - 1][1] and part[last][0] < whole[last][0]
    return all(same[:-1]) and (same[-1] or held)
