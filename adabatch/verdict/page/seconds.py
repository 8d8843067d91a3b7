"""Where the time went, arm by arm, and what had been forecast of it."""

import math
from statistics import median

from adabatch.report import svg
from adabatch.report.markup import Markup, el
from adabatch.report.markup import table as grid
from adabatch.report.parts import CAUSES
from adabatch.report.words import fixed
from adabatch.verdict import table
from adabatch.verdict.arms import Arm
from adabatch.verdict.page import charts
from adabatch.verdict.page.bands import Point
from adabatch.verdict.page.charts import Chart, Curve, Dot
from adabatch.verdict.page.figures import Sheet, figure
from adabatch.verdict.page.pens import key

WIDTH, ROW, BAR = 480, 40, 15  # of the ledger's view box
FORECASTS = 40  # runs of an arm that are drawn
NAMES = 34  # characters of an arm's name above its bar
# What every run has is grey; what an adaptive batch may cost beside it has a colour.
COLOURS = {
    "compute": "#8496ab", "forward": "#a3b1c4", "backward": "#6d8098", "data": "#b3bfcc",
    "exposed_communication": "#e0b050", "resize": "#c2410c",
    "first_compile": "#cdb4db", "recompile": "#8e44ad", "measuring": "#0f9d76", "evaluation": "#a39a8d",
    "checkpoint": "#cfc7ba", "redone": "#d1495b", "other": "#dde3ea",
}  # fmt: skip


def means(arm: Arm) -> dict[str, float]:
    """{cause: mean seconds over the runs that have a ledger}."""
    ledgers = [dict(run.traces.ledger) for run in arm.counted.values() if run.traces.ledger]
    causes = dict.fromkeys(cause for ledger in ledgers for cause in ledger)
    return {cause: math.fsum(each.get(cause, 0.0) for each in ledgers) / len(ledgers) for cause in causes}


def ledger(sheet: Sheet) -> Markup | None:
    """A bar an arm, cut by cause, all on one scale; the same as a table behind a fold."""
    found = {arm.name: by_cause for arm in sheet.drawn if (by_cause := means(arm))}
    if not found:
        return None
    present = {cause for by_cause in found.values() for cause in by_cause}
    order = [c for c in CAUSES if c in present] + sorted(present - CAUSES.keys())
    colours = {cause: COLOURS.get(cause, svg.share_colour(i)) for i, cause in enumerate(order)}
    most = max(math.fsum(by_cause.values()) for by_cause in found.values())
    parts = []
    for i, (name, by_cause) in enumerate(found.items()):
        total, at = math.fsum(by_cause.values()), 0.0
        parts.append(el("text", table.middle(name, NAMES), x=0, y=i * ROW + 13, class_="label"))
        shown = f"{table.compact(total)} s"
        parts.append(el("text", shown, x=WIDTH, y=i * ROW + 13, text_anchor="end"))
        for cause in (c for c in order if by_cause.get(c)):
            wide = WIDTH * by_cause[cause] / most
            title = el("title", f"{name}, {cause.replace('_', ' ')}: {fixed(by_cause[cause])} s")
            parts.append(el("rect", title, x=f"{at:.1f}", y=i * ROW + 19, width=f"{wide:.1f}", height=BAR,
                            fill=colours[cause], class_="part"))  # fmt: skip
            at += wide
    told = ", ".join(f"{name} {table.compact(math.fsum(b.values()))} s" for name, b in found.items())
    picture = el("svg", *parts, viewBox=f"0 0 {WIDTH} {ROW * len(found)}", role="img",
                 aria_label=f"Mean wall time by cause: {told}")  # fmt: skip
    chips = [el("span", _chip(colours[c]), "\u00a0", c.replace("_", " ")) for c in order]
    caption = "Mean wall seconds of the finished runs by cause; the figure at the right is their sum."
    if sheet.no_time:
        caption += f" Not to be compared between arms: {sheet.no_time}."
    return el("figure", el("h3", "Where the time went"), picture, el("p", *chips, class_="legend"),
              el("figcaption", el("p", caption)), _table(found, order, sheet))  # fmt: skip


def _chip(colour: str) -> Markup:
    """Drawn, not a background, which browsers do not print."""
    square = el("rect", x=1, y=1, width=12, height=12, fill=colour)
    return el("svg", square, viewBox="0 0 14 14", class_="key chip", aria_hidden="true")


def _table(found: dict, order: list[str], sheet: Sheet) -> Markup:
    rows = [[el("span", key(sheet.pens[name]), " ", name), *(fixed(by.get(c, 0.0)) for c in order)]
            for name, by in found.items()]  # fmt: skip
    head = ["seconds", *(cause.replace("_", " ") for cause in order)]
    return el("details", el("summary", "The same in figures"), grid(head, rows, numbers=1))


def forecast(sheet: Sheet) -> Markup | None:
    """Measured against predicted seconds of every run that had a forecast."""
    dots, held, off = [], [], []
    for arm in sheet.drawn:
        made = [run.traces.forecast for run in arm.counted.values() if run.traces.forecast]
        for seconds, low, high, measured in made[:FORECASTS]:
            across = None if low is None else (low, high)
            interval = f" [{', '.join(map(table.compact, across))}]" if across else ""
            title = f"{arm.name}: {table.compact(measured)} s, forecast {table.compact(seconds)} s{interval}"
            at = Point(seconds, measured, None, None, 1)
            dots.append(Dot(sheet.pens[arm.name], at, title, across=across))
        held += [low <= measured <= high for _, low, high, measured in made if low is not None]
        off += [abs(measured / seconds - 1) for seconds, _, _, measured in made]
    if not dots:
        return None
    values = [v for dot in dots for v in (dot.at.x, dot.at.y, *(dot.across or ()))]
    kind = "log" if max(values) > 4 * min(values) else "linear"
    x, y = (charts.axis(label, values, kind, pad=0.08) for label in ("forecast seconds", "measured seconds"))
    diagonal = Curve(None, [(x.low, x.low), (x.high, x.high)])
    chart = Chart(x, y, [diagonal, *dots], f"Measured against forecast seconds of {len(off)} runs")
    told = f"On the grey line the forecast was right. Off by {100 * median(off):.0f} % in the median run"
    told += f"; {sum(held)} of {len(held)} lie inside their interval (horizontal bars)." if held else "."
    named = {dot.pen.name: dot.pen for dot in dots}
    return figure("Forecast against measured", chart, list(named.values()), told)
