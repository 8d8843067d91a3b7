"""Run folders: their names, their files, their states. The only reader and writer of these formats.

A run's folder is `<readable overrides>-<8 hex>`; the hex is the identity: a hash of everything in the
resolved configuration that can change what is computed. Files may come from strangers, so reading is bounded
in size, YAML may not use aliases, nothing is unpickled, and a file written by a newer version is refused by
its format number.
"""

import hashlib
import json
import math
import os
import re
from pathlib import Path

from adabatch import throughput
from adabatch.errors import UserError
from adabatch.files import (  # noqa: F401 (these are where others look for them)
    FORMAT,
    LARGE,
    finite,
    read_json,
    read_text,
    read_yaml,
    write_bytes,
    write_json,
    write_yaml,
)

STATES = (
    "submitted", "running", "finished", "failed", "diverged", "out_of_memory", "interrupted", "preempted",
)  # fmt: skip

# Keys outside a run's identity: they change where, how fast or how talkatively it runs, not its result.
EXCLUDED = (
    "options", "hydra", "trackers", "checkpoint", "log", "shadow", "wait", "restart", "experiment", "arm",
    "dataset.root", "dataset.download", "dataset.cache", "dataset.workers", "dataset.ahead",
    "hardware.processes", "hardware.nodes", "hardware.phases", "hardware.parallel_runs", "model.regime",
    "hardware.own_process", "hardware.micro_batch", "hardware.prefer", "hardware.join_timeout", "compare",
    "timing", "rehearsal.kill_after", "rehearsal.witness", "forecast", "model.input_transform",
)  # fmt: skip
ALONE = ("hardware.parallel_runs", "hardware.own_process")  # of a multirun, never of what a run computes
# Keys that are younger than some runs, and what those did: with these values a run stays the same run.
LATER = {"optimizer.bias_lr": 1, "evaluate.flip": False, "model.train": "all", "model.init_head": True}
LATER |= {"model.norm": "own", "hardware.benchmark": "auto", "dataset.crop_pct": None}
LATER |= {"dataset.augment.scale": None, "dataset.augment.ratio": None, "evaluate.translate": 0}

# What is measured in a row or a summary; everything else is equal between equal runs.
TIMES = ("seconds", "train_seconds", "device_seconds", "wall_seconds")
MEASURED = (*TIMES, "images_per_second", "peak_memory_bytes", "ledger", "forecast")

READABLE = 80  # characters of a folder's name before its hex; file systems allow 255


def excluded(key: str, listed=EXCLUDED) -> bool:
    """Whether the dotted key, or a node that holds it ("trackers" of 'trackers.wandb.mode'), is listed."""
    return any(key == entry or key.startswith(entry + ".") for entry in listed)


def listed_for(config: dict) -> tuple:
    """The excluded keys that hold for this configuration. Under plain batch norm the statistics depend on how
    a batch is cut, so everything about hardware counts; so it does for networks that are not ours, which may
    hold one, or torch's dropout; but for a rehearsal."""
    model = config.get("model") or {}
    norm, target = model.get("norm"), str(model.get("_target_"))
    torchvisions = target.startswith("adabatch.models.torchvision.") and norm != "ghost"
    listed = (*EXCLUDED, "model.ghost") if torchvisions else EXCLUDED  # nothing reads it there
    ours = target.startswith("adabatch.") and not torchvisions
    if (norm == "batch" or not ours) and not config.get("rehearsal"):
        return tuple(e for e in listed if not e.startswith("hardware.") or e in ALONE)
    return listed


def contents(config: dict) -> dict:
    """What enters the identity by content instead of by name: {dotted key: digest}. Reads the files that are
    named."""
    found = {}
    if source := (config.get("model") or {}).get("init_from"):
        found["model.init_from"] = _weights_digest(source)
    if source := (config.get("schedule") or {}).get("run"):
        text = json.dumps(trajectory(source))
        found["schedule.run"] = hashlib.sha256(text.encode()).hexdigest()
    if source := (config.get("schedule") or {}).get("profile"):
        text = json.dumps(throughput.profile(source))
        found["schedule.profile"] = hashlib.sha256(text.encode()).hexdigest()
    return found


