"""Who works in a run folder: one process at a time, seen by its heartbeat in status.json.

A claim is decided under a lock that is held for milliseconds; SLURM is asked before. An owner on this host
whose process is gone is replaced at once; on another host nothing can be asked, so it is replaced after three
heartbeats of silence.
"""

import errno
import json
import logging
import os
import socket
import threading
import time
from pathlib import Path

from adabatch import runs, slurm
from adabatch.errors import UserError
from adabatch.jobrecord import job_alive, other_job, own_job
from adabatch.places import started

BEAT = 20.0  # seconds between heartbeats
SILENCE = 3 * BEAT  # seconds without one after which an owner elsewhere counts as gone
LOCK_TIMEOUT = 30.0  # seconds; a claim holds the lock for milliseconds
FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))

log = logging.getLogger("adabatch")
_held: set[str] = set()  # folders that this very process owns: a second claim from it is refused too


def me() -> dict:
    """This process as an owner record."""
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": started(os.getpid()),
        "job": os.environ.get("SLURM_JOB_ID"),
        "requeued": slurm.restarts(),
        "heartbeat": time.time(),
    }


def _same(a: dict, b: dict) -> bool:
    return all(a.get(k) == b.get(k) for k in ("host", "pid", "started"))


def silence(owner: dict, path: Path, clock: Path) -> float:
    """Seconds since the owner's last sign of life: the smaller of what its own clock and the file system's
    say.

    clock: a file touched just now. Comparing its time with that of status.json needs no agreement between two
    hosts.
    """
    ages = [clock.stat().st_mtime - path.stat().st_mtime]
    beat = owner.get("heartbeat")
    if isinstance(beat, (int, float)) and time.time() >= beat:  # a beat from the future: its clock is wrong
        ages.append(time.time() - beat)
    return min(ages)


def asked(status: dict, mine: dict) -> dict:
    """{job: whether it lives} of the jobs in a status.json that decide about a claim, as far as SLURM says.
    It may take seconds."""
    owner, other = status.get("owner"), other_job(status)
    ids = {other["id"]} if other and other.get("cluster") != "local" else set()
    if status.get("state") == "running" and isinstance(owner, dict) and owner.get("host") != mine["host"]:
        ids |= {owner["job"]} if owner.get("job") else set()
    return (slurm.alive(sorted(ids)) or {}) if ids else {}


def alive(owner: dict, mine: dict, path: Path, clock: Path, living: dict) -> str | None:
    """None when the folder may be taken over, else why not (a sentence for the user). living: `asked`."""
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(owner.get("heartbeat") or 0))
    who = f"process {owner.get('pid')} on {owner.get('host')}"
    if owner.get("job"):
        who += f" (job {owner['job']})"
    if owner.get("host") == mine["host"]:
        pid = owner.get("pid")
        if not isinstance(pid, int) or pid <= 0 or started(pid) != owner.get("started"):
            return None
        return f"{who} is training in it (last heartbeat {since}). Wait for it, or stop it: kill {pid}"
    if owner.get("job") and owner["job"] == mine["job"] and mine["requeued"] > owner.get("requeued", 0):
        return None  # this job was requeued: its earlier life has ended
    quiet = silence(owner, path, clock)
    if quiet >= SILENCE or living.get(owner.get("job")) is False:
        return None
    return (
        f"{who} was training in it {max(quiet, 0):.0f} s ago (last heartbeat {since}). If it is gone, "
        f"repeat the command in {SILENCE - max(quiet, 0):.0f} s: silent for {SILENCE:.0f} s, it is taken over"
    )


def in_use(folder: Path) -> str | None:
    """Why a claim of the folder would be refused now (a sentence for the user); None where it would not."""
    path = Path(folder) / "status.json"
    previous = status_of(path)
    owner = previous.get("owner")
    if previous.get("state") != "running" or not isinstance(owner, dict):
        return None
    mine = me()
    living = asked(previous, mine)
    with locked(folder) as clock:
        return alive(owner, mine, path, clock, living)


