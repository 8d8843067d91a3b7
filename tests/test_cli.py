"""The command line as a user meets it: codes, messages, what is left behind, and what is not imported."""

import json
import os
import resource
import subprocess
import sys
import types
from pathlib import Path

import pytest
from hydra._internal.utils import get_args_parser

from adabatch import __main__ as cli
from adabatch import config, jobs, runs, sweep

ROOT = Path(__file__).resolve().parents[1]
SUMMARY = {"final_test_error": 0.25, "steps": 10, "epochs": 1, "train_seconds": 2.0}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty current directory and a training that only writes down what it was given."""

    def train(config, folder, stop):
        if config["seed"] == 13:
            raise RuntimeError("unlucky")
        runs.write_json(folder / "given.json", config)
        return dict(SUMMARY)

    monkeypatch.setitem(sys.modules, "adabatch.train", types.SimpleNamespace(train=train))
    monkeypatch.setitem(sys.modules, "adabatch.report", types.SimpleNamespace(write_run=lambda folder: None))
    monkeypatch.setattr(sweep, "records", [])
    monkeypatch.setattr(sweep, "import_torch", lambda: None)
    monkeypatch.setattr(sweep, "may_fork", lambda config: True)
    monkeypatch.setattr(jobs, "terminal", lambda: None)
    monkeypatch.setattr(config, "_swept", [])
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.setenv("ADABATCH_DATA", "no_such_data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_run_lies_in_outputs_under_its_overrides_and_hex(here):
    assert cli.command(["seed=3", "model=vgg"]) == 0
    (folder,) = (here / "outputs").iterdir()
    found = runs.Run(folder)
    assert folder.name == f"model=vgg-seed=3-{found.identity}" and found.state == "finished"
    assert found.overrides == ["seed=3", "model=vgg"] and found.config["seed"] == 3
    given = json.loads((folder / "given.json").read_text())
    assert given == found.config and "hydra" not in given and not (folder / ".hydra").exists()
    assert os.getcwd() == str(here) and os.listdir(here) == ["outputs"]
    assert cli.command(["model=vgg", "seed=3", "trackers.wandb.mode=offline"]) == 0
    assert len(list((here / "outputs").iterdir())) == 1, "another order, another tracker: the same run"


def test_hydra_run_dir_names_the_folder(here):
    assert cli.command(["hydra.run.dir=named/so"]) == 0
    assert runs.Run(here / "named" / "so").state == "finished" and not (here / "outputs").exists()


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["epoch=3"], "Did you mean 'epochs'"), (["+epoch=3"], "Did you mean 'epochs'"),
        (["model=vg"], "Did you mean 'vgg'"), (["epochs=0"], "above 0"),
        (["hydra.run.dir=x", "+epoch=3"], "'epochs'"),
        (["-m", "seed=0,1", "+epoch=3"], "job 0 of 2"), (["-m", "seed=0,-1"], "job 1 of 2 (seed=-1)"),
        (["-m", "schedule=fixed,adabtch"], "Did you mean 'adabatch'"),
        (["-m", "epoch=1,2"], "Did you mean 'epochs'"),
        (["-m", "hydra.sweep.dir=x", "seed=0,-1"], "job 1"), (["--cfg", "job", "+epoch=3"], "'epochs'"),
        (["model._target_=no_such.Net"], "no module 'no_such'"), (["--cfg", "job", "-m"], "Only one of"),
        (["-m", "seed=0,1", "dataset=cifar10", "dataset.root=no"], "job 0 of 2 (seed=0 dataset=cifar10"),
        (["-m", "dataset=mnist5k,cifar10"], "job 1 of 2 (dataset=cifar10): dataset cifar10"),
        (["seed=0,1"], "seed"), (["-cd", "no_such_dir", "seed=1"], "no_such_dir"),
    ],
)  # fmt: skip
def test_a_refused_command_is_one_message_code_two_and_leaves_nothing(here, capsys, arguments, said):
    assert cli.command(arguments) == 2
    shown = capsys.readouterr()
    assert said in shown.err and shown.err.startswith("adabatch: ") and "Traceback" not in shown.err
    assert shown.out == "" and os.listdir(here) == []


def test_a_failure_of_the_program_is_code_one(here):
    assert cli.command(["seed=13"]) == 1
    (folder,) = (here / "outputs").iterdir()
    assert runs.Run(folder).state == "failed" and "unlucky" in runs.Run(folder).status["error"]


def test_the_config_is_shown_and_nothing_run(here, capsys):
    assert cli.command(["--cfg", "job", "seed=7"]) == 0
    shown = capsys.readouterr().out
    assert "seed: 7" in shown and "hydra:" not in shown and os.listdir(here) == []


def test_help_begins_with_what_people_type_first(here, capsys):
    assert cli.command(["--help"]) == 0
    shown = capsys.readouterr().out
    assert (
        "adabatch model=vgg schedule=adabatch" in shown
        and "adadamp, adascale" in shown
        and "Hydra" not in shown
    )
    for group in config.GROUPS:
        assert f"\n{group}: " in shown
    assert os.listdir(here) == []


def test_shell_completion_knows_groups_options_and_keys(here, capsys, monkeypatch):
    monkeypatch.setenv("COMP_LINE", "adabatch schedule=ad")
    monkeypatch.setenv("COMP_POINT", "20")
    assert cli.command(["-sc", "query=bash"]) == 0
    assert "schedule=adabatch" in capsys.readouterr().out


@pytest.mark.parametrize(
    "line",
    [
        ["-m", "seed=1,2", "--config-dir", "own", "model=mine"],
        ["seed=1,2", "-m", "-cd", "own", "model=mine"],
        ["--config-dir=own", "seed=1,2", "--multirun", "model=mine"],
        ["model=mine", "-cd", "own", "seed=1,2", "-m"],
    ],
)
def test_options_stand_anywhere_between_overrides(here, line):
    (here / "own" / "model").mkdir(parents=True)
    (here / "own" / "model" / "mine.yaml").write_text((ROOT / "conf/model/vgg.yaml").read_text())
    assert cli.command(line) == 0
    found = [runs.Run(path).config for path in (here / "outputs").iterdir() if path.is_dir()]
    assert sorted(config["seed"] for config in found) == [1, 2]
    assert {config["options"]["model"] for config in found} == {"mine"}


def test_what_only_shows_is_shown_once_wherever_its_option_stands(here, capfd):
    for line, shown in ((["seed=7", "--cfg", "job", "epochs=3"], "epochs: 3"), (["--version"], "Hydra")):
        assert cli.command(line) == 0
        assert capfd.readouterr().out.count(shown) == 1 and not os.listdir(here)
    for line in (["a=1", "b=2", "--info", "-m"], ["--info", "all", "a=1", "-m", "b=2"]):
        found = get_args_parser().parse_args(cli._overrides_first(line))
        assert (found.overrides, found.multirun, found.info) == (["a=1", "b=2"], True, "all")


def test_a_multirun_goes_on_past_a_failure_and_shows_all(here, capsys):
    assert cli.command(["-m", "seed=0,13,2", "epochs=1"]) == 1
    shown = capsys.readouterr().out
    assert "3 jobs, all with epochs=1" in shown and "failed (1)" in shown and "25.00 %" in shown
    states = {
        f.name.rpartition("-")[0]: runs.Run(f).state for f in (here / "outputs").iterdir() if f.is_dir()
    }
    assert states == {
        "seed=0-epochs=1": "finished",
        "seed=13-epochs=1": "failed",
        "seed=2-epochs=1": "finished",
    }


def test_a_job_of_a_multirun_is_the_same_run_as_alone(here, capsys):
    assert cli.command(["seed=2", "schedule=adabatch"]) == 0
    alone = runs.Run(next((here / "outputs").iterdir()))
    before = (alone.folder / "given.json").stat().st_mtime_ns
    assert cli.command(["-m", "schedule=adabatch", "seed=2,3"]) == 0
    assert len([f for f in (here / "outputs").iterdir() if f.is_dir()]) == 2
    assert (alone.folder / "given.json").stat().st_mtime_ns == before, "found finished, not run again"


def test_swept_keys_outside_the_identity_have_folders_of_their_own(here, capsys):
    assert cli.command(["-m", "hardware.micro_batch=8,16", "seed=1"]) == 0
    names = sorted(f.name for f in (here / "outputs").iterdir() if f.is_dir())
    assert len(names) == 2 and len({name[-8:] for name in names}) == 1
    assert ["micro_batch=16" in names[0], "micro_batch=8" in names[1]] == [True, True]
    assert cli.command(["hardware.micro_batch=4", "seed=1"]) == 0
    assert len([f for f in (here / "outputs").iterdir() if f.is_dir()]) == 3


def test_an_interrupted_multirun_starts_no_other_job(here, monkeypatch, capsys):
    begun = []

    def isolated(config, folder, overrides, notes, named):
        begun.append(overrides)
        sweep.records.append({"overrides": overrides, "folder": str(folder), "state": "interrupted",
        "error": "SIGINT",
                              "exit_code": 130, "summary": None})  # fmt: skip
        raise KeyboardInterrupt

    monkeypatch.setattr(sweep, "run_isolated", isolated)
    assert cli.command(["-m", "seed=0,1,2"]) == 130
    assert begun == [["seed=0"]] and "interrupted" in capsys.readouterr().out


def test_a_run_folder_can_be_named_without_quotes(here):
    assert cli.command(["seed=1"]) == 0
    folder = next((here / "outputs").iterdir()).relative_to(here)
    (folder / "weights.pt").write_bytes(b"weights")
    assert cli.command(["seed=2", f"model.init_from={folder}"]) == 0
    assert {runs.Run(f).config["model"]["init_from"] for f in (here / "outputs").iterdir()} == {
        None,
        str(folder),
    }


def alone(*arguments, code="", cwd=None):
    """The command in a process of its own: (exit code, output, CPU seconds). It must not import torch."""
    script = (
        "import sys; from adabatch.__main__ import command\n"
        f"rc = command({list(arguments)!r})\n"
        "heavy = {'torch', 'torchvision', 'wandb', 'matplotlib', 'sklearn'} & set(sys.modules)\n"
        "assert not heavy, heavy\nsys.exit(rc)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=cwd, env=environment, capture_output=True, text=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (
        done.returncode,
        done.stdout + done.stderr,
        after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
    )


@pytest.mark.parametrize(
    "arguments, code",
    [(["--help"], 0), (["--cfg", "job"], 0), (["modle=vgg"], 2), (["+modle=vgg"], 2), (["model=vg"], 2),
    (["epochs=0"], 2), (["dataset=mnist", "dataset.root=none"], 2)],
)  # fmt: skip
def test_answers_that_need_no_training_come_at_once(tmp_path, arguments, code):
    """1 s on a quiet machine (docs/log.md). What tells is that nothing heavy was imported; the time is held
    to what a slow machine keeps, the better of two."""
    tries = []
    for _ in range(2):
        found, shown, seconds = alone(*arguments, cwd=tmp_path)
        assert found == code, shown
        tries.append(seconds)
        if seconds < 15:
            break
    assert min(tries) < 15


def test_importing_the_package_is_light():
    script = (
        "import sys, adabatch; assert adabatch.__version__ and 'run' in dir(adabatch)\n"
        "assert not {'torch', 'numpy', 'hydra', 'omegaconf', 'yaml'} & set(sys.modules)\n"
        "adabatch.UserError; assert not {'torch', 'hydra'} & set(sys.modules)\n"
        "try: adabatch.nothing\nexcept AttributeError: pass\nelse: raise SystemExit(1)"
    )
    subprocess.run([sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True)


def test_python_dash_m_refuses_as_the_script_does(tmp_path):
    done = subprocess.run([sys.executable, "-m", "adabatch", "epoch=1"], cwd=tmp_path, capture_output=True,
    text=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT)})  # fmt: skip
    assert done.returncode == 2 and "Did you mean 'epochs'" in done.stderr and os.listdir(tmp_path) == []


def test_a_folder_that_cannot_be_made_is_one_message(here, capsys):
    (here / "file").write_text("no folder")
    assert cli.command(["seed=1", f"hydra.run.dir={here}/file/run"]) == 2
    said = capsys.readouterr()
    assert "cannot be written" in said.err + said.out and "Traceback" not in said.err
