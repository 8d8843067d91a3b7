"""W&B can neither ask, nor hang, nor end a run: every trap, against a stand-in server on this machine.

wandb itself is imported and run for real; nothing leaves 127.0.0.1.
"""

import json
import logging
import os
import pty
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from wandb_server import KEY, Server, history, offline_records

from adabatch import labels, trackers

ROOT = Path(trackers.__file__).parents[2]


@pytest.fixture(autouse=True)
def clean(tmp_path, monkeypatch, caplog):
    """No key, no settings, no reports of errors to anybody, whatever the machine has configured."""
    for name in list(os.environ):
        if name.startswith("WANDB_") or name == "NETRC":
            monkeypatch.delenv(name)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / "config"))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.chdir(tmp_path)
    caplog.set_level(logging.INFO, "adabatch")
    yield
    import wandb

    wandb.teardown()


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "digits-0a1b2c3d"
    made.mkdir()
    return made


@pytest.fixture
def threads():
    return threading.enumerate()


def configuration(mode: str = "auto", **more) -> dict:
    return {"seed": 1, "model": {"_target_": "adabatch.models.Small", "width": 8}, "epochs": 2,
            "trackers": {"wandb": {"mode": mode, **more}, "tensorboard": False}}  # fmt: skip


def use(monkeypatch, server) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", server.url)


def row(step: int, **more) -> dict:
    return {"event": "train", "position": 32 * step, "epoch": step / 8, "step": step, "seconds": 0.1 * step,
            "batch_size": 32, "lr": 0.1, "train_loss": 1 / step, "train_error": None} | more  # fmt: skip


def start(config, folder, at: int = 0, finish_timeout: float = 20.0, init_timeout: float = 20.0):
    run = trackers.build(config, folder, init_timeout=init_timeout, finish_timeout=finish_timeout)
    run.resume(32 * at, at)
    return run


def train(config, folder, steps, exit_code=0, **options):
    run = start(config, folder, at=steps[0] - 1, **options)
    for step in steps:
        run.log(row(step))
    run.sync()
    run.close(exit_code)


def messages(caplog) -> str:
    return "\n".join(record.message for record in caplog.records)


def test_online_run_arrives_with_position_as_its_x_axis(folder, threads, monkeypatch, caplog):
    with Server() as server:
        use(monkeypatch, server)
        config = configuration(group="sweep", tags=["a", "b"], project="mine")
        run = start(config, folder)
        run.log({"event": "change", "position": 0, "epoch": 0, "step": 0, "changes": {"lr": [0.1, 0.2]}})
        assert "wandb" not in os.listdir(folder), "nothing may delay the first step"
        for step in range(1, 4):
            run.log(row(step))
        run.log({"event": "eval", "position": 96, "epoch": 0.4, "step": 3, "split": "test", "weights": "raw",
                 "eval_loss": 0.5, "eval_error": 0.25})  # fmt: skip
        run.log({"event": "end", "position": 96, "epoch": 0.4, "step": 3, "final_test_error": 0.25})
        run.close(0)
        ((key, stored),) = server.runs.items()
    assert key == (folder / "wandb_id").read_text().strip()
    named = [stored.project, stored.group, stored.title, *stored.tags]
    assert named == ["mine", "sweep", folder.name, "a", "b", "arm: schedule", "seed: 1"]
    assert stored.config["model"]["value"] == config["model"] and stored.exit_code == 0
    rows = [{k: v for k, v in line.items() if not k.startswith("_")} for line in stored.history]
    assert rows[0] == {"position": 0, "epoch": 0, "step": 0, "change/lr": 0.2}
    assert rows[1] == {
        "position": 32, "epoch": 0.125, "step": 1, "seconds": 0.1, "batch_size": 32,
        "lr": 0.1, "train/loss": 1,
    }  # fmt: skip
    table = rows[6].pop("changes")
    assert (table["_type"], table["nrows"], table["ncols"]) == ("table-file", 1, 6)
    assert rows[4] == {"position": 96, "epoch": 0.4, "step": 3, "test/loss": 0.5, "test/error": 0.25}
    assert stored.summary["final_test_error"] == 0.25 and stored.summary["train/loss"] == pytest.approx(1 / 3)
    # define_metric("*", step_metric="position"): "m" = metrics, 2 = glob, 5 = index of the x axis from 1
    metrics = stored.config["_wandb"]["value"]["m"]
    star = next(metric for metric in metrics if metric.get("2") == "*")
    assert metrics[star["5"] - 1]["1"] == "position"
    assert f"/mine/runs/{key}" in messages(caplog)
    assert not [record for record in caplog.records if record.levelno > logging.INFO]
    assert threading.enumerate() == threads, "no thread of W&B is left"


