"""Multirun: each job in a process of its own. Children are forked from this process, so they see its
stand-ins."""

import json
import logging
import os
import signal
import sys
import threading
import time
import types

import pytest

from adabatch import jobs, owner, runs, sweep
from adabatch.errors import Interrupted

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
    monkeypatch.setattr(sweep, "records", [])
    return calls


def status(folder):
    return json.loads((folder / "status.json").read_text())


def isolated(folder, overrides=("seed=0",), **more):
    return sweep.run_isolated(CONFIG, folder, list(overrides), fork=True, **more)


def _by_seed(config, folder, stop):
    end = json.loads((folder / "end").read_text()) if (folder / "end").exists() else None
    if end == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if end == "exit":
        os._exit(7)
    if end == "exit0":
        os._exit(0)
    if end == "raise":
        raise RuntimeError("a bug")
    if end == "wait":
        while stop() is None:
            time.sleep(0.01)
        raise Interrupted(stop())
    if end == "hangup":
        os.kill(os.getpid(), signal.SIGHUP)
    return dict(SUMMARY)


def prepared(folder, end):
    folder.mkdir()
    (folder / "end").write_text(json.dumps(end))
    return folder


@pytest.mark.parametrize(
    "end, code, state, said",
    [
        ("kill", -9, "failed", "signal 9 (SIGKILL), out of memory?"),
        ("exit", 7, "failed", "exited with code 7"),
        ("exit0", 1, "failed", "exited with code 0"), ("raise", 1, "failed", "a bug"),
        ("hangup", -1, "failed", "SIGHUP"), (None, 0, "finished", None),
    ],
)  # fmt: skip
def test_a_job_that_dies_is_recorded_and_this_process_lives(tmp_path, stand_ins, end, code, state, said):
    stand_ins.behaviour = _by_seed
    record = isolated(prepared(tmp_path / "r", end))
    assert (record["exit_code"], record["state"]) == (code, state) and status(tmp_path / "r")[
        "state"
    ] == state
    assert record["error"] is None if said is None else said in record["error"]
    assert (record["summary"] or {}).get("final_test_error") == (0.0125 if end is None else None)
    assert stand_ins.trained == 0, "the training was not in this process"


def test_a_finished_job_whose_folder_another_sweeper_claims_at_once_has_not_died(tmp_path, stand_ins):
    """It had looked before the end and claims after it: the folder is running when this process looks."""
    stand_ins.behaviour = _by_seed
    folder = prepared(tmp_path / "r", None)
    pid = isolated(folder) and status(folder)["owner"]["pid"]
    other = owner.Owner.claim(folder)
    record = sweep._record(folder, ["seed=0"], 0, pid, False)
    other.finish("finished")
    assert (record["state"], record["error"], record["exit_code"]) == ("finished", None, 0)
    assert record["summary"]["final_test_error"] == 0.0125


@pytest.mark.parametrize("alive, state", [(True, "in use"), (False, "refused")])
def test_a_job_that_is_refused_is_in_use_only_while_its_owner_lives(tmp_path, stand_ins, alive, state):
    """Another process was killed in this folder, and the job cannot start for a reason of its own."""
    stand_ins.behaviour = _by_seed
    folder = prepared(tmp_path / "r", "kill")
    isolated(folder)
    other = owner.Owner.claim(folder) if alive else None
    if not alive:
        gone = status(folder) | {"state": "running"}
        gone["owner"] |= {"pid": 2**22 + 1, "heartbeat": 0.0}
        owner.write_status(folder / "status.json", gone)
    assert sweep._record(folder, ["seed=0"], 2, 1, False)["state"] == state
    if alive:
        other.finish("interrupted")


def test_what_comes_after_the_table_may_fail(tmp_path, stand_ins, monkeypatch):
    stand_ins.behaviour = _by_seed
    isolated(prepared(tmp_path / "a", None))
    for codes, code in (([lambda: None], 0), ([lambda: 0, lambda: 2], 2)):
        monkeypatch.setattr(sweep, "epilogue", codes)
        assert sweep.show() == code


