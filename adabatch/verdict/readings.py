"""One run folder as a run of a comparison. Its files may come from strangers: every value is bounded here."""

import hashlib
import json
import math
import re
from dataclasses import dataclass, field, replace
from pathlib import Path

from adabatch import runs
from adabatch.errors import UserError
from adabatch.files import number
from adabatch.report import facts
from adabatch.report.facts import Facts, text
from adabatch.verdict import traces
from adabatch.verdict.arms import Run

NAME, VALUE = 40, 60  # characters of a name and of a value that are shown
WHOLE = 255  # of a folder's name, which file systems bound: cut, it would be that of several runs
_HASH = re.compile(r"[0-9a-f]{64}")
FILES = (
    "config.yaml", "overrides.yaml", "environment.json", "status.json", "summary.json", "metrics.jsonl"
)  # fmt: skip
TUNING, TUNED = "tuning", "tuned a learning rate, no run"  # compare.stage of such a run; what is said of it
FREE = ("schedule", "seed", "hardware", "options")  # what may differ between the runs of one comparison


@dataclass(frozen=True)
class Reading:
    """A run with what says where it belongs.

    same: {dotted key: value} that all runs of a comparison share. schedule: likewise, of the schedule's node.
    digest: its hash. batches: all sizes that were trained. samples: trained in all. arm: what a comparison
    calls the arm that it belongs to, None for a run of its own. identity: of a run that has finished.
    hardware: {dotted key: text} of what belongs to its identity. chance: the error of guessing.
    """

    run: Run
    same: dict
    schedule: dict
    digest: str
    option: str
    batches: tuple[int, ...]
    adaptive: bool
    samples: int | None
    evaluated: int | None
    validation: int
    evaluations: tuple[tuple[float, float, float], ...]  # (epoch, seconds, error) of what was watched
    tested: tuple[tuple[float, float, float], ...]  # likewise of the test split, which need not be that
    notes: tuple[str, ...]
    arm: str | None = None
    identity: str | None = None
    hardware: dict = field(default_factory=dict)
    chance: float | None = None


def plain(value) -> str:
    """A value's text, the same for 20 and 20.0; lists entry by entry."""
    if isinstance(value, float) and math.isfinite(value) and value == int(value) and abs(value) < 1e15:
        value = int(value)
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(plain(v) for v in value[:1000]) + "]"
    if isinstance(value, float):
        return repr(value)
    return "null" if value is None else text(value, 1000)


PLAIN = {key: plain(value) for key, value in runs.LATER.items()}  # older runs have no such keys


def read(folder: Path, split: str) -> Reading | str:
    """The run, or why there is none: a sentence that names the folder. split: the one that decides."""
    where = text(folder.name, WHOLE)
    for name in FILES:
        if (folder / name).exists() and not (folder / name).is_file():  # a pipe would be waited for
            return f"{where}/{name} is no file"
    found = facts.read(folder)
    notes = tuple(f"{where}: {note}" for note in found.notes)
    config = found.config
    if not config:
        return notes[0] if notes else f"{where}: {found.state}, without a configuration yet"
    if config.get("rehearsal"):
        return f"{where}: a rehearsal, no run"
    declared = config.get("compare") if isinstance(config.get("compare"), dict) else {}
    if declared.get("stage") == TUNING:
        return f"{where}: {TUNED}"
    seed = whole(config.get("seed"))
    node = config.get("schedule")
    if seed is None or not isinstance(node, dict) or not node:
        return f"{where}/config.yaml: it names no seed or no schedule"
    try:
        same, schedule = flat({k: v for k, v in config.items() if k not in FREE}), flat(node)
        hardware = flat({"hardware": config.get("hardware")})
        digest = hashlib.sha256(json.dumps(schedule, sort_keys=True).encode()).hexdigest()
    except (ValueError, RecursionError, UserError) as error:
        return f"{where}/config.yaml: {text(error)}"
    batches = trained(found)
    listed = runs.listed_for(config) if isinstance(config.get("model"), dict) else runs.EXCLUDED
    data = config.get("dataset") if isinstance(config.get("dataset"), dict) else {}
    validation = whole(data.get("validation")) or 0
    watches = "validation" if validation else "test"
    return Reading(
        run=replace(run_of(found, seed, split, where), traces=traces.of(found, watches)),
        same={key: v for key, v in same.items() if not runs.excluded(key) and v != PLAIN.get(key)},
        schedule=schedule,
        digest=digest,
        option=option(found, node),
        batches=batches,
        adaptive=len(set(batches)) > 1 if batches else grows(node),
        samples=whole(found.summary.get("samples")),
        evaluated=whole(data.get("test_samples")) if split == "test" else validation or None,
        validation=max(validation, 0),
        evaluations=watched(found, watches),
        tested=watched(found, "test"),
        notes=notes,
        arm=text(declared["arm"], NAME) if isinstance(declared.get("arm"), str) else None,
        identity=text(found.summary["identity"], NAME) if "identity" in found.summary else None,
        hardware={key: value for key, value in hardware.items() if not runs.excluded(key, listed)},
        chance=1 - 1 / classes if (classes := whole(data.get("classes"))) and classes > 1 else None,
    )


