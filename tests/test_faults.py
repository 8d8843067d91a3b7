"""Real runs of several processes, started by hardware.processes and by torchrun, killed, stopped and
repeated.

The network sleeps for $PACE seconds in each forward pass, which is no part of the run's identity: a run to be
killed takes its time on any machine, the one that it is compared with and the one that goes on do not.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
import types

import pytest
from support import outcome

from adabatch import places, runs

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
BOUND = 60  # seconds within which all processes end once one is gone
MINE = """
import os, time
from pathlib import Path
import torch

def table(n=192):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(n, 5, generator=g)
    y = (x.sum(1) > 0).long()
    return (x[: n // 2], y[: n // 2]), (x[n // 2 :], y[n // 2 :])

class Net(torch.nn.Sequential):
    def __init__(self, num_classes, shape):
        super().__init__(torch.nn.Linear(shape[0], 8), torch.nn.ReLU(), torch.nn.Linear(8, num_classes))
        (Path(os.environ["NOTES"]) / os.environ.get("RANK", "alone")).write_text(str(os.getpid()))

    def forward(self, x):
        time.sleep(float(os.environ.get("PACE", 0)))
        return super().forward(x)

def missing():
    from adabatch.errors import UserError
    raise UserError("there is no such data: do this")
"""
ARGUMENTS = (
    "model._target_=mine.Net", "dataset._target_=mine.table", "schedule.base_batch=8", "epochs=20",
    "hardware=local", "hardware.device=cpu", "log.every_samples=8", "trackers.wandb.mode=disabled",
    "checkpoint.every_seconds=0.5", "hardware.join_timeout=100",
)  # fmt: skip
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "adabatch")


@pytest.fixture
def here(tmp_path):
    """start(*arguments) -> a process in tmp_path; its ranks' numbers are in `pids()` once they have begun."""
    (tmp_path / "mine.py").write_text(MINE)
    notes = tmp_path / "notes"
    started = []

    def start(*arguments, pace=0.0, command=("-m", "adabatch")):
        notes.mkdir(exist_ok=True)
        for file in notes.iterdir():
            file.unlink()
        absent = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
        kept = {k: v for k, v in os.environ.items() if k not in absent and not k.startswith("SLURM_")}
        paths = os.pathsep.join([str(tmp_path), *(p for p in sys.path if p)])
        more = {"PACE": str(pace), "NOTES": str(notes), "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
        flags = [a for a in arguments if a == "-m"]  # they stand before all overrides
        process = subprocess.Popen(
            [sys.executable, *command, *flags, *ARGUMENTS, *(a for a in arguments if a not in flags)],
            cwd=tmp_path, env=kept | more, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            start_new_session=True,
        )  # fmt: skip
        started.append(process)
        return process

    def pids():
        return {f.name: int(f.read_text()) for f in notes.iterdir() if f.stat().st_size}

    def ran(*arguments, **how):
        process = start(*arguments, **how)
        text, _ = process.communicate(timeout=250)
        return process.returncode, text

    yield types.SimpleNamespace(start=start, pids=pids, ran=ran, path=tmp_path, folder=tmp_path / "r")
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)  # its own group; its ranks die with their parent
        process.stdout.close()
        process.wait()


def trained(folder, rows=4):
    """Waits until some steps were recorded and a checkpoint lies there."""
    until = time.monotonic() + 200
    while time.monotonic() < until:
        metrics = folder / "metrics.jsonl"
        count = metrics.read_text().count('"train"') if metrics.exists() else 0
        if count >= rows and (folder / "checkpoint.pt").exists():
            return
        time.sleep(0.05)
    pytest.fail("no step was recorded")


def all_gone(pids, bound=BOUND):
    until = time.monotonic() + bound
    while any(places.started(pid) for pid in pids) and time.monotonic() < until:
        time.sleep(0.1)
    return not any(places.started(pid) for pid in pids)


def status(folder):
    return json.loads((folder / "status.json").read_text())


def the_same_as_undisturbed(here, *arguments):
    """The repeated command finishes the run with the weights, rows and summary of one that nothing happened
    to."""
    code, text = here.ran("hydra.run.dir=r", *arguments)
    assert code == 0 and "resumed at position" in text, text
    code, text = here.ran("hydra.run.dir=whole", *arguments)
    assert code == 0 and "resumed" not in text
    assert outcome(here.folder) == outcome(here.path / "whole")


@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_rank_that_is_killed_ends_the_run_within_a_minute_and_nothing_is_lost(here, rank):
    process = here.start("hydra.run.dir=r", pace=0.2)
    trained(here.folder)
    pids = here.pids()
    assert sorted(pids) == ["0", "1"]
    os.kill(pids[rank], signal.SIGKILL)
    began = time.monotonic()
    text, _ = process.communicate(timeout=200)
    assert time.monotonic() - began < BOUND and process.returncode == 1, text
    assert all_gone(pids.values(), 5)
    found = status(here.folder)
    assert found["state"] == "failed" and re.match(rf"rank {rank} .*(is gone|was killed)", found["error"])
    assert f"rank {rank} was killed by signal 9 (SIGKILL)" in text and "Resume with the same command" in text
    assert f"rank {rank} " in (here.folder / "log.txt").read_text()
    the_same_as_undisturbed(here)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_told_to_stop_all_save_and_go_on_later(here, number):
    process = here.start("hydra.run.dir=r", pace=0.2)
    trained(here.folder)
    pids = here.pids()
    code, text = here.ran("hydra.run.dir=r") if number == signal.SIGINT else (2, "is in use")
    assert code == 2 and "is in use" in text, "a second command in the same folder"
    process.send_signal(number)
    text, _ = process.communicate(timeout=BOUND)
    assert process.returncode == 130 and all_gone(pids.values(), 5)
    assert text.count("saving at the next step") == 1 and text.count("everything is saved") == 1
    assert status(here.folder)["state"] == "interrupted"
    rows = [r["position"] for r in runs.read_rows(here.folder) if r["event"] == "train"]
    assert 0 < rows[-1] < 20 * 96
    if number == signal.SIGTERM:  # what is saved is the same for both
        the_same_as_undisturbed(here)


def test_ctrl_c_twice_does_not_wait(here):
    process = here.start("hydra.run.dir=r", pace=5)
    until = time.monotonic() + 200
    while len(here.pids()) < 2 and time.monotonic() < until:
        time.sleep(0.1)
    time.sleep(3)  # in the first steps, none of which ends soon
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
    text, _ = process.communicate(timeout=BOUND)
    assert process.returncode == 130 and all_gone(here.pids().values(), 5), text
    assert status(here.folder)["state"] == "interrupted" and "Traceback" not in text


def test_a_mistake_is_one_message_and_a_finished_run_is_not_repeated(here):
    code, text = here.ran("hydra.run.dir=wrong", "dataset._target_=mine.missing")
    assert code == 2 and text.count("there is no such data: do this") == 1 and "Traceback" not in text
    assert status(here.path / "wrong")["state"] == "failed"
    code, text = here.ran("hydra.run.dir=r")
    assert code == 0 and text.count("folder: r") == text.count("epoch 20/20") == 1, text
    assert sorted(here.pids()) == ["0", "1"]
    before = outcome(here.folder)
    code, text = here.ran("hydra.run.dir=r")
    assert code == 0 and "finished already" in text and here.pids() == {} and outcome(here.folder) == before


def test_torchrun_makes_the_same_run_and_only_rank_0_speaks(here):
    code, text = here.ran("hydra.run.dir=r", "hardware.processes=2")
    assert code == 0, text
    code, text = here.ran("hydra.run.dir=t", "hardware.processes=null", command=TORCHRUN)
    assert code == 0 and text.count("test error") > 0 and text.count("folder: t") == 1, text
    assert "rank 1" not in text and text.count("report: t") == 1
    assert sorted(p.name for p in here.path.iterdir() if p.is_dir() and p.name != "__pycache__") == [
        "notes",
        "r",
        "t",
    ]
    assert sorted(p.name for p in (here.path / "t").iterdir()) == sorted(
        p.name for p in here.folder.iterdir()
    )
    one, other = outcome(here.folder), outcome(here.path / "t")
    assert one["weights"] == other["weights"] and one["rows"] == other["rows"]
    code, text = here.ran("hydra.run.dir=t", "hardware.processes=null", command=TORCHRUN)
    assert code == 0 and text.count("finished already") == 1 and outcome(here.path / "t") == other


@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        ("hardware.processes=3", "hardware.processes is null or the number"),
        ("epoch=3", "Did you mean 'epochs'"),
        ("-m", "a multirun is one process"),
    ],
)
def test_a_mistake_under_torchrun_is_told_once_even_where_rank_0_is_the_last_to_notice(here, mistake, words):
    """torchrun ends the other ranks as soon as one has failed: they leave rank 0 the time to tell."""
    (here.path / "sitecustomize.py").write_text(
        "import os, time\nif os.environ.get('RANK') == '0': time.sleep(4)\n"
    )
    code, text = here.ran("hydra.run.dir=u", mistake, command=TORCHRUN)
    assert code != 0 and text.count(words) == 1, text
    assert not list(here.path.glob("u/*")) and not (here.path / "outputs").exists()


