"""What status.json says of a run as a job of a cluster: that it was submitted, as which job, how it ended
where its own processes could not say so.

"job": {"id": 123_4, "cluster": slurm | local, "logs": a pattern of paths, "submitted": time, "requeues": how
often it put itself back into the queue, "idle": how often of late without having trained, "reached": the
position then, "chain": the jobs of the run that follow each other, "processes": of this one of them}; of a
local one also "host" and "started", which tell its process from a later one with the same number. It is
written before the job exists, without an id; the job fills that in when it takes the folder over, or the
launcher does, who is first.
"""

import contextlib
import os
import re
import socket
import time
from pathlib import Path

from adabatch import files, owner, places, runs
from adabatch.errors import UserError
from adabatch.jobrecord import WAITING, later_jobs, other_job, own_job
from adabatch.jobrecord import job_alive as alive
from adabatch.owner import locked, status_of, write_status

FRESH = 300.0  # seconds in which a submission that has no id yet may still be under way
ASKED = (*WAITING, "interrupted")  # SLURM may have queued a job again after it had said that it did not
TAIL = 100_000  # characters of metrics.jsonl, many rows


def unneeded(folder: Path, living: dict | None = None) -> str | None:
    """Why this run needs no further job now, in words; None where it needs one. living: what SLURM said of
    the jobs of several runs, {id: alive}; None asks it of this one."""
    status = status_of(Path(folder) / "status.json")
    job, state = status.get("job"), status.get("state")
    if isinstance(job, dict) and state in ASKED:
        where = f"job {job.get('id')}"
        if job.get("id") is None:
            if state == "submitted" and time.time() - (job.get("submitted") or 0) < FRESH:
                return "another command is submitting it"
        elif (lives := alive(job, living)) is None and state != "interrupted":
            return f"{where}, and SLURM cannot be asked what became of it"
        elif lives:
            return f"{where} has it ({state})"
    return owner.in_use(folder)


def queued(folder: Path) -> str | None:
    """The job of SLURM that `unneeded` asks about; None where it asks about none."""
    status = status_of(Path(folder) / "status.json")
    job = status.get("job")
    ours = isinstance(job, dict) and job.get("cluster") != "local" and status.get("state") in ASKED
    return job.get("id") if ours else None


def seen(folder: Path) -> tuple:
    """Whose the folder is: what must not have changed between a decision to submit and the submission."""
    return _whose(status_of(Path(folder) / "status.json"))


def _whose(status: dict) -> tuple:
    owner, job = status.get("owner") or {}, status.get("job") or {}
    whose = tuple(owner.get(key) for key in ("host", "pid", "started", "heartbeat"))
    return (status.get("state"), *whose, job.get("id"), job.get("submitted"))


class Taken(Exception):
    """Another command or job has taken the folder since; the message is for the user."""


class Announced:
    """A folder that is said to be submitted, until it is, or else is as it was before.

    known: `seen` of it when that was decided; Taken where it is no longer so. None: whatever it is. anew: the
    run that is there is renamed first.
    """

    def __init__(self, folder: Path, job: dict, known: tuple | None = None, anew: bool = False):
        self.folder, self.path = Path(folder), Path(folder) / "status.json"
        self.aside = self.kept = None  # where the earlier run is now, and its status.json
        if anew and self.folder.is_dir():
            self._set_aside(known)
            known = _whose({})
        self.made = not self.folder.exists()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with locked(self.folder):
                self._same(known)
                self.before = status_of(self.path)
                self._write({"state": "submitted", "error": None, "owner": None, "job": job})
        except BaseException:
            self._as_before()
            raise

    def _same(self, known: tuple | None) -> None:
        if known is not None and (now := seen(self.folder)) != known:
            raise Taken(f"another command was faster, and it is {now[0]} now")

    def _set_aside(self, known: tuple | None) -> None:
        with locked(self.folder):  # the lock moves with the folder
            self._same(known)
            status = status_of(self.path)
            if status.get("state") == "running":  # nobody is: that was asked before
                self.kept = self.path.read_bytes()
                write_status(self.path, status | {"state": "interrupted"})
            self.aside = runs.set_aside(self.folder)

    def _write(self, status: dict) -> None:
        write_status(self.path, {"format": runs.FORMAT, **status})

    def _ours(self) -> dict | None:
        """The status while it is still the one that was announced: the job may be faster."""
        status = status_of(self.path)
        waiting = status.get("state") == "submitted" and (status.get("job") or {}).get("id") is None
        return status if waiting else None

    def submitted(self, **job) -> None:
        """It is: its id, and what else is known only now."""
        with locked(self.folder):
            if status := self._ours():
                status["job"] |= job
                status["job"]["logs"] = status["job"]["logs"].replace("%j", str(job["id"]))
                self._write(status)

    def withdraw(self) -> None:
        """It is not."""
        with locked(self.folder):
            if self._ours() is None:
                return
            if self.before:
                return write_status(self.path, self.before)
            self.path.unlink()
        self._as_before()

    def _as_before(self) -> None:
        if not self.made or self.path.exists():
            return
        with contextlib.suppress(OSError):
            (self.folder / ".lock").unlink(missing_ok=True)
            if self.folder.exists():
                self.folder.rmdir()
            if self.aside:
                os.rename(self.aside, self.folder)
                if self.kept:
                    self.path.write_bytes(self.kept)


