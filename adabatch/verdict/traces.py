"""What is drawn of one run: its curves, thinned and bounded, and its seconds by cause.

A sweep may have thousands of runs and a run millions of rows; of each is kept what a page can show.
"""

import math
from dataclasses import dataclass

from adabatch.files import number
from adabatch.report import series
from adabatch.report.facts import Facts, text

EVALUATIONS, STEPS, BINS = 400, 120, 40  # points of a run: of its error, of its settings, of what is averaged
DECADE = 10  # points of the distance of the weights to a factor of ten in updates
CAUSES = 16  # entries of a ledger


@dataclass(frozen=True)
class Evaluated:
    """One evaluation while training. mark: its place on the grid of evaluations, the same in every run.
    seconds, updates: None where the row does not say."""

    mark: float
    epochs: float
    updates: float | None
    seconds: float | None
    error: float


@dataclass(frozen=True)
class Traces:
    """split: of the evaluations. batch, lr: [(epoch, value)], each of which holds until the next. rate:
    samples per second, noise: its scale, both {stretch of the run, of BINS: (epoch, value)}. distance: of the
    weights from their first ones, {stretch of the updates, DECADE to a factor of ten: (their log10, value)}.
    forecast: (seconds, low, high, measured)."""

    split: str = "test"
    evaluations: tuple[Evaluated, ...] = ()
    batch: tuple[tuple[float, float], ...] = ()
    lr: tuple[tuple[float, float], ...] = ()
    rate: tuple[tuple[int, float, float], ...] = ()
    noise: tuple[tuple[int, float, float], ...] = ()
    distance: tuple[tuple[int, float, float], ...] = ()
    ledger: tuple[tuple[str, float], ...] = ()
    forecast: tuple[float, float | None, float | None, float] | None = None


def of(run: Facts, split: str) -> Traces:
    """split: the one that is watched while training."""
    epochs = number(run.config.get("epochs")) or 0.0
    last = max([number(row.get("epoch")) or 0.0 for row in run.train], default=0.0)
    end = epochs if epochs > 0 else last or 1.0
    lines = (series.thin_steps(series.timeline(run, key))[0] for key in ("batch_size", "lr"))
    return Traces(
        split,
        tuple(evaluations(run, split)),
        *(tuple(thinned(line, STEPS)) for line in lines),
        rate=tuple(rates(run.train, end)),
        noise=tuple(scales(run.train, end)),
        distance=tuple(
            (round(DECADE * at), at, value) for at, value in series.travelled(run.train, DECADE)
        ),
        ledger=tuple(causes(run.summary.get("ledger"))),
        forecast=forecast(run.summary),
    )  # fmt: skip


def thinned(points: list, most: int, value=lambda point: point[1]) -> list:
    """At most `most` of the points (4 at least): of each stretch its first, lowest, highest and last."""
    if len(points) <= most:
        return points
    size, kept = math.ceil(len(points) / (most // 4)), []
    for start in range(0, len(points), size):
        group = range(start, min(start + size, len(points)))
        by_value = sorted(group, key=lambda i: value(points[i]))
        kept += sorted({group[0], group[-1], by_value[0], by_value[-1]})
    return [points[i] for i in kept]


def evaluations(run: Facts, split: str) -> list[Evaluated]:
    """Of the averaged weights where there are any. Errors are fractions."""
    node = run.config.get("evaluate")
    every = number(node.get("every")) if isinstance(node, dict) else None
    rows = run.evaluations(split, "ema") or run.evaluations(split, "raw")
    found: dict[float, Evaluated] = {}
    for row in rows:
        epoch, error = number(row.get("epoch")), number(row.get("eval_error"))
        if epoch is None or error is None or epoch < 0 or not 0 <= error <= 1:
            continue
        # Taken at the first step at or after its mark; a last one between two marks comes after the former.
        mark = float(math.floor(epoch / every + 1e-6)) if every and every > 0 else float(len(found) + 1)
        made = Evaluated(mark, epoch, *(_positive(row.get(key)) for key in ("step", "seconds")), error)
        if mark in found and epoch > found[mark].epochs:
            made = Evaluated(mark + 0.5, *list(vars(made).values())[1:])
        found[made.mark] = made
    return aligned(sorted(found.values(), key=lambda each: each.mark))


def aligned(found: list[Evaluated]) -> list[Evaluated]:
    """About EVALUATIONS of them: every second, fourth, ... mark, so that equal runs keep equal marks, and the
    first, the lowest, the highest and the last."""
    if len(found) <= EVALUATIONS:
        return found
    stride = 2 ** math.ceil(math.log2(len(found) / EVALUATIONS))
    by_error = sorted(found, key=lambda each: each.error)
    kept = {found[0], found[-1], by_error[0], by_error[-1]}
    return [each for each in found if each in kept or each.mark % stride == 0]


def _positive(value) -> float | None:
    found = number(value)
    return found if found is not None and found >= 0 else None


def rates(rows: list[dict], end: float) -> list[tuple[int, float, float]]:
    """[(stretch, epoch, samples per second)] by the rows that end each stretch of [0, end] epochs."""
    told = [[number(row.get(key)) for key in ("epoch", "position", "seconds")] for row in rows]
    ends: dict[int, list[float]] = {}
    for each in told:
        if None not in each and each[0] >= 0:
            ends[_stretch(each[0], end)] = each
    found, before = [], [0.0, 0.0, 0.0]
    for stretch, (epoch, position, seconds) in sorted(ends.items()):
        samples, passed = position - before[1], seconds - before[2]
        if samples > 0 and passed > 1e-9:
            found.append((stretch, (before[0] + epoch) / 2, samples / passed))
        before = [epoch, position, seconds]
    return found


def _stretch(epoch: float, end: float) -> int:
    return min(math.ceil(epoch / end * BINS) - 1, BINS - 1) if epoch > 0 else 0


def scales(rows: list[dict], end: float) -> list[tuple[int, float, float]]:
    """[(stretch, epoch, noise scale)]: geometric means over the stretches in which it was resolved."""
    groups: dict[int, list[tuple[float, float]]] = {}
    for row in rows:
        epoch, scale = number(row.get("epoch")), number(row.get("noise_scale"))
        if epoch is not None and scale is not None and epoch >= 0 and scale > 0:
            groups.setdefault(_stretch(epoch, end), []).append((epoch, math.log(scale)))
    found = []
    for stretch, group in sorted(groups.items()):
        epoch, log = (math.fsum(column) / len(group) for column in zip(*group))
        found.append((stretch, epoch, math.exp(log)))
    return found


def causes(given) -> list[tuple[str, float]]:
    """[(cause, seconds)] of a ledger, none of them 0."""
    if not isinstance(given, dict):
        return []
    told = [(text(name, 40), number(value)) for name, value in list(given.items())[:CAUSES]]
    return [(name, value) for name, value in told if value is not None and value > 0]


def forecast(summary: dict) -> tuple[float, float | None, float | None, float] | None:
    """(seconds, low, high, measured), where a forecast was made and the run has ended; without an interval
    low and high are None."""
    given = summary.get("forecast")
    if not isinstance(given, dict):
        return None
    seconds, low, high = (number(given.get(key)) for key in ("seconds", "low", "high"))
    measured = number(given.get("measured")) or number(summary.get("train_seconds"))
    if not seconds or not measured or min(seconds, measured) <= 0:
        return None
    if low is None or high is None or not 0 < low <= seconds <= high:
        low = high = None
    return seconds, low, high, measured
