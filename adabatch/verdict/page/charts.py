"""A chart of lines, bands and points as inline SVG: two axes and what lies between them."""

import math
from dataclasses import dataclass, field

from adabatch.report import svg
from adabatch.report.markup import Markup, el
from adabatch.verdict.page.bands import Point
from adabatch.verdict.page.pens import Pen, marker

WIDE, NARROW, USUAL = (700, 400), (380, 340), (480, 264)  # view boxes; the page scales them
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 30, 40
LETTER = 7.5  # width of a letter of a label in the view box, at the most about


@dataclass(frozen=True)
class Axis:
    """From low to high; scale: linear, log or log2."""

    label: str
    low: float
    high: float
    scale: str = "linear"

    def share(self, value: float) -> float:
        """Where a value lies: 0 at low, 1 at high; what lies outside is drawn at the edge."""
        if self.scale == "linear":
            found = (value - self.low) / (self.high - self.low)
        else:
            found = math.log(max(value, self.low) / self.low) / math.log(self.high / self.low)
        return min(max(found, 0.0), 1.0)

    def ticks(self, about: int) -> list[float]:
        """Round values; of a logarithmic axis that spans less than a factor of 4 evenly spaced ones."""
        near = self.scale == "log" and self.high < 4 * self.low
        return svg.ticks(self.low, self.high, "linear" if near else self.scale, about=about)


def axis(label: str, values: list[float], scale: str = "linear", zero: bool = False, pad: float = 0.05):
    """An axis that holds the values with a margin. zero: a linear one begins at 0."""
    low, high = min(values), max(values)
    if scale == "linear":
        low = min(low, 0.0) if zero else low
        spread = (high - low) or abs(high) or 1.0
        return Axis(label, low if zero and low == 0 else low - pad * spread, high + pad * spread)
    low = max(low, 1e-12 * high)  # of a stranger's figures
    ratio = max((high / low) ** pad, 1.15 if scale == "log" else 1.25)
    return Axis(label, low / ratio, high * ratio, scale)


def percent(split: str, scale: str) -> str:
    """What an axis of errors is called."""
    return f"{split} error, %{', logarithmic' if scale == 'log' else ''}"


@dataclass(frozen=True)
class Curve:
    """pen None: a quiet grey line. step: a value holds until the next point."""

    pen: Pen | None
    points: list[tuple[float, float]]
    band: list[tuple[float, float, float]] = field(default_factory=list)  # [(x, low, high)]
    step: bool = False
    faint: bool = False


@dataclass(frozen=True)
class Ribbon:
    """A quiet area between two values of each x: [(x, low, high)]."""

    points: list[tuple[float, float, float]]


@dataclass(frozen=True)
class Dot:
    """An arm's mean with its interval, and its seeds as [(x, y)], all beside the bar where they share an x.
    label: written beside it."""

    pen: Pen
    at: Point
    title: str
    seeds: list[tuple[float, float]] = field(default_factory=list)
    across: tuple[float, float] | None = None  # the interval of x
    label: str = ""


@dataclass(frozen=True)
class Chart:
    """described: for those who do not see it."""

    x: Axis
    y: Axis
    layers: list
    described: str


def curve(pen: Pen, points: list[Point], factor: float = 1, most: float = math.inf) -> Curve:
    """most: what no value can exceed; a band is cut there and at 0, which a t interval knows nothing of."""
    ends = [(p.x, *p.band) for p in points if p.band]
    band = [(x, max(low * factor, 0), min(high * factor, most)) for x, low, high in ends]
    return Curve(pen, [(p.x, p.y * factor) for p in points], band)


def draw(chart: Chart, size: tuple[int, int] = USUAL, *inside: Markup, **more) -> Markup:
    """The chart as an <svg>. inside: elements before it; more: attributes."""
    width, height = size

    def x(value: float) -> float:
        return LEFT + (width - LEFT - RIGHT) * chart.x.share(value)

    def y(value: float) -> float:
        return height - BOTTOM - (height - TOP - BOTTOM) * chart.y.share(value)

    parts = [*inside, *frame(chart, size, x, y)]
    for layer in chart.layers:
        parts += _PAINT[type(layer)](layer, x, y)
    parts += labels(chart.layers, x, y, size)
    return el("svg", *parts, viewBox=f"0 0 {width} {height}", role="img", aria_label=chart.described, **more)


