"""What a run is called where many lie side by side: its comparison, its arm, its seed."""

import hashlib
import json
from pathlib import Path

# What the runs of one comparison share, of the keys that change what is computed; the rest is the arm.
SHARED = ("model", "dataset", "epochs", "optimizer", "loss", "label_smoothing", "clip_norm", "ema")
TOLD = ("regime", "input_transform")  # keys of the model that experiments read, and it does not
PLACES = ("root", "download", "cache", "workers", "ahead")  # keys of the data set that change nothing
DECLARED = "compare.yaml"
LONGEST = 64  # characters of a tag in W&B


def comparison(config: dict, folder: Path) -> str:
    """The folder of a declared comparison, else what its runs have in common: "convnet-digits-20ep-1a2b3c".
    The same on every machine and after every resume."""
    above = list(Path(folder).absolute().parents)[:2]
    for parent in above:
        if (parent / DECLARED).is_file() and parent.name:
            return parent.name
    shared = {key: config.get(key) for key in SHARED}
    if isinstance(shared["dataset"], dict):
        shared["dataset"] = {k: v for k, v in shared["dataset"].items() if k not in PLACES}
    if isinstance(shared["model"], dict):
        shared["model"] = {k: v for k, v in shared["model"].items() if k not in TOLD}
    digest = hashlib.sha256(json.dumps(shared, sort_keys=True, default=str).encode()).hexdigest()[:6]
    options = config.get("options") if isinstance(config.get("options"), dict) else {}
    named = [options[key] for key in ("model", "dataset") if isinstance(options.get(key), str)]
    epochs = [] if config.get("epochs") is None else [f"{config['epochs']}ep"]
    return "-".join([*named, *epochs, digest])


def group(config: dict, folder: Path, given: str | None = None) -> str:
    """The runs that W&B shows together: as configured, else the comparison; those that search for learning
    rates apart, which no chart may average into the arms."""
    name = given or comparison(config, folder)
    return f"{name}-tuning" if searches(config) else name


def searches(config: dict) -> bool:
    """Whether the run is one of a comparison's search for learning rates."""
    declared = config.get("compare")
    return isinstance(declared, dict) and declared.get("stage") == "tuning"


def arm(config: dict) -> str:
    """What a comparison calls it, else the schedule with its base batch: "adabatch 32"."""
    declared = config.get("compare")
    if isinstance(declared, dict) and isinstance(declared.get("arm"), str):
        return declared["arm"]
    options, schedule = (config.get(key) if isinstance(config.get(key), dict) else {} for key in
                         ("options", "schedule"))  # fmt: skip
    named = options.get("schedule") or str(schedule.get("_target_", "schedule")).rpartition(".")[2]
    batch = schedule.get("base_batch")
    return str(named) if batch is None else f"{named} {batch}"


def named(overrides: list[str]) -> str | None:
    """What a comparison calls the arm of a job with these overrides; None of a job of another kind."""
    found = next((o.partition("=")[2] for o in overrides if o.startswith("compare.arm=")), None)
    return found and found.strip("'")


def brief(overrides: list[str]) -> str | None:
    """What tells a job of a comparison from its others: "fixed 32 seed=2"; of a search, which has one seed,
    "fixed 32 lr=0.1 tuning"; None of a job of another kind."""
    if (found := named(overrides)) is None:
        return None
    given = dict(o.split("=", 1) for o in overrides if "=" in o)
    search = given.get("compare.stage") == "tuning"
    key, name = ("schedule.base_lr", "lr") if search else ("seed", "seed")
    return " ".join([found, *([f"{name}={given[key]}"] if key in given else []), *["tuning"] * search])


def tags(config: dict) -> list[str]:
    """Arm and seed, as tags that a dashboard can filter by."""
    return [f"arm: {arm(config)}"[:LONGEST], f"seed: {config.get('seed')}"[:LONGEST]]
