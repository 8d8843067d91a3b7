"""The terminal: one live line where there is one, plain lines everywhere else, and messages that mix with
both.

`Progress` is a tracker (resume, log, sync, close: see trackers). `handler()` prints what goes through
logging.getLogger("adabatch"). Both write to standard output through one rich console, so that a message
appears above the live line. Plain lines (no control codes; one per evaluation, or per epoch without one)
are for pipes, files, notebooks and TERM=dumb. NO_COLOR is obeyed. No thread is started: the line moves when
a row arrives. A stream that is closed or gone (`adabatch | head`) silences this module and stops nothing.
"""

import logging
import os
import re
import sys
import time
from collections import deque

from rich.cells import cell_len
from rich.console import Console
from rich.live import Live
from rich.text import Text

log = logging.getLogger("adabatch")

REDRAW = 0.1  # seconds between two drawings of the live line
WINDOW = 30.0  # seconds that speed and remaining time look back: a changed batch shows soon
# Escape sequences in a message would reach the terminal.
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")

CHANGES = {  # names in a row's "changes" -> what a person calls them
    "batch_size": "batch",
    "lr": "lr",
    "steps_per_epoch": "steps per epoch",
    "momentum_horizon_samples": "momentum horizon",
    "weight_decay_per_sample": "weight decay per sample",
    "ema_half_life_samples": "EMA half-life",
    "running_statistics_horizon_samples": "running statistics horizon",
    "micro_batch": "micro-batch",
    "accumulation": "accumulation",
    "world_size": "world size",
}


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """rich would end the program here. The reader has gone; the training has not."""
        self.quiet = True
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())  # else Python complains about the pipe again at exit
        os.close(null)

    def say(self, text: str, style: str = "") -> None:
        """Print one message as it is: no markup, no highlighting, no wrapping, and no exception."""
        text = CONTROL.sub("?", text).encode(self.encoding, "replace").decode(self.encoding)
        try:
            self.print(Text(text, style=style), soft_wrap=True, highlight=False)
        except (OSError, ValueError):  # a closed terminal or file
            self.quiet = True


_console: _Console | None = None


def shared_console() -> _Console:
    """The console that Progress and handler() share; it follows sys.stdout when that is replaced."""
    global _console
    if _console is None:
        _console = _Console(force_jupyter=False)
    return _console


class _Handler(logging.Handler):
    STYLES = ((logging.ERROR, "error: ", "red"), (logging.WARNING, "warning: ", "yellow"))

    def __init__(self, console: _Console):
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = self.format(record)
        except Exception:
            return self.handleError(record)
        prefix, style = next((rest for level, *rest in self.STYLES if record.levelno >= level), ("", ""))
        self._console.say(prefix + text, style)


def handler() -> logging.Handler:
    """For logging.getLogger("adabatch").addHandler: prints records above the live line, as they are."""
    return _Handler(shared_console())


def is_live(console: Console) -> bool:
    """Whether a line can be redrawn: a real terminal (whatever FORCE_COLOR says) that knows control codes."""
    try:
        return console.file.isatty() and not console.is_dumb_terminal
    except (AttributeError, ValueError):  # no stream, a closed one
        return False


