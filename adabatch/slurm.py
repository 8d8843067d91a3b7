"""What a process knows of its SLURM job, and what it asks SLURM. Every question is bounded in time."""

import os
import subprocess

SECONDS = 10.0  # for an answer; a busy controller may be asked again
# Job states in which a job still has, or waits for, something to do (squeue's %T).
LIVE = (
    "PENDING", "CONFIGURING", "RUNNING", "SIGNALING", "SUSPENDED", "STOPPED", "RESIZING", "COMPLETING",
    "STAGE_OUT", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT", "POWER_UP_NODE",
)  # fmt: skip


def job_id(env=os.environ) -> str | None:
    """The job as scontrol and scancel must be told it: 123, or 123_4 for a task of an array.

    SLURM_JOB_ID of an array's last task is the number of the whole array: requeueing that restarts all of it.
    """
    array, task = env.get("SLURM_ARRAY_JOB_ID"), env.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else env.get("SLURM_JOB_ID")


def restarts(env=os.environ) -> int:
    """How often this job was requeued."""
    text = env.get("SLURM_RESTART_COUNT", "")
    return int(text) if text.isdecimal() else 0


def states(jobs) -> dict[str, str] | None:
    """{job: state} of those that SLURM still knows; the jobs as `job_id` writes them or bare numbers of jobs.
    None where SLURM cannot be asked."""
    found = {}
    for number in dict.fromkeys(str(job).split("_")[0] for job in jobs):
        # One at a time: an id that SLURM has forgotten fails the whole question.
        code, text = _ask("squeue", "-h", "-r", "-a", "-t", "all", "-o", "%i|%A|%T", "-j", number)
        if code and "invalid job id" not in text.lower():
            return None
        lines = [line.split("|") for line in text.splitlines() if line.count("|") == 2] if not code else []
        # The number of an array is that of its last task too: the name with the task's index goes first.
        found |= {raw: state for _, raw, state in lines}
        found |= {name: state for name, _, state in lines}
    return {str(job): found[str(job)] for job in jobs if str(job) in found}


def alive(jobs) -> dict[str, bool] | None:
    """Whether each job still runs or waits; None where SLURM cannot be asked."""
    found = states(jobs)
    return None if found is None else {str(job): found.get(str(job)) in LIVE for job in jobs}


def requeue(job: str) -> str | None:
    """Ends the job and puts it back into the queue; None, or why SLURM does not. The caller ignores SIGTERM,
    and so does the command: the requeue itself sends it."""
    code, text = _ask("scontrol", "requeue", job, seconds=60.0)
    if code == 0:
        return None
    return text.strip().splitlines()[-1] if text.strip() else f"scontrol exited with {code}"


def release(job: str) -> str | None:
    """Lets a job run that was submitted with --hold; None, or why SLURM does not."""
    code, text = _ask("scontrol", "release", job)
    return None if code == 0 else text.strip() or f"scontrol exited with {code}"


def cancel(jobs) -> None:
    """Takes jobs out of the queue, as far as SLURM answers."""
    _ask("scancel", *map(str, jobs))


def _ask(*command: str, seconds: float = SECONDS) -> tuple[int, str]:
    """(exit code, what it printed, errors too)."""
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            errors="replace", timeout=seconds,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError) as error:
        return 1, f"{type(error).__name__}: {error}"
    return done.returncode, done.stdout
