"""A submitted job where it runs: on every process that srun starts, or on this machine by submitit's local
executor.

A job is plain data, composed and checked where the user typed it, so that nothing of Hydra and no class of
the user's travels: {"config", "folder" (absolute), "overrides", "notes", "named" (Hydra's overrides that name
folders), "cwd" (where it was submitted), "argv", "environment" (variables to set, None = to remove), "slots"
(see `Slot`)}.
"""

import contextlib
import logging
import os
import signal
import sys
import time
from pathlib import Path

from adabatch import jobs, places, signals, submission, targets
from adabatch.logs import terminal
from adabatch.requeue import LOCAL_CODE
from adabatch.signals import Stop

log = logging.getLogger("adabatch")


def run(job: dict) -> dict | None:
    """Runs the job and returns the summary (of rank 0); any other end is an exit with its code."""
    # `Stop` restores what it finds, and that must not be submitit's own handler: it would queue a job again
    # whose run is over, or which has handed it over to the next.
    signal.signal(signal.SIGUSR2, lambda *_: None)
    with Stop() as stop:
        signals.release()
        if places.manager() == "local":
            with contextlib.suppress(OSError):
                os.setsid()  # the terminal's signals are for who sits there
        terminal()
        sys.argv = list(job["argv"])
        for name, value in (job.get("environment") or {}).items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        try:
            os.chdir(job["cwd"])
        except OSError as error:
            _refuse(
                job,
                f"{job['cwd']}, where the job was submitted, is not on this node ({error.strerror}): submit "
                "from a folder that all nodes share",
            )
        targets.reach_cwd()
        with Slot(job, stop):
            folder, named = job["folder"], job["named"]
            summary, code = jobs.run_job(
                job["config"], folder, job["overrides"], job["notes"], stop=stop, places=named,
                leg=job.get("leg"),
            )  # fmt: skip
    if code:
        # SLURM ends the other tasks of a step in which one has failed: each shall end by its own code.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        sys.exit(code)
    return summary


def _refuse(job: dict, words: str) -> None:
    log.error(words)
    submission.failed_early(job["folder"], words)
    sys.exit(2)


class Slot:
    """One of so many places on this machine, as a context: a local job waits for one before it begins.

    job["slots"]: {"folder", "count"} or None. A place is a lock that ends with its process.
    """

    def __init__(self, job: dict, stop: Stop):
        self.job, self.stop, self.lock = job, stop, None

    def __enter__(self) -> "Slot":
        slots = self.job.get("slots")
        while slots and not self._taken(Path(slots["folder"]), slots["count"]):
            if reason := self.stop.reason:
                submission.ended(self.job["folder"], "interrupted", f"stopped ({reason}) before it began")
                sys.exit(LOCAL_CODE if reason == signals.AGAIN else 130)
            time.sleep(0.5)
        return self

    def _taken(self, folder: Path, count: int) -> bool:
        import filelock

        for number in range(count):
            lock = filelock.FileLock(str(folder / f"slot{number}.lock"))
            try:
                lock.acquire(timeout=0)
            except filelock.Timeout:
                continue
            self.lock = lock
            return True
        return False

    def __exit__(self, *_) -> None:
        if self.lock:
            self.lock.release()
