"""The runs of a comparison in order, and what is to be done with each now."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from adabatch import owner, slurm, submission
from adabatch.compare.arms import Arm
from adabatch.outcome import DISK_FULL

SETTLED = ("failed", "diverged", "out_of_memory")  # outcomes that are not tried again without a word
ENDED = ("finished", *SETTLED)
DONE, TODO, BUSY, LATER = "done", "to do", "busy", "waits"


@dataclass
class Job:
    """One run. lines: its overrides beside the common ones. folder: None until it is known (a control's,
    before its source has ended). needs: the job that it replays."""

    arm: Arm
    seed: int
    lines: tuple[str, ...] = ()
    folder: Path | None = None
    needs: "Job | None" = None
    tried: bool = False  # submitted by this process, and waited for
    record: dict | None = None  # of `sweep`, where this process has started it: "running" until it ends
    multiplier: float = 1.0
    stage: str = "verdict"  # or tuning

    @property
    def name(self) -> str:
        at = "" if self.multiplier == 1 else f", lr x {self.multiplier:g}"
        return f"{self.arm.name}, seed {self.seed}{at}"


def shuffled(names: list[str], seed: int, order: int) -> list[str]:
    """The arms of a block: a random order, the same for every repetition of the command."""
    return sorted(names, key=lambda name: hashlib.sha256(f"{order}/{seed}/{name}".encode()).digest())


def blocks(arms: list[Arm], seeds: int, order: int) -> list[Job]:
    """One run of every arm for each seed, back to back; controls of closed loops end their block."""
    found, named = [], {arm.name: arm for arm in arms}
    for seed in range(seeds):
        names = shuffled(list(named), seed, order)
        block = {n: Job(named[n], seed, named[n].lines) for n in names if named[n].source is None}
        later = [Job(named[n], seed, needs=block[named[n].source]) for n in names if named[n].source]
        found += [*block.values(), *later]
    return found


def state(folder: Path | None) -> str | None:
    """How the run in a folder stands; None where there is none, or where its status.json is torn."""
    return None if folder is None else owner.status_of(folder / "status.json").get("state")


def full_disk(folder: Path) -> bool:
    """Whether the run failed by that: nothing is wrong with the run, and its message says to go on."""
    return str(owner.status_of(folder / "status.json").get("error")).startswith(DISK_FULL)


def living(every: list[Job]) -> dict[str, bool]:
    """{id: whether it runs or waits} of all jobs of a cluster that have these runs. SLURM is asked once."""
    found = [submission.queued(job.folder) for job in every if job.folder is not None]
    ids = sorted({one for one in found if one})
    return (slurm.alive(ids) or {}) if ids else {}


def infeasible(every: list[Job], retry=()) -> frozenset[str]:
    """Arms of which a run of the verdict's ran out of memory: they take no part whatever their other seeds do
    (science: A8), so that none of these is begun. The search has one seed and needs every score."""
    if "out_of_memory" in retry:
        return frozenset()
    return frozenset(j.arm.name for j in every if j.stage == "verdict" and state(j.folder) == "out_of_memory")


def due(job: Job, retry=(), alive: dict | None = None, lost=frozenset()) -> str:
    """DONE, TODO, BUSY (another process or a job of a cluster has it) or LATER (its source has not ended).

    alive: `living`, where it was asked for several runs. lost: `infeasible` of them. A control whose source
    broke down, or cannot be replayed, is done: there is nothing to be replayed.
    """
    found, own = state(job.folder), (job.record or {}).get("state")
    if job.folder is None:
        over = job.needs is not None and due(job.needs, retry, alive, lost) == DONE
        return DONE if over and (own == "refused" or not finished(job.needs)) else LATER
    if own == "running":
        return BUSY
    if found == "finished" and (job.folder / "summary.json").is_file():
        return DONE
    if found in ("running", "submitted", "preempted") and submission.unneeded(job.folder, alive):
        return BUSY
    settled = found in SETTLED and found not in retry and not full_disk(job.folder)
    if job.tried or own not in (None, "in use") or settled:
        return DONE
    if job.arm.name in lost:
        return DONE
    return TODO


def finished(job: Job) -> bool:
    return state(job.folder) == "finished"
