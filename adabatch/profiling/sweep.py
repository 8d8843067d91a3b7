"""adabatch-profile --sweep KEY=A,B,...: the seconds of one batch under several settings, beside each other.

Each setting is timed in processes of its own, because torch's switches belong to a process and cuDNN keeps
what it once chose; in ROUNDS visits, in a drawn order and back, so that a machine that slows down slows all.
The file, sweep.json:

{"format": 1, "batch_size", "machine", "configuration" (what all settings share), "settings": [
   {"setting": ["dataset.workers=4"], "label", "seconds", "low", "high", "data", "rounds", "steps",
    "micro_batch", "first_step_seconds", "peak_memory_bytes"}, ...]}

seconds: the median over steps; low, high: their quartiles; data: what of the median went into reading and
preparing samples, the rest is computing; rounds: the medians of the visits.
"""

import hashlib
import itertools
import json
import os
import random
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from adabatch import config, files, mistakes, processes, profiles, runs
from adabatch.errors import UserError
from adabatch.profiling.bars import place

ROUNDS = 2
MOST = 32  # settings


@dataclass(frozen=True)
class Setting:
    """lines: its overrides. tree: the checked configuration."""

    lines: tuple[str, ...]
    tree: dict

    def label(self) -> str:
        """What tells it apart: "workers=4", "deterministic=true benchmark=false"."""
        pairs = [line.partition("=") for line in self.lines]
        return " ".join(f"{key.rpartition('.')[2]}={value}" for key, _, value in pairs)


def settings(overrides: list[str], sweeps: list[str]) -> list[Setting]:
    """Every combination, checked before the first is timed; inside `config.composer`."""
    options = [values(text) for text in sweeps]
    keys = [lines[0].partition("=")[0] for lines in options]
    if len(set(keys)) < len(keys):
        raise UserError(f"--sweep names a key once, got {' '.join(sweeps)}")
    combined = list(itertools.product(*options))
    if len(combined) > MOST:
        raise UserError(f"--sweep times at most {MOST} settings, got {len(combined)} in {' '.join(sweeps)}")
    found = []
    for lines in combined:
        whole = [*overrides, *lines]
        try:
            tree = config.checked(config.load(whole)).config
        except Exception as error:
            if (why := mistakes.explain(error, whole)) is None:
                raise
            raise UserError(f"--sweep {' '.join(lines)}: {why}") from error
        if processes.asked(tree) > 1:
            raise UserError(
                "--sweep times one process, got hardware.processes="
                f"{processes.asked(tree)}: set it to 1, or profile each setting without --sweep"
            )
        found.append(Setting(tuple(lines), tree))
    return found


def values(text: str) -> list[str]:
    """ "KEY=A,B" -> ["KEY=A", "KEY=B"]."""
    try:
        parsed = config.parse([text])[0] if "=" in text else None
    except Exception:  # of Hydra's parser, whose words name tokens of its grammar
        parsed = None
    if parsed is None or not parsed.is_sweep_override():
        raise UserError(f"--sweep lists values of a key, as dataset.workers=1,4,8, got {text!r}")
    given = [{"True": "true", "False": "false"}.get(v, v) for v in parsed.sweep_string_iterator()]
    lines = [f"{parsed.get_key_element()}={value}" for value in given]
    if len(set(lines)) < len(lines):
        raise UserError(f"--sweep lists each value once, got {text!r}")
    return lines


def measured(chosen: list[Setting], batch: int | None, seconds: float, tell) -> dict:
    """What sweep.json holds. tell(text): progress."""
    order = random.Random(0).sample(range(len(chosen)), len(chosen))
    order += order[::-1]  # a machine that slows down steadily slows the means of all alike
    visits: dict[int, list] = {number: [] for number in range(len(chosen))}
    for count, number in enumerate(order, 1):
        one = visited(chosen[number], batch, seconds / ROUNDS)
        visits[number].append(one)
        took = statistics.median(one["steps"])
        tell(f"{count:3d} of {len(order)}  {chosen[number].label():30s}  {took:.4g} s a batch")
        same_batch(chosen, visits)
    every = [one for found in visits.values() for one in found]
    return {
        "format": files.FORMAT,
        "batch_size": every[0]["batch_size"],
        "machine": common([one["machine"] for one in every]),
        "configuration": common([profiles.configured(s.tree) for s in chosen]),
        "settings": [row(s, visits[number]) for number, s in enumerate(chosen)],
    }


