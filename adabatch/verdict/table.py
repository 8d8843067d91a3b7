"""The two tables of a comparison as columns of text, and how they are cut to a width."""

import math
import textwrap
from dataclasses import dataclass, replace
from statistics import fmean, median

from adabatch import statistics
from adabatch.verdict import words
from adabatch.verdict.arms import Arm, Comparison, Plan, Verdict
from adabatch.verdict.search import Search

NOTHING = "-"
NARROW = 100  # columns of a window, below which space is saved
DECIDES = 94  # rank from which on a column of the comparisons is part of the verdict


@dataclass(frozen=True)
class Column:
    """rank: columns of the lowest rank are the first to go where the window is narrow."""

    heading: str
    cells: list[str]
    rank: int
    right: bool = True

    @property
    def width(self) -> int:
        return max(map(len, [self.heading, *self.cells]))


def percent(values: list[float], evaluated: int | None = None) -> str:
    """ "4.61 % [3.62, 5.60]": the mean with its 95 % t interval, in so far as it lies between 0 and 100 %."""
    if not values:
        return NOTHING
    shown = f"{100 * fmean(values):.2f} %"
    if len(values) < 2:
        return shown
    low, high = (min(max(100 * float(x), 0.0), 100.0) for x in statistics.mean(values).interval(0.95))
    return f"{shown} [{low:.2f}, {high:.2f}]"


def figure(values: list) -> str:
    """The mean in four digits."""
    known = [v for v in values if v is not None]
    return compact(fmean(known)) if known else NOTHING


def compact(value: float) -> str:
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value >= 0.001 or value == 0 else f"{value:.1e}"


def runs_of(arm: Arm) -> str:
    """ "5", "4 of 5": runs that count of those there are."""
    n = len(arm.counted)
    return str(n) if n == len(arm.runs) else f"{n} of {len(arm.runs)}"


def remark(arm: Arm, winner: str | None, plan: Plan) -> str:
    """What became of the arm, in a word; else whose control it is."""
    if arm.infeasible:
        return "out of memory"
    if arm.outside:
        return "left out"
    if arm.diverged:
        return f"{arm.diverged} diverged"
    if any(not run.over for run in arm.runs):
        return "unfinished"
    if arm.name == winner:
        return "wins"
    if plan.table:
        return "" if arm.budget is None else f"{arm.budget:.4g} times the samples"
    said = plan.named.get(arm.name)
    aside = "; neither class" if arm.adaptive is None else ""
    return f"control of {said.of}{aside}" if said and said.control and said.of else aside[2:]


def reached(arm: Arm) -> tuple[str, str]:
    """The fraction of runs that reached the target with its exact interval, and the median time to it."""
    times = [run.target for run in arm.runs if run.target is not None]
    if not times or arm.infeasible:
        return NOTHING, NOTHING
    hits = sum(math.isfinite(t) for t in times)
    low, high = statistics.fraction_interval(hits, len(times))
    middle = median(times)
    shown = f"{compact(middle)} s" if math.isfinite(middle) else "missed"
    return f"{hits}/{len(times)} [{low:.2f}, {high:.2f}]", shown


def search_of(arm: Arm, plan: Plan) -> Search | None:
    """The search for its learning rate, where one is recorded."""
    said = plan.named.get(arm.name)
    return said.search if said else None


def arms(verdict: Verdict, plan: Plan) -> list[Column]:
    """A row for each arm."""
    each = list(verdict.arms)
    runs = [list(arm.counted.values()) for arm in each]
    hours = [[r.device_seconds / 3600 for r in found if r.device_seconds] for found in runs]
    searches = [search_of(arm, plan) for arm in each]
    columns = [
        Column("arm", [arm.name for arm in each], 99, right=False),
        Column("tuned LR", [found.shown if found else NOTHING for found in searches], 75),
        Column("n", [runs_of(arm) for arm in each], 98),
        Column("final error [95 %]", [percent(arm.errors) for arm in each], 97),
        Column("best error [95 %]", [percent(_known(r.best for r in found)) for found in runs], 60),
        Column("validation [95 %]", [percent(_known(r.validation for r in found)) for found in runs], 65),
        Column("updates", [figure([r.updates for r in found]) for found in runs], 80),
        Column("seconds", [figure([r.seconds for r in found]) for found in runs], 96),
        Column("samples/s", [figure([r.speed for r in found]) for found in runs], 70),
        Column("device-hours", [figure(found) for found in hours], 50),
        Column(f"reached {_target(plan)}", [reached(arm)[0] for arm in each], 90),
        Column("median time to it", [reached(arm)[1] for arm in each], 89),
        Column("", [remark(arm, verdict.winner, plan) for arm in each], 95, right=False),
    ]
    return _said(columns)


def _known(values) -> list[float]:
    return [v for v in values if v is not None]


def _target(plan: Plan) -> str:
    return f"{100 * plan.target:g} %" if plan.target is not None else "target"


def _said(columns: list[Column]) -> list[Column]:
    """Without columns that say nothing."""
    return [c for c in columns if any(cell not in ("", NOTHING) for cell in c.cells)]


