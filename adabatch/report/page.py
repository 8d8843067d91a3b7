"""report.html: one file without scripts or outside addresses, headline figures first."""

from adabatch.report import expected, parts
from adabatch.report.facts import Facts, text
from adabatch.report.markup import Markup, document, el, section
from adabatch.report.series import Panel
from adabatch.report.style import CSS

SOURCE = """Written from the files of this run's folder: metrics.jsonl has every logged row, summary.json
the exact figures."""


def render(run: Facts, panels: list[Panel]) -> bytes:
    """The page as UTF-8. Its size is bounded: every table, text and curve has a limit."""
    body = el(
        "body",
        el("header", el("h1", run.title), el("p", el("code", run.command())), _state(run), parts.cards(run)),
        section("Curves", parts.curves(run, panels)),
        section("Phases", parts.phases(run)),
        section("What changed with the batch", parts.changes(run)),
        section("Where the time went", parts.ledger(run)),
        section("Forecast and measured", expected.section(run)),
        section("Resume and compare", parts.commands(run)),
        section("Everything else", _folded(run)),
        el("footer", el("p", SOURCE, class_="quiet")),
    )
    return document(run.title, CSS, body)


STATES = {
    "submitted": "waits in a queue",
    "running": "was running when this page was written",
    "finished": "trained to its end",
    "failed": "stopped by an error",
    "diverged": "stopped because the loss was no longer finite",
    "out_of_memory": "stopped because memory ran out",
    "interrupted": "stopped when it was told to, with its state saved",
    "preempted": "made room for another job, with its state saved",
    "unknown": "its state is not known",
}


def _state(run: Facts) -> Markup:
    name = run.state.replace("_", " ")
    found = [el("p", el("span", name, class_=f"state {run.state}"), " ", STATES[run.state])]
    if run.error:
        found.append(el("p", run.error, class_="error"))
    found += [el("p", "Not read: ", note, class_="error") for note in run.notes]
    return el("div", *found)


def _folded(run: Facts) -> Markup:
    """Configuration, environment and every figure of the summary, each behind a fold."""
    found = []
    if run.config_text:
        found.append(_fold("Configuration, resolved", el("pre", run.config_text)))
    if run.environment:
        found.append(_fold("Environment", parts.pairs(run.environment)))
    if run.summary:
        shown = {k: v for k, v in run.summary.items() if k not in ("ledger", "phases", "overrides", "format")}
        found.append(_fold("Every figure of the summary", parts.pairs(shown)))
    found.append(_fold("Folder", el("p", el("code", text(run.folder.name, 300)))))
    return el("div", *found)


def _fold(title: str, content: Markup) -> Markup:
    return el("details", el("summary", title), content)