def same_batch(chosen: list[Setting], visits: dict) -> None:
    """UserError where settings choose different batches, whose seconds say nothing beside each other."""
    sizes = {n: found[0]["batch_size"] for n, found in visits.items() if found}
    if len(set(sizes.values())) > 1:
        words = ", ".join(f"{size} under {chosen[n].label()}" for n, size in list(sizes.items())[:3])
        raise UserError(f"--sweep compares seconds of one batch, got {words}: name it with --batches N")


def common(nodes: list[dict]) -> dict:
    """What all nodes agree on."""
    found = {}
    for key, value in nodes[0].items():
        values = [node.get(key) for node in nodes]
        if all(isinstance(v, dict) for v in values):
            found[key] = common(values)
        elif all(v == value for v in values):
            found[key] = value
    return found


def visited(setting: Setting, batch: int | None, seconds: float) -> dict:
    """One visit. UserError: what the process was told, or its end without an answer."""
    given = {"tree": setting.tree, "batch": batch, "seconds": seconds, "parent": os.getpid()}
    path = {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run(
        [sys.executable, "-m", "adabatch.profiling.visit"],
        input=json.dumps(given), stdout=subprocess.PIPE, text=True, env={**os.environ, **path},
    )  # fmt: skip
    try:
        found = json.loads(done.stdout.strip().rpartition("\n")[2])
    except ValueError:
        raise RuntimeError(
            f"{setting.label()}: its process ended with code {done.returncode} and no times; what it said "
            "stands above"
        ) from None
    if "error" in found:
        raise UserError(f"--sweep {' '.join(setting.lines)}: {found['error']}")
    return found


def row(setting: Setting, visits: list[dict]) -> dict:
    """A setting as the file has it."""
    steps = [seconds for one in visits for seconds in one["steps"]]
    low, median, high = statistics.quantiles(steps, n=4)
    return {
        "setting": list(setting.lines),
        "label": setting.label(),
        "seconds": median,
        "low": low,
        "high": high,
        "data": statistics.fmean(one["data"] for one in visits) * median,
        "rounds": [statistics.median(one["steps"]) for one in visits],
        "steps": len(steps),
        "micro_batch": visits[0]["micro_batch"],
        "first_step_seconds": visits[0]["first_step_seconds"],
        "peak_memory_bytes": max((one["peak_memory_bytes"] or 0 for one in visits), default=0) or None,
    }


def text(found: dict) -> str:
    """For people: a line for each setting, and what the figures come to."""
    head = ("setting", "s a batch", "quartiles", "data", "compute", "rounds")
    rows = [head]
    for one in found["settings"]:
        rows.append((
            one["label"], f"{one['seconds']:.4g}", f"{one['low']:.4g} to {one['high']:.4g}",
            f"{one['data']:.4g}", f"{one['seconds'] - one['data']:.4g}",
            " ".join(f"{seconds:.4g}" for seconds in one["rounds"]),
        ))  # fmt: skip
    widths = [max(len(r[i]) for r in rows) for i in range(len(head))]
    lines = [
        "  ".join([r[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(r[1:], widths[1:]))]).rstrip()
        for r in rows
    ]
    on = ", ".join(part for part in (place(found["machine"]), f"batch {found['batch_size']:,}") if part)
    return "\n".join([f"on         {on}", "", *lines, "", *said(found["settings"])])


def said(rows: list[dict]) -> list[str]:
    best = min(rows, key=lambda one: one["seconds"])
    near = [one["label"] for one in rows if one is not best and one["low"] <= best["high"]]
    lines = [f"least      {best['label']}: {best['seconds']:.4g} s a batch"]
    if near:
        lines.append(f"near       quartiles overlap with those of {', '.join(near)}: not told apart")
    moved = max(max(one["rounds"]) / min(one["rounds"]) for one in rows)
    if moved > 1.1:
        lines.append(
            f"warning    the rounds of a setting differ by up to {moved - 1:.0%}: the machine had other "
            "work, or files came from disk first and from memory then. Time longer (--seconds), or later"
        )
    return lines


def folder(chosen: list[Setting], overrides: list[str], batch: int) -> Path:
    """Where the file and the picture go unless they are named."""
    readable = runs.folder_name(chosen[0].tree, overrides).rpartition("-")[0]
    given = [profiles.configured(chosen[0].tree), [setting.lines for setting in chosen], batch]
    key = hashlib.sha256(json.dumps(given).encode()).hexdigest()[:8]
    return Path("outputs") / f"sweep-{readable}-batch{batch}-{key}"
