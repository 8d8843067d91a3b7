"""hardware.phases: a run as a chain of jobs, each on as many processes as its batches fill (`adabatch.legs`).

The jobs of an open loop are submitted together, each waiting for the one before; who cannot know its batches
in advance submits the next job itself when it comes to a batch that a larger number of processes suits.
"""

import contextlib
import logging
from pathlib import Path

from hydra_plugins.adabatch_launcher import _clusters, _options
from hydra_plugins.adabatch_launcher._shell import undisturbed

from adabatch import legs, places, plan, slurm, submission, submitted
from adabatch.errors import UserError
from adabatch.owner import status_of
from adabatch.planning.job import samples_of
from adabatch.status import facts

log = logging.getLogger("adabatch")


def planned(config: dict, shape: dict, folder: Path | None = None) -> tuple[tuple, dict | None]:
    """(numbers of processes, what the run must know of them); ((), None) where it keeps its number. folder:
    of a run that goes on, with the leg that it had come to."""
    by = legs.rule(config, shape["nodes"] * shape["tasks"], shape["tasks"])
    if by is None:
        return (), None
    schedule = plan.schedule(config, samples_of(config["dataset"]))
    cut, closed = legs.legs(schedule, by), legs.is_closed(schedule)
    if not closed and folder is not None and (folder / "checkpoint.pt").is_file():
        # Rows reach the disk before the checkpoint that counts them, and a leg that ends is saved: of a chain
        # the last row is in the checkpoint's leg. Of another run, killed, it may be a leg too far; the first
        # job then hands over to the number that suits.
        trained = facts.read(folder)
        cut = legs.remaining(cut, schedule.start(int((trained and trained.position) or 0)))
    found = tuple(leg.processes for leg in cut)
    if closed and folder is not None:
        reached = (status_of(folder / "status.json").get("job") or {}).get("processes")
        if isinstance(reached, int) and reached > found[0]:
            found = (by.processes(reached * by.samples),)
    return found, by.plain(closed)


def sized(shape: dict, processes: int, chained: dict, first: bool = False) -> dict:
    """The shape of a leg: part of one node, or whole nodes. chained: options of sbatch. first: the user's
    own dependency and hold are for this leg."""
    tasks = min(processes, shape["tasks"])
    gpus = shape["gpus_per_node"]
    gpus = gpus and -(-gpus * tasks // shape["tasks"])
    own = shape["additional"] if first else _options.later(shape["additional"])
    return {**shape, "nodes": processes // tasks, "tasks": tasks, "gpus_per_node": gpus, "chained": chained,
            "additional": own}  # fmt: skip


def submit(cluster, group: list, named) -> None:
    """The group's jobs, or its chains of them. UserError: refused, and nothing of the group is left in the
    queue."""
    if not group[0].legs:
        cluster.submit(group, named)
        return
    first, *later = group[0].legs
    for one in group:
        one.noted |= {"legs": len(one.legs)}
    shape = group[0].shape
    with undisturbed():
        try:
            ids = cluster.submit(group, named, sized(shape, first, {"hold": True}, first=True))
            if not group:
                return
            number = _number(ids)
            for processes in later:
                before = f"{'aftercorr' if len(group) > 1 else 'afterok'}:{_number(ids)}"
                options = {"dependency": before, "kill-on-invalid-dep": "yes"}
                ids = cluster.submit(group, named, sized(shape, processes, options), announce=False)
            for one in group:  # before the first may run, which must know whom it hands over to
                submission.chained(one.folder, one.chain)
            if not _options.held(shape["additional"]) and (why := slurm.release(number)):
                raise UserError(f"SLURM does not let the chain of jobs begin ({why})")
        except Exception as error:
            if left := _undone(group):
                words = f"in the queue is left job {', '.join(left)}: scancel {' '.join(left)}"
                raise UserError(f"{error}; {words}") from error
            raise


def _undone(group: list) -> list[str]:
    """Takes what was submitted of chains out of the queue; their folders are as before. Returns the jobs of
    which SLURM does not say that they are gone: their folders still name them."""
    ids = [leg["id"] for one in group for leg in one.chain]
    if not ids:
        return []
    slurm.cancel(dict.fromkeys(_number([job]) for job in ids))
    alive = slurm.alive(ids) or {}
    for one in group:
        if all(alive.get(leg["id"]) is False for leg in one.chain):
            with contextlib.suppress(OSError):  # it cannot be written: the job that it names is gone
                _clusters.taken_back(one)
            one.job, one.chain = None, []
    return list(dict.fromkeys(_number([leg["id"]]) for one in group for leg in one.chain))


def _number(ids: list) -> str:
    return ids[0].split("_")[0]


def run(job: dict) -> dict | None:
    """`submitted.run`; then the next job, where nobody has submitted it."""
    summary = submitted.run(job)
    if summary is None and places.detect().rank == 0:
        known = submission.seen(job["folder"])
        waiting = status_of(Path(job["folder"]) / "status.json")
        record = waiting.get("job") or {}
        if waiting.get("state") == "submitted" and record.get("id") is None and record.get("processes"):
            _grow(job, record["processes"], known)
    return summary


def _grow(job: dict, processes: int, known: tuple) -> None:
    """From inside a job: the next one. Where the node may not submit, the run is left as interrupted."""
    from hydra_plugins.adabatch_launcher._launch import Job

    folder = Path(job["folder"])
    one = Job(
        job["overrides"], job["config"], job["notes"], folder, job["shape"], leg=job["leg"], known=known
    )
    one.noted = {"processes": processes}
    try:
        _clusters.Slurm().submit([one], job["named"], sized(job["shape"], processes, {}))
    except Exception as error:
        words = f"its batch suits {processes} processes, and this node cannot submit that job ({error})"
        submission.refused(folder, f"{words}: repeat the command")
        raise
    if one.why:
        log.info(one.why)
        return
    log.info(f"submitted as job {one.chain[0]['id']}: {processes} processes from here")


def told(one) -> str:
    """A chain in words; "" where there is none."""
    if len(one.chain) < 2:
        return ""
    return ", then ".join(f"{leg['processes']} in job {leg['id']}" for leg in one.chain)
