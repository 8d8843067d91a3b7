"""The launcher on a machine without SLURM, or with stand-ins for its programs."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import slurm_runs
from slurm import ADABATCH

from adabatch import runs


@pytest.fixture
def cwd(tmp_path):
    return slurm_runs.place(tmp_path, slow=0)


def folders(cwd: Path) -> list[Path]:
    return sorted(cwd.glob("outputs/*-????????"))


def plain(cwd, *overrides, path=None):
    """The command on a machine without SLURM."""
    where = path or os.path.dirname(sys.executable)
    env = os.environ | {"PATH": where}
    words = [
        *ADABATCH,
        *(o for o in overrides if o == "-m"),
        *slurm_runs.RUN,
        *(o for o in overrides if o != "-m"),
    ]
    return subprocess.run(words, cwd=cwd, env=env, capture_output=True, text=True, timeout=120)


def stand_ins(folder: Path, **programs: str) -> dict:
    """An environment in which SLURM's programs are these lines of shell; the others do nothing."""
    folder.mkdir()
    for name in ("sbatch", "srun", "scontrol", "scancel", "squeue"):
        (folder / name).write_text(f"#!/bin/sh\n{programs.get(name, 'exit 0')}\n")
        (folder / name).chmod(0o755)
    return os.environ | {"PATH": f"{folder}:{os.environ['PATH']}"}


def signalled(cwd: Path, env: dict, calls: Path, number: int, *overrides: str):
    """(exit code, output, errors) of a submission that gets the signal while its first sbatch works."""
    words = (*ADABATCH, "-m", *slurm_runs.RUN, "hardware=slurm", *overrides)
    with subprocess.Popen(words, cwd=cwd, env=env, start_new_session=True, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:  # fmt: skip
        until = time.monotonic() + 60
        while not calls.exists() and time.monotonic() < until:
            time.sleep(0.05)
        os.killpg(process.pid, number)
        try:
            out, errors = process.communicate(timeout=30)
        finally:
            process.kill()
    return process.returncode, out, errors


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "number, code",
    [
        (signal.SIGINT, 130),
        pytest.param(signal.SIGTERM, 143, marks=SLOW),
        pytest.param(signal.SIGHUP, 129, marks=SLOW),
    ],
)
def test_a_signal_while_chains_are_submitted_ends_that_and_tells(cwd, tmp_path, number, code):
    """All three jobs of the first run are submitted, since a chain is one thing; the second run is not."""
    calls = tmp_path / "calls"
    count = f"echo >> {calls}; sleep 1; echo Submitted batch job $(wc -l < {calls})"
    env = stand_ins(tmp_path / "bin", sbatch=count)
    more = ("schedule=adabatch", "schedule.max_batch=256", "schedule.growth.every=0.25", "wait=true")
    more += ("hardware.phases=auto", "hardware.nodes=4,5")
    ended, out, errors = signalled(cwd, env, calls, number, *more)
    assert ended == code, errors
    assert len(calls.read_text()) == 3 and "Traceback" not in errors
    assert "interrupted; submitted as job 1" in out and "then 4 in job 3" in out, out
    assert len(folders(cwd)) == 1


@pytest.mark.slow
def test_ctrl_c_while_jobs_are_submitted_leaves_none_untold(cwd, tmp_path):
    """sbatch, which the terminal interrupts too, is let through; the second array is not submitted."""
    calls = tmp_path / "calls"
    env = stand_ins(tmp_path / "bin", sbatch=f"echo >> {calls}; sleep 2; echo Submitted batch job 41")
    ended, out, errors = signalled(cwd, env, calls, signal.SIGINT, "seed=0,1", "hardware.nodes=1,2")
    assert ended == 130, errors
    assert "interrupted; submitted 2 jobs as array 41" in out and "cancel: scancel 41" in out, out
    assert len(calls.read_text()) == 1 and "Traceback" not in errors
    states = {folder.name: runs.Run(folder).status for folder in folders(cwd)}
    assert sorted(s["job"]["id"] for s in states.values()) == ["41_0", "41_1"]


def submitted(cwd: Path, env: dict, *overrides: str) -> subprocess.CompletedProcess:
    words = (*ADABATCH, "-m", *slurm_runs.RUN, "hardware=slurm", *overrides)
    return subprocess.run(words, cwd=cwd, env=env, capture_output=True, text=True, timeout=100)


def test_where_a_folder_cannot_be_made_what_was_submitted_before_is_told(cwd, tmp_path):
    """The second array's folder is a file."""
    env = stand_ins(tmp_path / "bin", sbatch="echo Submitted batch job 41")
    (cwd / "outputs").mkdir()
    (cwd / "outputs/n2").touch()
    done = submitted(cwd, env, "hardware.nodes=1,2", "hydra.sweep.subdir=n${hardware.nodes}/run")
    assert done.returncode == 2 and "submitted as job 41" in done.stdout, done.stderr
    assert "name another hydra.sweep.dir" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
