"""The first lines of docs/cluster.md, as they stand there, up to the run folder that the last one names."""

import os
import re
import subprocess
import sys
from pathlib import Path

import slurm_runs
from submissions import stand_ins

from adabatch import runs

ROOT = Path(__file__).resolve().parent.parent
FIRST = re.search(r"## The first job\s+```console\n(.*?)```", (ROOT / "docs/cluster.md").read_text(), re.S)[1]
LINES = [line.removeprefix("$ ") for line in FIRST.splitlines()]


def shell(line: str, cwd: Path) -> subprocess.CompletedProcess:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    given = {"cwd": cwd, "env": os.environ | {"PATH": path}, "text": True, "timeout": 100}
    return subprocess.run(["bash", "-c", line], capture_output=True, **given)


def test_the_first_lines_lead_to_one_run(tmp_path, monkeypatch):
    """The third submits, the fourth and the fifth find its folder. The run itself is put there, finished."""
    stand_ins(tmp_path / "bin", monkeypatch)
    cwd = tmp_path / "work"
    cwd.mkdir()
    submit, watch, evaluate = LINES[2:]
    done = shell(submit, cwd)
    assert done.returncode == 0, done.stderr
    ((job, folder),) = slurm_runs.listed(done.stdout)
    assert job == "77" and shell(watch.removesuffix(" --watch"), cwd).returncode == 0
    named = shell(evaluate.replace("adabatch-evaluate", "ls -d"), cwd).stdout.split()
    assert named == [str(folder)]  # what the shell makes of the pattern
    # A run without weights: what is asked for is missing in it, and it is that run.
    runs.write_json(cwd / folder / "status.json", {"format": 1, "state": "finished", "error": None})
    said = shell(evaluate, cwd)
    assert said.returncode == 2 and str(folder) in said.stderr and "no such" not in said.stderr, said.stderr
