"""Which job has a run: the "job" of its status.json, whose fields `submission.py` names."""

import socket

from adabatch import places, slurm

WAITING = ("submitted", "running", "preempted")  # states in which a job may still have something to do


def own_job(status: dict) -> dict | None:
    """The "job" of status.json (`submission.py`) where this process belongs to it, or to a later job of its
    chain (the one before could not write that it handed over); with its id."""
    job, mine = status.get("job"), places.job_id()
    if not isinstance(job, dict) or not mine:
        return None
    if job.get("id") in (None, mine):
        return {**job, "id": mine}
    return next(({**job, **leg} for leg in later_jobs(job) if leg["id"] == mine), None)


def later_jobs(job: dict) -> list[dict]:
    """What follows a job in its chain."""
    chain = job.get("chain") or []
    ids = [leg["id"] for leg in chain]
    return chain[ids.index(job["id"]) + 1 :] if job.get("id") in ids else []


def other_job(status: dict) -> dict | None:
    """The "job" of status.json where it is another than this process's and has not said that all is over: it
    may come, or come back. ("interrupted": it may have been queued again after all.)"""
    job, open_ = status.get("job"), status.get("state") in (*WAITING, "interrupted")
    known = open_ and isinstance(job, dict) and job.get("id") is not None
    return job if known and own_job(status) is None else None


def job_alive(job: dict, living: dict | None = None) -> bool | None:
    """Whether a job still runs or waits; None where that cannot be known. living: what SLURM said of several,
    {id: alive}; None asks it of this one."""
    if job.get("cluster") != "local":
        living = slurm.alive([job["id"]]) or {} if living is None else living
        return living.get(job["id"])
    if job.get("host") != socket.gethostname():
        return None
    began = job.get("started")
    return began is not None and str(job["id"]).isdecimal() and places.started(int(job["id"])) == began
