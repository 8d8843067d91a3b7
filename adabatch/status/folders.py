"""Which folders hold a run. A tree may be a stranger's: deep, huge, circular, or gone while it is read."""

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from adabatch.errors import UserError

MARKS = {"status.json", "metrics.jsonl", "summary.json", "overrides.yaml"}  # one of these makes it a run
ASIDE = re.compile(r"\.old\d+$")  # what restart=true renames a folder to (runs.set_aside)
MOST = 200_000  # folders that are looked into


@dataclass
class Found:
    """Run folders in no particular order, and what was left out of them."""

    runs: list[Path] = field(default_factory=list)
    aside: int = 0  # runs that restart=true has put aside
    unreadable: int = 0
    more: bool = False  # MOST was reached


def find(named: list[str]) -> Found:
    """The runs that `named` are or hold, at any depth. UserError: no such folder, or no run in it."""
    found, seen = Found(), set()
    for name in named:
        before = len(found.runs) + found.aside
        if not os.path.isdir(name):
            what = "it is a file" if os.path.lexists(name) else "there is no such folder"
            raise UserError(f"{name}: {what}. Name a run's folder, or one that holds some: runs are in "
                            "outputs/ unless hydra.run.dir or hydra.sweep.dir says otherwise")  # fmt: skip
        inside = len(seen)
        _walk(Path(name), found, seen)
        if len(found.runs) + found.aside == before and len(seen) > inside:
            raise UserError(
                f"{name}: no run in it ({len(seen) - inside:,} folders looked into). A run's folder has a "
                "status.json; `adabatch` makes one under outputs/"
                + ("; some folders could not be read" if found.unreadable else "")
            )
    return found


def _walk(top: Path, found: Found, seen: set) -> None:
    waiting = [top]
    while waiting:
        folder = waiting.pop()
        if len(seen) >= MOST:
            found.more = True
            return
        try:
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in seen:  # named twice, or a circle of links
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as entries:
                entries = list(entries)
        except FileNotFoundError:  # gone since it was listed
            continue
        except OSError:
            found.unreadable += 1
            continue
        if any(entry.name in MARKS and _is(entry.is_file) for entry in entries):
            if folder != top and ASIDE.search(folder.name):
                found.aside += 1
            else:
                found.runs.append(folder)
            continue  # a run holds no other run
        waiting += [folder / e.name for e in entries if not e.name.startswith(".") and _is(e.is_dir)]


def _is(question) -> bool:
    try:
        return question()
    except OSError:
        return False


def disk(folder: Path) -> int:
    """Bytes that the folder's files take on the disk, links not followed; what vanishes meanwhile is left
    out."""
    total, waiting = 0, [folder]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                entries = list(entries)
        except OSError:
            continue
        for entry in entries:
            try:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                elif not entry.is_symlink():
                    status = entry.stat(follow_symlinks=False)
                    total += getattr(status, "st_blocks", -(-status.st_size // 512)) * 512
            except OSError:
                continue
    return total
