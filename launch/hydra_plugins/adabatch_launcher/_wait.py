"""wait=true: until every job has ended, and what became of each."""

import logging
import os
import time

from adabatch import runs, submission

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
        for number, job in enumerate(jobs):
            if number in records:
                continue
            status = _status(job)
            state = status.get("state")
            if said.get(number) != state:
                said[number] = state
                log.info(f"job {job.job or number}: {state}")
            if state in ENDS and (job.summary or (ask and not _alive(job, status))):
                records[number] = _record(job, state, status.get("error"), ENDS[state])
            elif ask and state not in ENDS and _left(job, status):
                gone[number] = gone.get(number, 0) + 1
                if gone[number] > 1:  # the first time its last word may have been on its way
                    records[number] = _lost(job, state)
            elif ask:
                gone[number] = 0
        if len(records) < len(jobs):
            time.sleep(POLL)
    return [records[number] for number in range(len(jobs))]


def _status(job) -> dict:
    if job.summary is not None:
        return {"state": "finished"}
    return submission.status_of(job.folder / "status.json")


def _alive(job, status: dict) -> bool | None:
    """Whether the job still has something to do: also a run that has ended may, its report for one."""
    record = status.get("job") or job.record
    return submission.alive(record) if record.get("id") else None


def _left(job, status: dict) -> bool:
    return _alive(job, status) is False


def _lost(job, state: str) -> dict:
    """A job that is gone and has not said how."""
    if state == "submitted":
        words = f"job {job.job} was cancelled before it began"
    else:
        words = f"job {job.job} has left the queue while the run was {state}"
    submission.gone(job.folder, job.job, words)
    return _record(job, "interrupted", words, 130)


def _record(job, state: str, error: str | None, code: int) -> dict:
    summary = job.summary or (runs.Run(job.folder).summary if state == "finished" else None)
    return {"overrides": job.overrides, "folder": os.path.relpath(job.folder), "state": state, "error": error,
            "exit_code": code, "summary": summary}  # fmt: skip
