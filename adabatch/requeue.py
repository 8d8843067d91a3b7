"""The end of a process that its job's manager told to save: who queues the job again, who waits to be ended.

SLURM decides by how a job ends. One that ends by itself while it is being preempted has completed or failed,
and does not come back; so a process that was told SIGTERM waits to be killed and leaves the rest to SLURM,
which queues a preempted job again and a cancelled one not. SIGUSR2 comes before a time limit or a preemption:
then rank 0 queues the job again, which ends all its processes.
"""

import contextlib
import logging
import signal
import sys
import time
from pathlib import Path

from adabatch import places, slurm, submission
from adabatch.logs import logged
from adabatch.signals import AGAIN, END, Stop

PATIENCE = 600.0  # seconds in which who waits to be killed should have been
IDLE = 2  # requeues in a row without a step of training: a third would be no better
LOCAL_CODE, LOCAL_LIVES = (
    144,
    6,
)  # submitit's local executor: exit code of "start me again"; how often it does
BEGAN = time.time()  # of this process, about

log = logging.getLogger("adabatch")


def managed(told: str | None, place) -> bool:
    """Whether this process's end is the affair of its job's manager, and not of a parent of ours."""
    return told in (AGAIN, END) and place.kind != "local" and places.manager() is not None


def leave(stop: Stop, place, folder: Path) -> int:
    """The exit code of a process that has saved because it was told to; late or never where it is to be
    ended."""
    folder = Path(folder)
    if not managed(stop.told, place):
        return 130
    with logged(folder) if folder.is_dir() else contextlib.nullcontext():
        if stop.told == AGAIN and place.rank == 0:
            return _again(stop, folder)
        if places.manager() == "local":
            return 130
        # The requeue ends us by SIGTERM, and what it ends is queued already. After a SIGTERM only SIGKILL
        # counts.
        _on(signal.SIGTERM, signal.SIG_DFL if stop.told == AGAIN else signal.SIG_IGN)
        return _wait()


def _again(stop: Stop, folder: Path) -> int:
    job = submission.counted(folder, BEGAN)
    if job["idle"] >= IDLE:
        words = (
            f"job {job['id']} was told to stop {IDLE} times in a row before it had begun to train: its "
            "time limit "
            "(hydra.launcher.timeout_min, less signal_delay_s) is too short for the start. It is not "
            "queued again"
        )
        submission.ended(folder, "failed", words)
        log.error(words)
        return 1
    if places.manager() == "local":
        if job["requeues"] < LOCAL_LIVES:
            return LOCAL_CODE
        return _stays(folder, f"submitit's local executor starts a job {LOCAL_LIVES} times at most")
    # Rank 0 must live until the answer is there, and the command that asks inherits what is ignored.
    _on(signal.SIGTERM, signal.SIG_IGN)
    known = slurm.states([job["id"]])
    if known is None and (known := slurm.states([job["id"]])) is None:
        return _stays(folder, f"SLURM does not say whether job {job['id']} is being cancelled")
    state = known.get(job["id"], "RUNNING")
    if stop.reason == END or state not in ("RUNNING", "SIGNALING"):
        log.warning(f"job {job['id']} is being ended ({state.lower()}): it is not queued again by itself")
        return _wait()
    if why := slurm.requeue(job["id"]):
        return _stays(folder, f"SLURM does not queue job {job['id']} again ({why})")
    log.info(f"job {job['id']} is queued again")
    sys.exit(130)  # a return would leave a result behind, which other launchers take for the job's


def _stays(folder: Path, why: str) -> int:
    words = f"{why}: everything is saved, the same command goes on"
    submission.ended(folder, "interrupted", words)
    log.error(words)
    return 130


def _wait() -> int:
    sys.stdout.flush()
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        time.sleep(1)
    return 130


def _on(number: int, action) -> None:
    with contextlib.suppress(ValueError):  # not in the main thread
        signal.signal(number, action)