@pytest.mark.parametrize("rank", ["0", "1"])
def test_under_torchrun_a_rank_that_is_killed_ends_the_run_too(here, rank):
    process = here.start("hydra.run.dir=r", "hardware.processes=null", pace=0.2, command=TORCHRUN)
    trained(here.folder)
    pids = here.pids()
    os.kill(pids[rank], signal.SIGKILL)
    text, _ = process.communicate(timeout=BOUND)
    assert process.returncode != 0 and all_gone(pids.values(), 5)
    assert re.search(rf"rank {rank} \(process {pids[rank]} on .*\) is gone", text), text
    code, text = here.ran("hydra.run.dir=r", "hardware.processes=null", command=TORCHRUN)
    assert code == 0 and "resumed at position" in text and status(here.folder)["state"] == "finished"


def test_from_python_and_swept(here):
    script = "import adabatch, json, sys\nprint(json.dumps(adabatch.run(sys.argv[1:])))"
    code, text = here.ran("hydra.run.dir=r", command=("-c", script))
    assert code == 0 and json.loads(text.splitlines()[-1]) == runs.Run(here.folder).summary, text
    assert sorted(here.pids()) == ["0", "1"]
    code, text = here.ran("-m", "hardware.processes=1,2,3")
    assert code == 0, text
    found = [runs.Run(p) for p in (here.path / "outputs").iterdir() if p.is_dir()]
    assert sorted(run.config["hardware"]["processes"] for run in found) == [1, 2, 3]
    assert {row["world_size"] for run in found for row in run.rows if row["event"] == "train"} == {1, 2, 3}
    assert "3 jobs" in text and text.count("finished") == 3
