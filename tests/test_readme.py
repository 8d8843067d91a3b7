"""Every command of the README runs as it stands there, in the order it stands there."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LINES = [
    line[2:].split("   #")[0].strip()
    for block in re.findall(r"```console\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    for line in block.splitlines()
    if line.startswith("$ ")
]
# Shortened, not changed: what is put behind a command that takes long. Everything else runs to its end as
# written.
SHORT = {
    'make train ARGS="model=vgg schedule=adabatch"': ' dataset.limit=64 epochs=2"',
    "adabatch model=resnet dataset=synthetic epochs=1 seed=3": " dataset.limit=1024",
    "adabatch -m schedule=fixed,adabatch seed=0,1,2": " epochs=2",
    "adabatch hardware=local hardware.processes=2 schedule=adabatch schedule.base_batch=64": " epochs=5",
    "adabatch-verify schedule=adabatch": " --only twice,micro-batch",
    "adabatch -m experiment=compare epochs=1 compare.looks=[2]": " dataset.limit=512",
    "adabatch-profile --seconds 0.5 --sustained 5": " --batches 32,64,128 --accumulation 2",
}


def shell(command: str, folder: Path, seconds: int = 280) -> subprocess.CompletedProcess:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = os.environ | {"PATH": path, "WANDB_MODE": "offline"}
    return subprocess.run(
        ["bash", "-c", command], cwd=folder, env=env, text=True, capture_output=True, timeout=seconds
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A copy of what a reader of the README has, without the environment: that one is used as it is."""
    folder = tmp_path_factory.mktemp("readme") / "adabatch"
    left_out = shutil.ignore_patterns(
        ".git", ".venv", ".tools", "outputs", "__pycache__", ".*_cache", ".hypothesis"
    )
    shutil.copytree(ROOT, folder, ignore=left_out)
    return folder


def test_the_commands_are_found():
    assert len(LINES) > 8 and "make train" in LINES and set(SHORT) <= set(LINES)
    assert any(line.startswith("adabatch -m") for line in LINES)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_commands_run_one_after_the_other(place):
    folder = place
    for line in LINES:
        if line.startswith("cd "):
            folder = folder / line[3:]
            continue
        if line.startswith("make"):
            continue  # below: they need the checkout's own environment
        done = shell(line + SHORT.get(line, ""), folder)
        assert done.returncode == 0, f"$ {line}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


@pytest.mark.slurm
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_lines_for_a_cluster_run_on_one(place, cluster):
    lines = re.findall(r"```shell\n(.*?)```", (ROOT / "README.md").read_text(), re.S)[0].splitlines()
    lines = [line.removeprefix("$ ").split("   #")[0].strip() for line in lines]
    assert sum("hardware=slurm" in line for line in lines) == 3 and lines[-1] == "adabatch-status"
    folder = place / "cluster"
    folder.mkdir()
    environment = cluster.environment | {"WANDB_MODE": "offline", "OMP_NUM_THREADS": "1"}
    for line in lines:
        done = cluster.run("bash", "-c", line, cwd=folder, env=environment, seconds=300)
        assert done.returncode == 0, f"$ {line}\n{done.stdout}\n{done.stderr}"
    ended = cluster.run(
        "adabatch-status", "--watch", "2", "--exit-code", cwd=folder, env=environment, seconds=400
    )
    assert ended.returncode == 0, ended.stdout
    assert "6 runs" in ended.stdout and "6 finished" in ended.stdout


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(
    not (ROOT / ".venv" / "adabatch-installed").exists(), reason="the checkout has no .venv of make's"
)
def test_make_lines_run():
    """make test is what runs this; make train and its arguments are run here, in the checkout itself."""
    for line in LINES:
        if not line.startswith("make train"):
            assert line in ("make test",) or not line.startswith("make")
            continue
        shorter = line[:-1] + SHORT[line] if line in SHORT else line
        done = shell(shorter, ROOT)
        assert done.returncode == 0, f"$ {shorter}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        assert "test error" in done.stdout  # also where a finished run is only reported


def test_every_file_that_is_named_exists():
    text = (ROOT / "README.md").read_text()
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / target).exists(), target


def test_the_options_listed_are_those_there_are():
    text = (ROOT / "README.md").read_text()
    for group in ("model", "dataset", "schedule", "optimizer", "hardware"):
        row = next(line for line in text.splitlines() if line.startswith(f"| `{group}` |"))
        named = set(re.findall(r"(?:^|, )([a-z0-9_]+)", re.sub(r"\([^)]*\)", "", row.split("|")[2]).strip()))
        assert named == {path.stem for path in (ROOT / "conf" / group).glob("*.yaml")}


@pytest.mark.slow
def test_the_python_blocks_run(tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert blocks and max(len(block.splitlines()) for block in blocks) <= 25
    for block in blocks:
        check = "\nassert (model(train.tensors[0]).argmax(1) == train.tensors[1]).float().mean() > 0.95\n"
        (tmp_path / "block.py").write_text(block + check)
        done = shell(f"{sys.executable} block.py", tmp_path)
        assert done.returncode == 0, done.stderr[-2000:]