def test_the_table_tells_all_jobs_and_the_code_is_one_if_any_failed(tmp_path, stand_ins, capsys):
    stand_ins.behaviour = _by_seed
    isolated(prepared(tmp_path / "a", None), ["epochs=1", "seed=0"])
    assert sweep.show() == 0
    isolated(prepared(tmp_path / "b", "kill"), ["epochs=1", "seed=1"])
    isolated(prepared(tmp_path / "c", None), ["epochs=1", "seed=2"])
    capsys.readouterr()
    assert sweep.show() == 1
    shown = capsys.readouterr().out
    assert "3 jobs, all with epochs=1" in shown and "1.25 %" in shown and "failed (-9)" in shown
    assert "job 1: killed by signal 9" in shown and [r["state"] for r in sweep.records] == [
        "finished",
        "failed",
        "finished",
    ]


def test_a_comparison_s_table_has_a_line_for_each_run_in_a_narrow_window():
    """Its runs share a folder, told once; the end of a run's own name finds it there."""
    from rich.console import Console

    def job(seed: int, end: str) -> dict:
        typed = ["dataset=digits", "compare.arm='mean-matched 80'", "compare.stage=verdict", f"seed={seed}"]
        folder = f"outputs/own/dataset=digits-seed={seed}-epochs=1-dataset.limit=400-experiment=co-{end}"
        return {"overrides": typed, "folder": folder, "state": "finished", "summary": None, "exit_code": 0}

    console = Console(width=80)
    with console.capture() as shown:
        console.print(sweep.table([job(0, "4f5abe2d"), job(1, "ea2c8022")]))
    title, *lines = shown.get().strip().splitlines()
    rows = [line for line in lines if "finished" in line]
    assert "2 jobs in outputs/own" in title and len(lines) == 6 and len(rows) == 2
    assert "mean-matched 80 seed=0" in rows[0] and "*-4f5abe2d" in rows[0]
    assert "mean-matched 80 seed=1" in rows[1] and "*-ea2c8022" in rows[1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reaches_the_job_once_and_ends_the_sweep(tmp_path, stand_ins, number):
    stand_ins.behaviour = _by_seed
    folder = prepared(tmp_path / "r", "wait")

    def send():
        while not (folder / "status.json").exists():
            time.sleep(0.01)
        time.sleep(0.2)
        os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    threading.Thread(target=send).start()
    with pytest.raises(KeyboardInterrupt):
        isolated(folder)
    assert status(folder)["state"] == "interrupted" and sweep.records[0]["exit_code"] == 130
    assert signal.getsignal(number) is before


def test_a_fork_needs_a_parent_that_nothing_has_happened_in(monkeypatch):
    fake = types.SimpleNamespace(cuda=types.SimpleNamespace(is_initialized=lambda: False))
    monkeypatch.setitem(sys.modules, "torch", fake)
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(run=None))
    monkeypatch.setattr(threading, "active_count", lambda: 1)
    monkeypatch.setattr(sweep, "native_threads", lambda: 3)
    monkeypatch.setattr(sweep, "_threads_after_import", 3)
    monkeypatch.setattr(sys, "platform", "linux")
    assert sweep.may_fork(CONFIG)
    assert not sweep.may_fork({"model": {"_target_": "mine.Net"}}), (
        "importing a stranger's module may do anything"
    )
    for where, name, value in [
        (sweep, "_threads_after_import", None), (sweep, "native_threads", lambda: 4),
        (sys, "platform", "darwin"),
        (threading, "active_count", lambda: 2), (fake.cuda, "is_initialized", lambda: True),
        (sys.modules["wandb"], "run", object()),
    ]:  # fmt: skip
        with monkeypatch.context() as once:
            once.setattr(where, name, value)
            assert not sweep.may_fork(CONFIG), name
    monkeypatch.delitem(sys.modules, "torch")
    assert not sweep.may_fork(CONFIG)


def test_a_fresh_process_runs_the_job_as_well(tmp_path, monkeypatch):
    """The stand-in is a file here, found before the real module by way of the path that the child is
    given."""
    package = tmp_path / "adabatch_stub"
    package.mkdir()
    (package / "sitecustomize.py").write_text(
        "import sys, types\n"
        f"sys.modules['adabatch.train'] = types.SimpleNamespace(train=lambda *_: {SUMMARY!r})\n"
        "sys.modules['adabatch.report'] = types.SimpleNamespace(write_run=lambda folder: None)\n"
    )
    monkeypatch.setattr(sys, "path", [str(package), *sys.path])
    record = sweep.run_isolated(CONFIG, tmp_path / "r", ["seed=0"], fork=False)
    assert record["state"] == "finished" and record["summary"]["steps"] == 10 and record["exit_code"] == 0
