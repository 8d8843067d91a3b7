"""Going on: from a run's own checkpoint, or from that of a shorter run which trained the same up to there."""

import json
import logging
import os
from itertools import islice, zip_longest
from pathlib import Path

from adabatch import checkpoint, distance, memory, plan, runs
from adabatch.errors import UserError
from adabatch.ledger import NOT_TRAINING
from adabatch.record import in_last_epoch, made_by
from adabatch.schedules.core import walk
from adabatch.schedules.setting import Setting

log = logging.getLogger("adabatch")
TAIL = 1 << 16  # bytes at the end of metrics.jsonl in which its last rows stand


def find(config: dict, run) -> dict | None:
    """The state to go on from: the run's own checkpoint, or a shorter run's; None to begin. Rank 0 looks, and
    tells the others, which need not see its folder."""
    ranks, state, path = run.parts.hardware.ranks, None, run.folder / "checkpoint.pt"
    if run.writes:
        if path.exists():
            state = checkpoint.load(path)
        elif not config["restart"]:
            state = earlier(config, run, made_by(run.parts.hardware))
    if ranks.world == 1:
        return state
    data = ranks.share(checkpoint.to_bytes(state) if state else b"") if run.writes else ranks.share(None)
    return checkpoint.from_bytes(data) if data else None


def restore(run, state: dict, made_by: dict) -> None:
    """Put a checkpoint's state into a freshly built run; rows logged after the checkpoint are dropped.
    made_by: what this process computes with; a difference ends the bitwise promise, and is said."""
    parts, path = run.parts, run.folder / "checkpoint.pt"
    if state["layout"] != parts.step.flat.layout:
        raise UserError(
            f"{path} was written by another network or memory format than this configuration builds: "
            "restart=true "
            "starts anew and moves the old folder aside"
        )
    if state["format"] != checkpoint.FORMAT:
        raise UserError(
            f"{path} has checkpoint format {state['format']}, this adabatch goes on from {checkpoint.FORMAT} "
            "only: finish the run with the adabatch that began it, or restart=true"
        )
    before = state["made_by"]
    changed = [
        f"{name} {before.get(name)} -> {made_by[name]}"
        for name in made_by
        if before.get(name) != made_by[name]
    ]
    if changed:
        log.warning("resumed under other conditions, so no longer bit for bit: %s", ", ".join(changed))
    checkpoint.fit(parts.step.model, state["model"], str(path))
    parts.step.optimizer.load_state_dict(state["optimizer"])
    parts.schedule.load_state_dict(state["schedule"])
    if late := parts.shadows.load_state_dict(state["shadows"]):
        log.warning("shadows that begin only here, at position %s: %s", state["position"], ", ".join(late))
    parts.step.held.load_state_dict(state["held"])
    if parts.step.meter:
        parts.step.meter.load_state_dict(state["meter"])
    if parts.average:
        parts.average.load_state_dict(state["average"])
    for name in ("position", "trained", "evaluated", "phases", "best", "last_epoch", "device_seconds"):
        setattr(run, name, state[name])
    run.steps = state["step"]
    parts.step.micro_batch = micro_batch(parts, state)
    if state["setting"]:
        run.setting = Setting(**state["setting"] | {"stage": tuple(state["setting"]["stage"])})
    redone = lost_seconds(run.folder, state["ledger"])
    run.ledger.load_state_dict(state["ledger"])
    run.ledger.load_state_dict({"redone": redone})
    run.ledger.earlier = state["wall"] + redone
    run.seconds = run.ledger.training()
    run.trackers.resume(run.position, state["rows"])
    distance.warn_of_a_late_start(run)


def micro_batch(parts, state: dict) -> int:
    """The run's own, which may have been halved; another one where another is asked for now, or where more
    ranks leave no pass of that length to the one compiled shape."""
    asked, before = parts.hardware.micro_batch, state["micro_batch"]
    if asked != "auto" and asked != state.get("asked_micro_batch"):
        now = memory.whole_groups(asked, parts.step.unit)
    else:
        now = min(before, memory.limit(parts.step, parts.schedule)) if parts.hardware.compile else before
    if now != before:
        log.warning("resumed with micro-batch %d instead of %d, so no longer bit for bit", now, before)
    return now


def lost_seconds(folder: Path, ledger: dict) -> float:
    """Training seconds of an earlier sitting after its last checkpoint, as far as its rows reached the
    disk."""
    path = Path(folder) / "metrics.jsonl"
    if not path.is_file():
        return 0.0
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL))
        lines = file.read().split(b"\n")
    saved = sum(seconds for cause, seconds in ledger.items() if cause not in NOT_TRAINING)
    for line in reversed(lines):
        try:
            return max(0.0, json.loads(line)["seconds"] - saved)
        except (ValueError, KeyError, TypeError):
            continue  # torn, or a row without a time
    return 0.0


def earlier(config: dict, run, made_by: dict) -> dict | None:
    """The checkpoint of the run equal in all but `epochs` that got furthest before the two schedules differ,
    or None.

    Only of a run by the same versions on the same device. Its rows are copied, so that the longer run's
    folder reads as if it had been asked for at once. With checkpoint.best there is none: whose best weights
    these are, is unknown.
    """
    if config["checkpoint"]["best"]:
        return None
    found = []
    own, family = run.folder.resolve(), runs.family(config)
    for folder in sorted(p.parent for p in own.parent.glob("*/checkpoint.pt") if p.parent != own):
        try:
            if runs.read_yaml(folder / "overrides.yaml").get("family") != family:
                continue
            other, state = runs.Run(folder).config, checkpoint.load(folder / "checkpoint.pt")
        except (UserError, OSError):
            continue  # a damaged neighbour is no reason not to train
        if other["epochs"] == config["epochs"]:
            continue  # the same run in another folder
        fits = state["layout"] == run.parts.step.flat.layout and state["made_by"] == made_by
        chosen = run.parts.hardware.micro_batch
        fits = fits and (
            chosen == "auto" or memory.whole_groups(chosen, run.parts.step.unit) == state["micro_batch"]
        )
        if (
            fits
            and 0 < state["position"] < run.parts.schedule.budget
            and same_until(config, other, run, state)
        ):
            found.append((state["position"], str(folder), folder, state))
        elif state["position"] < run.parts.schedule.budget:
            log.info(
                "%s is the same but for its epochs, and no beginning of this run: other versions or "
                "hardware, a "
                "schedule that differs before its end, or a cut last batch",
                folder,
            )
    if not found:
        return None
    position, _, folder, state = max(found, key=lambda entry: entry[:2])
    with open(folder / "metrics.jsonl", "rb") as source, open(run.folder / "metrics.jsonl", "wb") as copy:
        copy.writelines(islice(source, state["rows"]))
        copy.flush()
        os.fsync(copy.fileno())
    state["last_epoch"] = [0.0, 0]  # that of the longer run
    for row in runs.read_rows(run.folder):
        state["last_epoch"] = in_last_epoch(state["last_epoch"], row, run.parts.schedule)
    log.info(
        "the first %.6g epochs are those of %s: going on from there (W&B and TensorBoard show the rest only)",
        position / run.samples, folder,
    )  # fmt: skip
    return state


def same_until(config: dict, other: dict, run, state: dict) -> bool:
    """Whether two open-loop schedules train every batch before the checkpoint's position alike."""
    ours, theirs = (plan.schedule(c, run.samples) for c in (config, other))
    if any(s.needs or s.growth.closed for s in (ours, theirs)):
        return False
    pairs = zip_longest(walk(ours, state["position"]), walk(theirs, state["position"]))
    return all(a == b for a, b in pairs)
