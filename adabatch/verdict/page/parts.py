"""The words and tables of the page: the sentence, the arms, the comparisons, the notes, what was declared."""

import math
from dataclasses import replace

from adabatch.report.facts import text
from adabatch.report.markup import Markup, el, table
from adabatch.report.words import percent
from adabatch.verdict import table as tables
from adabatch.verdict import words
from adabatch.verdict.arms import Arm, Plan, Verdict
from adabatch.verdict.decide import SMALL
from adabatch.verdict.folders import Found
from adabatch.verdict.page.pens import Pen, key
from adabatch.verdict.plan import FILE
from adabatch.verdict.repeats import columns as of_repeats

NOTES, RUNS, DECLARED = 60, 300, 8000  # notes, rows of the table of runs, characters of compare.yaml
ARMS, PAIRS, MOST = 100, 16, 300  # rows of the table of arms; comparisons before a fold, and in all


def sentence(verdict: Verdict, plan: Plan) -> Markup:
    """The verdict: its head bold, its qualifications smaller below."""
    tail = words.qualifications(plan, SMALL, verdict.arms)
    main = verdict.sentence.removesuffix(tail)
    head, colon, rest = main.partition(": ")
    small = el("small", tail[2:3].upper() + tail[3:]) if main != verdict.sentence else None
    return el("h1", el("b", head + colon), rest + (". " if small else ""), small, class_="verdict")


def meta(found: Found, verdict: Verdict) -> Markup | None:
    """What was compared, in a line."""
    if not found.readings:
        return None
    same = found.readings[0].same
    names = [same.get(f"{group}._target_", "?").rpartition(".")[2] for group in ("model", "dataset")]
    said = [f"{names[0]} on {names[1]}", f"{same.get('epochs', '?')} epochs"]
    kinds = [sum(arm.adaptive is kind for arm in verdict.arms) for kind in (True, False)]
    beside = len(verdict.arms) - sum(kinds)
    more = f", {beside} control{'s' if beside != 1 else ''} of neither class" if beside else ""
    if found.plan.table:
        said.append(f"{beside} arms")
    else:
        said.append(f"{kinds[0]} adaptive and {kinds[1]} fixed arm{'s' if kinds[1] != 1 else ''}{more}")
    over = sum(run.over for arm in verdict.arms for run in arm.runs)
    there = sum(len(arm.runs) for arm in verdict.arms) + found.pending
    said.append(f"{there} runs" if over == there else f"{over} of {there} runs over")
    devices = {run.key.get("device") for arm in verdict.arms for run in arm.runs} - {None}
    said += [devices.pop() if len(devices) == 1 else f"{len(devices)} kinds of device"] if devices else []
    return el("p", " \u00b7 ".join(said), class_="meta")


def grid(columns: list[tables.Column], names: list[Markup], groups: list[Markup | None] = ()) -> Markup:
    """The columns as a table; names: of each row the cell in place of the first column's. An interval goes
    below its figure. groups: what stands on a line of its own above a row."""

    def cell(kind: str, column: tables.Column, value: str) -> Markup:
        figure, bracket, interval = value.partition(" [")
        below = el("small", f"[{interval}") if bracket else None
        return el(kind, figure, below, class_="n" if column.right else None)

    rows = []
    for i, name in enumerate(names):
        if groups and groups[i]:
            rows.append(el("tr", el("th", groups[i], colspan=len(columns)), class_="group"))
        rows.append(
            el("tr", el("td", name), *(cell("td", column, column.cells[i]) for column in columns[1:]))
        )
    head = el("tr", *(cell("th", column, column.heading) for column in columns))
    return el("div", el("table", el("thead", head), el("tbody", *rows), class_="arms"), class_="wide")


def named(pen: Pen) -> Markup:
    return el("span", key(pen), " ", tables.middle(pen.name, 34), class_="arm")


def arms(verdict: Verdict, plan: Plan, pens: dict[str, Pen]) -> Markup:
    """A row an arm, ARMS at the most."""
    rows = grid(
        _rows(tables.arms(verdict, plan), 0, ARMS), [named(pens[a.name]) for a in verdict.arms[:ARMS]]
    )
    left = len(verdict.arms) - ARMS
    return el(
        "div", rows, el("p", f"{left:,} more are in report.json.", class_="quiet") if left > 0 else None
    )


def repeats(verdict: Verdict, plan: Plan, pens: dict[str, Pen]) -> Markup | None:
    """Least, mean and median of repeated runs, where there is a target."""
    if not (columns := _rows(of_repeats(verdict, plan), 0, ARMS)):
        return None
    return grid(columns, [named(pens[name]) for name in columns[0].cells])


TERMS = (
    ("error", "candidate less rival, in percentage points, with the 90 % interval that TOST goes by; "
     "95 % beside it."),
    ("not worse", "the one-sided upper limit of that difference{column}, at the look's share of alpha and "
     "divided by the arms of the candidate's class, lies below the margin (non-inferiority)."),
    ("more accurate", "likewise, the rival is worse by more than the margin."),
    ("fast, not slow", "the lower limit of the ratio of times{column}, in pairs of equal seed, lies above r0 "
     "for an adaptive candidate, above 1 / r0 for a fixed one: ties go to fixed."),
    ("beats", "not worse, and fast or more accurate. An arm wins by beating every arm of the other class."),
    ("TOST p", "of two one-sided tests against the margin: below 0.05 the errors are equal within it. It is "
     "named beside and decides nothing."),
    ("correlation", "of the errors by seed; shown, never used."),
)  # fmt: skip


