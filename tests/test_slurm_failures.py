"""Runs that fail in a job: SLURM, status.json and the command say so alike, and who broke first, and why.

On a real SLURM of four nodes (tests/slurm.py).
"""

import time

import pytest
import slurm_runs

from adabatch import runs

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

# Fails on one rank at its third step; the others are then in the reduction.
BROKEN = """
import os, signal

count = 0

def loss(logits, labels):
    from adabatch.losses import cross_entropy

    global count
    count += 1
    if count == 3 and os.environ["SLURM_PROCID"] == "1":
        if os.path.exists("kill"):
            os.kill(os.getpid(), signal.SIGKILL)
        raise ValueError("unlucky rank")
    return cross_entropy(logits, labels)
"""


@pytest.fixture
def cwd(tmp_path):
    (tmp_path / "broken.py").write_text(BROKEN)
    return slurm_runs.place(tmp_path, slow=0)


def ended(cluster, job: str, folder, *codes: str, seconds: float = 120) -> str:
    """The error of a run whose job has failed, in SLURM's eyes and in its own."""
    found = cluster.wait_for(job, "FAILED", seconds=seconds)
    assert found["ExitCode"] in codes, slurm_runs.told(folder)
    status = runs.Run(folder).status
    assert status["state"] == "failed" and status["job"]["id"] == job, slurm_runs.told(folder)
    return status["error"]


def test_the_rank_that_broke_first_is_named_and_its_traceback_kept(cluster, cwd):
    job, folder = slurm_runs.submit(cluster, cwd, "loss._target_=broken.loss", "hardware.nodes=2")
    cluster.wait_for(job, "RUNNING", "FAILED")
    error = ended(cluster, job, folder, "1:0")
    assert "rank 1" in error and "node2" in error and "ValueError: unlucky rank" in error
    log = (folder / "log.txt").read_text()
    assert 'broken.py", line' in log and "in loss" in log and "rank 1: Traceback" in log


def test_a_rank_that_is_killed_is_named_and_the_others_end(cluster, cwd):
    """As the kernel does where memory runs out."""
    (cwd / "kill").touch()
    job, folder = slurm_runs.submit(cluster, cwd, "loss._target_=broken.loss", "hardware.nodes=2")
    error = ended(cluster, job, folder, "0:9", "9:0", "137:0", "1:0", seconds=150)
    assert "rank 1" in error and "node2" in error, error


def test_a_single_process_that_is_killed_leaves_no_run_that_says_running(cluster, cwd):
    (cwd / "slow").write_text("0.5")
    job, folder = slurm_runs.submit(cluster, cwd)
    slurm_runs.training(cluster, job, folder)
    pid = runs.Run(folder).status["owner"]["pid"]
    cluster.exec(runs.Run(folder).status["owner"]["host"], "kill", "-9", str(pid))
    error = ended(cluster, job, folder, "0:9", "9:0", "137:0")
    assert "killed by signal 9 (SIGKILL), out of memory?" in error and f"{job}_*_log.err" in error


def test_a_model_that_the_node_cannot_import(cluster, cwd, tmp_path):
    """It lies in a folder that only the submitting host has."""
    library = tmp_path / "library"
    library.mkdir()
    (library / "mine.py").write_text(
        "def net(num_classes, channels):\n    import torch\n\n    return torch.nn.Flatten()\n"
    )
    for node in cluster.nodes:
        cluster.exec(node, "mount", "-t", "tmpfs", "none", str(library))
    try:
        given = {"env": cluster.environment | {"PYTHONPATH": str(library)}}
        job, folder = slurm_runs.submit(cluster, cwd, "model._target_=mine.net", **given)
        error = ended(cluster, job, folder, "2:0")
    finally:
        for node in cluster.nodes:
            cluster.exec(node, "umount", str(library), check=False)
    assert "model._target_=mine.net: there is no module 'mine'" in error


