"""wait=true: until every job has ended, and what became of each."""

import glob
import logging
import os
import time

from hydra_plugins.adabatch_launcher import _options

from adabatch import owner, runs, slurm, submission
from adabatch.status import verdict

# SLURM's words for a job that failed by what it did, and not by a lost node or a preemption.
FAILED = ("FAILED", "OUT_OF_MEMORY", "TIMEOUT")
POLL, ASK = 2.0, 5.0  # seconds between two looks at the folders, and two questions to SLURM
ENDS = {
    "finished": 0,
    "failed": 1,
    "diverged": 1,
    "out_of_memory": 1,
    "interrupted": 130,
}  # state -> exit code

log = logging.getLogger("adabatch")


def wait(jobs: list) -> list[dict]:
    """What `sweep.table` shows of each, in order."""
    records, said, gone, asked = {}, {}, {}, time.monotonic()
    while len(records) < len(jobs):
        ask = time.monotonic() - asked >= ASK
        asked = time.monotonic() if ask else asked
        known = {n: _status(job) for n, job in enumerate(jobs) if n not in records}
        alive, answer = _living([_job(jobs[n], s) for n, s in known.items()]) if ask else ({}, None)
        for number, status in known.items():
            job = jobs[number]
            state = status.get("state")
            if said.get(number) != state:
                said[number] = state
                log.info(f"job {_job(job, status).get('id') or job.job or number}: {state}")
            if state in ENDS and (job.summary or (ask and not alive.get(_job(job, status).get("id")))):
                records[number] = _record(job, state, status.get("error"), ENDS[state])
            elif ask and state not in ENDS and (why := _stuck(job, status, answer)):
                records[number] = _record(job, state, why, 1)
            elif ask and state not in ENDS and _left(job, status, alive):
                gone[number] = gone.get(number, 0) + 1
                if gone[number] > 1:  # the first time its last word may have been on its way
                    records[number] = _lost(job, status, answer.of(_job(job, status).get("id")))
            elif ask:
                gone[number] = 0
        if len(records) < len(jobs):
            time.sleep(POLL)
    return [records[number] for number in range(len(jobs))]


def _status(job) -> dict:
    if job.summary is not None:
        return {"state": "finished"}
    return submission.status_of(job.folder / "status.json")


def _job(job, status: dict) -> dict:
    return status.get("job") or job.record or {}


def _living(found: list[dict]) -> tuple[dict[str, bool | None], slurm.Answer]:
    """Of each job's id whether it still has something to do: also a run that has ended may, its report for
    one; and all that SLURM says, which is asked once for all."""
    asked = [record["id"] for record in found if record.get("id") and record.get("cluster") != "local"]
    own = {r["id"]: submission.alive(r) for r in found if r.get("id") and r.get("cluster") == "local"}
    answer = slurm.ask(asked)
    alive = {i: bool((known := answer.of(i)) and not known.ended) for i in asked if answer.complete}
    return alive | own, answer


def _stuck(job, status: dict, answer: slurm.Answer) -> str | None:
    """Why its job waits for ever, unless the user himself holds it."""
    record = _job(job, status)
    if _options.held(job.shape.get("additional")):
        return None
    return verdict.stuck(record.get("id"), answer.of(record.get("id")), record)


def _left(job, status: dict, alive: dict) -> bool:
    """Whether nobody will go on with a run that has not ended."""
    record, state = _job(job, status), status.get("state")
    if record.get("id"):
        return alive.get(record["id"]) is False
    if state == "submitted":
        return time.time() - (record.get("submitted") or 0) >= submission.FRESH
    return state != "running" or owner.in_use(job.folder) is None


def _lost(job, status: dict, known: slurm.Job | None) -> dict:
    """A job that is gone and has not said how. known: what SLURM still says of it."""
    state, record = status.get("state"), _job(job, status)
    number, logs, code = record.get("id"), str(record.get("logs")), 130
    if state != "submitted":
        words = f"{f'job {number}' if number else 'its process'} has ended while the run was {state}"
    elif not number:
        words = "its job was never submitted"
    elif known.state == "CANCELLED" if known else not glob.glob(logs):
        words = f"job {number} was cancelled before it began"
    else:
        words = f"job {number} ended before the run began{f' ({known})' if known else ''}: see {logs}"
        unknown = not known and record.get("cluster") != "local"
        code = 1 if unknown or (known and known.state in FAILED) else 130
    ended = "failed" if code == 1 else "interrupted"
    submission.gone(job.folder, number, words, ended)
    return _record(job, ended, words, code)


def _record(job, state: str, error: str | None, code: int) -> dict:
    summary = job.summary or (runs.Run(job.folder).summary if state == "finished" else None)
    return {"overrides": job.overrides, "folder": os.path.relpath(job.folder), "state": state, "error": error,
            "exit_code": code, "summary": summary}  # fmt: skip
