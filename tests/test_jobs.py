"""A run from its configuration to its exit code, with a stand-in for the training."""

import errno
import json
import logging
import os
import signal
import sys
import threading
import time
import types

import pytest

from adabatch import jobs, owner, runs
from adabatch.errors import Diverged, Interrupted, UserError

CONFIG = {
    "model": {"_target_": "adabatch.x.Net"}, "dataset": {"_target_": "adabatch.x.load"}, "seed": 0,
    "epochs": 1,
    "hardware": {"device": "cpu"}, "restart": False,
}  # fmt: skip
SUMMARY = {
    "final_test_error": 0.0125,
    "steps": 10,
    "epochs": 1,
    "train_seconds": 2.5,
    "images_per_second": 400.0,
}


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch):
    """`train` calls whatever a test puts into `behaviour`; the report is a file."""
    calls = types.SimpleNamespace(trained=0, behaviour=lambda config, folder, stop: dict(SUMMARY))

    def train(config, folder, stop):
        calls.trained += 1
        summary = calls.behaviour(config, folder, stop)
        runs.write_json(folder / "summary.json", summary)
        return summary

    def write_run(folder):
        (folder / "report.html").write_text("report")

    monkeypatch.setitem(sys.modules, "adabatch.train", types.SimpleNamespace(train=train))
    monkeypatch.setitem(sys.modules, "adabatch.report", types.SimpleNamespace(write_run=write_run))
    log = logging.getLogger("adabatch")
    monkeypatch.setattr(log, "handlers", [])
    monkeypatch.setattr(log, "propagate", True)
    monkeypatch.setattr(jobs, "terminal", lambda: log.setLevel(logging.INFO))
    return calls


def run(folder, overrides=("seed=0",), **changes):
    return jobs.run_job({**CONFIG, **changes}, folder, overrides)


def raising(error):
    def behaviour(*_):
        raise error

    return behaviour


def status(folder):
    return json.loads((folder / "status.json").read_text())


def test_a_run_leaves_what_the_contract_names(tmp_path, caplog):
    summary, code = jobs.run_job(CONFIG, tmp_path / "r", ["seed=0"], notes=["a key was dropped"])
    found = runs.Run(tmp_path / "r")
    assert (
        code == 0 and found.state == "finished" and found.config == CONFIG and found.overrides == ["seed=0"]
    )
    assert summary == found.summary and summary["final_test_error"] == 0.0125 and summary["format"] == 1
    assert summary["identity"] == found.identity == runs.identity(CONFIG) and summary["overrides"] == [
        "seed=0"
    ]
    environment = found.environment
    assert (
        environment["python"].startswith("3.")
        and environment["versions"]["hydra-core"]
        and environment["cores"]
    )
    assert environment["argv"] == sys.argv and (tmp_path / "r" / "report.html").is_file()
    assert "a key was dropped" in (tmp_path / "r" / "log.txt").read_text()
    assert (
        "test error 1.25 %" in caplog.text
        and "400 samples/s" in caplog.text
        and str(tmp_path / "r") in caplog.text
    )


def test_a_finished_run_is_not_run_again_but_its_summary_given(tmp_path, stand_ins, caplog):
    first, _ = run(tmp_path / "r")
    again, code = run(tmp_path / "r")
    assert again == first and code == 0 and stand_ins.trained == 1
    assert "finished already" in caplog.text and "restart=true" in caplog.text


def test_restart_moves_the_earlier_run_aside(tmp_path, stand_ins):
    run(tmp_path / "r")
    (tmp_path / "r" / "mark").write_text("first")
    run(tmp_path / "r", restart=True)
    assert stand_ins.trained == 2 and (tmp_path / "r.old1" / "mark").read_text() == "first"
    assert not (tmp_path / "r" / "mark").exists() and status(tmp_path / "r")["state"] == "finished"
    assert status(tmp_path / "r.old1")["state"] == "finished"


def test_restart_does_not_move_a_run_that_somebody_is_working_in(tmp_path, stand_ins):
    held = owner.Owner.claim(tmp_path / "r")
    assert run(tmp_path / "r", restart=True) == (None, 2)
    held.finish("interrupted")
    assert os.listdir(tmp_path) == ["r"] and stand_ins.trained == 0


def test_a_folder_in_use_is_left_alone(tmp_path, stand_ins, caplog):
    held = owner.Owner.claim(tmp_path / "r")
    before = sorted(os.listdir(tmp_path / "r"))
    assert run(tmp_path / "r") == (None, 2) and "is in use" in caplog.text
    assert sorted(os.listdir(tmp_path / "r")) == before and status(tmp_path / "r")["state"] == "running"
    held.finish("finished")