def test_data_that_the_nodes_do_not_have(cluster, cwd, tmp_path):
    data = tmp_path / "nowhere"
    more = ("dataset=cifar10", f"dataset.root={data}", "dataset.download=false", "hardware.nodes=2")
    job, folder = slurm_runs.submit(cluster, cwd, *more)
    error = ended(cluster, job, folder, "2:0", "1:0")
    assert str(data) in error


def test_python_that_does_not_start_leaves_no_run_that_says_submitted(cluster, cwd):
    job, folder = slurm_runs.submit(cluster, cwd, "hydra.launcher.python=bash start.sh")
    (cwd / "start.sh").write_text(f'case "$*" in *_submit*) exit 3;; *) exec {_python()} "$@";; esac\n')
    error = ended(cluster, job, folder, "3:0")
    assert "exited with code 3 without a word before the run began" in error


def _python() -> str:
    import sys

    return sys.executable


def test_wait_gives_the_table_and_the_exit_code(cluster, cwd):
    """One run fails and one does not."""
    more = ("schedule.base_lr=0.05,1e30", "wait=true")
    began = time.monotonic()
    done = slurm_runs.command(cluster, cwd, *more, check=False, seconds=170)
    assert done.returncode == 1 and time.monotonic() - began < 160
    assert "2 jobs, all with" in done.stdout and "finished" in done.stdout and "diverged (1)" in done.stdout
    assert "lower schedule.base_lr" in done.stdout
    states = [
        cluster.state(job) for job, _ in slurm_runs.listed(done.stdout)
    ]  # at once: it has waited for that
    assert states == ["COMPLETED", "FAILED"]
    again = slurm_runs.command(cluster, cwd, "schedule.base_lr=0.05", "wait=true")
    assert again.returncode == 0 and "finished already" in again.stdout


def test_wait_ends_when_a_job_is_cancelled_before_it_began(cluster, cwd):
    import subprocess

    from slurm import ADABATCH

    words = [*ADABATCH, *slurm_runs.RUN, "hardware=slurm", "wait=true", "hydra.launcher.additional.hold=true"]
    shell = subprocess.Popen(words, cwd=cwd, env=cluster.environment, stdout=subprocess.PIPE, text=True)
    job = cluster.until(lambda: cluster.run("squeue", "-h", "-o", "%A").stdout.strip(), 60)
    time.sleep(2)
    cluster.run("scancel", job)
    text = shell.communicate(timeout=90)[0]
    assert shell.returncode == 1 and f"job {job} was cancelled before it began" in text
    (folder,) = cwd.glob("outputs/*-????????")
    assert runs.Run(folder).state == "interrupted"


FULL = """
import errno, os

from slow import loss

real = os.fsync


def fsync(file):  # every file of a run is synced before it takes its name
    if os.path.exists("full"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    real(file)


os.fsync = fsync
"""


def test_a_full_disk_is_named_and_the_same_command_goes_on_when_there_is_room(cluster, cwd):
    (cwd / "crowded.py").write_text(FULL)
    (cwd / "slow").write_text("0.5")
    more = ("checkpoint.every_seconds=0.5", "hardware.nodes=2", "loss._target_=crowded.loss")
    job, folder = slurm_runs.submit(cluster, cwd, *more)
    slurm_runs.training(cluster, job, folder)
    (cwd / "full").touch()
    found = cluster.wait_for(job, "FAILED")
    assert found["ExitCode"] == "1:0"
    assert "disk full" in slurm_runs.told(folder) and runs.Run(folder).state == "failed"
    (cwd / "full").unlink()
    (cwd / "slow").unlink()
    again, same = slurm_runs.submit(cluster, cwd, *more)
    cluster.wait_for(again, "COMPLETED")
    assert same == folder and runs.Run(folder).state == "finished", slurm_runs.told(folder)
    assert "resumed at position" in (folder / "log.txt").read_text()
