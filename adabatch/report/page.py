"""report.html: one file without scripts or outside addresses, headline figures first."""

from adabatch.report import expected, parts
from adabatch.report.facts import Facts, text
from adabatch.report.markup import Markup, el, raw
from adabatch.report.series import Panel
from adabatch.report.style import CSS

# Even a page whose escaping failed could load or run nothing.
POLICY = "default-src 'none'; style-src 'unsafe-inline'"

SOURCE = """Written from the files of this run's folder: metrics.jsonl has every logged row, summary.json
the exact figures."""


def render(run: Facts, panels: list[Panel]) -> bytes:
    """The page as UTF-8. Its size is bounded: every table, text and curve has a limit."""
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", http_equiv="Content-Security-Policy", content=POLICY),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("title", f"{run.title} - adabatch"),
        el("style", raw(CSS)),
    )
    body = el(
        "body",
        el("header", el("h1", run.title), el("p", el("code", run.command())), _state(run), parts.cards(run)),
        _section("Curves", parts.curves(run, panels)),
        _section("Phases", parts.phases(run)),
        _section("What changed with the batch", parts.changes(run)),
        _section("Where the time went", parts.ledger(run)),
        _section("Forecast and measured", expected.section(run)),
        _section("Resume and compare", parts.commands(run)),
        _section("Everything else", _folded(run)),
        el("footer", el("p", SOURCE, class_="quiet")),
    )
    page = f"<!DOCTYPE html>\n{el('html', head, body, lang='en')}\n"
    return page.encode("utf-8")


def _section(title: str, content: Markup | None) -> Markup | None:
    return el("section", el("h2", title), content) if content else None


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