def spent(folders: list[Path]) -> str:
    """What runs have cost, in words: of those whose summary tells it."""
    samples = seconds = told = 0
    for folder in folders:
        try:
            found = runs.Run(folder).summary if (folder / "summary.json").is_file() else None
        except UserError:
            found = None
        if (
            found
            and (trained := whole(found.get("samples")))
            and (took := positive(found.get("train_seconds")))
        ):
            samples, seconds, told = samples + trained, seconds + took, told + 1
    share = "" if told == len(folders) else f" of the {told} that finished"
    return f"{samples:,} samples and {seconds:,.0f} s{share}" if told else "none finished"


def whole(value) -> int | None:
    """A whole number of ordinary size, or None."""
    found = number(value)
    return int(found) if found is not None and found == int(found) and abs(found) < 2**53 else None


def positive(value) -> float | None:
    found = number(value)
    return found if found is not None and found > 0 else None


def fraction(value) -> float | None:
    """An error rate, or None for what is none."""
    found = number(value)
    return found if found is not None and 0 <= found <= 1 else None


def flat(node: dict, path: str = "", depth: int = 12) -> dict:
    """{dotted key: text} of a tree. UserError: it is deeper or larger than a configuration is."""
    found = {}
    for key, value in node.items():
        name = f"{path}{text(key, NAME)}"
        if isinstance(value, dict) and value:
            if depth == 0:
                raise UserError("it is nested deeper than any configuration")
            found |= flat(value, f"{name}.", depth - 1)
        else:
            found[name] = plain(value)
        if len(found) > 5000:
            raise UserError("it has more keys than any configuration")
    return found


def option(found: Facts, node: dict) -> str:
    """The schedule's name: of its option, else of its class."""
    options = found.config.get("options")
    name = options.get("schedule") if isinstance(options, dict) else None
    if not isinstance(name, str) or not name:
        name = str(node.get("_target_", "schedule")).rpartition(".")[2]
    return text(name, NAME).strip() or "schedule"


def trained(found: Facts) -> tuple[int, ...]:
    """Batch sizes in order: of the summary's phases, else of the rows (a cut last batch by what it would have
    been)."""
    phases = found.summary.get("phases")
    rows = phases if isinstance(phases, list) and phases else found.train
    sizes = [whole(row.get("divisor", row.get("batch_size"))) for row in rows if isinstance(row, dict)]
    return tuple(dict.fromkeys(n for n in sizes if n and n > 0))


def grows(node: dict) -> bool:
    """Whether a schedule that has not run may change its batch."""
    growth = node.get("growth")
    target = growth.get("_target_") if isinstance(growth, dict) else None
    return not str(target).endswith(".Constant")


def run_of(found: Facts, seed: int, split: str, where: str) -> Run:
    """Figures of the summary; they count where the run says that it has finished (`Run.counted`)."""
    done = found.summary
    sha = done.get("weights_sha256")
    return Run(
        seed=seed,
        state=found.state,
        error=fraction(done.get(f"final_{split}_error")),
        seconds=positive(done.get("train_seconds")),
        key=key(found),
        alone=shared(found),
        best=fraction(done.get(f"best_{split}_error")),
        validation=fraction(done.get("final_validation_error")),
        updates=positive(done.get("steps")),
        speed=positive(done.get("images_per_second")),
        device_seconds=positive(done.get("device_seconds")),
        weights=sha if isinstance(sha, str) and _HASH.fullmatch(sha) else None,
        folder=where,
    )


def key(found: Facts) -> dict:
    """What a speed depends on beside the schedule."""
    node = found.config.get("hardware")
    node = node if isinstance(node, dict) else {}
    versions = found.environment.get("versions")
    versions = versions if isinstance(versions, dict) else {}
    gpus = found.environment.get("gpus")
    on_gpu = isinstance(gpus, list) and gpus and node.get("device") != "cpu"
    made = {
        "device": gpus[0] if on_gpu else found.environment.get("cpu"),
        "precision": node.get("precision"),
        "threads": node.get("threads") or found.environment.get("cores"),
        "processes": "-".join(str(n) for n in dict.fromkeys(found.worlds)),
        **{f"{name} version": versions.get(name) for name in ("torch", "adabatch")},
    }
    if on_gpu:
        made["CUDA version"] = versions.get("cuda")
        made["timing"] = found.config.get("timing") or "whole steps"  # phases: it is waited for at each pass
    known = {"device", "precision", "threads", "_target_"}
    others = {f"hardware.{k}": v for k, v in node.items() if k not in known}
    made |= {text(k, NAME): v for k, v in others.items() if not runs.excluded(str(k))}
    return {k: None if v is None and "." not in k else text(v, VALUE) for k, v in list(made.items())[:40]}


def shared(found: Facts) -> str | None:
    """Why the run's times enter no verdict; None where it had the device to itself."""
    if found.config.get("shadow"):
        return "shadow schedules looked on"
    node = found.config.get("hardware")
    parallel = number(node.get("parallel_runs")) if isinstance(node, dict) else None
    if (parallel and parallel > 1) or found.summary.get("shared"):
        return "runs shared the machine with other runs"
    return None


def watched(found: Facts, split: str) -> tuple[tuple[float, float, float], ...]:
    """(epoch, seconds, error) of each evaluation while training; of averaged weights where there are any."""
    rows = found.evaluations(split, "ema") or found.evaluations(split, "raw")
    told = [(number(r.get("epoch")), number(r.get("seconds")), fraction(r.get("eval_error"))) for r in rows]
    return tuple(each for each in told if None not in each and each[1] >= 0)
