"""submitit's local executor: real processes in the background."""

import os
import signal
import subprocess
import sys
import time

import pytest
import slurm_runs

from adabatch import places, runs


def background(cwd, *overrides):
    # `-m` stands first: Hydra's parser wants its options before the overrides.
    words = [sys.executable, "-m", "adabatch", "-m", *slurm_runs.RUN, "hydra/launcher=local", *overrides]
    return subprocess.run(words, cwd=cwd, capture_output=True, text=True, timeout=120, check=True).stdout


def until(arrived, seconds: float = 90):
    end = time.monotonic() + seconds
    while not (found := arrived()):
        assert time.monotonic() < end
        time.sleep(0.1)
    return found


@pytest.mark.slow
def test_a_job_in_the_background_goes_on_after_usr2_bit_for_bit(tmp_path):
    cwd = slurm_runs.place(tmp_path / "a", slow=3)  # the first job is still at it after a second command
    text = background(cwd, "seed=0,1")
    found = [(job, cwd / folder) for job, folder in slurm_runs.listed(text)]
    assert f"cancel: kill {found[0][0]} {found[1][0]}" in text
    try:
        until(lambda: any(slurm_runs.begun(folder) for _, folder in found))
        # One at a time, whichever came first.
        (job, folder), (_, second) = sorted(found, key=lambda one: not slurm_runs.begun(one[1]))
        assert runs.Run(second).state == "submitted"
        assert background(cwd, "seed=0,1").count("not submitted again") == 2
        (task,) = map(int, subprocess.check_output(["pgrep", "-P", job], text=True).split())
        os.kill(task, signal.SIGUSR2)
        until(lambda: (runs.Run(folder).status.get("job") or {}).get("requeues") == 1)
        (cwd / "slow").unlink()
        for each in (folder, second):
            until(lambda each=each: runs.Run(each).state == "finished")
    finally:
        for job, _ in found:
            subprocess.run(["kill", job], capture_output=True)
    assert "resumed at position" in (folder / "log.txt").read_text()
    alone = slurm_runs.place(tmp_path / "b", slow=0)
    seed = runs.Run(folder).config["seed"]
    words = [sys.executable, "-m", "adabatch", *slurm_runs.RUN, f"seed={seed}"]
    subprocess.run(words, cwd=alone, capture_output=True, check=True, timeout=120)
    (reference,) = alone.glob("outputs/*-????????")
    assert slurm_runs.bits(folder) == slurm_runs.bits(reference)


@pytest.mark.slow
def test_a_job_in_the_background_survives_its_terminal_and_can_be_ended(tmp_path):
    cwd = slurm_runs.place(tmp_path)
    words = [sys.executable, "-m", "adabatch", "-m", *slurm_runs.RUN, "hydra/launcher=local", "wait=true",
             "hardware.processes=2"]  # fmt: skip
    shell = subprocess.Popen(words, cwd=cwd, stdout=subprocess.PIPE, text=True, start_new_session=True)
    folder = until(lambda: next(cwd.glob("outputs/*-????????"), None))
    until(lambda: slurm_runs.begun(folder))
    os.killpg(shell.pid, signal.SIGINT)  # Ctrl-C in its terminal
    assert shell.wait(30) == 130
    time.sleep(2)
    assert runs.Run(folder).state == "running"
    job = runs.Run(folder).status["job"]["id"]
    os.kill(int(job), signal.SIGTERM)
    until(lambda: runs.Run(folder).state == "interrupted")
    until(lambda: places.started(int(job)) is None)
