"""The state of a run as it is shown: what its folder says, unless whoever said so is gone.

A run that says "running" is lost when its process is gone (asked on its own host), when its SLURM job has
ended, or, on another host, after three heartbeats of silence (owner.SILENCE). One that says "submitted" is
lost when its job has left the queue, or its process under submitit's local executor is gone. A job that waits
in the queue again will go on: its run is not lost.
"""

import socket
import time
from dataclasses import dataclass

from adabatch.files import number as number_of
from adabatch.owner import SILENCE
from adabatch.places import started
from adabatch.slurm import Answer, Job
from adabatch.status.facts import Facts
from adabatch.status.words import age, first_line, line
from adabatch.submission import FRESH

# Of a job that waits: what no time cures, as squeue and scontrol spell it (with spaces or "_").
HELD = ("jobheld", "launch_failed_requeued_held", "job_requeued_in_held_state", "jobholdmaxrequeue")
NEVER = ("dependencyneversatisfied",)
RELEASED = 30.0  # seconds after which a chain that is in the queue has been let go
ASK = ("submitted", "running", "preempted")  # recorded states in which a job's state matters
ORDER = (
    "finished", "interrupted", "preempted", "submitted", "running",
    "unknown", "failed", "diverged", "out_of_memory", "lost",
)  # fmt: skip


@dataclass(frozen=True)
class Verdict:
    """state: one of ORDER. going: it will go on without anybody's doing. detail: SLURM's words. error: the
    first line of what went wrong. seen: seconds since its last sign of life."""

    state: str
    going: bool = False
    detail: str = ""
    error: str = ""
    seen: float | None = None

    @property
    def bad(self) -> bool:
        """It has ended without being finished."""
        return not self.going and self.state != "finished"

    @property
    def name(self) -> str:
        return self.state.replace("_", " ")


def jobs_of(runs: list[Facts]) -> list[str]:
    """The SLURM jobs whose state matters for these runs."""
    asked = [(run.job, run.owner_job) for run in runs if run.recorded in ASK]
    return [job for pair in asked for job in pair if job]


def stuck(number, job: Job | None, record: dict) -> str | None:
    """Why a job that waits does so for ever, and the way out; None where it does not. record: "job" of the
    status. The first job of a chain ("legs") is held until the later ones are in the queue."""
    reason = job.reason.lower().replace(" ", "_") if job and job.waits else ""
    if reason.startswith(NEVER):
        return f"job {number} waits for ever ({job.reason}): scancel {number}, then repeat the command"
    patience = 0.0 if not record.get("legs") else RELEASED if record.get("chain") else FRESH
    if reason.startswith(HELD) and time.time() - (number_of(record.get("submitted")) or 0) >= patience:
        return f"job {number} is held ({job.reason}): scontrol release {number} lets it run, scancel ends it"
    return None


def judge(run: Facts, answer: Answer, now: float | None = None) -> Verdict:
    """The run's state at `now` (unix time)."""
    now = time.time() if now is None else now
    seen = _seen(run, now)
    if run.recorded == "submitted":
        state, going, detail, error = _submitted(run, answer, seen)
    elif run.recorded == "running":
        state, going, detail, error = _running(run, answer, seen)
    elif run.recorded == "preempted":
        state, going, detail, error = _preempted(run, answer, seen)
    else:
        state, going, detail, error = run.recorded, False, "", ""
    return Verdict(state, going, line(detail, 60), error or first_line(run.error or ""), seen)


def _seen(run: Facts, now: float) -> float | None:
    """Seconds since the last sign of life. For a running one the smaller of what its own clock and the file
    system's say; one that lies in the future comes from a wrong clock."""
    beat = number_of(run.owner.get("heartbeat"))
    signs = {"submitted": [number_of(run.submitted.get("submitted"))], "running": [beat, run.touched]}
    known = [sign for sign in signs.get(run.recorded, [beat]) if sign] or [run.touched]
    ages = [now - sign for sign in known if sign is not None and sign <= now]
    return min(ages) if ages else None if known == [None] else 0.0


def _submitted(run: Facts, answer: Answer, seen: float | None) -> tuple:
    job = answer.of(run.job)
    if job and not job.ended:
        why = stuck(run.job, job, run.submitted)
        return "submitted", not why, str(job), why or ""
    if job:
        return "lost", False, "", f"job {run.job} ended before the run began ({job}){_logs(run)}"
    if run.job and answer.complete:
        return "lost", False, "", f"job {run.job} has left the queue before the run began"
    late = seen is None or seen >= FRESH
    if run.submitted.get("id") is None and late:
        return "lost", False, "", "its job was never submitted: whoever was at it has ended"
    if _local_going(run, late) is False:
        who = f"process {line(run.submitted['id'], 20)} on {line(run.submitted.get('host'), 60)}"
        return "lost", False, "", f"{who} has ended before the run began"
    return "submitted", True, "", ""


def _logs(run: Facts) -> str:
    logs = line(run.submitted.get("logs"), 300)
    return f": see {logs}" if logs else ""


def _local_going(run: Facts, late: bool) -> bool | None:
    """Whether the process that stands for a job of submitit's local executor is at work: asked on its own
    host, elsewhere until it is late. None where there is no such process."""
    job = run.submitted
    if job.get("cluster") != "local" or job.get("id") is None:
        return None
    if job.get("host") == socket.gethostname():
        return _lives(job["id"], job.get("started"))
    return not late


def _running(run: Facts, answer: Answer, seen: float | None) -> tuple:
    owner, pid = run.owner, line(run.owner.get("pid"), 20)
    host = line(owner.get("host"), 60)
    here = owner.get("host") == socket.gethostname()
    if here and _lives(owner.get("pid"), owner.get("started")):
        return "running", True, "", ""
    job = answer.of(run.owner_job, run.job) if run.owner_job else None
    if job and job.waits:
        why = stuck(run.owner_job, job, {})
        return "submitted", not why, f"{job}, requeued", why or ""
    restarting = bool(job and not job.ended and run.job)  # an allocation of the user's outlives its runs
    if not owner:
        return "lost", False, "", "status.json says running and names no process"
    if here and not restarting:
        return "lost", False, "", f"process {pid} on {host} is gone"
    if job and job.ended:
        return "lost", False, "", f"its job {run.owner_job} has ended ({job}) without a word"
    if seen is not None and seen < SILENCE:
        return "running", True, "", ""
    if restarting:
        return "running", True, f"silent, job {job}", ""
    quiet = f"for {age(seen)}" if seen is not None else "at all"
    return "lost", False, "", f"no heartbeat {quiet} from process {pid} on {host}"


def _preempted(run: Facts, answer: Answer, seen: float | None) -> tuple:
    known: Job | None = answer.of(run.job, run.owner_job)
    if known:
        why = stuck(run.job or run.owner_job, known, {})
        return "preempted", not (known.ended or why), str(known), why or ""
    if not run.job and not run.owner_job:
        return "preempted", bool(_local_going(run, seen is None or seen >= FRESH)), "", ""
    gone = answer.complete
    return "preempted", not gone, "its job is gone" if gone else "", ""


def _lives(pid, since) -> bool:
    """Whether the process is on this host; since: when it began, as `places.started` says."""
    pid = int(pid) if isinstance(pid, str) and pid.isascii() and pid.isdecimal() and len(pid) < 12 else pid
    if not isinstance(pid, int) or isinstance(pid, bool) or not 0 < pid < 1 << 31:
        return False
    began = started(pid)
    return began is not None and began == since
