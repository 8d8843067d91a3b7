"""Going on: from a run's own checkpoint, or from that of a shorter run which would have trained the same up
to there."""

import logging
import shutil
from itertools import islice, zip_longest
from pathlib import Path

from adabatch import checkpoint, plan, runs
from adabatch.errors import UserError
from adabatch.schedules.core import walk
from adabatch.schedules.setting import Setting

log = logging.getLogger("adabatch")


def restore(run, state: dict) -> None:
    """Put a checkpoint's state into a freshly built run; rows logged after the checkpoint are dropped."""
    parts = run.parts
    if state["layout"] != parts.step.flat.layout:
        raise UserError(
            f"{run.folder / 'checkpoint.pt'} was written by another network or memory format than this "
            "configuration builds: "
            "restart=true starts anew and moves the old folder aside"
        )
    checkpoint.fit(parts.step.model, state["model"], str(run.folder / "checkpoint.pt"))
    parts.step.optimizer.load_state_dict(state["optimizer"])
    parts.schedule.load_state_dict(state["schedule"])
    if parts.average:
        parts.average.load_state_dict(state["average"])
    for name in ("position", "trained", "evaluated", "phases", "best"):
        setattr(run, name, state[name])
    run.steps = state["step"]
    chosen = parts.hardware.micro_batch
    run.micro_batch = state["micro_batch"] if chosen == "auto" else chosen
    if state["setting"]:
        batch_size, lr, divisor, stage = state["setting"]
        run.setting = Setting(batch_size, lr, divisor, tuple(stage))
    redone = lost_seconds(run.folder, state)
    run.ledger.load_state_dict(state["ledger"])
    run.ledger.load_state_dict({"redone": redone})
    run.seconds = run.ledger.training()
    run.trackers.resume(run.position, state["rows"])


def lost_seconds(folder: Path, state: dict) -> float:
    """Training seconds of an earlier sitting after its last checkpoint, as far as its rows reached the
    disk."""
    from adabatch.ledger import NOT_TRAINING

    rows = runs.read_rows(folder)[state["rows"] :]
    saved = sum(seconds for cause, seconds in state["ledger"].items() if cause not in NOT_TRAINING)
    return max([0.0] + [row["seconds"] - saved for row in rows if row.get("seconds") is not None])


def earlier(config: dict, run) -> dict | None:
    """The checkpoint of the run equal in all but `epochs` that got furthest before the two schedules differ,
    or None. Its rows are copied, so that the longer run's folder reads as if it had been asked for at
    once."""
    own = runs.identity(config | {"epochs": 0})
    found = []
    for folder in sorted(Path(run.folder).resolve().parent.iterdir()):
        if (
            not (folder / "checkpoint.pt").is_file()
            or not (folder / "config.yaml").is_file()
            or folder == run.folder.resolve()
        ):
            continue
        try:
            other = runs.Run(folder).config
            if runs.identity(other | {"epochs": 0}) != own or other["epochs"] == config["epochs"]:
                continue
            state = checkpoint.load(folder / "checkpoint.pt")
        except (UserError, KeyError, OSError, TypeError):
            continue  # a damaged neighbour is no reason not to train
        if 0 < state["position"] < run.parts.schedule.budget and same_until(
            config, other, run.samples, state["position"]
        ):
            found.append((state["position"], str(folder), folder, state))
    if not found:
        return None
    position, _, folder, state = max(found, key=lambda entry: entry[:2])
    with open(folder / "metrics.jsonl", "rb") as source, open(run.folder / "metrics.jsonl", "wb") as copy:
        copy.writelines(islice(source, state["rows"]))
    if (folder / "best.pt").is_file() and config["checkpoint"]["best"]:
        shutil.copyfile(folder / "best.pt", run.folder / "best.pt")
    log.info("the first %.6g epochs are those of %s: going on from there", position / run.samples, folder)
    return state


def same_until(config: dict, other: dict, samples: int, position: int) -> bool:
    """Whether two open-loop schedules train every batch before `position` alike."""
    ours, theirs = (plan.schedule(c, samples) for c in (config, other))
    if ours.needs or theirs.needs:
        return False
    pairs = zip_longest(walk(ours, position), walk(theirs, position))
    return all(a is not None and b is not None and _figures(a) == _figures(b) for a, b in pairs)


def _figures(step) -> tuple:
    start, skipped, setting = step
    return start, skipped, setting.batch_size, setting.lr, setting.divisor
