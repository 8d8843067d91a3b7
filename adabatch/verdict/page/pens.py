"""How an arm is drawn: one colour, dash and marker in every picture of a page.

Fixed batches run from teal to indigo, darker the larger the batch, in dashes and with round markers;
adaptive ones are warm, solid and thicker, with diamonds; controls of neither class are grey and thin, with
squares. So the classes differ by hue, lightness, dash and marker: with any colour vision, and in black and
white. On a dark ground lightness runs the other way.
"""

import math
from dataclasses import dataclass

from adabatch.report.markup import Markup, el
from adabatch.verdict.arms import Arm

FIXED = (
    ("#549f9f", "#a8f5f4"), ("#0a909f", "#7ce7f6"), ("#007da0", "#56d5fa"), ("#00679d", "#48c0fa"),
    ("#005192", "#54aaf1"), ("#103b7d", "#6593dd"), ("#1f2962", "#6f7fc0"), ("#1f1a43", "#706e9f"),
)  # fmt: skip
ADAPTIVE = (("#d55e00", "#e86a17"), ("#c2185b", "#f48fb1"), ("#8f1d1d", "#ffe08a"))
BESIDE = (("#6f6f6f", "#b9b9b9"), ("#9a9a9a", "#858585"))
DASHES = ("7 3", "2 3", "11 3 2 3", "4 2")
DRAWN = 12  # arms in a picture of curves; more cannot be told apart


@dataclass(frozen=True)
class Pen:
    """colour: a CSS class. dash: of its lines, None for solid."""

    name: str
    colour: str
    dash: str | None
    width: float
    diamond: bool
    square: bool = False


def dealt(arms: list[Arm]) -> dict[str, Pen]:
    """{arm: its pen}, by its place among the arms of its class: fixed arms come in order of batch size."""
    table = all(arm.adaptive is None for arm in arms)  # there are no classes: as fixed ones, in their order
    fixed = [arm for arm in arms if table or arm.adaptive is False]
    found = {}
    for i, arm in enumerate(fixed):
        place = math.floor((i + 0.5) * len(FIXED) / len(fixed))
        found[arm.name] = Pen(arm.name, f"f{place}", DASHES[i % len(DASHES)], 1.8, False)
    for i, arm in enumerate(arm for arm in arms if arm.adaptive):
        dash = (None, *DASHES)[i // len(ADAPTIVE) % (len(DASHES) + 1)]
        found[arm.name] = Pen(arm.name, f"a{i % len(ADAPTIVE)}", dash, 2.6, True)
    for i, arm in enumerate(arm for arm in arms if arm.adaptive is None and not table):
        dash = DASHES[i // len(BESIDE) % len(DASHES)]
        found[arm.name] = Pen(arm.name, f"c{i % len(BESIDE)}", dash, 1.4, False, True)
    return found


def drawn(arms: list[Arm]) -> list[Arm]:
    """Those that take part, DRAWN at the most: all adaptive ones first, of the others evenly."""
    inside = [arm for arm in arms if not arm.infeasible and not arm.outside]
    if len(inside) <= DRAWN:
        return inside
    kept = [arm for arm in inside if arm.adaptive][: DRAWN - 4]
    rest = [arm for arm in inside if not arm.adaptive]
    room = min(DRAWN - len(kept), len(rest))
    kept += [rest[round(i * (len(rest) - 1) / max(room - 1, 1))] for i in range(room)]
    return [arm for arm in inside if arm in kept]


def css(dark: bool = False) -> str:
    """The classes' colours; `.NAME` sets --pen, which lines, bands and markers take."""
    sets = {"f": FIXED, "a": ADAPTIVE, "c": BESIDE}
    named = [(f"{letter}{i}", pair) for letter, pairs in sets.items() for i, pair in enumerate(pairs)]
    return "".join(f".{name}{{--pen:{pair[dark]}}}" for name, pair in named)


def marker(pen: Pen, x: float, y: float, size: float = 4.5, **more) -> Markup:
    """A disc, a square on its corner, or a square."""
    common = {"class_": f"{pen.colour} dot", **more}
    if not pen.diamond and not pen.square:
        return el("circle", cx=f"{x:.1f}", cy=f"{y:.1f}", r=size, **common)
    s = size * (1.35 if pen.diamond else 0.9)
    corners = ((x, y - s), (x + s, y), (x, y + s), (x - s, y))
    if pen.square:
        corners = ((x - s, y - s), (x + s, y - s), (x + s, y + s), (x - s, y + s))
    return el("polygon", points=" ".join(f"{a:.1f},{b:.1f}" for a, b in corners), **common)


def key(pen: Pen) -> Markup:
    """A sample of its line and marker, for a legend or a table."""
    line = el("line", x1=1, x2=33, y1=7, y2=7, class_=f"{pen.colour} line", stroke_width=pen.width,
              stroke_dasharray=pen.dash)  # fmt: skip
    return el("svg", line, marker(pen, 17, 7, 3.6), viewBox="0 0 34 14", class_="key", aria_hidden="true")


def legend(shown: list[Pen]) -> Markup:
    return el("p", *(el("span", key(pen), "\u00a0", pen.name) for pen in shown), class_="legend")