def frame(chart: Chart, size: tuple[int, int], x, y) -> list[Markup]:
    """Grid, the numbers along the axes and what they are."""
    width, height = size
    parts = [el("text", chart.y.label, x=0, y=13, class_="name")]
    for tick in chart.y.ticks(5):
        at = y(tick)
        parts += [
            el("line", x1=LEFT, x2=width - RIGHT, y1=_(at), y2=_(at), class_="grid"),
            el("text", svg.tick_label(tick), x=LEFT - 7, y=_(at + 4.5), text_anchor="end"),
        ]
    bottom, before = height - BOTTOM, -math.inf
    for tick in chart.x.ticks(7):
        at, half = x(tick), LETTER * len(svg.tick_label(tick)) / 2
        parts.append(el("line", x1=_(at), x2=_(at), y1=bottom, y2=bottom + 4, class_="axis"))
        if at - half > before:  # numbers that would run into each other are left out
            parts.append(el("text", svg.tick_label(tick), x=_(at), y=bottom + 17, text_anchor="middle"))
            before = at + half + 4
    parts.append(el("line", x1=LEFT, x2=width - RIGHT, y1=bottom, y2=bottom, class_="axis"))
    parts.append(el("text", chart.x.label, x=width - RIGHT, y=height - 4, text_anchor="end", class_="name"))
    return parts


def _(value: float) -> str:
    return f"{value:.1f}"


def _points(pairs) -> str:
    return " ".join(f"{a:.1f},{b:.1f}" for a, b in pairs)


def _curve(layer: Curve, x, y) -> list[Markup]:
    parts, pen = [], layer.pen
    if layer.band:
        outline = [(x(a), y(high)) for a, _low, high in layer.band]
        outline += [(x(a), y(low)) for a, low, _high in reversed(layer.band)]
        parts.append(el("polygon", points=_points(outline), class_=f"{pen.colour} band"))
    corners: list[tuple[float, float]] = []
    for a, b in layer.points:
        if layer.step and corners:
            corners.append((x(a), corners[-1][1]))
        corners.append((x(a), y(b)))
    if len(corners) == 1 and pen:
        return [*parts, marker(pen, *corners[0], 3.2)]
    style = {"class_": "through"} if pen is None else {
        "class_": f"{pen.colour} line{' faint' if layer.faint else ''}", "stroke_dasharray": pen.dash,
        "stroke_width": 1.2 if layer.faint else pen.width,
    }  # fmt: skip
    return [*parts, el("polyline", points=_points(corners), **style)]


def _ribbon(layer: Ribbon, x, y) -> list[Markup]:
    outline = [(x(a), y(high)) for a, _low, high in layer.points]
    outline += [(x(a), y(low)) for a, low, _high in reversed(layer.points)]
    return [el("polygon", points=_points(outline), class_="margin")]


def _dot(layer: Dot, x, y) -> list[Markup]:
    pen, at = layer.pen, layer.at
    aside = 8 if len({a for a, _ in layer.seeds}) == 1 and at.low is not None else 0
    parts = [el("circle", cx=_(x(a) - aside), cy=_(y(b)), r=2.2, class_=f"{pen.colour} seed")
             for a, b in layer.seeds]  # fmt: skip
    bars = [] if at.low is None else [(x(at.x), y(at.low), x(at.x), y(at.high))]
    if layer.across:
        bars.append((x(layer.across[0]), y(at.y), x(layer.across[1]), y(at.y)))
    for x1, y1, x2, y2 in bars:
        ends = {"x1": _(x1), "y1": _(y1), "x2": _(x2), "y2": _(y2)}
        parts.append(el("line", **ends, class_=f"{pen.colour} line", stroke_width=1.6))
    numbers = {"data_x": f"{at.x:.10g}", "data_y": f"{at.y:.10g}", "data_arm": pen.name}
    title = el("title", layer.title)
    return [*parts, el("g", title, marker(pen, x(at.x), y(at.y), 5), **numbers)]


_PAINT = {Curve: _curve, Ribbon: _ribbon, Dot: _dot}