def chained(folder: Path, chain: list) -> None:
    """The jobs that a submitted run will be handed on to, one after the other, the first included."""
    path = Path(folder) / "status.json"
    with locked(folder):
        status = status_of(path)
        write_status(path, status | {"job": (status.get("job") or {}) | {"chain": chain}})


def handed_over(held: owner.Owner, processes: int) -> None:
    """This process's job has done its part of the run, which waits for the next job of the chain, or for one
    with so many processes to be submitted."""

    def then(status: dict) -> dict:
        job = own_job(status) or {"id": places.job_id(), "cluster": places.manager()}
        later = later_jobs(job)
        own = {"submitted": time.time(), "processes": processes, "id": None} | (later[0] if later else {})
        return job | own | {"idle": 0}

    held.finish("submitted", job=then)


def handed_on(folder: Path) -> str | None:
    """Why this process's job, of a chain, has nothing to do, in words: another has the run. Who handed over
    may be started again (its node was lost, an operator queued it again) before it has ended, and would take
    the run from the next."""
    other = other_job(status_of(Path(folder) / "status.json"))
    if other is None or alive(other) is False:
        return None
    return f"this job has handed over to job {other['id']}, which goes on with the run"


def refused(folder: Path, error: str) -> bool:
    """Records that the next job of a run could not be submitted."""
    return _end(
        folder, "interrupted", error, ("submitted",), lambda s: (s.get("job") or {}).get("id") is None
    )


def ended(folder: Path, state: str, error: str, states=WAITING) -> bool:
    """Records how this process's own job ended, where nobody has taken the folder over. states: of the run in
    which it has not said so itself. Returns whether it was written."""
    return _end(folder, state, error, states, _its)


def failed_early(folder: Path, error: str) -> bool:
    """Records that this process's job has failed before it took the folder over, in this life: over
    "submitted", and over what an earlier life has left."""

    def left(status: dict) -> bool:
        if status.get("state") == "submitted":
            return own_job(status) is not None
        record, mine = status.get("owner") or {}, owner.me()
        if places.manager() == "local":  # its lives are not counted, but each has a process of its own
            pid = record.get("pid")
            over = not isinstance(pid, int) or places.started(pid) != record.get("started")
            return status.get("state") == "preempted" and own_job(status) is not None and over
        if not record.get("job"):  # it has never owned the folder, and only counted its requeues
            own = own_job(status) if status.get("state") == "preempted" else None
            return own is not None and own.get("requeues", 0) <= mine["requeued"]
        return record["job"] == mine["job"] and record.get("requeued", 0) < mine["requeued"]

    return _end(folder, "failed", error, WAITING, left)


def gone(folder: Path, job: str | None, error: str, state: str = "interrupted") -> bool:
    """The same from outside, of a job that has left the queue without a word."""
    return _end(folder, state, error, WAITING, lambda s: (s.get("job") or {}).get("id") == job)


def _end(folder: Path, state: str, error: str, states, fits) -> bool:
    path = Path(folder) / "status.json"
    if not path.is_file():
        return False
    with locked(folder):
        status = status_of(path)
        if status.get("state") not in states or not fits(status):
            return False
        write_status(path, status | {"state": state, "error": error})
        return True


def _its(status: dict) -> bool:
    """Whether this process's job has the folder."""
    record, mine = status.get("owner") or {}, owner.me()
    if status.get("state") == "submitted" or not record.get("job"):
        return own_job(status) is not None
    return record["job"] == mine["job"] and record.get("requeued", 0) == mine["requeued"]


def counted(folder: Path) -> dict:
    """Counts a requeue of this process's job and returns its "job". idle: of how many lives in a row none has
    trained further than those before."""
    folder = Path(folder)
    path = folder / "status.json"
    folder.mkdir(parents=True, exist_ok=True)
    reached = _reached(folder)
    with locked(folder):
        status = status_of(path)
        job = own_job(status) or {"id": places.job_id(), "cluster": places.manager()}
        idle = 0 if reached > job.get("reached", 0) else job.get("idle", 0) + 1
        job |= {"requeues": job.get("requeues", 0) + 1, "idle": idle, "reached": reached}
        status = {
            "format": runs.FORMAT,
            "state": "preempted",
            "error": None,
            "owner": None,
            **status,
            "job": job,
        }
        write_status(path, status)
    return job


def _reached(folder: Path) -> int:
    """The position of the newest row of metrics.jsonl, which is written before each checkpoint; 0 = none."""
    with contextlib.suppress(UserError):  # it cannot be read: not a reason to stay out of the queue
        if found := re.findall(r'"position": ?(\d+)', files.read_tail(folder / "metrics.jsonl", TAIL)):
            return int(found[-1])
    return 0


def local_job(pid: int) -> dict:
    """What tells a job of submitit's local executor from others."""
    return {"id": str(pid), "host": socket.gethostname(), "started": places.started(pid)}
