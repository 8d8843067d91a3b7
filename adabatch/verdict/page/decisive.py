"""The decisive picture: final error against updates, all arms, with the line through the fixed ones.

At equal samples time depends nearly only on the number of updates, so an adaptive batch can win only by a
lower error at equal updates: its diamond must lie below the line.
"""

import math
from dataclasses import dataclass, replace

from adabatch.report.markup import Markup, el, raw
from adabatch.verdict import table, words
from adabatch.verdict.arms import Arm, Plan, Verdict
from adabatch.verdict.page import bands, charts
from adabatch.verdict.page.charts import Chart, Curve, Dot, Ribbon
from adabatch.verdict.page.pens import Pen, legend

NAMED = 14  # dots beyond which only adaptive arms are named in the picture
SEEDS = 400  # dots of seeds in a picture; where there are more, only means and intervals are drawn
NEAR = 0.01  # of the clock: arms that differ by less are at the same place
LOG = 5  # a logarithmic axis of errors from this ratio on
CLOCKS = {"updates": "updates (logarithmic)", "seconds": "seconds of training (logarithmic)"}


@dataclass(frozen=True)
class Place:
    """An arm in the picture: error in per cent against a clock."""

    arm: Arm
    x: bands.Point  # mean of the clock
    y: bands.Point  # mean of the final error, a fraction
    seeds: list[tuple[float, float]]


def places(arms: list[Arm], clock: str) -> list[Place]:
    """Arms of which runs have finished, in order of the clock."""
    found = []
    for arm in arms:
        runs = [run for run in arm.counted.values() if getattr(run, clock)]
        if runs and not arm.infeasible and not arm.outside:
            x = bands.mean(0, [getattr(run, clock) for run in runs])
            y = bands.mean(x.y, [run.error for run in runs])
            if y.low is not None:  # a t interval knows nothing of where errors end
                y = replace(y, low=max(y.low, 0.0), high=min(y.high, 1.0))
            found.append(Place(arm, x, y, [(getattr(run, clock), run.error) for run in runs]))
    return sorted(found, key=lambda place: place.x.y)


def scale(found: list[Place]) -> str:
    means = [place.y.y for place in found]
    low = min([v for place in found for v in (place.y.y, *(e for _, e in place.seeds))])
    return "log" if low > 0 and max(means) > LOG * min(means) else "linear"


def line(found: list[Place]) -> list[tuple[float, float]]:
    """[(clock, error)] through the fixed arms; of arms within 1 % of each other's clock the most accurate."""
    kept: list[tuple[float, float]] = []
    for place in found:
        if place.arm.adaptive is not False:  # what is in neither class is a point of its own
            continue
        at = (place.x.y, place.y.y)
        if kept and at[0] <= (1 + NEAR) * kept[-1][0]:
            kept[-1] = min(kept[-1], at, key=lambda each: each[1])
        else:
            kept.append(at)
    return kept


def at_line(x: float, through: list[tuple[float, float]], kind: str) -> float | None:
    """The error of the line at a clock, straight between two arms as it is drawn (its x axis is logarithmic),
    or of an end that lies within 1 % of it; None further out."""
    for (a, ea), (b, eb) in zip(through, through[1:]):
        if a <= x <= b:
            share = math.log(x / a) / math.log(b / a)
            if kind == "log":
                return math.exp(math.log(ea) + share * (math.log(eb) - math.log(ea)))
            return ea + share * (eb - ea)
    return next((error for at, error in through if abs(x / at - 1) <= NEAR), None)


def chart(found: list[Place], pens: dict[str, Pen], plan: Plan, clock: str) -> Chart:
    kind, through = scale(found), line(found)
    spread = [100 * v for p in found for v in (p.y.y, *(e for _, e in p.seeds))]
    top, room = max(spread), max(max(spread) - min(spread), 100 * plan.delta)
    ends = [100 * v for p in found for v in (p.y.low, p.y.high) if v is not None]
    values = spread + [min(max(v, min(spread) - room), top + room) for v in ends if kind == "linear" or v > 0]
    if kind == "log":
        values = [v for v in values if v >= min(spread) / 2]
    values += [min(100 * (e + plan.delta), 2 * top - min(spread)) for _, e in through]  # the margin's edge
    xs = [v for p in found for v in (p.x.y, *(a for a, _ in p.seeds))]
    few, dotted = len(found) <= NAMED, sum(len(p.seeds) for p in found) <= SEEDS
    layers: list = []
    if len(through) > 1:
        layers.append(Ribbon([(x, 100 * e, 100 * (e + plan.delta)) for x, e in _fine(through, kind)]))
        layers.append(Curve(None, [(x, 100 * e) for x, e in through]))
    for place in found:
        named = few or place.arm.adaptive
        layers.append(Dot(
            pens[place.arm.name], _percent(place), title(place, clock),
            [(x, 100 * e) for x, e in place.seeds if dotted],
            _across(place) if clock == "seconds" else None, table.middle(place.arm.name, 20) if named else "",
        ))  # fmt: skip
    return Chart(
        charts.axis(CLOCKS[clock], xs, "log", pad=0.12),
        charts.axis(charts.percent(plan.split, kind), values, kind, pad=0.08),
        layers,
        "; ".join(title(place, clock) for place in found[:NAMED]),
    )  # fmt: skip


