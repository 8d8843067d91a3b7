"""Runs that are submitted to the suite's SLURM, and slow enough to be disturbed: for tests marked slurm."""

import json
import re
import subprocess
import time
from pathlib import Path

import support
import torch
from slurm import ADABATCH

from adabatch import runs

RUN = (
    "model=convnet", "dataset=digits", "epochs=1", "schedule.base_batch=64", "loss._target_=slow.loss",
    "hardware.threads=1", "trackers.wandb.mode=disabled", "checkpoint.every_seconds=1000",
)  # fmt: skip
# Slow while there is a file "slow" where it was submitted (seconds), so that the same run can be had quickly.
SLOW = """
import os, time

def loss(logits, labels):
    from adabatch.losses import cross_entropy  # here, so that a command that only submits loads no torch

    if os.path.exists("slow"):
        with open("slow") as file:
            time.sleep(float(file.read()))
    return cross_entropy(logits, labels)
"""


def place(folder: Path, slow: float = 0.5) -> Path:
    """The folder as one in which jobs are submitted. slow: seconds of a forward pass."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "slow.py").write_text(SLOW)
    if slow:
        (folder / "slow").write_text(str(slow))
    return folder


def command(cluster, cwd: Path, *overrides: str, **given) -> subprocess.CompletedProcess:
    """`adabatch RUN OVERRIDES hardware=slurm`; an override that stands in RUN takes its place."""
    keys = {override.partition("=")[0] for override in overrides}
    alike = [override for override in RUN if override.partition("=")[0] not in keys]
    first = [] if "hardware" in keys else ["hardware=slurm"]
    return cluster.run(
        *ADABATCH,
        *("-m" for o in overrides if o == "-m"),
        *alike,
        *first,
        *(o for o in overrides if o != "-m"),
        cwd=cwd,
        **{"seconds": 120} | given,
    )


def listed(text: str) -> list[tuple[str, Path]]:
    """(job, folder) of each job that the command says it has submitted."""
    return [(found[1], Path(found[2])) for found in re.finditer(r"^  (\d+(?:_\d+)?)  (\S+)", text, re.M)]


def submit(cluster, cwd: Path, *overrides: str, **given) -> tuple[str, Path]:
    """The job and the folder of one run."""
    ((job, folder),) = listed(command(cluster, cwd, *overrides, **given).stdout)
    return job, cwd / folder


def begun(folder: Path) -> int:
    """How often the run has begun to train, or gone on; its rows are no sign of it: they are written late."""
    log = folder / "log.txt"
    return log.read_text().count(" INFO hardware") if log.exists() else 0


def training(cluster, job: str, folder: Path, lives: int = 1) -> None:
    """Waits until the run is in the middle of its first steps, for the `lives`-th time."""
    cluster.until(
        lambda: begun(folder) >= lives, 120, lambda: f"no training: {cluster.tasks(job)}\n{told(folder)}"
    )
    time.sleep(1.5)


def saved(folder: Path) -> int:
    """The position in the checkpoint."""
    return torch.load(folder / "checkpoint.pt", weights_only=True)["position"]


def told(folder: Path) -> str:
    """What the run and its job have said."""
    status = runs.Run(folder).status or {}
    found = [json.dumps(status, indent=1)] + [path.read_text() for path in folder.glob("log.txt")]
    pattern = Path((status.get("job") or {}).get("logs") or "/nothing")
    return "\n".join(found + [path.read_text()[-2000:] for path in sorted(pattern.parent.glob(pattern.name))])


def bits(folder: Path) -> dict:
    """All of a finished run that must not depend on what happened to its jobs."""
    found = support.outcome(folder)
    del found["summary"]["overrides"]
    return found
