"""`adabatch-report --watch`: the verdict again and again while a sweep runs, in the terminal and in files.

A line for each change where there is no terminal to redraw. It ends by itself when nothing goes on any more.
"""

import os
import time
from pathlib import Path

from rich.live import Live
from rich.text import Text

from adabatch.console import is_live, shared_console
from adabatch.errors import UserError
from adabatch.status.command import Look
from adabatch.status.words import say
from adabatch.verdict import readings

EVERY = 10.0  # seconds between two looks
QUIET = 30.0  # seconds without a run that goes on, after which the sweep is over: one run may follow another


class Reader:
    """Reads a run's folder when something in it has changed, else remembers what it read."""

    def __init__(self):
        self._held: dict[Path, tuple] = {}

    def __call__(self, folder: Path, split: str):
        marks = (split, *(_mark(folder / name) for name in readings.FILES))
        held = self._held.get(folder)
        if held is None or held[0] != marks:
            held = self._held[folder] = (marks, readings.read(folder, split))
        return held[1]


def _mark(path: Path) -> tuple | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


class Going:
    """Called, whether any of the runs goes on, is submitted, or did less than `quiet` seconds ago."""

    def __init__(self, named: list[str], quiet: float = QUIET, clock=time.monotonic):
        self._look, self.quiet, self._clock = Look(named), quiet, clock
        self._since: float | None = None  # when nothing was found to go on

    def __call__(self) -> bool:
        try:
            going = any(row.verdict.going for row in self._look()[1])
        except UserError:  # no run has begun, or all were put aside
            going = False
        now = self._clock()
        self._since = None if going else now if self._since is None else self._since
        return going or now - self._since < self.quiet


def watch(look, going, shown, seconds: float):
    """look() looks anew, writes the files and gives (verdict, ...); shown(that, width) -> text, the sentence
    first; going() -> whether to look again. Returns what was seen last."""
    console = shared_console()
    if not is_live(console):
        return _told(look, going, shown, seconds)
    found = look()
    with Live(_window(console, found, shown), console=console, auto_refresh=False) as live:
        while going():
            live.refresh()
            time.sleep(seconds)
            found = look()
            live.update(_window(console, found, shown))
        live.update(Text(shown(found, console.width), no_wrap=True), refresh=True)
    return found


def _window(console, found, shown) -> Text:
    """As much as the window holds, from the top: the sentence stands there."""
    lines = shown(found, console.width).split("\n")
    room = max(console.height - 2, 1)
    more = [f"... {len(lines) - room + 1} more lines"] if len(lines) > room else []
    return Text("\n".join(lines[: room - 1] + more if more else lines), no_wrap=True, overflow="crop")


def _told(look, going, shown, seconds: float):
    before = None
    while True:
        found = look()
        sentence = found[0].sentence
        if sentence != before:
            say(f"{time.strftime('%H:%M:%S')} {sentence}")
        before = sentence
        if not going():
            say("", *shown(found, None).split("\n"))
            return found
        time.sleep(seconds)