def test_a_resume_continues_the_same_run(folder, monkeypatch):
    with Server() as server:
        use(monkeypatch, server)
        train(configuration() | {"log": {"every": 2}}, folder, range(1, 6), exit_code=1)
        # excluded keys may differ between the two; the last two rows were logged after the checkpoint
        train(configuration() | {"log": {"every": 3}}, folder, range(4, 8))
        (stored,) = server.runs.values()
    assert [line["position"] // 32 for line in stored.history] == [1, 2, 3, 4, 5, 4, 5, 6, 7]
    assert stored.exit_code == 0


def test_the_same_run_in_another_folder_is_another_run(folder, tmp_path):
    from adabatch.trackers.wandb import run_id

    other = tmp_path / "elsewhere" / folder.name
    other.mkdir(parents=True)
    first, second = run_id(folder), run_id(other)
    assert first == run_id(folder) and second == run_id(other) and first != second
    assert first[:8] == second[:8]


def test_without_a_key_and_a_terminal_the_run_is_offline(folder, caplog, monkeypatch):
    began = time.monotonic()
    train(configuration(), folder, range(1, 4))
    assert time.monotonic() - began < 20
    assert "W&B: offline" in messages(caplog)
    records = offline_records(folder)
    found = history(records)
    assert [line["position"] for line in found] == [32, 64, 96] and found[1]["train/loss"] == 0.5
    metrics = [record.metric for record in records if record.WhichOneof("record_type") == "metric"]
    assert ("*", "position") in [(metric.glob_name, metric.step_metric) for metric in metrics]
    run = next(record.run for record in records if record.WhichOneof("record_type") == "run")
    assert run.run_id == (folder / "wandb_id").read_text().strip() and run.display_name == folder.name
    # a resume is a second piece under the same id
    train(configuration("offline"), folder, range(3, 5))
    assert sorted(line["position"] for line in history(offline_records(folder))) == [32, 64, 96, 96, 128]


def test_group_arm_and_changes_of_an_offline_run(folder):
    """What an unattended sweep leaves for `wandb sync`: its comparison as group, its arm, and the changes of
    the batch as a table, also those of before a resume."""
    config = configuration("offline") | {"schedule": {"base_batch": 32}, "seed": 7,
                                         "options": {"model": "vgg", "schedule": "adabatch"}}  # fmt: skip
    for first in (1, 3):
        made = trackers.build(config, folder)
        made.resume(32 * (first - 1), 2 * (first - 1))
        for step in range(first, first + 2):
            made.log(row(step))
            made.log({"event": "change", "position": 32 * step, "epoch": step / 8, "step": step,
                      "changes": {"batch_size": [step, 2 * step]}, "rule": "x2"})  # fmt: skip
        made.sync()
        made.close(0)
    records = offline_records(folder)
    run = next(record.run for record in records if record.WhichOneof("record_type") == "run")
    assert list(run.tags) == ["arm: adabatch 32", "seed: 7"] and run.job_type == "adabatch 32"
    assert run.run_group == labels.comparison(config, folder) and run.run_group.startswith("vgg-2ep-")
    assert [r["change/batch_size"] for r in history(records) if "change/batch_size" in r] == [2, 4, 6, 8]
    told = [json.loads(path.read_text()) for path in sorted(folder.glob("wandb/*/files/media/table/*.json"))]
    longest = max(told, key=lambda table: len(table["data"]))
    assert longest["columns"] == ["position", "epoch", "quantity", "before", "after", "rule"]
    assert longest["data"] == [[32 * s, s / 8, "batch_size", s, 2 * s, "x2"] for s in range(1, 5)]


def test_a_table_that_cannot_be_made_ends_no_run(folder, caplog, monkeypatch):
    from adabatch.trackers import wandb as module

    monkeypatch.setattr(module, "changes", lambda path: 1 / 0)
    train(configuration("offline"), folder, [1])
    assert "no table of the changes" in messages(caplog) and "failed and is off" not in messages(caplog)


def test_online_without_a_key_says_so_and_is_offline(folder, caplog):
    train(configuration("online"), folder, [1])
    assert "needs a key and none is configured" in messages(caplog) and history(offline_records(folder))


def test_a_malformed_key_is_no_reason_to_die(folder, caplog, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "short")
    train(configuration(), folder, [1])
    assert "key is refused" in messages(caplog) and history(offline_records(folder))


@pytest.mark.parametrize("environment, expected", [
    ({}, "auto"), ({"WANDB_MODE": "offline"}, "offline"), ({"WANDB_MODE": "dryrun"}, "offline"),
    ({"WANDB_MODE": "disabled"}, "disabled"), ({"WANDB_DISABLED": "true"}, "disabled"),
    ({"WANDB_MODE": "online"}, "auto"),
])  # fmt: skip
def test_auto_obeys_wandbs_own_variables(monkeypatch, environment, expected):
    from adabatch.trackers.wandb import resolve

    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert resolve("auto") == expected
    assert resolve("offline") == "offline", "an explicit mode stands above the environment"


@pytest.mark.parametrize("behaviour", ["absent", "mute", "refuse"])
def test_a_server_that_does_not_serve_leaves_an_offline_run(folder, threads, monkeypatch, caplog, behaviour):
    with Server(behaviour) as server:
        use(monkeypatch, server)
        if behaviour == "absent":
            server.stop()
        began = time.monotonic()
        train(configuration(), folder, range(1, 4), init_timeout=6, finish_timeout=2)
        assert time.monotonic() - began < 60
    assert "no connection" in messages(caplog) and "W&B: offline" in messages(caplog)
    assert [line["position"] for line in history(offline_records(folder))] == [32, 64, 96]
    assert threading.enumerate() == threads


@pytest.mark.slow
def test_a_server_gone_in_mid_run_cannot_hold_the_end_up(folder, threads, monkeypatch, caplog):
    with Server() as server:
        use(monkeypatch, server)
        run = start(configuration(), folder, finish_timeout=3)
        run.log(row(1))
        server.stop()
        began = time.monotonic()
        for step in range(2, 50):
            run.log(row(step))
        assert time.monotonic() - began < 10
        run.close(0)
        assert 2.5 < time.monotonic() - began < 30
    assert "`wandb sync" in messages(caplog) and "was sent within 3 s" in messages(caplog)
    assert threading.enumerate() == threads
    assert run.rows == 49


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="finds W&B's process through /proc")
def test_wandbs_process_killed_in_mid_run(folder, caplog):
    run = start(configuration("offline"), folder)
    run.log(row(1))
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")
        except OSError:  # it has ended meanwhile
            continue
        if "wandb" in fields[0] and int(fields[2].split()[1]) == os.getpid():
            os.kill(int(stat.parent.name), signal.SIGKILL)
    time.sleep(0.3)
    for step in range(2, 6):
        run.log(row(step))
        time.sleep(0.05)
    run.close(0)
    warnings = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1 and "W&B failed and is off from here on; the run goes on" in warnings[0]
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 5


