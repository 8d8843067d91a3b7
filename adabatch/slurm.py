"""What a process knows of its SLURM job, and what it asks SLURM. Every question is bounded in time.

squeue -j fails when its only job is unknown and is silent about unknown ones among several; a pending task of
an array that is cancelled leaves no trace in squeue or sacct; sacct needs a database that many sites lack. So
a job that squeue does not list is gone, and sacct only adds how it ended.
"""

import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass, field

BOUND = 10.0  # seconds for all questions together
ENDED = {
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED",
    "REVOKED", "TIMEOUT",
}  # fmt: skip
BEFORE = {
    "PENDING",
    "CONFIGURING",
    "REQUEUED",
    "REQUEUE_HOLD",
    "REQUEUE_FED",
    "SPECIAL_EXIT",
}  # it did not begin
ARGUMENT = 100_000  # characters of a list of jobs; the kernel allows 128 Ki


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


@dataclass(frozen=True)
class Job:
    state: str  # SLURM's word: PENDING, RUNNING, ...
    reason: str = ""  # why it is in that state, where SLURM says

    @property
    def ended(self) -> bool:
        return self.state in ENDED

    @property
    def waits(self) -> bool:
        """Whether it is in the queue and not running."""
        return self.state in BEFORE

    def __str__(self) -> str:
        return f"{self.state}: {self.reason}" if self.reason and not self.ended else self.state


@dataclass(frozen=True)
class Answer:
    jobs: dict = field(default_factory=dict)  # {"12" or "12_3": Job}
    complete: bool = False  # squeue has answered: what is not in `jobs` is gone
    note: str | None = None  # why not, where it was asked

    def of(self, *ids) -> Job | None:
        """The first of the jobs that is known."""
        return next((self.jobs[i] for i in ids if i in self.jobs), None)


def ask(ids) -> Answer:
    """What SLURM knows of these jobs ("12", "12_3"), within BOUND seconds. Raises nothing."""
    ids = sorted(set(ids))
    if not ids or not shutil.which("squeue"):
        return Answer()
    until = time.monotonic() + BOUND
    chosen = ",".join(ids)
    asked = ["-j", chosen] if len(chosen) < ARGUMENT else []
    command = ["squeue", "--noheader", "--all", "--array", "--states=all", "--format=%i|%A|%T|%r", *asked]
    code, text, errors = _run(command, until)
    unknown = code and "Invalid job id" in errors  # its only job has left the queue
    if code and not unknown:
        why = errors.strip().splitlines()[-1:] or [f"exit code {code}"]
        return Answer(note=f"squeue did not answer ({why[0]}): what SLURM knows of the jobs is left out")
    jobs = _parsed(text)
    missing = [i for i in ids if i not in jobs]
    if missing and asked and shutil.which("sacct"):
        command = ["sacct", "--noheader", "--parsable2", "--allocations", "--format=JobID,JobIDRaw,State"]
        code, text, _ = _run([*command, "--jobs", ",".join(missing)], until)
        jobs = (_parsed(text) if code == 0 else {}) | jobs
    return Answer({i: jobs[i] for i in ids if i in jobs}, complete=True)


def states(jobs) -> dict[str, str] | None:
    """{job: state} of those that SLURM still knows; the jobs as `job_id` writes them, or bare numbers. None
    where SLURM cannot be asked."""
    answer = ask(map(str, jobs))
    return {job: found.state for job, found in answer.jobs.items()} if answer.complete else None


def alive(jobs) -> dict[str, bool] | None:
    """Whether each job still runs or waits; None where SLURM cannot be asked."""
    found = states(jobs)
    return None if found is None else {str(j): found.get(str(j), "COMPLETED") not in ENDED for j in jobs}


def requeue(job: str) -> str | None:
    """Ends the job and puts it back into the queue; None, or why SLURM does not.

    The requeue itself sends SIGTERM to all that runs in the job, and must not end the command that asks for
    it: only what is ignored passes on from a thread too, and through a site's wrapper in front of scontrol.
    """
    return _told(["sh", "-c", 'trap "" TERM; exec scontrol requeue "$0"', job], 60.0)


def ending(job: str) -> bool | None:
    """Whether SLURM is ending the job; None where it cannot be asked. A preempted job that has time to save
    (GraceTime) is RUNNING all that time."""
    code, text, errors = _run(["scontrol", "--oneliner", "show", "job", job], time.monotonic() + BOUND)
    if code:
        return True if "Invalid job id" in errors else None
    said = dict(re.findall(r"\b(JobState|PreemptTime)=(\S+)", text))
    return said.get("JobState") != "RUNNING" or said.get("PreemptTime", "None") not in ("None", "Unknown")


def release(job: str) -> str | None:
    """Lets a job run that was submitted with --hold; None, or why SLURM does not."""
    return _told(["scontrol", "release", job])


def cancel(jobs) -> None:
    """Takes jobs out of the queue, as far as SLURM answers."""
    _told(["scancel", *map(str, jobs)])


def _told(command: list[str], seconds: float = BOUND) -> str | None:
    """None, or why SLURM does not do it."""
    code, text, errors = _run(command, time.monotonic() + seconds)
    said = f"{text}\n{errors}".strip().splitlines()
    return None if code == 0 else said[-1] if said else f"{command[0]} exited with {code}"


def _parsed(text: str) -> dict:
    """{job: Job} from lines "12_3|15|PENDING|Resources". A task of an array is known by both of its numbers,
    but while it waits its own number is that of the whole array."""
    found, own = {}, {}
    for line in text.splitlines():
        name, _, rest = line.strip().partition("|")
        raw, _, rest = rest.partition("|")
        state, _, reason = rest.partition("|")
        state = re.match(r"[A-Z_]*", state)[0]  # sacct says "CANCELLED by 1000"
        if not state:
            continue
        found[name] = Job(state, "" if reason in ("None", "(null)") else reason)
        if not found[name].waits:
            own[raw] = found[name]
    return own | found


def _run(command: list[str], until: float) -> tuple[int, str, str]:
    """(exit code, output, errors); code 124 where the time was up, and all that it started is ended then.

    Files instead of pipes: a grandchild that keeps a pipe open would hold us beyond the bound.
    """
    ours = ("SQUEUE_", "SACCT_")  # a user's own formats and filters
    env = {k: v for k, v in os.environ.items() if not k.startswith(ours)} | {"LC_ALL": "C"}
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        try:
            child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=env, start_new_session=True
            )
        except OSError as error:
            return 127, "", str(error)
        try:
            code = child.wait(timeout=max(until - time.monotonic(), 0.01))
        except subprocess.TimeoutExpired:
            code = 124
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
        said = "" if code != 124 else "not within the time that it had"
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read(64 << 20).decode(errors="replace"))
        return code, texts[0], said or texts[1]
