"""The end of a process that its job's manager told to save: who queues the job again, who waits to be ended.

SLURM decides by how a job ends. One that ends by itself while it is being preempted has completed or failed,
and does not come back; so a process that was told SIGTERM waits to be killed and leaves the rest to SLURM,
which queues a preempted job again and a cancelled one not. SIGUSR2 comes before a time limit or a preemption:
then rank 0 queues the job again, which ends all its processes.
"""

import contextlib
import logging
import shutil
import signal
import sys
import time
from pathlib import Path

from adabatch import places, slurm, submission
from adabatch.logs import logged
from adabatch.signals import AGAIN, END, Stop

PATIENCE = 600.0  # seconds after which who waits to be killed asks whether it will be
UNKNOWN = 3600.0  # seconds to wait where SLURM cannot be asked: its GraceTime is seldom more
ASK = 10.0  # seconds between two questions to a SLURM that does not answer
IDLE = 2  # requeues in a row without a step of training: a third would be no better
LOCAL_CODE, LOCAL_LIVES = (
    144,
    6,
)  # submitit's local executor: exit code of "start me again"; how often it does

log = logging.getLogger("adabatch")


def managed(told: str | None, place) -> bool:
    """Whether this process's end is the affair of its job's manager, and not of a parent of ours."""
    return told in (AGAIN, END) and place.kind != "local" and places.manager() is not None


def lacking(place, closed: bool) -> str | None:
    """What of SLURM's commands a job needs and does not find where it runs, as a warning. closed: its later
    jobs it submits itself."""
    if place.kind == "local" or places.manager() != "slurm":
        return None
    wanted = ("squeue", "scontrol") + (("sbatch",) if closed else ())
    if not (missing := [name for name in wanted if shutil.which(name) is None]):
        return None
    what = "queue itself again before its time limit" + (" nor submit its larger jobs" if closed else "")
    return (
        f"{', '.join(missing)} cannot be found where this job runs, which cannot {what}. In a container, "
        "bind SLURM's commands, its configuration and munge's socket into it (docs/cluster.md)"
    )


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
        return _wait(places.job_id())


def _again(stop: Stop, folder: Path) -> int:
    job = submission.counted(folder)
    if job["idle"] >= IDLE:
        words = f"{_useless(stop, job['id'])}. It is not queued again"
        submission.ended(folder, "failed", words)
        log.error(words)
        return 1
    if places.manager() == "local":
        if job["requeues"] < LOCAL_LIVES:
            return LOCAL_CODE
        return _stays(folder, f"submitit's local executor starts a job {LOCAL_LIVES} times at most")
    # Rank 0 must live until the answer is there. Its handler takes note of SIGTERM and does no more; none is
    # ignored, since a job that is cancelled just now must not come back.
    stop.quiet = True
    if (known := _asked(job["id"])) is None:
        return _stays(folder, f"SLURM does not say whether job {job['id']} is being cancelled")
    state = known.get(job["id"], "RUNNING")
    if stop.reason == END or state not in ("RUNNING", "SIGNALING"):
        log.warning(f"job {job['id']} is being ended ({state.lower()}): it is not queued again by itself")
        return _wait(job["id"])
    if why := slurm.requeue(job["id"]):
        return _stays(folder, f"SLURM does not queue job {job['id']} again ({why})")
    log.info(f"job {job['id']} is queued again")
    sys.exit(130)  # a return would leave a result behind, which other launchers take for the job's


def _useless(stop: Stop, job: str) -> str:
    """Why another life of the job would be no better."""
    if stop.reason is None:
        return (
            f"job {job} lost a host {IDLE} times in a row without having trained any further: where no host "
            "was down, a rank was silent for so long because it was held up (a data loader that keeps "
            "Python's lock?)"
        )
    return (
        f"job {job} was told to stop {IDLE} times in a row without having trained any further: its time "
        "limit (hydra.launcher.timeout_min, less signal_delay_s) is too short for the start"
    )


def _asked(job: str) -> dict | None:
    """{job: state}, {} where SLURM no longer knows it. It is asked until it answers: who is preempted and
    ends by himself does not come back, so that waiting to be killed is the better end."""
    until, told = time.monotonic() + UNKNOWN, False
    while (known := slurm.states([job])) is None and time.monotonic() < until:
        if not told:
            log.warning(f"SLURM does not say how job {job} stands: it is asked again, or ends this process")
        told = True
        time.sleep(ASK)
    return known


def _stays(folder: Path, why: str) -> int:
    words = f"{why}: everything is saved, the same command goes on"
    submission.ended(folder, "interrupted", words)
    log.error(words)
    return 130


def _wait(job: str) -> int:
    """Until SLURM ends this process, however long a site's GraceTime is; 130 where it has no such intention
    (somebody has sent SIGTERM by hand)."""
    sys.stdout.flush()
    began = asked = time.monotonic()
    while True:
        time.sleep(min(1.0, PATIENCE))
        if (now := time.monotonic()) - asked < PATIENCE:
            continue
        asked, ending = now, slurm.ending(job)
        if ending is False or (ending is None and now - began >= UNKNOWN):
            return 130


def _on(number: int, action) -> None:
    with contextlib.suppress(ValueError):  # not in the main thread
        signal.signal(number, action)