def _weights_digest(source: str) -> str:
    path = Path(source).expanduser()
    if path.is_dir():
        found = [path / name for name in ("weights.pt", "checkpoint.pt") if (path / name).is_file()]
        if not found:
            raise UserError(
                f"model.init_from={source} holds neither weights.pt nor checkpoint.pt (checkpoint.keep=none "
                "removes them): name a weights file, e.g. its best.pt"
            )
        path = found[0]
    if not path.is_file():
        raise UserError(
            f"model.init_from={source}: there is no such file or run. Name a weights file or a run's folder."
        )
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def identity(config: dict, contents: dict | None = None) -> str:
    """8 hex digits over the resolved configuration without the excluded keys. contents: {dotted key: digest},
    which takes the place of its value (a file enters by what is in it)."""
    listed = listed_for(config)

    def reduced(value, path):
        if contents and path in contents:
            return contents[path]
        if isinstance(value, dict):
            inner = {str(k): (f"{path}.{k}" if path else str(k), v) for k, v in value.items()}
            kept = {k: e for k, e in inner.items() if not excluded(e[0], listed) and e not in LATER.items()}
            return {k: reduced(v, p) for k, (p, v) in kept.items()}
        if isinstance(value, (list, tuple)):
            return [reduced(v, f"{path}[]") for v in value]
        if isinstance(value, float) and math.isfinite(value) and value == int(value):
            return int(value)  # epochs=20.0 is epochs=20
        return value

    text = json.dumps(reduced(config, ""), sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def family(config: dict) -> str:
    """The identity that runs share which differ in nothing but `epochs`."""
    return identity(config | {"epochs": 0}, contents(config))


def _clean(text: str) -> str:
    """Only characters that no shell, file system or URL minds."""
    return re.sub(r"[^\w.=,+-]+", "_", text, flags=re.ASCII).strip("_-.")


def _tag(override: str) -> str:
    """How a swept excluded key shows in a name: 'hardware.processes=3' -> 'processes=3'."""
    key, _, value = override.lstrip("+~").partition("=")
    short = key.split(".")[-1] if key.split(".")[0] in ("hardware", "dataset") else key
    return f"{short}={_clean(value).replace('-', '_').replace('=', '_')}"


_SHORT = [e.split(".")[-1] for e in EXCLUDED if "." in e]
_WHOLE = [e for e in EXCLUDED if "." not in e and e != "experiment"]
_TAG = rf"-(?:{'|'.join(_SHORT)}|(?:{'|'.join(_WHOLE)})(?:\.\w+)*)=[^-=]*"
_TAGS = re.compile(rf"((?:{_TAG})*)-([0-9a-f]{{8}})$")


def _weight(override: str) -> tuple:
    """What people tell runs apart by comes first: a long name is cut at its end."""
    key = override.partition("=")[0]
    first = ("model", "dataset", "schedule", "optimizer", "hardware", "seed", "epochs")
    return (first.index(key) if key in first else len(first), override)


def folder_name(config: dict, overrides, swept_excluded=(), contents: dict | None = None) -> str:
    """`<readable overrides>-<8 hex>`; independent of the overrides' order.

    swept_excluded: overrides like 'hardware.processes=3' that a multirun varies although they are excluded
    from the identity: appended before the hex, so that such runs do not collide.
    """
    listed = listed_for(config)
    parts = []
    for override in sorted((o.lstrip("+") for o in overrides), key=_weight):
        key = override.partition("=")[0]
        if key == "experiment" or not excluded(key.lstrip("~"), listed):
            parts.append(_clean(override))
    readable = _clean("-".join(p for p in parts if p)[:READABLE]) or "default"
    tags = "".join(f"-{_tag(o)}" for o in sorted(swept_excluded))
    return f"{readable}{tags}-{identity(config, contents)}"


def find(parent: Path, name: str) -> Path:
    """The folder for `name` in `parent`: an existing one with the same hex (and swept keys), else parent /
    name."""
    parent = Path(parent)
    if (parent / name).is_dir():
        return parent / name
    match = _TAGS.search(name)
    if match and parent.is_dir():
        for entry in sorted(parent.iterdir()):
            other = _TAGS.search(entry.name)
            if other and other.groups() == match.groups() and entry.is_dir():
                return entry
    return parent / name


def set_aside(folder: Path) -> Path:
    """Renames a run's folder to `<name>.old1` (.old2, ...) and returns the new path. Nothing is deleted."""
    number = 1
    while (target := folder.with_name(f"{folder.name}.old{number}")).exists():
        number += 1
    os.rename(folder, target)
    return target


def read_rows(folder: Path) -> list[dict]:
    """The rows of metrics.jsonl, [] without one. A torn last line (killed while writing) is left out."""
    path = Path(folder) / "metrics.jsonl"
    if not path.exists():
        return []
    lines = read_text(path, LARGE).split("\n")
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, parse_constant=lambda _: None)
            if not isinstance(row, dict):
                raise ValueError("not an object")
        except (ValueError, RecursionError) as error:
            if number == len(lines):  # no newline behind it: torn
                break
            raise UserError(f"{path}, line {number} is not a row of metrics: {error}") from None
        rows.append(row)
    return rows


