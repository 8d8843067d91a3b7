"""Inline SVG without scripts: a plot per panel, a bar of shares. The page colours text and grid."""

import math

from adabatch.report.markup import Markup, el
from adabatch.report.series import UPDATES, Line, Panel

WIDTH, HEIGHT = 480, 250  # of the view box; the page scales it, down to a width of about 360 px
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 12, 36


def plot(panel: Panel) -> Markup:
    """The panel as an <svg> with a legend below the plot where there is more than one line."""
    if panel.empty:
        return el("p", "Nothing logged yet.", class_="quiet")
    return Markup(picture(panel) + (legend(panel.lines) if len(panel.lines) > 1 else ""))


def picture(panel: Panel, **placed) -> Markup:
    """The panel, which is not empty, as an <svg>. placed: further attributes, e.g. x, y, width, height."""
    low, high = limits(panel)
    end = panel.end * 1.01

    def x(value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * value / end

    def y(value: float) -> float:
        if panel.scale == "linear":
            share = (value - low) / (high - low)
        else:
            share = math.log(max(value, low) / low) / math.log(high / low)
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * min(max(share, 0.0), 1.0)

    parts = []
    for tick in ticks(low, high, panel.scale):
        parts += [
            el("line", x1=LEFT, x2=WIDTH - RIGHT, y1=_(y(tick)), y2=_(y(tick)), class_="grid"),
            el("text", tick_label(tick), x=LEFT - 7, y=_(y(tick) + 4.5), text_anchor="end"),
        ]
    for tick, label in along(panel):
        parts.append(el("text", label, x=_(x(tick)), y=HEIGHT - BOTTOM + 17, text_anchor="middle"))
    parts.append(el("text", panel.across, x=WIDTH - RIGHT, y=HEIGHT - 2, text_anchor="end"))
    for mark in panel.marks:
        parts.append(el("line", x1=_(x(mark)), x2=_(x(mark)), y1=TOP, y2=HEIGHT - BOTTOM, class_="mark"))
    parts.append(el("line", x1=LEFT, x2=WIDTH - RIGHT, y1=HEIGHT - BOTTOM, y2=HEIGHT - BOTTOM, class_="axis"))
    for line in panel.lines:
        parts += _line(line, x, y)
    return el(
        "svg",
        *parts,
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        aria_label=f"{panel.name} over {panel.across}, {', '.join(line.label for line in panel.lines)}",
        **placed,
    )


def _(value: float) -> str:
    return f"{value:.1f}"


def _line(line: Line, x, y) -> list[Markup]:
    parts = []
    if line.band:
        outline = [(e, b) for e, _a, b in line.band] + [(e, a) for e, a, _b in reversed(line.band)]
        corners = " ".join(f"{x(e):.1f},{y(v):.1f}" for e, v in outline)
        parts.append(el("polygon", points=corners, fill=line.colour, opacity=0.18))
    corners = []
    for epoch, value in line.points:
        if line.step and corners:
            corners.append((x(epoch), corners[-1][1]))
        corners.append((x(epoch), y(value)))
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in corners)
    dashes = "6 4" if line.dashed else None
    style = {"fill": "none", "stroke": line.colour, "stroke_width": 2, "stroke_linejoin": "round"}
    parts.append(el("polyline", points=points, stroke_dasharray=dashes, **style))
    if line.dots:
        parts += [el("circle", cx=_(x(e)), cy=_(y(v)), r=2.8, fill=line.colour) for e, v in line.points]
    return parts


def legend(lines: list[Line]) -> Markup:
    """The lines' colours and names, as HTML that wraps."""
    items = []
    for line in lines:
        sample = el("svg", el("line", x1=0, x2=26, y1=6, y2=6, stroke=line.colour, stroke_width=3,
                              stroke_dasharray="6 4" if line.dashed else None),
                    el("circle", cx=13, cy=6, r=4, fill=line.colour) if line.dots else None,
                    viewBox="0 0 26 12", class_="key", aria_hidden="true")  # fmt: skip
        items.append(el("span", sample, " ", line.label))
    return el("p", *items, class_="legend")