def comparisons(verdict: Verdict, plan: Plan) -> list[Column]:
    """A row for each candidate and rival; nothing where there is nothing to say of any."""
    made, margin = list(verdict.comparisons), f"{100 * plan.delta:.3g}"
    columns = [
        Column("candidate", [c.candidate for c in made], 99, right=False),
        Column("rival", [c.rival for c in made], 98, right=False),
        Column("error, pp [90 %]", [_of(c, lambda c: words.difference(c.difference)) for c in made], 96),
        Column("[95 %]", [_of(c, lambda c: words.interval(c.difference, 0.95)) for c in made], 50),
        Column(f"limit<{margin}", [_of(c, lambda c: _limit(c.clauses.limit)) for c in made], 70),
        Column("shows", [_shows(c) for c in made], 97, right=False),
        Column("speed [95 %]", [_speed(c) for c in made], 95),
        Column("limit", [_fast_limit(c) for c in made], 69),
        Column("to target [95 %]", [_bounds(c.target) for c in made], 94),
        Column("TOST p", [_of(c, lambda c: f"{float(c.equal):.2g}") for c in made], 60),
        Column("correlation", [_of(c, _correlation) for c in made], 40),
    ]
    said = _said(columns)
    return said if len(said) > 2 else []


def _of(c: Comparison, shown) -> str:
    return NOTHING if c.difference is None else shown(c)


def _shows(c: Comparison) -> str:
    """Whether the candidate beats the rival, else the clauses that hold, or what took their place."""
    if c.clauses is None:
        whose, _, rest = (c.why or "").rpartition(" runs,")[0].partition(" diverged in ")
        share = rest.replace(" of ", "/")
        return f"{'rival ' if whose == c.rival else ''}diverged {share}" if rest else NOTHING
    if c.beats:
        return "beats" if c.clauses.fast else "beats: error"
    pace = "fast" if c.speed is not None and math.exp(float(c.clauses.fast_limit)) > 1 else "not slow"
    each = {"more accurate": c.clauses.worse, "not worse": c.clauses.not_worse, pace: c.clauses.fast}
    found = [word for word, holds in each.items() if holds]
    brief = [word for word in found if word != "not worse" or "more accurate" not in found]
    return ", ".join(brief) or "nothing"


def _limit(value: float) -> str:
    return f"{100 * float(value):+.2f}"


def _speed(c: Comparison) -> str:
    return NOTHING if c.speed is None else words.speed(c.speed).replace("x faster", "x")


def _fast_limit(c: Comparison) -> str:
    return NOTHING if c.speed is None else words.ratio(math.exp(float(c.clauses.fast_limit)))


def _bounds(found: tuple | None) -> str:
    """ "[1.10, 1.52]", "> 1.3", "not bounded", "missed": of the ratio of times to the target."""
    if found is None:
        return NOTHING
    low, high = (x if x is None or math.isinf(x) else words.ratio(x) for x in found)
    if low is None and high is None:
        return "not bounded"
    if high is None:
        return "rival missed" if low == math.inf else f"> {low}"
    if low is None:
        return f"< {high}" if found[1] > 0 else "missed"
    return f"[{low}, {high}]"


def _correlation(c: Comparison) -> str:
    return NOTHING if c.correlation is None else f"{c.correlation:.2f}"


def fitting(columns: list[Column], width: int) -> tuple[list[Column], list[Column], int]:
    """The columns that fit, with names cut in their middle; those that do not; the gap between two."""
    longest, gap = (30, 2) if width >= NARROW else (20, 1)
    shown = [c if c.right else replace(c, cells=[middle(x, longest) for x in c.cells]) for c in columns]
    gone = []
    while len(shown) > 2 and sum(c.width + gap for c in shown) - gap > width:
        gone.append(min(shown, key=lambda c: c.rank))
        shown.remove(gone[-1])
    return shown, gone, gap


def paired(columns: list[Column], width: int) -> list[str]:
    """As `grid`. Where half of a verdict would find no room, a candidate stands above its rivals instead of
    beside each."""
    if all(c.rank < DECIDES for c in fitting(columns, width)[1]):
        return grid(columns, width)
    rival = replace(columns[1], cells=[f" {name}" for name in columns[1].cells])
    head, *lines = grid([rival, *columns[2:]], width)
    above, made = None, [head]
    for candidate, row in zip(columns[0].cells, lines):
        made += [row] if candidate == above else [f"{candidate} against"[:width], row]
        above = candidate
    return made + lines[len(columns[0].cells) :]


def grid(columns: list[Column], width: int) -> list[str]:
    """Lines of text of at most `width` columns; columns that do not fit are named below."""
    shown, lost, gap = fitting(columns, width)
    gone = [column.heading or "remarks" for column in lost]
    rows = zip(*([c.heading, *c.cells] for c in shown))
    sizes = [(c.width, c.right) for c in shown]
    lines = [
        (" " * gap).join(x.rjust(w) if r else x.ljust(w) for x, (w, r) in zip(row, sizes)) for row in rows
    ]
    lines = [line.rstrip()[:width] for line in lines]
    return lines + textwrap.wrap(f"(no room for: {', '.join(gone)})" if gone else "", width)


def middle(text: str, width: int) -> str:
    """The text in at most `width` columns, cut in its middle."""
    if len(text) <= width:
        return text
    left = (width - 2) // 2
    return f"{text[:left]}..{text[len(text) - (width - 2 - left) :]}"