def _fields(row: dict) -> dict:
    names = {"noise_group": "group", "growth": "growth", "lr_growth": "lr_growth"}
    return {ours: row[name] for name, ours in names.items() if name in row}


def trajectory(folder: Path) -> list[tuple[int, int, int, float, dict]]:
    """(start, samples, divisor, lr, fields of the setting) of a finished run's batches. UserError: no such
    run, or unfinished."""
    run = Run(Path(folder).expanduser())
    if run.summary is None:
        raise UserError(f"schedule.run={folder} is no finished run (it has no summary.json): finish it first")
    rows = [row for row in run.rows if row.get("event") == "train"]
    try:
        found = [
            (r["position"] - (n := r["batch_size"]), n, r.get("divisor", n), r["lr"], _fields(r))
            for r in rows
        ]
    except (KeyError, TypeError):
        found = []
    sizes = all(type(n) is int and n > 0 for _, n, d, *_ in found for n in (n, d))
    rates = all(isinstance(lr, (int, float)) and lr >= 0 for *_, lr, _ in found)
    whole = sum(n for _, n, *_ in found) == run.summary.get("samples")  # a row that is missing shows here
    if not whole or not sizes or not rates or any(b[0] < a[0] + a[1] for a, b in zip(found, found[1:])):
        raise UserError(f"{folder}/metrics.jsonl holds no whole trajectory of batch sizes and learning rates")
    return found


class Run:
    """A run folder, read when asked: `Run(folder).summary["final_test_error"]`."""

    def __init__(self, folder):
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise UserError(f"{folder}: no such run folder")

    def _optional(self, name: str, read=read_json):
        path = self.folder / name
        return read(path) if path.is_file() else None

    @property
    def config(self) -> dict | None:
        """The resolved configuration without the format number; None before the run wrote it."""
        value = self._optional("config.yaml", read_yaml)
        return None if value is None else {k: v for k, v in value.items() if k != "format"}

    @property
    def overrides(self) -> list[str]:
        """What the user typed."""
        return [str(o) for o in (self._optional("overrides.yaml", read_yaml) or {}).get("overrides") or []]

    @property
    def identity(self) -> str | None:
        """The 8 hex digits under which the run was started; None before it wrote them."""
        return (self._optional("overrides.yaml", read_yaml) or {}).get("identity")

    @property
    def status(self) -> dict | None:
        """{"state", "error", "owner", ...} or None."""
        return self._optional("status.json")

    @property
    def state(self) -> str | None:
        """One of STATES, or None for a folder in which nothing was started."""
        return (self.status or {}).get("state")

    @property
    def summary(self) -> dict | None:
        """The final figures; None before the end."""
        return self._optional("summary.json")

    @property
    def environment(self) -> dict | None:
        """Versions, hardware, commit; None before the run wrote it."""
        return self._optional("environment.json")

    @property
    def rows(self) -> list[dict]:
        """The rows of metrics.jsonl."""
        return read_rows(self.folder)