def test_a_terminal_without_a_key_is_asked_nothing(folder, monkeypatch):
    """In a pseudo-terminal W&B's own init asks a question and waits for ever."""
    code = (
        "import sys, pathlib, logging; logging.basicConfig(level=20); sys.path.insert(0, sys.argv[1])\n"
        "assert sys.stdin.isatty() and sys.stdout.isatty()\n"
        "from adabatch import trackers\n"
        "run = trackers.build({'trackers': {'wandb': {'mode': 'auto'}}}, pathlib.Path(sys.argv[2]))\n"
        "run.resume(0, 0); run.log({'event': 'train', 'position': 1}); run.close(0); print('END')"
    )
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", code, str(ROOT), str(folder)]
    child = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
    os.close(theirs)
    shown, limit = b"", time.monotonic() + 40
    while time.monotonic() < limit and select.select([ours], [], [], max(limit - time.monotonic(), 0))[0]:
        try:
            if not (part := os.read(ours, 4096)):
                break
        except OSError:  # the other side is closed: the child has ended
            break
        shown += part
    os.close(ours)
    try:
        code = child.wait(5)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
        pytest.fail(f"did not end by itself:\n{shown.decode()}")
    assert code == 0, shown.decode()
    assert b"END" in shown and b"offline" in shown and b"Enter your choice" not in shown


@pytest.mark.parametrize("mode", ["auto", "offline"])
def test_the_previous_run_of_the_process_is_not_written_to(folder, tmp_path, monkeypatch, mode):
    """W&B returns the run that is open where a second one is begun with another id: rows would go astray."""
    second = tmp_path / "digits-99999999"
    second.mkdir()
    with Server() as server:
        use(monkeypatch, server)
        first = start(configuration(mode), folder)
        first.log(row(1))
        train(configuration(mode), second, [1, 2])
        first.close(1)
        ids = [(path / "wandb_id").read_text().strip() for path in (folder, second)]
        runs = {name: [line["position"] for line in run.history] for name, run in server.runs.items()}
    if mode == "auto":
        assert runs == {ids[0]: [32], ids[1]: [32, 64]}
    else:
        found = [[line["position"] for line in history(offline_records(path))] for path in (folder, second)]
        assert found == [[32], [32, 64]] and not runs
