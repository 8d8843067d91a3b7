"""After srun has ended badly, in the batch script: what no process of the job could say goes into
status.json.

    python -m hydra_plugins.adabatch_launcher._last_words FOLDER CODE

FOLDER: of submitit's files. A process that was killed (often by the kernel, for want of memory), or that
could not even start, leaves a run that says "running" or "submitted" for ever.
"""

import re
import sys
from pathlib import Path

from adabatch import places, spawn, submission

SRUN = re.compile(r"^srun: error: (\S+): task (\d+): (?!Exited with exit code 1$)", re.MULTILINE)


def who(log: Path) -> str:
    """The process that srun names first, in the output of the batch script."""
    text = log.read_text(errors="replace")[-(1 << 20) :] if log.is_file() else ""
    found = SRUN.search(text)
    return f"rank {found[2]} on {found[1]}" if found else "a process of the job"


def last_line(log: Path) -> str:
    """ " (its last line)" of what a job wrote that is not SLURM's own; "" where there is none."""
    text = log.read_text(errors="replace")[-(1 << 16) :] if log.is_file() else ""
    lines = [line.strip() for line in text.splitlines() if not line.startswith(("srun: ", "slurmstepd: "))]
    return next((f" ({line[:200]})" for line in reversed(lines) if line), "")


def main(folder: str, code: str) -> None:
    from submitit.core.utils import DelayedSubmission, JobPaths

    found = JobPaths(folder, job_id=places.job_id())
    (job,) = DelayedSubmission.load(found.submitted_pickle).args
    number = int(code)
    why = spawn.death(128 - number if number > 128 else number)
    logs = Path(folder) / f"{found.job_id}_*_log.err"
    log = Path(folder) / f"{found.job_id}_0_log.err"
    killed, said = who(log), last_line(log)
    if not submission.failed_early(job["folder"], f"the job {why} before the run began{said}: see {logs}"):
        submission.ended(job["folder"], "failed", f"{killed} {why}: see {logs}", ("running",))


if __name__ == "__main__":
    main(*sys.argv[1:])