def test_a_damaged_status_says_what_to_do_and_that_helps(tmp_path, stand_ins, caplog):
    run(tmp_path / "r")
    (tmp_path / "r" / "status.json").write_text("")
    assert run(tmp_path / "r") == (None, 2) and "Delete it: the run goes on" in caplog.text
    (tmp_path / "r" / "status.json").unlink()
    assert run(tmp_path / "r")[1] == 0 and status(tmp_path / "r")["state"] == "finished"


def test_a_folder_of_another_run_is_refused(tmp_path, stand_ins, caplog):
    run(tmp_path / "r")
    assert run(tmp_path / "r", epochs=2) == (None, 2)
    assert "another configuration (different: epochs)" in caplog.text and stand_ins.trained == 1
    assert runs.Run(tmp_path / "r").config["epochs"] == 1
    assert run(tmp_path / "r", epochs=2, restart=True)[1] == 0


@pytest.mark.parametrize(
    "error, state, code, said",
    [
        (UserError("no such data: do this"), "failed", 2, "no such data: do this"),
        (Diverged("at position 5"), "diverged", 1, "at position 5"),
        (Interrupted("SIGTERM"), "interrupted", 130, "adabatch seed=0"),
        (KeyboardInterrupt(), "interrupted", 130, "adabatch seed=0"),
        (MemoryError(), "out_of_memory", 1, "micro_batch"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
        "out_of_memory", 1, "mem"),
        (RuntimeError("CUDA error: out of memory"), "out_of_memory", 1, "out of memory"),
        (OSError(errno.ENOSPC, "No space left on device"), "failed", 1, "disk full"),
        (RuntimeError("a bug"), "failed", 1, "a bug"),
        (OSError(errno.EIO, "broken"), "failed", 1, "broken"),
    ],
)  # fmt: skip
def test_every_end_has_its_state_its_code_and_its_message(
    tmp_path, stand_ins, caplog, error, state, code, said
):
    stand_ins.behaviour = raising(error)
    assert run(tmp_path / "r") == (None, code)
    assert status(tmp_path / "r")["state"] == state and said in status(tmp_path / "r")["error"]
    assert said in caplog.text and (tmp_path / "r" / "report.html").is_file()
    traced = "Traceback" in (tmp_path / "r" / "log.txt").read_text()
    expected = code == 1 and state != "diverged" and said != "disk full"
    assert traced == expected, "a traceback for the program's failures only"
    stand_ins.behaviour = lambda *_: dict(SUMMARY)
    assert run(tmp_path / "r")[1] == 0, "the same command goes on"


def test_a_full_disk_behind_torchs_writer_is_recognised(tmp_path, monkeypatch):
    from adabatch import outcome

    torchs = RuntimeError(
        "[enforce fail at inline_container.cc:672] . PytorchStreamWriter failed writing file data/0"
    )
    monkeypatch.setattr(outcome.shutil, "disk_usage", lambda _: types.SimpleNamespace(free=1000))
    assert outcome.full(torchs, tmp_path)
    monkeypatch.setattr(outcome.shutil, "disk_usage", lambda _: types.SimpleNamespace(free=1 << 40))
    assert not outcome.full(torchs, tmp_path)
    try:
        raise RuntimeError("wrapped") from OSError(errno.ENOSPC, "No space left on device")
    except RuntimeError as error:
        assert outcome.full(error, tmp_path)


def test_torchs_out_of_memory_error_needs_no_import_of_torch(tmp_path, stand_ins, monkeypatch):
    class OutOfMemoryError(RuntimeError):
        pass

    fake = types.SimpleNamespace(OutOfMemoryError=OutOfMemoryError)
    stand_ins.behaviour = raising(OutOfMemoryError("tried to allocate"))
    monkeypatch.setitem(sys.modules, "torch", fake)
    assert run(tmp_path / "r")[1] == 1 and status(tmp_path / "r")["state"] == "out_of_memory"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_at_the_next_step_and_the_handlers_come_back(tmp_path, stand_ins, number):
    def behaviour(config, folder, stop):
        assert stop() is None
        os.kill(os.getpid(), number)
        time.sleep(0.01)
        raise Interrupted(stop())

    before = signal.getsignal(number)
    stand_ins.behaviour = behaviour
    assert run(tmp_path / "r") == (None, 130)
    assert signal.getsignal(number) is before and number.name in status(tmp_path / "r")["error"]


def test_a_second_ctrl_c_does_not_wait(tmp_path, stand_ins):
    def behaviour(config, folder, stop):
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)
        pytest.fail("went on")

    stand_ins.behaviour = behaviour
    assert run(tmp_path / "r") == (None, 130)
    assert "is lost" in status(tmp_path / "r")["error"]