class Owner:
    """The right to write into a folder, from `claim` to `finish`. Not for sharing between processes."""

    def __init__(self, folder: Path, record: dict):
        self.folder, self.record = Path(folder), record
        self.lost = False  # somebody else took the folder over; nothing may be written any more
        self._key = str(self.folder.resolve())
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="adabatch-heartbeat", daemon=True)

    @classmethod
    def claim(cls, folder: Path) -> "Owner":
        """Takes the folder (made if absent) and starts the heartbeat. UserError while another owner is
        alive."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        key, path = str(folder.resolve()), folder / "status.json"
        mine = me()
        living = asked(status_of(path), mine)
        with locked(folder) as lock_path:
            if key in _held:
                raise UserError(f"{folder} is in use: this very process is training in it")
            previous = status_of(path)
            owner = previous.get("owner")
            if previous.get("state") == "running" and isinstance(owner, dict):
                why = None if _same(owner, mine) else alive(owner, mine, path, lock_path, living)
                if why:
                    raise UserError(f"{folder} is in use: {why}")
                log.info(f"taking over from process {owner.get('pid')} on {owner.get('host')}, which is gone")
            write_status(path, _record("running", None, mine, own_job(previous) or _kept(previous, living)))
            _held.add(key)
        self = cls(folder, mine)
        self._thread.start()
        return self

    def taken(self) -> bool:
        """Whether the folder was lost; asks the file itself where the heartbeat stood still (a suspended
        machine)."""
        if not self.lost and time.time() - self.record["heartbeat"] > 2 * BEAT:
            try:
                self._update("running", None)
            except (OSError, UserError) as error:
                log.debug(f"heartbeat: {error}")
        return self.lost

    def _beat(self) -> None:
        while not self._ended.wait(BEAT):
            try:
                self._update("running", None)
            except (OSError, UserError) as error:  # a file system that hangs or fills up must not end the run
                log.debug(f"heartbeat: {error}")
            if self.lost:
                return

    def _update(self, state: str, error: str | None, job=None) -> None:
        with locked(self.folder):
            status = status_of(self.folder / "status.json")
            if status and not _same(status.get("owner") or {}, self.record):
                self.lost = True
                return
            if state == "running" and self._ended.is_set():
                return  # finish() was faster
            self.record["heartbeat"] = time.time()
            owner, found = (None, job(status)) if job else (self.record, status.get("job"))
            write_status(self.folder / "status.json", _record(state, error, owner, found))

    def finish(self, state: str, error: str | None = None, job=None) -> None:
        """Ends the ownership and records how: one of runs.STATES. Does nothing in a folder that was taken
        over. job: a function of status.json to the "job" that has the folder from then on, without an
        owner."""
        assert state in runs.STATES, state
        self._ended.set()
        try:
            self._update(state, error, job)
        finally:
            self.release()

    def release(self) -> None:
        """Ends the ownership without a word in status.json (the folder was moved or lost)."""
        self._ended.set()
        _held.discard(self._key)
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(timeout=5)


def _kept(previous: dict, living: dict) -> dict | None:
    """The record of another job that has not ended, and words about it: without it the next command would
    submit a second one."""
    other = other_job(previous)
    if other is None or (lives := job_alive(other, living)) is False:
        return None
    cancel = f"{'kill' if other.get('cluster') == 'local' else 'scancel'} {other['id']}"
    comes = f"{'is' if lives else 'may be'} still to come, and goes on from here"
    log.warning(f"job {other['id']} of this run {comes} ({cancel} ends it)")
    return other


def _record(state: str, error: str | None, owner: dict | None, job: dict | None) -> dict:
    found = {"format": runs.FORMAT, "state": state, "error": error, "owner": owner}
    return found | ({"job": job} if job else {})


class locked:
    """The folder's lock as a context; gives the lock's path, whose modification time is now."""

    def __init__(self, folder: Path):
        import filelock

        self.path = Path(folder) / ".lock"
        self.lock = filelock.FileLock(str(self.path), timeout=LOCK_TIMEOUT)

    def __enter__(self) -> Path:
        import filelock

        try:
            self.lock.acquire()
        except filelock.Timeout:
            raise UserError(
                f"{self.path} has been locked for {LOCK_TIMEOUT:.0f} s by another process"
            ) from None
        try:
            os.utime(self.path)
        except BaseException:
            self.lock.release()
            raise
        return self.path

    def __exit__(self, *_) -> None:
        self.lock.release()


def status_of(path: Path) -> dict:
    """status.json, or {} when absent or damaged: a torn file must not make a folder unusable."""
    try:
        return runs.read_json(path) if path.is_file() else {}
    except UserError as error:
        if "format" in str(error):
            raise
        return {}


def write_status(path: Path, value: dict) -> None:
    """Atomic; on a full disk over the old content, which needs no new block."""
    try:
        runs.write_json(path, value)
    except OSError as error:
        if error.errno not in FULL or not path.is_file():
            raise
        with open(path, "r+b") as file:
            file.write(json.dumps(runs.finite(value), default=str).encode() + b"\n")
            file.truncate()


def mark(folder: Path, pid: int, state: str, error: str) -> bool:
    """For a parent whose child died without a word: records its end, if the child `pid` still owned the
    folder.

    A child that died before it could claim is recorded where nobody owns the folder. Returns whether it was
    written.
    """
    folder = Path(folder)
    path = folder / "status.json"
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        status = status_of(path)
        owner = status.get("owner") or {}
        if status.get("state") == "running" and (owner.get("pid"), owner.get("host")) != (
            pid,
            socket.gethostname(),
        ):
            return False
        owner = owner or {**me(), "pid": pid, "started": None}
        write_status(path, _record(state, error, owner, status.get("job")))
        return True
