"""The four panels of a run (loss, error, batch size, learning rate over epochs) as numbers, and a fifth of
the distance of its weights from their first ones where it was logged.

Thinning never invents and is always said: up to ROWS logged rows are drawn one by one; more are averaged in
BINS equal stretches of the run, weighted by batch size (a row's loss is a mean over its batch), and a band
shows the lowest and highest row of each. Batch size and learning rate keep every change, up to STEPS of them.
"""

import math
from dataclasses import dataclass, field

from adabatch.files import number
from adabatch.report.facts import Facts, pair

ROWS, BINS, STEPS = 200, 150, 1500
UPDATES, PER_DECADE = "updates, logarithmic", 20  # an axis; stretches of a factor of ten of it
MARKS = 16  # more changes of batch than this are not marked one by one: the lines would hide the curves

# Okabe and Ito's colours, told apart with any colour vision; lines differ in dashes and markers too.
BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
KINDS = (  # of evaluations: split, weights, colour
    ("validation", "raw", GREEN),
    ("validation", "ema", PURPLE),
    ("test", "raw", ORANGE),
    ("test", "ema", PURPLE),
)


@dataclass(frozen=True)
class Line:
    """One curve: points [(epoch, value)], a band [(epoch, low, high)]; step = holds until the next point."""

    label: str
    colour: str
    points: list[tuple[float, float]]
    band: list[tuple[float, float, float]] = field(default_factory=list)
    dots: bool = False
    dashed: bool = False
    step: bool = False


@dataclass(frozen=True)
class Panel:
    """One plot. unit is "" or "%" (values are then percentages); scale is "linear", "log" or "log2". across:
    what x is, epochs, or UPDATES, whose logarithm to base 10 it is then."""

    name: str
    unit: str
    scale: str
    lines: list[Line]
    marks: list[float]  # epochs at which the batch size changed
    end: float  # the x axis reaches from 0 to here
    notes: list[str]  # how the points were thinned, what is left out
    across: str = "epochs"

    @property
    def empty(self) -> bool:
        return not any(line.points for line in self.lines)


def panels(run: Facts) -> list[Panel]:
    """Loss, error, batch size, learning rate, in this order; one without points is there too (`empty`). After
    them the distance of the weights, where it was logged."""
    epochs = [e for r in (*run.train, *run.evals) if (e := number(r.get("epoch"))) is not None and e >= 0]
    end = max(epochs, default=0) or 1.0
    marks = sorted({e for e in map(changed_batch, run.changes) if e is not None and 0 <= e <= end})
    notes = [f"{len(marks)} changes of batch, too many to mark one by one"] if len(marks) > MARKS else []
    marks = [] if len(marks) > MARKS else marks
    return [
        _measured(run, "Loss", "", "train_loss", "eval_loss", 1, marks, end, notes),
        _measured(run, "Error", "%", "train_error", "eval_error", 100, marks, end, notes),
        _settings(run, "Batch size", "batch_size", marks, end, notes),
        _settings(run, "Learning rate", "lr", marks, end, notes),
        *filter(None, [distance(run)]),
    ]


def distance(run: Facts) -> Panel | None:
    """||w_t - w_0|| against log t, t in updates, as Hoffer, Hubara and Soudry 2017 (arXiv 1705.08741) draw
    it; None where no row has it."""
    points = travelled(run.train)
    if not points:
        return None
    end = points[-1][0] or 1.0
    notes = [f"the last row of each {PER_DECADE}th of a decade"] if len(points) < len(run.train) else []
    lines = [Line("training", BLUE, points, dots=len(points) <= 60)]
    return Panel("Weight distance", "", "linear", lines, [], end, notes, UPDATES)


def travelled(rows: list[dict], decade: int = PER_DECADE) -> list[tuple[float, float]]:
    """[(log10 of the updates, distance)] of training rows that have one: the last row of each of `decade`
    stretches in a factor of ten."""
    kept: dict[int, tuple[float, float]] = {}
    for row in rows:
        step, value = number(row.get("step")), number(row.get("distance"))
        if step is not None and 1 <= step <= 1e15 and value is not None and value >= 0:
            kept[round(decade * math.log10(step))] = (math.log10(step), value)
    return sorted(kept.values())


def changed_batch(change: dict) -> float | None:
    """The epoch of a change event, if the batch size was among what changed."""
    return number(change.get("epoch")) if "batch_size" in change["changes"] else None


def column(rows: list[dict], key: str, factor: float = 1) -> list[tuple[float, float, float]]:
    """[(epoch, value, batch size)] of the rows that have a finite value, in order of epoch."""
    found = []
    for row in rows:
        epoch, value = number(row.get("epoch")), number(row.get(key))
        if epoch is not None and epoch >= 0 and value is not None:
            found.append((epoch, value * factor, max(number(row.get("batch_size")) or 1.0, 1.0)))
    return sorted(found, key=lambda point: point[0])