def test_slurm_is_asked_once_about_all_runs_that_are_there(cwd, tmp_path):
    """And of jobs that wait for ever the way out is told."""
    asked = tmp_path / "asked"
    rows = 'for n in 0 1 2; do echo "41_$n|4$n|PENDING|$(if [ $n = 1 ]; then echo JobHeldAdmin; fi)"; done'
    env = stand_ins(tmp_path / "bin", sbatch="echo Submitted batch job 41", squeue=f"echo >> {asked}; {rows}")
    for _ in range(2):
        done = submitted(cwd, env, "seed=0,1,2")
        assert done.returncode == 0, done.stderr
    assert len(asked.read_text()) == 1 and done.stdout.count("has it (submitted)") == 3, done.stdout
    assert done.stdout.count("scontrol release") == done.stdout.count("scontrol release 41_1 lets") == 1


def test_a_machine_without_sbatch(cwd):
    done = plain(cwd, "hardware=slurm")
    assert done.returncode == 2 and folders(cwd) == []
    assert len(done.stderr.splitlines()) == 1 and "sbatch and srun are not on this machine" in done.stderr


@pytest.mark.parametrize(
    "overrides, words",
    [
        (("hardware=cpu,slurm", "-m"), "one launcher starts all jobs of a multirun"),
        (("hardware=slurm", "hardware.nodes=0"), "hardware.nodes is a whole number above 0"),
        (("hardware=slurm", "hardware.nodes=2", "hardware.processes=3"), "a multiple of hardware.nodes=2"),
        (("hardware=slurm", "hydra.launcher.timeout_min=2"), "before it has begun"),
        (("hydra/launcher=local", "-m", "hardware=slurm", "hardware.nodes=2"), "has one node"),
        (("hardware=cpu", "hardware.nodes=2"), "nodes"),
        (("hardware=slurm", "hydra.launcher.partitoin=x"), "partitoin"),
        (("hardware=slurm", "hydra.launcher.gpus_per_node=a100:2"), "additional.gres='gpu:a100:2'"),
        (("hardware=slurm", "hydra.launcher.timeout_min=2:00:00"), "timeout_min=120"),
        (("hydra/launcher=local", "-m", "hydra.launcher.array_parallelism=0"), "from 1, got 0"),
        (("hardware=slurm", "hydra.run.dir=here"), "take hydra.sweep.dir=FOLDER"),
    ],
)
def test_what_no_job_can_be_is_said_before_anything_is_made(cwd, tmp_path, overrides, words):
    stand_ins(tmp_path / "bin", sbatch="exit 9", srun="exit 9")
    done = plain(cwd, *overrides, path=tmp_path / "bin")
    assert done.returncode == 2 and words in done.stderr, done.stderr
    assert folders(cwd) == []


def test_a_sweeper_that_needs_results_must_wait(cwd):
    """Hydra's own example of another sweeper is not installed: a subclass in its namespace stands for one."""
    package = cwd / "hydra_plugins/other_sweeper"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(
        "from hydra._internal.core_plugins.basic_sweeper import BasicSweeper\n\n\nclass "
        "Other(BasicSweeper):\n    pass\n"
    )
    more = ("hydra/launcher=local", "hydra.sweeper._target_=hydra_plugins.other_sweeper.Other", "-m")
    done = plain(cwd, *more)
    assert done.returncode == 2 and "nothing may choose by the test set" in done.stderr, done.stderr
    done = plain(cwd, *more, "dataset.validation=100")
    assert done.returncode == 2 and "take wait=true" in done.stderr, done.stderr
    assert folders(cwd) == []


def test_the_plugin_is_found_and_light():
    """Hydra loads it at every start of the command."""
    code = (
        "import sys, hydra_plugins.adabatch_launcher as one, adabatch\n"
        "from hydra.core.plugins import Plugins\n"
        "from hydra.plugins.launcher import Launcher\n"
        "print(sorted(c.__name__ for c in Plugins.instance().discover(Launcher) if 'adabatch' in "
        "c.__module__))\n"
        "print(sorted({'submitit', 'torch', 'cloudpickle'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["['LocalLauncher', 'SlurmLauncher']", "[]"]


def test_a_job_is_plain_data(monkeypatch, tmp_path):
    """No class of ours or of the user's is in what travels: the node imports only adabatch."""
    import pickletools

    import cloudpickle
    from hydra_plugins.adabatch_launcher._launch import Job

    import adabatch.submitted

    job = Job(["seed=0"], {"seed": 0}, (), tmp_path, {"nodes": 1})
    data = cloudpickle.dumps((adabatch.submitted.run, job.payload(("hydra.sweep.dir=x",))))
    names = [argument for code, argument, _ in pickletools.genops(data) if "UNICODE" in code.name]
    assert "adabatch.submitted" in names and not [n for n in names if "hydra" in n and "sweep.dir" not in n]
    assert json.loads(json.dumps(job.payload()))["folder"] == str(tmp_path)
    assert shutil.which("true")
