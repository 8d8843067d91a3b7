"""`--watch`: the table drawn again and again in a terminal, a line per change in a pipe."""

import json
import sys
import time

from rich.live import Live

from adabatch.console import is_live, shared_console
from adabatch.status import rows, table
from adabatch.status.rows import Row
from adabatch.status.words import line, say


def watch(look, seconds: float, as_json: bool) -> list[Row]:
    """Calls look() -> (common, rows) every `seconds` until nothing goes on; returns the last rows."""
    console = shared_console()
    if as_json or not is_live(console):
        return _told(look, seconds, as_json)
    common, found = look()
    with Live(_drawn(console, common, found, look.notes), console=console, auto_refresh=False) as live:
        while any(row.verdict.going for row in found):
            live.refresh()
            time.sleep(seconds)
            common, found = look()
            live.update(_drawn(console, common, found, look.notes))
        live.update(table.table(found, common, console.width, None, look.notes), refresh=True)
    return found


def _drawn(console, common: str, found: list[Row], notes: list[str]):
    """As much as the window holds: the last rows, fewer where errors stand below them."""
    most = max(console.height - 1, 1)
    while True:
        drawn = table.table(found, common, console.width, most, notes)
        over = len(console.render_lines(drawn)) - console.height + 1
        if over <= 0 or most == 1:
            return drawn
        most = max(most - over, 1)


def _told(look, seconds: float, as_json: bool) -> list[Row]:
    before: dict = {}
    noted: list[str] = []
    while True:
        common, found = look()
        for note in set(look.notes) - set(noted):
            print(f"adabatch-status: {line(note)}", file=sys.stderr, flush=True)
        noted = look.notes
        for row in found:
            key, was = row.run.folder, before.get(row.run.folder)
            now = _mark(row)
            if now != was:
                say(json.dumps(rows.as_json(row)) if as_json else _line(row, common, was))
            before[key] = now
        if not any(row.verdict.going for row in found):
            if not as_json:
                say(rows.totals(found))
            return found
        time.sleep(seconds)


def _mark(row: Row) -> tuple:
    """What counts as a change: the state, what went wrong, a tenth of the way."""
    return rows.state(row), row.verdict.error, int(10 * (row.run.progress or 0))


def _line(row: Row, common: str, was: tuple | None) -> str:
    state = rows.state(row)
    if was and was[0] != state:
        state = f"{was[0]} -> {state}"
    parts = [rows.epochs(row), rows.figure(row), rows.remaining(row) and f"{rows.remaining(row)} left"]
    said = "  ".join(part for part in (*parts, row.verdict.error) if part)
    return f"{time.strftime('%H:%M:%S')} {rows.path(row, common)}: {state}{'  ' * bool(said)}{said}"
