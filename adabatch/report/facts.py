"""What a run folder says, as plain and bounded values. Its files may come from strangers."""

import shlex
from dataclasses import dataclass, field
from pathlib import Path

from adabatch import runs
from adabatch.errors import UserError
from adabatch.files import number

TEXT = 400  # characters of any one value that is shown
CONFIG = 60_000  # characters of config.yaml that are shown


def text(value, limit: int = TEXT) -> str:
    """One line of printable text for a value of any type, cut at `limit` characters."""
    if isinstance(value, dict):
        return f"({len(value)} entries)"
    if isinstance(value, (list, tuple)):
        shown = ", ".join(text(v, 60) for v in value[:8])
        return f"[{shown}, ... {len(value)} in all]" if len(value) > 8 else f"[{shown}]"
    if value is None:
        return "\u2013"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**30:
        return "(a huge integer)"  # str() of one may take for ever, or refuse
    line = "".join(c if c.isprintable() else " " for c in str(value)[: limit + 1])
    return line if len(line) <= limit else line[: limit - 3] + "..."


def lines(value, most: int = 30) -> str:
    """Text of several lines, the first `most` of them."""
    found = str(value)[:20_000].splitlines() if isinstance(value, str) else [text(value)]
    return "\n".join([*(text(line) for line in found[:most]), *(["..."] if len(found) > most else [])])


@dataclass(frozen=True)
class Facts:
    """One run. Any dictionary may be empty and any list short: the folder may be of a run that only began."""

    folder: Path
    state: str
    error: str | None
    summary: dict
    config: dict
    config_text: str
    overrides: list[str]
    environment: dict
    train: list[dict]  # rows of metrics.jsonl by event
    evals: list[dict]
    changes: list[dict]
    notes: list[str] = field(default_factory=list)  # files that could not be read, and why

    def of(self, key: str):
        """A figure of the summary, or the configuration's entry of that name where the run has not ended."""
        value = self.summary.get(key)
        if value is None:
            value = self.config.get(key)
        return value

    @property
    def title(self) -> str:
        """ "ResNet on cifar10, seed 0", from the summary or the configuration, else the folder's name."""
        names = [self.summary.get(key) or self._target(key) for key in ("model", "dataset")]
        if not all(isinstance(n, str) and n for n in names):
            return text(self.folder.name, 120)
        seed = self.of("seed")
        return " on ".join(text(n, 60) for n in names) + ("" if seed is None else f", seed {text(seed, 20)}")

    def _target(self, group: str) -> str | None:
        """The last part of a group's _target_: "ResNet" of adabatch.models.resnet.ResNet."""
        node = self.config.get(group)
        target = node.get("_target_") if isinstance(node, dict) else None
        return target.rpartition(".")[2] if isinstance(target, str) else None

    @property
    def samples(self) -> float | None:
        """Training samples of one epoch (the summary's `samples` counts those of the whole run)."""
        for row in reversed(self.train):
            position, epoch = number(row.get("position")), number(row.get("epoch"))
            if position and epoch:
                return position / epoch
        return None

    @property
    def last(self) -> dict:
        """The newest training row, {} before the first."""
        return self.train[-1] if self.train else {}

    @property
    def worlds(self) -> tuple[int, int]:
        """The fewest and the most processes that took a step; (1, 1) where no row says so."""
        found = {int(n) for row in self.train if (n := number(row.get("world_size"))) and n >= 1} or {1}
        return min(found), max(found)

    @property
    def path(self) -> str:
        """The folder as one would type it from where the report is written, quoted for a shell."""
        folder = self.folder.resolve()
        here = Path.cwd()
        near = folder.relative_to(here) if folder.is_relative_to(here) else folder
        return shlex.quote(str(near))

    def command(self) -> str:
        """What the user typed, quoted for a shell."""
        return " ".join(["adabatch", *(shlex.quote(text(o, 300)) for o in self.overrides[:60])])

    def evaluations(self, split: str, weights: str | None = None) -> list[dict]:
        """The evaluation rows of a split, in order of position."""
        rows = [r for r in self.evals if r.get("split") == split]
        return [r for r in rows if weights is None or r.get("weights", "raw") == weights]


def read(folder: Path) -> Facts:
    """Reads what is there; a damaged file becomes a note. UserError only where there is no folder."""
    run, notes = runs.Run(folder), []

    def attempt(read, otherwise):
        try:
            value = read()
        except UserError as error:
            notes.append(text(error))
            return otherwise
        return otherwise if value is None else value

    status = attempt(lambda: run.status, {})
    rows = attempt(lambda: run.rows, [])
    by_event = {event: [r for r in rows if r.get("event") == event] for event in ("train", "eval", "change")}
    state = status.get("state")
    if state not in runs.STATES:
        if status:
            notes.append(f"status.json names an unknown state: {text(state, 60)}")
        state = "unknown"
    return Facts(
        folder=folder,
        state=state,
        error=lines(status["error"]) if status.get("error") else None,
        summary=attempt(lambda: run.summary, {}),
        config=attempt(lambda: run.config, {}),
        config_text=_config_text(folder),
        overrides=attempt(lambda: run.overrides, []),
        environment=attempt(lambda: run.environment, {}),
        train=by_event["train"],
        evals=by_event["eval"],
        changes=[r for r in by_event["change"] if isinstance(r.get("changes"), dict)],
        notes=notes,
    )


def _config_text(folder: Path) -> str:
    """config.yaml as it stands, comments and order included, cut at CONFIG characters."""
    try:
        with open(folder / "config.yaml", encoding="utf-8", errors="replace") as file:
            shown = file.read(CONFIG + 1)
    except OSError:
        return ""
    return shown if len(shown) <= CONFIG else shown[:CONFIG] + "\n... cut here; config.yaml has the rest"


def phases(run: Facts) -> list[dict]:
    """The stretches of one batch size: {start_position, batch_size, lr, lr_end, steps, seconds}.

    From the summary; for a run without one, from the logged rows (a phase starts at the position of its
    change event, where there is one).
    """
    given = run.summary.get("phases")
    if isinstance(given, list) and given:
        return [p for p in given if isinstance(p, dict)]
    found, before = [], {}
    starts = {}
    for change in run.changes:
        starts.setdefault(pair(change, "batch_size")[1], []).append(number(change.get("position")) or 0)
    for row in run.train:
        batch = number(row.get("batch_size"))
        if not found or found[-1]["batch_size"] != batch:
            since = number(before.get("position")) or 0
            exact = [p for p in starts.get(batch, ())[:100] if p >= since]
            found.append({
                "start_position": exact[0] if found and exact else since,
                "batch_size": batch,
                "lr": row.get("lr"),
                "from_step": number(before.get("step")) or 0,
                "from_seconds": number(before.get("seconds")) or 0,
            })  # fmt: skip
        phase = found[-1]
        phase["lr_end"] = row.get("lr")
        phase["steps"] = _minus(row.get("step"), phase["from_step"])
        phase["seconds"] = _minus(row.get("seconds"), phase["from_seconds"])
        before = row
    return found


def pair(change: dict, name: str) -> tuple[float | None, float | None]:
    """(before, after) of one entry of a change event; None for what is not there or is no number."""
    found = change["changes"].get(name)
    if not isinstance(found, list) or len(found) != 2:
        return None, None
    return number(found[0]), number(found[1])


def _minus(value, before: float) -> float | None:
    value = number(value)
    return None if value is None else value - before