def comparisons(verdict: Verdict, plan: Plan, pens: dict[str, Pen]) -> Markup | None:
    """Every pair with its clauses and their limits."""
    columns = tables.comparisons(verdict, plan)
    if not columns or not verdict.comparisons:
        return None
    headings = [column.heading for column in columns]
    pairs = (el(kind, v) for each in _terms(headings) for kind, v in zip(("dt", "dd"), each))
    terms = el("dl", *pairs, class_="terms")
    why = list(dict.fromkeys(c.why for c in verdict.comparisons if c.why))[:NOTES]
    lost = el("p", "; ".join(why) + ".", class_="quiet") if why else None
    every = len(verdict.comparisons)
    columns = columns[1:]  # the candidate stands above its rows
    parts = [grid(_rows(columns, 0, PAIRS), *_pairs(verdict, pens, 0, PAIRS))]
    if every > PAIRS:
        rest = grid(_rows(columns, PAIRS, MOST), *_pairs(verdict, pens, PAIRS, MOST))
        parts.append(el("details", el("summary", f"{every - PAIRS:,} more comparisons"), rest))
    if every > MOST:
        parts.append(el("p", f"{every - MOST:,} more are in report.json.", class_="quiet"))
    return el("div", *parts, lost, terms)


def _terms(headings: list[str]) -> list[tuple[str, str]]:
    """What the words of the table mean, each with the column that has its figure."""
    limit = next((heading for heading in headings if heading.startswith("limit<")), None)
    where = {"not worse": limit, "fast, not slow": "limit" if "limit" in headings else None}
    shown = [t for t in TERMS if t[0] not in ("TOST p", "correlation") or t[0] in headings]
    column = {name: f" (column {heading})" if heading else "" for name, heading in where.items()}
    return [(name, said.format(column=column.get(name, ""))) for name, said in shown]


def _pairs(verdict: Verdict, pens: dict[str, Pen], first: int, last: int) -> tuple[list, list]:
    """The rival of each comparison, and the candidate where it is another than in the row above."""
    pairs = verdict.comparisons[first:last]
    before = [None, *(pair.candidate for pair in pairs)]
    groups = [
        None if pair.candidate == above else el("span", named(pens[pair.candidate]), " against")
        for pair, above in zip(pairs, before)
    ]
    return [named(pens[pair.rival]) for pair in pairs], groups


def _rows(columns: list[tables.Column], first: int, last: int) -> list[tables.Column]:
    return [replace(column, cells=column.cells[first:last]) for column in columns]


def notes(verdict: Verdict, found: Found) -> Markup | None:
    """What could not be compared or read, and why."""
    every = list(dict.fromkeys([*verdict.notes, *found.notes]))
    if not every:
        return None
    left = f"... and {len(every) - NOTES:,} more in report.json" if len(every) > NOTES else None
    return el(
        "ul", *(el("li", text(note)) for note in every[:NOTES]), left and el("li", left), class_="notes"
    )


def declaration(plan: Plan, content: str | None) -> Markup:
    """The margins, and compare.yaml as it stands."""
    each = f"{plan.alpha:g}, {plan.alpha / len(plan.looks):.3g} at each of the looks"
    rows = [
        ["margin of error (delta)", words.points(plan.delta)],
        ["what counts as faster (r0)", f"{plan.r0:g}x"],
        ["false verdicts allowed (alpha)", each if len(plan.looks) > 1 else f"{plan.alpha:g}"],
        ["looks, in runs of each arm", words.listed(plan.looks)],
        ["errors of", f"the {plan.split} split"
         + (f", {plan.evaluated:,} samples" if plan.evaluated else "")],
        ["samples of each run", f"{plan.samples:,}" if plan.samples else "those of most finished runs"],
        ["target", f"{100 * plan.target:g} % error" if plan.target is not None else "none (--target)"],
        ["learning rates", "the same small search for every arm" if plan.tuned else "by rule, untuned"],
    ]  # fmt: skip
    if plan.table:  # nothing is decided, so no margin matters
        rows = [row for row in rows if row[0] in ("errors of", "target")]
    state = plan.remark or f"as hashed in {FILE} before the first run"
    shown = None
    if content:
        cut = content if len(content) <= DECLARED else content[:DECLARED] + "\n... cut here"
        shown = el("details", el("summary", "compare.yaml"), el("pre", cut))
    return el("div", table(["", ""], rows, numbers=2), el("p", state[:1].upper() + state[1:], "."), shown)


def runs(verdict: Verdict) -> Markup:
    """Every run, behind a fold."""
    rows = []
    for arm in verdict.arms:
        for run in arm.runs:
            error = "\u2013" if run.error is None else percent(run.error)
            rows.append([arm.name, run.seed, run.state.replace("_", " "), error, _figure(run.updates),
                         _figure(run.seconds), run.folder])  # fmt: skip
    head = ["arm", "seed", "state", "final error", "updates", "seconds", "folder"]
    more = el("p", f"{len(rows) - RUNS:,} more in report.json.") if len(rows) > RUNS else None
    shown = el("div", table(head, rows[:RUNS], numbers=1), more, class_="runs")
    return el("details", el("summary", f"Every run ({len(rows):,})"), shown)


def _figure(value: float | None) -> str:
    return "\u2013" if value is None or not math.isfinite(value) else tables.compact(value)


def progress(arms_: list[Arm]) -> Markup | None:
    """How far each arm is, while runs are missing."""
    if all(run.over for arm in arms_ for run in arm.runs):
        return None
    states = list(dict.fromkeys(run.state for arm in arms_ for run in arm.runs))
    rows = [
        [arm.name, *(sum(run.state == state for run in arm.runs) or "" for state in states)] for arm in arms_
    ]
    head = ["", *(state.replace("_", " ") for state in states)]
    return el("div", el("h3", "Runs by state"), table(head, rows[:ARMS], numbers=1))
