"""What one run folder says, as plain and bounded values. Any file may be missing, damaged or a stranger's."""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

from adabatch import files, labels, runs
from adabatch.errors import UserError
from adabatch.files import number
from adabatch.status import words
from adabatch.status.folders import disk

NEAR, FAR = 64 << 10, 1 << 20  # bytes from the end of metrics.jsonl: for the newest rows; for an evaluation
ENDED = ("finished", "failed", "diverged", "out_of_memory", "interrupted")  # no owner is at work any more
_JOB = re.compile(r"\d{1,19}(_\d{1,10})?", re.ASCII)
_EPOCHS = re.compile(r"^epochs: *(\S+)", re.MULTILINE)


@dataclass(frozen=True)
class Facts:
    """One run. None where its folder does not say."""

    folder: Path
    recorded: str = "unknown"  # the state as status.json has it; unknown: it has none that we know
    error: str | None = None
    owner: dict = field(default_factory=dict)
    submitted: dict = field(default_factory=dict)  # the "job" of status.json
    touched: float | None = None  # when status.json was written, by the clock of its file system
    epoch: float | None = None
    epochs: float | None = None  # asked for
    position: float | None = None  # samples seen
    split: str | None = None  # of the figure: "test" or "validation"
    figure: float | None = None  # a fraction of wrong answers; a loss where `loss`
    loss: bool = False
    speed: float | None = None  # samples per second of training
    disk: int = 0  # bytes
    named: str | None = None  # what a comparison calls it: its arm and seed

    @property
    def job(self) -> str | None:
        """The SLURM job that was submitted for it: "12" or, of an array, "12_3"."""
        return job_id(self.submitted.get("id")) if self.submitted.get("cluster") == "slurm" else None

    @property
    def owner_job(self) -> str | None:
        """The SLURM job in which its owner runs; of an array the job's own number, without "_"."""
        return job_id(self.owner.get("job"))

    @property
    def progress(self) -> float | None:
        """Between 0 and 1. A finished run is at 1, also where its schedule ends early."""
        if self.recorded == "finished":
            return 1.0
        if self.epoch is None or not self.epochs:
            return None
        return min(max(self.epoch / self.epochs, 0.0), 1.0)

    @property
    def seconds_left(self) -> float | None:
        """Seconds of training left at the speed of the newest rows."""
        if not self.speed or not self.epoch or self.epochs is None or not self.position:
            return None
        return max(self.epochs - self.epoch, 0.0) * self.position / self.epoch / self.speed


def job_id(value) -> str | None:
    """A SLURM job's number as text, None for anything else: it becomes an argument of squeue."""
    text = str(value) if isinstance(value, (str, int)) and not isinstance(value, bool) else ""
    return text if _JOB.fullmatch(text) else None


class Reader:
    """Reads run folders; what it read of those that have ended it keeps until a file of theirs changes."""

    def __init__(self):
        self._known: dict[Path, tuple] = {}

    def read(self, folder: Path) -> Facts | None:
        """None for a folder that is gone."""
        before = _stamp(folder)
        known = self._known.get(folder)
        if known and known[0] == before:
            return known[1]
        found = read(folder)
        if found and found.recorded in ENDED:
            self._known[folder] = (before, found)
        return found


def _stamp(folder: Path) -> tuple:
    return tuple(_written(folder / name) for name in ("status.json", "summary.json", "metrics.jsonl"))


def _written(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:
        return None


def read(folder: Path) -> Facts | None:
    """The folder's facts; None where it is gone. A status.json that cannot be read makes the state unknown,
    and why is its error."""
    try:
        run = runs.Run(folder)
    except (UserError, OSError):
        return None
    trouble = []

    def attempt(read, otherwise):
        try:
            return read() or otherwise
        except (UserError, OSError) as error:
            trouble.append(str(error))
            return otherwise

    touched = _written(folder / "status.json")
    status = attempt(lambda: run.status, {})
    state, error = status.get("state"), status.get("error")
    if state not in runs.STATES:
        why = "status.json names no state that this adabatch knows" if status else "there is no status.json"
        state, error = "unknown", trouble[0] if trouble else why
    if touched is not None and not folder.is_dir():
        return None  # it vanished while it was read
    known = dict(
        folder=folder,
        named=attempt(lambda: _named(folder), None),
        recorded=state,
        error=str(error)[:20_000] if error else None,
        owner=_dict(status.get("owner")),
        submitted=_dict(status.get("job")),
        touched=touched,
        disk=disk(folder),
    )
    summary = attempt(lambda: run.summary, {}) if state in ("finished", "unknown") else {}
    return Facts(**known, **(_of_summary(summary) if summary else _of_rows(folder, attempt)))


def _named(folder: Path) -> str | None:
    """Its arm and seed, where a comparison made it; what other runs were asked is not parsed, which takes
    milliseconds each."""
    path = folder / "overrides.yaml"
    if not path.is_file() or "compare.arm=" not in files.read_text(path, files.SMALL):
        return None
    found = labels.brief(runs.Run(folder).overrides)
    return found and words.line(found, 100)


def _dict(value) -> dict:
    return value if isinstance(value, dict) else {}


def _of_summary(summary: dict) -> dict:
    asked = number(summary.get("epochs"))
    trained = number(summary.get("epochs_trained"))
    found = dict(
        epochs=asked,
        epoch=asked if trained is None else trained,
        position=number(summary.get("samples")),
        speed=number(summary.get("images_per_second")),
    )
    for split in ("test", "validation"):
        if (value := number(summary.get(f"final_{split}_error"))) is not None:
            return found | dict(split=split, figure=value)
    return found


def _of_rows(folder: Path, attempt) -> dict:
    """From the end of metrics.jsonl, which may have gigabytes, and from config.yaml without parsing it: plain
    YAML takes milliseconds for each of a thousand runs."""
    path = folder / "config.yaml"  # a pipe of that name would hold us for ever
    text = attempt(lambda: path.is_file() and files.read_text(path, files.SMALL), "")
    asked = _EPOCHS.search(text)
    found = dict(epochs=_float(asked[1]) if asked else None)
    near = attempt(lambda: files.read_tail(folder / "metrics.jsonl", NEAR), "").split("\n")
    row = _nearest(reversed(near), "train")
    if row is None:
        return found
    found |= dict(epoch=number(row.get("epoch")), position=number(row.get("position")))
    found["speed"] = _speed(_nearest(near, "train"), row)
    evaluated = _nearest(reversed(near), "eval")
    if evaluated is None:
        far = attempt(lambda: files.read_tail(folder / "metrics.jsonl", FAR), "").split("\n")
        evaluated = _nearest(reversed(far), "eval")
    return found | (_figure(evaluated) if evaluated else {})


def _float(text: str) -> float | None:
    try:
        return number(float(text))
    except ValueError:
        return None


def _nearest(lines, event: str) -> dict | None:
    """The first of the lines that is a row of this event; a torn line is passed over."""
    for text in lines:
        if f'"{event}"' not in text:
            continue
        try:
            row = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and row.get("event") == event:
            return row
    return None


def _speed(first: dict | None, last: dict) -> float | None:
    values = [number(row.get(key)) for key in ("position", "seconds") for row in (first or {}, last)]
    if None in values or values[1] <= values[0] or values[3] <= values[2]:
        return None
    return (values[1] - values[0]) / (values[3] - values[2])


def _figure(row: dict) -> dict:
    split = row.get("split") if row.get("split") in ("test", "validation") else None
    error, loss = number(row.get("eval_error")), number(row.get("eval_loss"))
    return dict(split=split, figure=loss if error is None else error, loss=error is None)
