"""After srun has ended badly, in the batch script: what no process of the job could say goes into
status.json.

    python -m hydra_plugins.adabatch_launcher._last_words FOLDER CODE

FOLDER: of submitit's files. A process that was killed (often by the kernel, for want of memory), or that
could not even start, leaves a run that says "running" or "submitted" for ever.
"""

import sys
from pathlib import Path

from adabatch import places, spawn, submission


def main(folder: str, code: str) -> None:
    from submitit.core.utils import DelayedSubmission, JobPaths

    found = JobPaths(folder, job_id=places.job_id())
    (job,) = DelayedSubmission.load(found.submitted_pickle).args
    number = int(code)
    why = spawn.death(128 - number if number > 128 else number)
    logs = Path(folder) / f"{found.job_id}_*_log.err"
    if not submission.failed_early(job["folder"], f"the job {why} before the run began: see {logs}"):
        submission.ended(job["folder"], "failed", f"a process of the job {why}: see {logs}", ("running",))


if __name__ == "__main__":
    main(*sys.argv[1:])