def _fine(through: list[tuple[float, float]], kind: str) -> list[tuple[float, float]]:
    """The line at 16 places of each stretch: the margin above it is curved where the axis is logarithmic."""
    if kind == "linear":
        return through
    xs = [a * (b / a) ** (i / 16) for (a, _), (b, _) in zip(through, through[1:]) for i in range(16)]
    return [(x, at_line(x, through, kind) or 0.0) for x in xs] + [through[-1]]


def _percent(place: Place) -> bands.Point:
    low, high = (None if v is None else 100 * v for v in (place.y.low, place.y.high))
    return bands.Point(place.x.y, 100 * place.y.y, low, high, place.y.n)


def _across(place: Place) -> tuple[float, float] | None:
    return None if place.x.low is None else (max(place.x.low, 1e-9), place.x.high)


def title(place: Place, clock: str) -> str:
    shown = table.percent([error for _, error in place.seeds])
    return f"{place.arm.name}: {shown} at {table.compact(place.x.y)} {clock}, n = {place.y.n}"


def seen(found: list[Place], clock: str) -> list[str]:
    """Where each adaptive arm lies, in a sentence each."""
    through, kind = line(found), scale(found)
    fixed = [place for place in found if place.arm.adaptive is False]
    said = []
    for place in found:
        if not place.arm.adaptive or not fixed:
            continue
        here, name = place.x.y, place.arm.name
        if (there := at_line(here, through, kind)) is not None:
            gap = 100 * (place.y.y - there)
            side = "above" if gap > 0 else "below"
            shown = f"{abs(gap):.2f} pp {side} the line" if abs(gap) >= 0.005 else "on the line"
            said.append(f"{name} lies {shown} at {table.compact(here)} {clock}.")
        else:
            side = here > fixed[-1].x.y
            if clock == "seconds":
                end = "took longer" if side else "took less time"
            else:
                end = f"has {'more' if side else 'fewer'} updates"
            equal = "time" if clock == "seconds" else "updates"
            said.append(f"{name} {end} than any fixed arm: it has no rival at equal {equal}.")
    return said


def figure(verdict: Verdict, plan: Plan, pens: dict[str, Pen]) -> Markup | None:
    """The picture in a wide and a narrow drawing, of which the page shows the one that suits the window."""
    found = places(list(verdict.arms), "updates")
    if not found:
        return None
    made = chart(found, pens, plan, "updates")
    large, small = (charts.draw(made, size, class_=name) for size, name in
                    ((charts.WIDE, "large"), (charts.NARROW, "small")))  # fmt: skip
    said = seen(found, "updates") + [means(found, plan)]
    key = legend([pens[place.arm.name] for place in found])
    return el("figure", el("div", large, small, key), el("figcaption", *(el("p", each) for each in said)),
              class_="first")  # fmt: skip


def alone(verdict: Verdict, plan: Plan, pens: dict[str, Pen], css: str) -> Markup | None:
    """The wide drawing as a document of its own."""
    found = places(list(verdict.arms), "updates")
    if not found:
        return None
    style = el("style", raw(css))
    return charts.draw(
        chart(found, pens, plan, "updates"), charts.WIDE, style, xmlns="http://www.w3.org/2000/svg"
    )


def against_time(verdict: Verdict, plan: Plan, pens: dict[str, Pen]) -> Markup | None:
    """The same against seconds; only where these can be compared."""
    found = places(list(verdict.arms), "seconds")
    if not found:
        return None
    picture = charts.draw(chart(found, pens, plan, "seconds"))
    said = [
        *seen(found, "seconds"),
        "Drawn as the picture above; bars to the sides: 95 % t interval of the time.",
    ]
    return el("figure", el("h3", "Final error against training time"), picture,
              el("figcaption", *(el("p", each) for each in said)))  # fmt: skip


def means(found: list[Place], plan: Plan) -> str:
    """What bars, dots, line and shade are."""
    several = any(place.y.n > 1 for place in found)
    bars = (
        "Bars: 95 % t interval of the mean over seeds; small dots beside them: the seeds."
        if several
        else "One seed each."
    )
    if len(line(found)) < 2:
        return bars
    margin = words.points(plan.delta)
    grey = "Grey: straight from one fixed arm to the next"
    return f"{grey}; shaded: up to the margin of {margin} above it. {bars}"
