"""Jobs that are submitted to stand-ins for SLURM's programs, and the folders of their runs."""

import json
import os
from pathlib import Path

from hydra_plugins.adabatch_launcher._launch import Job

from adabatch import runs

OPTIONS = {
    "name": "adabatch", "timeout_min": 60, "partition": None, "account": None, "qos": None,
    "gpus_per_node": None, "cpus_per_task": None, "mem_gb": None, "array_parallelism": 256,
    "signal_delay_s": 120, "setup": [], "srun_args": [], "python": None, "additional": {},
}  # fmt: skip
ALIVE = {"id": None, "cluster": "slurm", "logs": "/l/%j_*", "submitted": 1.0}


def stand_ins(folder: Path, monkeypatch):
    """Programs that stand for sbatch and srun on the path; gives what the next sbatch does, as lines of
    shell."""
    folder.mkdir()
    for name in ("sbatch", "srun"):
        (folder / name).write_text("#!/bin/sh\necho Submitted batch job 77\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def does(lines: str):
        (folder / "sbatch").write_text(f"#!/bin/sh\n{lines}\n")

    return does


def job(folder: Path, **given) -> Job:
    config = given.pop("config", {"seed": 0})
    return Job([], config, (), folder, {**OPTIONS, "nodes": 1, "tasks": 1}, **given)


def written(folder: Path, state: str, **more) -> dict:
    folder.mkdir(exist_ok=True)
    status = {"format": 1, "state": state, "error": None, "owner": None} | more
    runs.write_json(folder / "status.json", status)
    return status


def status(folder: Path) -> dict:
    return json.loads((folder / "status.json").read_text())