SHARES = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#F0E442", "#8a8a8a")


def bar(parts: list[tuple[str, float]]) -> Markup:
    """One bar cut into shares [(name, value >= 0)], in order; each has a title. Colours: `share_colour`."""
    total = math.fsum(value for _name, value in parts)
    pieces, at = [], 0.0
    for i, (name, value) in enumerate(parts):
        width = 1000 * value / total
        title = el("title", f"{name}: {value / total:.1%}")
        fill = share_colour(i)
        pieces.append(el("rect", title, x=_(at), y=0, width=_(width), height=36, fill=fill))
        at += width
    names = ", ".join(f"{name} {value / total:.0%}" for name, value in parts)
    return el(
        "svg",
        *pieces,
        viewBox="0 0 1000 36",
        preserveAspectRatio="none",
        class_="bar",
        role="img",
        aria_label=f"Shares of the wall time: {names}",
    )


def share_colour(index: int) -> str:
    """The bar's colour number `index`; they repeat after eight."""
    return SHARES[index % len(SHARES)]


def limits(panel: Panel) -> tuple[float, float]:
    """(low, high) of the y axis, low < high: what is drawn and a margin; from zero if linear and all is >= 0.

    A band that reaches far beyond its line (a single bad batch) is cut rather than flattening the curve.
    """
    values = [v for line in panel.lines for _e, v in line.points]
    low, high = min(values), max(values)
    if panel.scale == "linear":
        spread = (high - min(low, 0.0)) or abs(high) or 1.0
        bands = [v for line in panel.lines for _e, a, b in line.band for v in (a, b)]
        high = min(max([high, *bands]), high + spread / 2)
        low = max(min([low, *bands]), low - spread / 2)
        return (0.0 if low >= 0 else low - spread * 0.05), high + spread * 0.05
    if panel.scale == "log2":
        return low / 1.25, high * 1.25
    margin = (high / low) ** 0.05
    return low / margin, high * margin


def along(panel: Panel) -> list[tuple[float, str]]:
    """(x, label) along the x axis; of updates whose logarithm is drawn, the powers of ten."""
    if panel.across == UPDATES:
        return [(float(k), tick_label(10.0**k)) for k in range(math.floor(panel.end) + 1)]
    return [(tick, tick_label(tick)) for tick in ticks(0, panel.end)]


def ticks(low: float, high: float, scale: str = "linear", about: int = 6) -> list[float]:
    """Round numbers within [low, high]: at most about 2 * about of them, at least one."""
    if scale == "log2":
        first, last = math.ceil(math.log2(low)), math.floor(math.log2(high))
        step = max(1, math.ceil((last - first + 1) / 7))
        return [2.0**k for k in range(first, last + 1, step)] or [(low * high) ** 0.5]
    if scale == "log":
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        for digits in ((1, 2, 5), (1, 3), (1,)):
            found = [d * 10.0**k for k in decades for d in digits if low <= d * 10.0**k <= high]
            if len(found) <= 7:
                return found or [(low * high) ** 0.5]
        return found[:: math.ceil(len(found) / 7)]
    size = 10.0 ** math.floor(math.log10((high - low) / about))
    step = next(m * size for m in (1, 2, 5, 10) if m * size * about >= (high - low) * 0.999)
    return [k * step for k in range(math.ceil(low / step), math.floor(high / step * (1 + 1e-12)) + 1)]


def tick_label(value: float) -> str:
    """ "0", "0.05", "2,048", "1.5e-05": short, without trailing noise."""
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 1e6 or size < 1e-3:
        return f"{value:.3g}".replace("e+0", "e").replace("e-0", "e-").replace("e+", "e")
    return f"{value:,.4g}" if size < 1000 else f"{value:,.0f}"