def test_outside_the_main_thread_no_handler_is_needed(tmp_path):
    found = []
    thread = threading.Thread(target=lambda: found.append(run(tmp_path / "r")))
    thread.start()
    thread.join(30)
    assert found[0][1] == 0


def test_a_run_that_was_taken_over_stops_and_writes_nothing_more(tmp_path, stand_ins, monkeypatch):
    monkeypatch.setattr(owner, "BEAT", 0.02)

    def behaviour(config, folder, stop):
        theirs = {
            "format": 1,
            "state": "running",
            "error": None,
            "owner": {**owner.me(), "host": "elsewhere"},
        }
        with owner.locked(folder):  # as every process writes it: the heartbeat is writing, too
            owner.write_status(folder / "status.json", theirs)
        for _ in range(500):
            stop()
            time.sleep(0.02)
        pytest.fail("the loss was not noticed")

    stand_ins.behaviour = behaviour
    assert run(tmp_path / "r") == (None, 1)
    assert (
        status(tmp_path / "r")["owner"]["host"] == "elsewhere"
        and status(tmp_path / "r")["state"] == "running"
    )


def test_a_report_that_fails_is_a_warning(tmp_path, monkeypatch, caplog):
    broken = types.SimpleNamespace(write_run=lambda folder: 1 / 0)
    monkeypatch.setitem(sys.modules, "adabatch.report", broken)
    assert run(tmp_path / "r")[1] == 0 and status(tmp_path / "r")["state"] == "finished"
    assert "no report" in caplog.text


def test_from_python_the_summary_comes_back_and_errors_are_raised(tmp_path, monkeypatch, stand_ins):
    import adabatch

    monkeypatch.chdir(tmp_path)
    assert adabatch.run(["seed=1"])["final_test_error"] == 0.0125
    (folder,) = (tmp_path / "outputs").iterdir()
    assert (
        folder.name.startswith("seed=1-")
        and adabatch.run(["seed=1"])["steps"] == 10
        and stand_ins.trained == 1
    )
    with pytest.raises(adabatch.UserError, match="Did you mean 'epochs'"):
        adabatch.run(["epoch=1"])
    stand_ins.behaviour = raising(Diverged("x"))
    with pytest.raises(adabatch.Diverged):
        adabatch.run(["seed=2", "hydra.run.dir=named"])
    assert status(tmp_path / "named")["state"] == "diverged"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["named", "outputs"]


def test_killed_between_the_summary_and_the_state_nothing_is_trained_again(stand_ins, tmp_path):
    folder = tmp_path / "run"
    run(folder)
    status = runs.read_json(folder / "status.json")
    runs.write_json(
        folder / "status.json", status | {"state": "running", "owner": status["owner"] | {"pid": 1}}
    )
    summary, code = run(folder)
    assert code == 0 and summary["final_test_error"] == SUMMARY["final_test_error"]
    assert stand_ins.trained == 1 and runs.read_json(folder / "status.json")["state"] == "finished"


def test_keep_none_removes_the_checkpoint_once_the_run_is_recorded_as_finished(stand_ins, tmp_path):
    def behaviour(config, folder, stop):
        (folder / "checkpoint.pt").write_text("state")
        return dict(SUMMARY)

    stand_ins.behaviour = behaviour
    for keep, left in (("last", True), ("none", False)):
        run(tmp_path / keep, checkpoint={"keep": keep})
        assert (tmp_path / keep / "checkpoint.pt").exists() == left


def test_from_python_with_the_real_training(tmp_path, monkeypatch):
    """adabatch.run returns the summary, twice the same one, also inside a program that has its own loop."""
    import adabatch

    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    asked = [
        "epochs=0.05",
        "hardware=cpu",
        "hardware.threads=1",
        "trackers.wandb.mode=disabled",
        "checkpoint.keep=none",
    ]
    first = adabatch.run(overrides=asked)
    assert first["samples"] == 72 and first["model"] == "convnet" and first["schedule"] == "fixed"
    (folder,) = (tmp_path / "outputs").iterdir()
    assert {"report.html", "curves.png", "config.yaml", "environment.json"} <= {
        p.name for p in folder.iterdir()
    }
    assert not list(folder.glob("*.pt"))
    assert adabatch.run(overrides=asked) == first
    with pytest.raises(UserError, match="Did you mean 'epochs'"):
        adabatch.run(overrides=["epoch=1"])


def test_a_finished_run_says_what_it_lacks(stand_ins, tmp_path, caplog):
    run(tmp_path / "run", checkpoint={"best": False, "keep": "none"})
    with caplog.at_level("INFO", logger="adabatch"):
        run(tmp_path / "run", checkpoint={"best": True, "keep": "last"}, timing="phases")
    assert "checkpoint.best, checkpoint.keep, timing" in caplog.text and "restart=true" in caplog.text
    assert stand_ins.trained == 1
