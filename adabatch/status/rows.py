"""Runs as rows: their order, what stands in each column; whole lines for a pipe, JSON for machines."""

import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from rich.cells import cell_len

from adabatch.status import words
from adabatch.status.facts import Facts
from adabatch.status.verdict import ORDER, Verdict

STYLES = {"finished": "green", "running": "cyan", "submitted": "blue", "interrupted": "yellow",
          "preempted": "yellow", "unknown": "magenta"}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One run as it is shown."""

    run: Facts
    verdict: Verdict
    label: str  # its folder, below what all have in common

    @property
    def name(self) -> str:
        """Of a comparison's run its arm and seed, which its label, cut, would not show."""
        if self.run.named is None:
            return self.label
        above = os.path.dirname(self.label)  # a search, which says so, has a folder of that name
        above = os.path.dirname(above) if self.run.named.endswith(" tuning") else above
        return os.path.join(above, self.run.named)

    @property
    def style(self) -> str:
        return STYLES.get(self.verdict.state, "bold red")


def rows(judged: list[tuple[Facts, Verdict]], named: list[str]) -> tuple[str, list[Row]]:
    """(the folder that all runs have in common, rows): what needs somebody's attention comes last, near the
    prompt; names in between as people count them."""
    common = _common([run.folder for run, _ in judged], named)
    found = [Row(run, verdict, words.line(_below(run.folder, common), 400)) for run, verdict in judged]
    return words.line(common, 200), sorted(found, key=_place)


def _place(row: Row) -> tuple:
    return _rank(row), natural(os.path.join(os.path.dirname(row.label), row.name))


def _rank(row: Row) -> int:
    return ORDER.index(row.verdict.state)


def _common(folders: list[Path], named: list[str]) -> str:
    if len(named) == 1 and folders != [Path(named[0])]:
        return os.path.normpath(named[0])
    kinds = {folder.is_absolute() for folder in folders}
    return os.path.commonpath([folder.parent for folder in folders]) if len(kinds) == 1 else ""


def _below(folder: Path, common: str) -> str:
    return str(folder.relative_to(common)) if common and folder.is_relative_to(common) else str(folder)


def natural(text: str) -> list:
    """A key that sorts seed=2 before seed=10."""
    return [(0, int(part), "") if part.isascii() and part.isdigit() and len(part) < 19 else (1, 0, part)
            for part in re.split(r"(\d+)", text)]  # fmt: skip


def shared(found: list[Row]) -> list[str]:
    """The settings that stand in every name that has some: ["model=vgg", "epochs=2"]; [] for a single run."""
    names = [parts for row in found if (parts := _parts(row.label)[0])]
    return [p for p in names[0] if all(p in other for other in names)] if len(names) > 1 else []


def _parts(label: str) -> tuple[list[str], str]:
    """A name as its settings and its end: (["model=vgg", "seed=0"], "1234abcd")."""
    settings, dash, end = label.rpartition("-")
    if not dash or not re.fullmatch(r"[0-9a-f]{8}", end):
        return [], label
    return re.split(r"-(?=[A-Za-z_][\w.]*=)", settings), end


def without(label: str, dropped: list[str]) -> str:
    settings, end = _parts(label)
    return "-".join([*(s for s in settings if s not in dropped), end])


# -- cells -----------------------------------------------------------------------------------------


def state(row: Row) -> str:
    verdict = row.verdict
    return f"{verdict.name} ({verdict.detail})" if verdict.detail else verdict.name


def epochs(row: Row) -> str:
    run = row.run
    if run.epoch is None or run.epochs is None:
        return words.short(run.epoch) if run.epoch is not None else ""
    return f"{words.short(run.epoch)}/{words.short(run.epochs)} {100 * (run.progress or 0):3.0f}%"


def figure(row: Row) -> str:
    run = row.run
    if run.figure is None:
        return ""
    split = {"test": "test ", "validation": "val "}.get(run.split, "")
    return f"{split}loss {run.figure:.4g}" if run.loss else f"{split}{100 * run.figure:.2f}%"


def remaining(row: Row) -> str:
    return words.left(row.run.seconds_left) if row.verdict.state == "running" else ""


def place(row: Row) -> str:
    """host:pid, and the SLURM job."""
    owner = {} if row.run.recorded == "submitted" else row.run.owner
    job = row.run.job or row.run.owner_job
    where = words.line(f"{owner.get('host')}:{owner.get('pid')}", 40) if owner.get("host") else ""
    local = row.run.submitted.get("id") if row.run.submitted.get("cluster") == "local" else None
    return f"{where} job {words.line(job or local, 24)}".strip() if job or local else where


# (heading, what stands in it, importance, to the right)
COLUMNS = (
    ("epochs", epochs, 9, True),
    ("error", figure, 8, True),
    ("left", remaining, 7, True),
    ("speed", lambda row: words.rate(row.run.speed), 2, True),
    ("seen", lambda row: words.age(row.verdict.seen), 6, True),
    ("where", place, 3, False),
    ("disk", lambda row: words.size(row.run.disk), 5, True),
)


# -- all of them -----------------------------------------------------------------------------------


def plain(found: list[Row], common: str) -> list[str]:
    """A heading, a line for each run with everything that is known, and the totals; in columns, never cut."""
    lines = [["state", "run", *(heading for heading, *_ in COLUMNS), "last error"]]
    for row in found:
        cells = [cell(row) or "-" for _, cell, *_ in COLUMNS]
        lines.append([state(row), path(row, common), *cells, row.verdict.error or "-"])
    widths = [max(map(cell_len, column)) for column in zip(*lines)]
    padded = [[c + " " * (w - cell_len(c)) for c, w in zip(cells, widths)] for cells in lines]
    return [*("  ".join(cells).rstrip() for cells in padded), totals(found)]


def path(row: Row, common: str) -> str:
    return os.path.join(common, row.label)


def as_json(row: Row) -> dict:
    """Everything that is known, with its units in the names; null where it is not."""
    run, verdict = row.run, row.verdict
    owner = run.owner
    return {
        "folder": str(run.folder),
        "state": verdict.state,
        "going": verdict.going,
        "recorded": run.recorded,
        "detail": verdict.detail or None,
        "error": verdict.error or None,
        "epoch": run.epoch,
        "epochs": run.epochs,
        "progress": run.progress,
        "position": run.position,
        "split": run.split,
        "eval_error": None if run.loss else run.figure,
        "eval_loss": run.figure if run.loss else None,
        "samples_per_second": run.speed,
        "seconds_left": run.seconds_left if verdict.state == "running" else None,
        "seen_seconds_ago": verdict.seen,
        "host": words.line(owner["host"]) if isinstance(owner.get("host"), str) else None,
        "pid": owner.get("pid") if isinstance(owner.get("pid"), int) else None,
        "job": run.job or run.owner_job,
        "disk_bytes": run.disk,
    }


def counts(found: list[Row]) -> str:
    """ "3 finished, 2 running, 1 failed", in the order of the table."""
    known = Counter(row.verdict.state for row in found)
    return ", ".join(f"{known[name]} {name.replace('_', ' ')}" for name in ORDER if known[name])


def totals(found: list[Row]) -> str:
    """ "6 runs: 3 finished, 2 running, 1 failed; 40 MB"."""
    disk = words.size(sum(row.run.disk for row in found))
    return f"{len(found):,} run{'s' * (len(found) != 1)}: {counts(found)}; {disk}"
