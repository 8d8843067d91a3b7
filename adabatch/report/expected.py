"""The section of the page that holds a run's forecast against what it took."""

from adabatch.files import number
from adabatch.report.facts import Facts, text
from adabatch.report.markup import Markup, el, table
from adabatch.report.words import duration, fixed, plain

MOST = 60  # rows of a table


def section(run: Facts) -> Markup | None:
    """From the summary's `forecast`; None where no profile was at hand."""
    given = run.summary.get("forecast")
    if not isinstance(given, dict):
        return None
    seconds, low, high, measured = (number(given.get(k)) for k in ("seconds", "low", "high", "measured"))
    if not seconds or not measured or seconds <= 0:
        return None
    words = f"Expected {duration(seconds)} of training, took {duration(measured)}: {off(measured, seconds)}."
    if low is not None and high is not None:
        inside = "inside" if low <= measured <= high else "outside"
        words += f" That is {inside} the interval of {duration(low)} to {duration(high)}."
    if given.get("closed_loop") is True:
        words += " The expectation is for the batches that the run chose; before it, only a range was known."
    notes = [f"By profile {text(given.get('key'), 20)}, on {text(given.get('device'), 80)}."]
    if given.get("same_machine") is False:
        notes.append("The run went on on another machine or number of processes than was profiled.")
    beyond = number(given.get("extrapolated")) or 0
    if beyond > 0:
        notes.append(f"{beyond:.0%} of it was extrapolated beyond the sizes measured.")
    return el("div", el("p", words), phases(run, given), causes(given),
              el("p", " ".join(notes), class_="quiet"))  # fmt: skip


def off(measured: float, expected: float) -> str:
    """ "4.2 % more"."""
    share = measured / expected - 1
    return f"{abs(share):.1%} {'more' if share >= 0 else 'less'}"


def phases(run: Facts, given: dict) -> Markup | None:
    found = given.get("phases")
    if not isinstance(found, list):
        return None
    rows = []
    for phase in [p for p in found if isinstance(p, dict)][:MOST]:
        start, batch, expected, took = (
            number(phase.get(k)) for k in ("start_position", "batch_size", "forecast_seconds", "seconds")
        )
        epoch = start / run.samples if start is not None and run.samples else None
        share = off(took, expected) if took is not None and expected else "\u2013"
        cells = [None if epoch is None else float(f"{epoch:.4g}"), batch]
        rows.append([*map(plain, cells), fixed(expected), fixed(took), share])
    head = ["epoch", "batch", "expected s", "measured s", ""]
    return el("div", el("h3", "By phase"), table(head, rows)) if rows else None


def causes(given: dict) -> Markup | None:
    found = given.get("causes")
    if not isinstance(found, dict):
        return None
    rows = []
    for name, pair in list(found.items())[:MOST]:
        both = [number(pair.get(k)) for k in ("forecast", "measured")] if isinstance(pair, dict) else []
        if any(both):
            rows.append([text(name, 40).replace("_", " "), *map(fixed, both)])
    head = ["cause", "expected s", "measured s"]
    return el("div", el("h3", "By cause"), table(head, rows, numbers=1)) if rows else None