def average(points: list[tuple], end: float) -> tuple[list[tuple], list[tuple]]:
    """(means, band) over BINS equal stretches of [0, end]; a mean stands at its stretch's mean epoch."""
    bins: dict[int, list] = {}
    for point in points:
        bins.setdefault(min(int(point[0] / end * BINS), BINS - 1), []).append(point)
    means, band = [], []
    for _, group in sorted(bins.items()):
        weight = math.fsum(w for _, _, w in group)
        epoch = math.fsum(e * w for e, _, w in group) / weight
        means.append((epoch, math.fsum(v * w for _, v, w in group) / weight))
        band.append((epoch, min(v for _, v, _ in group), max(v for _, v, _ in group)))
    return means, band


def thin_steps(points: list[tuple[float, float]]) -> tuple[list[tuple[float, float]], bool]:
    """Keeps the first, the last and every point at which the value changes; where that is too many, each
    stretch's first, lowest, highest and last (then True is returned beside the points)."""
    kept = [
        p
        for i, p in enumerate(points)
        if i in (0, len(points) - 1) or p[1] != points[i - 1][1] or p[1] != points[i + 1][1]
    ]
    if len(kept) <= STEPS:
        return kept, False
    size, few = math.ceil(len(kept) / (STEPS // 4)), []
    for start in range(0, len(kept), size):
        group = kept[start : start + size]
        chosen = {group[0], group[-1], min(group, key=lambda p: p[1]), max(group, key=lambda p: p[1])}
        few += sorted(chosen)
    return few, True


def scale(values: list[float], log_when: float) -> str:
    """ "log" for positive values that span more than a factor of `log_when`, "linear" otherwise."""
    positive = [v for v in values if v > 0]
    if not positive or len(positive) < len(values) or max(positive) / min(positive) < log_when:
        return "linear"
    return "log"


def _measured(run, name, unit, train_key, eval_key, factor, marks, end, notes) -> Panel:
    """The panel of a measured figure: training rows (thinned), each split's evaluations as they are."""
    notes, lines = list(notes), []
    points = column(run.train, train_key, factor)
    if missing := len(run.train) - len(points):
        without = f"{missing:,} of {len(run.train):,}"
        notes.append(f"{without} training rows have no finite {name.lower()} and are left out")
    if len(points) > ROWS:
        means, band = average(points, end)
        lines.append(Line("training", BLUE, means, band))
        notes.append(
            f"training: {len(points):,} logged rows drawn as {len(means)} averages weighted by batch size; "
            "the band reaches from the lowest to the highest row of each"
        )
    elif points:
        lines.append(Line("training", BLUE, [p[:2] for p in points], dots=len(points) == 1))
    for split, weights, colour in KINDS:
        points = column(run.evaluations(split, weights), eval_key, factor)
        if len(points) > 3 * ROWS:
            keep = math.ceil(len(points) / (3 * ROWS))
            points = points[::-keep][::-1]
            notes.append(f"{split}: one evaluation in {keep} is drawn")
        if points:
            label = split if weights == "raw" else f"{split}, averaged weights"
            few, drawn = len(points) <= 60, [p[:2] for p in points]
            lines.append(Line(label, colour, drawn, dots=few, dashed=weights == "ema"))
    values = [v for line in lines for _, v in line.points]
    return Panel(name, unit, scale(values, 10), lines, marks, end, notes)


def _settings(run, name, key, marks, end, notes) -> Panel:
    """The panel of a setting: it holds from one step to the next."""
    raw = timeline(run, key)
    (points, thinned), notes = thin_steps(raw), list(notes)
    values = [v for _, v in points]
    kind = scale(values, 1.9 if key == "batch_size" else 10)
    if kind == "log" and key == "batch_size":
        kind = "log2"
    if thinned:
        notes.append(f"{len(raw):,} logged values thinned to {len(points):,} points; extremes are kept")
    lines = [Line(name.lower(), BLUE, points, step=True)] if points else []
    return Panel(name, "", kind, lines, marks, end, notes)


def timeline(run: Facts, key: str) -> list[tuple[float, float]]:
    """[(epoch, value)]: each value holds until the next point. A row stands at the end of its step, a change
    event at the first sample under the new value: at equal epochs the row comes first."""
    told = run.train
    if key == "batch_size":  # a cut last batch counts as what it would have been
        told = [row | {key: row["divisor"]} if "divisor" in row else row for row in told]
    rows = [p[:2] for p in column(told, key)]
    if not rows:
        return []
    changes = [(number(c.get("epoch")), *pair(c, key)) for c in run.changes]
    changes = sorted(c for c in changes if None not in c and c[0] >= 0)
    if key == "batch_size" and len(rows) > 1 and not any(epoch >= rows[-2][0] for epoch, *_ in changes):
        # A run's last batch is cut to end at its budget, which is no change of the rule.
        rows[-1] = (rows[-1][0], rows[-2][1])
    first = changes[0][1] if changes and changes[0][0] < rows[0][0] else rows[0][1]
    after = [(epoch, value) for epoch, _before, value in changes]
    return [(0.0, first), *sorted(rows + after, key=lambda point: point[0])]
