"""hardware.phases: a run as a chain of jobs, each on as many processes as its batches fill (`adabatch.legs`).

The jobs of an open loop are submitted together, each waiting for the one before; who cannot know its batches
in advance submits the next job itself when it comes to a batch that a larger number of processes suits.
"""

import logging
from pathlib import Path

from hydra_plugins.adabatch_launcher import _clusters

from adabatch import legs, places, plan, slurm, submission, submitted
from adabatch.errors import UserError
from adabatch.owner import status_of
from adabatch.planning.job import samples_of

log = logging.getLogger("adabatch")


def planned(config: dict, shape: dict) -> tuple[tuple, dict | None]:
    """(numbers of processes, what the run must know of them); ((), None) where it keeps its number."""
    by = legs.rule(config["hardware"], config["schedule"], shape["nodes"] * shape["tasks"], shape["tasks"])
    if by is None:
        return (), None
    schedule = plan.schedule(config, samples_of(config["dataset"]))
    found = legs.legs(schedule, by)
    return tuple(leg.processes for leg in found), by.plain(legs.is_closed(schedule))


def sized(shape: dict, processes: int, chained: dict) -> dict:
    """The shape of a leg: part of one node, or whole nodes. chained: options of sbatch."""
    tasks = min(processes, shape["tasks"])
    gpus = shape["gpus_per_node"]
    gpus = gpus and -(-gpus * tasks // shape["tasks"])
    return {**shape, "nodes": processes // tasks, "tasks": tasks, "gpus_per_node": gpus, "chained": chained}


def submit(cluster, group: list, named) -> None:
    """The group's jobs, or its chains of them. UserError: refused, and nothing of the group is left in the
    queue."""
    if not group[0].legs:
        cluster.submit(group, named)
        return
    first, *later = group[0].legs
    with _clusters._undisturbed():
        numbers = [_number(cluster.submit(group, named, sized(group[0].shape, first, {"hold": True})))]
        try:
            for processes in later:
                before = f"{'aftercorr' if len(group) > 1 else 'afterok'}:{numbers[-1]}"
                options = {"dependency": before, "kill-on-invalid-dep": "yes"}
                shape = sized(group[0].shape, processes, options)
                numbers.append(_number(cluster.submit(group, named, shape, announce=False)))
            for one in group:  # before the first may run, which must know whom it hands over to
                submission.chained(one.folder, one.chain)
            if why := slurm.release(numbers[0]):
                raise UserError(f"SLURM does not let the chain of jobs begin ({why})")
        except Exception as error:
            slurm.cancel(numbers)
            for one in group:
                submission.gone(one.folder, one.job, f"its chain of jobs was not submitted: {error}")
                one.job, one.chain = None, []
            raise


def _number(ids: list) -> str:
    return ids[0].split("_")[0]


def run(job: dict) -> dict | None:
    """`submitted.run`; then the next job, where nobody has submitted it."""
    summary = submitted.run(job)
    if summary is None and places.detect().rank == 0:
        waiting = status_of(Path(job["folder"]) / "status.json")
        record = waiting.get("job") or {}
        if waiting.get("state") == "submitted" and record.get("id") is None and record.get("processes"):
            _grow(job, record["processes"])
    return summary


def _grow(job: dict, processes: int) -> None:
    """From inside a job: the next one. Where the node may not submit, the run is left as interrupted."""
    from hydra_plugins.adabatch_launcher._launch import Job

    one = Job(
        job["overrides"], job["config"], job["notes"], Path(job["folder"]), job["shape"], leg=job["leg"]
    )
    try:
        _clusters.Slurm().submit([one], job["named"], sized(job["shape"], processes, {}))
    except Exception as error:
        words = f"its batch suits {processes} processes, and this node cannot submit that job ({error})"
        submission.refused(Path(job["folder"]), f"{words}: repeat the command")
        raise
    log.info(f"submitted as job {one.chain[0]['id']}: {processes} processes from here")


def told(one) -> str:
    """A chain in words; "" where there is none."""
    if len(one.chain) < 2:
        return ""
    return ", then ".join(f"{leg['processes']} in job {leg['id']}" for leg in one.chain)
