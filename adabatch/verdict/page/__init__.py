"""report.html of a comparison: one file without scripts or outside addresses; the sentence first.

pens.py     an arm's colour, dash and marker        bands.py     means over seeds and their intervals
charts.py   axes, lines, dots as SVG                decisive.py  final error against updates
figures.py  curves                                  seconds.py   the ledger, and the forecast
parts.py    sentence, tables, notes, declaration    style.py     colours and layout
"""

from adabatch.errors import UserError
from adabatch.files import read_text
from adabatch.report.markup import Markup, document, el, section
from adabatch.verdict.arms import Verdict
from adabatch.verdict.folders import Found
from adabatch.verdict.formats import SCOPE, caveats
from adabatch.verdict.page import decisive, figures, parts, pens, seconds
from adabatch.verdict.page.bands import CLOCKS
from adabatch.verdict.page.figures import Sheet
from adabatch.verdict.page.style import CSS, PICTURE
from adabatch.verdict.plan import FILE

FOOT = (
    "Written by adabatch-report from the run folders alone; report.json has every figure in full precision. "
    f"Errors: Welch's t, seeds are no pairs. Times: t of the log ratios, in pairs of equal seed. {SCOPE}"
)


def render(verdict: Verdict, found: Found) -> bytes:
    """The page as UTF-8; of bounded size, whatever the folders hold."""
    arms = list(verdict.arms)
    held = pens.dealt(arms)
    no_time = next((c.no_time for c in verdict.comparisons if c.no_time), None)
    sheet = Sheet(arms, found.plan, held, no_time)
    errors = [figures.errors(sheet, clock) for clock in CLOCKS]
    curves = _plots(*errors, figures.target(sheet), about=_drawn(sheet))
    settings = _plots(
        *(figures.settings(sheet, name) for name in ("batch", "lr")),
        figures.stretches(sheet, "noise"),
        figures.distance(sheet),
    )
    times = _plots(
        _against_time(sheet, verdict),
        figures.stretches(sheet, "rate"),
        seconds.ledger(sheet),
        seconds.forecast(sheet),
    )
    body = el(
        "body",
        el("header", parts.sentence(verdict, found.plan), parts.meta(found, verdict)),
        section("Error at equal updates", _first(verdict, found, held)),
        section("Arms", arms and el("div", *_arms(verdict, found, held))),
        section("Comparisons", parts.comparisons(verdict, found.plan, held)),
        section("While training", curves),
        section("Batch, rate and noise", settings),
        section("Time", times),
        section("Notes", parts.notes(verdict, found)),
        section("What was declared", parts.declaration(found.plan, declared(found))),
        section("Runs", parts.runs(verdict) if arms else None),
        el("footer", el("p", FOOT, class_="quiet")),
    )
    return document(verdict.sentence[:120], CSS, body)


def _arms(verdict: Verdict, found: Found, held: dict) -> tuple:
    tables = (part(verdict, found.plan, held) for part in (parts.arms, parts.repeats))
    return (*tables, parts.progress(list(verdict.arms)))


def picture(verdict: Verdict, found: Found) -> bytes | None:
    """Final error against updates alone, as an SVG file; None where no run has finished."""
    drawn = decisive.alone(verdict, found.plan, pens.dealt(list(verdict.arms)), PICTURE)
    return f"{drawn}\n".encode() if drawn else None


def _first(verdict: Verdict, found: Found, held: dict) -> Markup | None:
    picture = decisive.figure(verdict, found.plan, held)
    said = el("p", caveats(found.plan)[0], class_="lead")
    return el("div", said, picture) if picture else None


def _against_time(sheet: Sheet, verdict: Verdict) -> Markup | None:
    if sheet.no_time or not verdict.comparisons:
        return None
    return decisive.against_time(verdict, sheet.plan, sheet.pens)


def _plots(*found: Markup | None, about: Markup | None = None) -> Markup | None:
    return el("div", about, el("div", *found, class_="plots")) if any(found) else None


def _drawn(sheet: Sheet) -> Markup | None:
    """That not every arm is in the pictures of curves."""
    inside = [arm.name for arm in sheet.arms if not arm.infeasible and not arm.outside]
    few = [arm.name for arm in sheet.drawn]
    if len(few) == len(inside):
        return None
    said = "at the most eight adaptive ones, and fixed ones from the smallest batch to the largest"
    return el("p", f"{len(few)} of {len(inside)} arms are drawn: {said}.", class_="quiet")


def declared(found: Found) -> str | None:
    """compare.yaml as it stands."""
    path = found.folder / FILE
    try:
        return read_text(path, 1 << 20) if path.is_file() else None
    except UserError:
        return None
