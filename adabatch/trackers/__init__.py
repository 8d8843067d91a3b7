"""Where rows go: metrics.jsonl always, W&B and TensorBoard where they are asked for, all behind four calls.

    resume(position, rows)   go on after a checkpoint: `rows` rows had been logged when it was written
    log(row)                 one row (train, eval, change or end; its keys: docs/design.md, "Run folder")
    sync()                   what was logged is on the disk (called before a checkpoint is written)
    close(exit_code)         the run ends; 0 = done

Only metrics.jsonl may stop a run (OSError, e.g. a full disk). Any other tracker that fails is dropped with
one warning. W&B and TensorBoard are started by the first row that follows a step, never earlier: importing
and starting W&B takes about 2 s (up to `init_timeout` where its server does not answer), and the first step
waits for neither. A run that fails before its first step leaves nothing there. No thread is started here.
"""

import logging
import math
from collections.abc import Callable
from pathlib import Path

from adabatch import labels
from adabatch.errors import UserError
from adabatch.trackers.jsonl import Jsonl, plain

log = logging.getLogger("adabatch")

CLOCKS = ("position", "epoch", "step", "seconds")  # what a chart may have as its x axis


def build(
    config: dict,
    folder: Path,
    extra: tuple = (),  # further trackers, e.g. the terminal's console.Progress; they may fail without harm
    init_timeout: float = 30.0,  # seconds until a W&B server that is silent is given up
    finish_timeout: float = 120.0,  # seconds that the end of a run may wait for W&B's uploads
) -> "Trackers":
    """The trackers that config["trackers"] asks for, writing under `folder` (which exists).

    Raises UserError for an unknown W&B mode and for TensorBoard where its package is missing.
    """
    wanted = config.get("trackers") or {}
    others = [Optional(type(given).__name__, lambda given=given: given, late=False) for given in extra]
    if wanted.get("tensorboard"):
        from adabatch.trackers.tensorboard import TensorBoard, check

        check()
        others.append(Optional("TensorBoard", lambda: TensorBoard(folder, config)))
    node = wanted.get("wandb") or {}
    from adabatch.trackers.wandb import Wandb, resolve

    mode = resolve(node.get("mode", "auto"))
    if mode != "disabled":
        options = {key: node.get(key) for key in ("project", "entity", "name")}
        options["group"] = labels.group(config, folder, node.get("group"))
        options["tags"] = [*(node.get("tags") or ()), *labels.tags(config)]
        timeouts = {"init_timeout": init_timeout, "finish_timeout": finish_timeout}
        others.append(Optional("W&B", lambda: Wandb(config, folder, mode, **options, **timeouts)))
    return Trackers(Jsonl(Path(folder) / "metrics.jsonl"), others)


class Trackers:
    """All trackers as one. `rows` = rows logged so far; a checkpoint stores it and `resume` gets it back."""

    def __init__(self, jsonl: Jsonl, others: list["Optional"] = ()):
        self.jsonl = jsonl
        self.others = list(others)

    @property
    def rows(self) -> int:
        return self.jsonl.rows

    def resume(self, position: int, rows: int) -> None:
        self.jsonl.resume(position, rows)
        for tracker in self.others:
            tracker.resume(position, rows)

    def log(self, row: dict) -> None:
        row = plain(row)
        self.jsonl.log(row)
        for tracker in self.others:
            tracker.log(row)

    def sync(self) -> None:
        self.jsonl.sync()
        for tracker in self.others:
            tracker.sync()

    def forget(self) -> None:
        """Nothing more is written to metrics.jsonl: another process owns the folder."""
        self.jsonl.forget()

    def close(self, exit_code: int = 0) -> None:
        """Close all of them, whatever happens to one. Raises the OSError of metrics.jsonl at the very end."""
        try:
            self.jsonl.close(exit_code)
        finally:
            for tracker in self.others:
                tracker.close(exit_code)


class Silent:
    """Of a rank that writes nothing: the same calls."""

    rows = 0

    def resume(self, position: int, rows: int) -> None: ...
    def log(self, row: dict) -> None: ...
    def sync(self) -> None: ...
    def forget(self) -> None: ...
    def close(self, exit_code: int = 0) -> None: ...


class Optional:
    """A tracker that the run can do without.

    make: builds it. late: only when the first row after a step arrives (position > 0); rows before it wait.
    After its first exception it is warned about once and gets no more rows; it is still closed.
    """

    def __init__(self, name: str, make: Callable, late: bool = True):
        self.name = name
        self._make = make
        self._late = late
        self._tracker = None
        self._at = (0, 0)
        self._waiting: list[dict] = []
        self.failed = False

    def resume(self, position: int, rows: int) -> None:
        self._at = (position, rows)
        if not self._late:
            self._call(self._start)

    def log(self, row: dict) -> None:
        if self._tracker is None and not self.failed:
            self._waiting.append(row)
            if not self._late or row.get("position", 0) > 0:
                self._call(self._start)
        elif not self.failed:
            self._call(self._tracker.log, row)

    def sync(self) -> None:
        if self._tracker is not None:
            self._call(self._tracker.sync)

    def close(self, exit_code: int) -> None:
        if self._tracker is not None:
            self._call(self._tracker.close, exit_code, even_failed=True)

    def _start(self) -> None:
        self._tracker = self._make()
        self._tracker.resume(*self._at)
        for row in self._waiting:
            self._tracker.log(row)
        self._waiting = []

    def _call(self, function: Callable, *arguments, even_failed: bool = False) -> None:
        if self.failed and not even_failed:
            return
        try:
            function(*arguments)
        except UserError:
            raise
        except Exception as error:
            if not self.failed:
                what = f"{type(error).__name__}: {error}".strip(": ")
                log.warning("%s failed and is off from here on; the run goes on (%s)", self.name, what)
            self.failed = True
            self._waiting = []


def flat(row: dict) -> dict:
    """The finite numbers of a row under the names that W&B and TensorBoard show.

    The clocks keep their names; train_loss -> train/loss; eval_error of the test split -> test/error, of the
    averaged weights test_ema/error; a change of lr -> change/lr = its value after the change; the figures of
    the end keep the summary's names.
    """
    event = row.get("event")
    if event == "change":
        values = {f"change/{name}": pair[1] for name, pair in row.get("changes", {}).items()}
        values |= {key: row.get(key) for key in CLOCKS}
    elif event == "eval":
        group = row.get("split", "eval") + ("_ema" if row.get("weights") == "ema" else "")
        values = {key.replace("eval_", f"{group}/"): value for key, value in row.items()}
    elif event == "end":
        values = row
    else:
        values = {key.replace("train_", "train/"): value for key, value in row.items()}
    return {key: value for key, value in values.items() if _finite(value)}


def _finite(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