class Progress:
    """The display of one run.

    budget: samples of the whole run. epochs: the same in epochs (both as configured; a resumed run's too).
    clock: seconds, for tests.
    """

    def __init__(self, budget: int, epochs: float, console: Console | None = None, clock=time.monotonic):
        self.budget, self.epochs = budget, epochs
        self._console = console or shared_console()
        self._clock = clock
        self._live: Live | None = None
        self._off = False
        self._drawn = -float("inf")
        self._seen: deque = deque()  # (clock, position, training seconds)
        self._row: dict = {}  # the newest train row
        self._error: str = ""  # the last evaluation
        self._due: int | None = None  # plain lines: an epoch that has ended and was not reported yet

    def resume(self, position: int, rows: int) -> None:
        self._seen.clear()
        self._seen.append((self._clock(), position, None))
        self._row, self._due = {}, None

    def log(self, row: dict) -> None:
        event = row.get("event")
        if event == "train":
            self._train(row)
        elif event == "eval":
            self._evaluated(row)
        elif event == "change":
            log.info("%s", describe(row))

    def sync(self) -> None:
        """Nothing of this is on a disk."""

    def close(self, exit_code: int = 0) -> None:
        """Leave the last state of the line on the screen and give the terminal back."""
        if self._due is not None:
            self._plain(f"epoch {self._due}/{_short(self.epochs)}")
        if self._live is not None:
            self._draw(last=True)
            self._safely(self._live.stop)
            self._live = None

    def _train(self, row: dict) -> None:
        before, self._row = self._row, row
        now = self._clock()
        self._seen.append((now, row["position"], row.get("seconds")))
        while len(self._seen) > 2 and now - self._seen[0][0] > WINDOW:
            self._seen.popleft()
        if self._off:
            return
        if is_live(self._console):
            if now - self._drawn >= REDRAW:
                self._draw()
            return
        if self._due is not None:  # no evaluation came at the epoch's end
            self._plain(f"epoch {self._due}/{_short(self.epochs)}", before)
        ended = int(row.get("epoch", 0) + 1e-9)
        if before and ended > int(before.get("epoch", 0) + 1e-9):
            self._due = ended

    def _evaluated(self, row: dict) -> None:
        name = row.get("split", "evaluation") + (" (ema)" if row.get("weights") == "ema" else "")
        error, loss = row.get("eval_error"), row.get("eval_loss")
        if error is not None:
            self._error = f"{name} error {100 * error:.2f} %"
        else:
            self._error = f"{name} loss {_number(loss)}"
        if is_live(self._console):
            self._draw()
        else:
            self._due = None
            self._plain(f"epoch {_short(row.get('epoch', 0))}/{_short(self.epochs)}")

    def _plain(self, head: str, row: dict | None = None) -> None:
        self._due = None
        parts = [long for _, long, _ in self._parts(self._row if row is None else row)][1:]
        self._console.say("  ".join([head, *parts]))

    def _draw(self, last: bool = False) -> None:
        self._drawn = self._clock()
        # One column stays free: some terminals wrap when the last one is filled.
        line = fit(self._parts(self._row), max(self._console.width - 1, 1))
        line = Text(line, no_wrap=True, overflow="crop")
        if self._live is None and not last and not self._off:
            self._live = Live(line, console=self._console, auto_refresh=False)
            self._safely(self._live.start)
            self._safely(self._console.show_cursor)  # a killed run must not leave it hidden
        if self._live is not None:
            self._safely(self._live.update, line, refresh=True)

    def _safely(self, function, *arguments, **options) -> None:
        try:
            function(*arguments, **options)
        except Exception:  # a closed or lost terminal, and what rich makes of one: no reason to stop a run
            self._off = True
            self._console.quiet = True

    def _parts(self, row: dict) -> list[tuple[int, str, str]]:
        """(importance, text, short text) of each part of the line, left to right; empty ones left out."""
        epoch = f"epoch {row.get('epoch', 0):.2f}/{_short(self.epochs)}" if row else "starting"
        speed, left = self._pace()
        split = ""
        if row.get("batch_size"):
            world, micro, rounds = (row.get(k) or 1 for k in ("world_size", "micro_batch", "accumulation"))
            equal = "=" if world * micro * rounds == row["batch_size"] else "in"  # a last part is shorter
            batch = f"batch {row['batch_size']}"
            split = f"{batch} {equal} {world}x{micro}x{rounds}" if row.get("micro_batch") else batch
        loss, rate = _number(row.get("train_loss")), _count(speed)
        error = self._error.replace(" error ", " ").replace(" loss ", " ").replace(" %", "%")
        parts = [
            (8, epoch, f"{row.get('epoch', 0):.1f}/{_short(self.epochs)}" if row else "starting"),
            (7, f"{_time(left)} left" if left is not None else "", _time(left) if left is not None else ""),
            (6, f"loss {loss}" if loss else "", ""),
            (9, split, split.replace(" = ", "=")),
            (5, f"lr {row['lr']:.4g}" if row.get("lr") is not None else "", ""),
            (3, f"{rate} samples/s" if rate else "", f"{rate}/s"),
            (4, self._error, error),
        ]
        return [(rank, long, short or long) for rank, long, short in parts if long]

    def _pace(self) -> tuple[float | None, float | None]:
        """(samples per second of training, seconds left by the clock), None where not known yet.

        Remaining time counts everything that happened in the window, evaluations and saving included.
        """
        if not self._seen:
            return None, None
        (began, start, _), (now, position, _) = self._seen[0], self._seen[-1]
        if now <= began or position <= start:
            return None, None
        left = (self.budget - position) * (now - began) / (position - start)
        left = left if left > 0 else None
        timed = [(at, seconds) for _, at, seconds in self._seen if seconds is not None]
        if len(timed) > 1 and timed[-1][1] > timed[0][1]:
            return (timed[-1][0] - timed[0][0]) / (timed[-1][1] - timed[0][1]), left
        return (position - start) / (now - began), left


def fit(parts: list[tuple[int, str, str]], width: int) -> str:
    """One line of at most `width` columns: parts are shortened, then dropped, the least important first."""
    shown = {index: long for index, (_, long, _) in enumerate(parts)}
    order = sorted(shown, key=lambda index: parts[index][0])
    for change in (lambda i: shown.update({i: parts[i][2]}), shown.pop):
        for index in order:
            if cell_len(line := "  ".join(shown.values())) <= width or len(shown) == 1:
                return line[:width]
            change(index)
    return "  ".join(shown.values())[:width]


def describe(row: dict) -> str:
    """A change event as one line: where, each quantity before -> after, and the rule that did it."""
    changes = [
        f"{CHANGES.get(name, name.replace('_', ' '))} {_change(before)} -> {_change(after)}"
        for name, (before, after) in row.get("changes", {}).items()
        if _change(before) != _change(after)
    ]
    rule = f" ({row['rule']})" if row.get("rule") else ""
    return f"epoch {_short(row.get('epoch', 0))}, sample {row['position']:,}: {', '.join(changes)}{rule}"


def _change(value) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and abs(value) >= 10_000 else str(value)


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.4f}" if 1e-3 <= abs(value) < 100 or value == 0 else f"{value:.4g}"


def _short(value: float) -> str:
    """Epochs without digits that say nothing: 20.0 -> 20, 2.50 -> 2.5."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _count(value: float | None) -> str:
    """Three digits or more: 950, 9500, 16.4k, 164k, 1.6M; empty for None."""
    if value is None:
        return ""
    if value >= 1e6:
        return f"{value / 1e6:.1f}M"
    if value >= 1e4:
        return f"{value / 1e3:.{int(value < 1e5)}f}k"
    return f"{value:.0f}"


def _time(seconds: float) -> str:
    seconds = int(seconds + 0.5)
    days, hours, minutes = seconds // 86400, seconds // 3600 % 24, seconds // 60 % 60
    if days:
        return f"{days}d {hours:02d}h"
    return f"{hours}:{minutes:02d}:{seconds % 60:02d}" if hours else f"{minutes}:{seconds % 60:02d}"