def labels(layers: list, x, y, size: tuple[int, int]) -> list[Markup]:
    """The dots' names beside them, adaptive arms' first, then those next to them, which are their decisive
    rivals: each at the first place where it covers no dot, bar, line or other name, and no seed if there is
    such a place; one for which there is none is in the legend."""
    dots = [layer for layer in layers if isinstance(layer, Dot) and layer.label]
    taken = [box for layer in layers for box in _covers(layer, x, y)]
    seeds = [(x(a) - 11, y(b) - 2, x(a) - 5, y(b) + 2) for dot in dots for a, b in dot.seeds]
    found, adaptive = {}, [x(dot.at.x) for dot in dots if dot.pen.diamond]

    def away(dot: Dot) -> float:
        return min((abs(x(dot.at.x) - at) for at in adaptive), default=math.inf)

    for dot in sorted(dots, key=lambda dot: (not dot.pen.diamond, away(dot))):
        open_to = _places(dot, x(dot.at.x), y) + (_further(dot, x(dot.at.x), y) if away(dot) < 7 else [])
        places = [(place, _letters(place, dot.label)) for place in open_to]
        free = [(place, box) for place, box in places if _inside(box, size) and not _hit(box, taken)]
        for place, box in [each for each in free if not _hit(each[1], seeds)] + free:
            taken.append(box)
            found[dot.label] = place
            break
    return [
        el("text", label, x=_(left), y=_(base), text_anchor=anchor, class_="label")
        for label, (anchor, left, base) in found.items()
    ]


def _places(dot: Dot, at: float, y) -> list[tuple[str, float, float]]:
    """(anchor, x, baseline) of a dot's name, the better ones first: beside it, around it, off the ends of its
    bar."""
    level = y(dot.at.y)
    low, high = (level if end is None else y(end) for end in (dot.at.low, dot.at.high))
    return [
        ("start", at + 10, level + 4.5), ("end", at - 10, level + 4.5), ("start", at + 7, level - 10),
        ("end", at - 7, level - 10), ("start", at + 7, level + 19), ("end", at - 7, level + 19),
        ("middle", at, high - 8), ("middle", at, low + 16), ("end", at - 18, level + 4.5),
        ("start", at + 7, high - 2), ("start", at + 7, low + 10), ("end", at - 7, low + 10),
    ]  # fmt: skip


def _further(dot: Dot, at: float, y) -> list[tuple[str, float, float]]:
    """Likewise for one that shares its place with a diamond, whose name has taken the nearer ones; of any
    other arm a name so far from its dot would be read as another's."""
    sides, level = (("start", at + 7), ("end", at - 7)), y(dot.at.y)
    return [(anchor, left, level + down) for down in (34, -25, 49, -40) for anchor, left in sides]


def _letters(place: tuple[str, float, float], label: str) -> tuple:
    anchor, left, base = place
    wide = LETTER * len(label)
    start = {"start": left, "end": left - wide, "middle": left - wide / 2}[anchor]
    return start, base - 11, start + wide, base + 3


def _inside(box: tuple, size: tuple[int, int]) -> bool:
    return LEFT <= box[0] and box[2] <= size[0] - 2 and TOP - 12 <= box[1] and box[3] < size[1] - BOTTOM


def _hit(box: tuple, others: list[tuple]) -> bool:
    return any(_overlap(box, other) for other in others)


def _covers(layer, x, y) -> list[tuple]:
    """Boxes (left, top, right, bottom) that a dot with its bars, or the line through the dots, takes."""
    if isinstance(layer, Curve):
        pairs = zip(layer.points, layer.points[1:])
        ends = [(x(a), y(b), x(c), y(d)) for (a, b), (c, d) in pairs]
        along = [(a + (c - a) * i / 24, b + (d - b) * i / 24) for a, b, c, d in ends for i in range(25)]
        return [(a - 2, b - 2, a + 2, b + 2) for a, b in along]
    if not isinstance(layer, Dot):
        return []
    at, left = layer.at, x(layer.at.x)
    found = [(left - 7, y(at.y) - 7, left + 7, y(at.y) + 7)]
    if at.low is not None:
        found.append((left - 1, y(at.high), left + 1, y(at.low)))
    if layer.across:
        found.append((x(layer.across[0]), y(at.y) - 1, x(layer.across[1]), y(at.y) + 1))
    return found


def _overlap(a: tuple, b: tuple) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
