"""The report of one run: `write_run(folder)` writes curves.png and report.html from the folder's files alone.

facts.py    the folder's files as plain, bounded values
series.py   the four panels: what is drawn, thinned how
png.py      the panels by matplotlib          svg.py     the panels and the ledger's bar as inline SVG
page.py     the HTML page                     markup.py  elements that escape what they hold
expected.py forecast against measured
"""

from pathlib import Path

from adabatch import runs
from adabatch.report import facts, page, png, series


def write_run(folder: Path) -> None:
    """Write curves.png and report.html into the run folder, each whole or not at all.

    Works for any state (running, failed, interrupted, ...) and for a folder in which files are missing or
    damaged: what could not be read is listed on the page. Raises UserError for a folder that does not exist,
    OSError where it cannot be written.
    """
    run = facts.read(Path(folder))
    panels = series.panels(run)
    runs.write_bytes(run.folder / "curves.png", png.draw(panels[:4], f"{run.title}: {run.command()}"))
    runs.write_bytes(run.folder / "report.html", page.render(run, panels))
