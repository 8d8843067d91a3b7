"""A tracker that fails takes nothing with it; starting late loses nothing; TensorBoard reads back."""

import errno
import json
import logging
import math
import os
import subprocess
import sys
import threading

import pytest

from adabatch import trackers
from adabatch.errors import UserError
from adabatch.trackers import Optional, Trackers, flat
from adabatch.trackers.jsonl import Jsonl

OFF = {"trackers": {"wandb": {"mode": "disabled"}, "tensorboard": False}}


def row(step: int, **more) -> dict:
    return {"event": "train", "position": 32 * step, "step": step, "train_loss": 1 / (step + 1), **more}


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


class Spy:
    """A tracker that notes its calls and fails where it is told to."""

    def __init__(self, fail: str = ""):
        self.calls, self.fail = [], fail

    def _note(self, name, *arguments):
        self.calls.append((name, *arguments))
        if name == self.fail:
            raise RuntimeError("no luck")

    def resume(self, position, rows):
        self._note("resume", position, rows)

    def log(self, row):
        self._note("log", row["step"])

    def sync(self):
        self._note("sync")

    def close(self, exit_code):
        self._note("close", exit_code)


def drive(spy, tmp_path, late=False):
    made = []
    optional = Optional("Spy", lambda: made.append(1) or spy, late=late)
    both = Trackers(Jsonl(tmp_path / "metrics.jsonl"), [optional])
    both.resume(0, 0)
    for step in range(3):
        both.log(row(step))
    both.sync()
    both.close(1)
    return both, made


def test_all_calls_reach_every_tracker(tmp_path):
    spy = Spy()
    both, _ = drive(spy, tmp_path)
    assert spy.calls == [("resume", 0, 0), ("log", 0), ("log", 1), ("log", 2), ("sync",), ("close", 1)]
    assert both.rows == 3 and len(lines(tmp_path / "metrics.jsonl")) == 3


@pytest.mark.parametrize("fail", ["resume", "log", "sync", "close"])
def test_a_failing_tracker_is_dropped_with_one_warning_and_still_closed(tmp_path, fail, caplog):
    spy = Spy(fail)
    with caplog.at_level(logging.WARNING, "adabatch"):
        drive(spy, tmp_path)
    assert len(lines(tmp_path / "metrics.jsonl")) == 3
    assert [record.message for record in caplog.records] == [
        "Spy failed and is off from here on; the run goes on (RuntimeError: no luck)"
    ]
    names = [call[0] for call in spy.calls]
    assert names.count(fail) == 1 and names[-1] == "close"


def test_late_trackers_start_after_the_first_step_and_miss_nothing(tmp_path):
    spy, made = Spy(), []
    optional = Optional("Spy", lambda: made.append(1) or spy)
    optional.resume(0, 0)
    optional.log({"event": "change", "position": 0, "step": 0})
    assert not made, "nothing may delay the first step"
    optional.log(row(1))
    optional.log(row(2))
    assert spy.calls == [("resume", 0, 0), ("log", 0), ("log", 1), ("log", 2)]
    never = Optional("Spy", lambda: pytest.fail("made without a row"))
    never.resume(0, 0)
    never.sync()
    never.close(1)


def test_the_error_of_the_disk_comes_out_after_everything_is_closed(tmp_path, monkeypatch):
    spy = Spy()
    both = Trackers(Jsonl(tmp_path / "metrics.jsonl"), [Optional("Spy", lambda: spy, late=False)])
    both.resume(0, 0)
    both.log(row(1))

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError):
        both.close(1)
    assert spy.calls[-1] == ("close", 1)


def test_flat_names():
    assert flat(row(1, lr=0.1, train_error=None, noise_scale=math.nan)) == {
        "position": 32, "step": 1, "train/loss": 0.5, "lr": 0.1
    }  # fmt: skip
    evaluation = {"event": "eval", "position": 9, "split": "test", "eval_loss": 2.0, "eval_error": 0.5}
    assert flat(evaluation | {"weights": "raw"}) == {"position": 9, "test/loss": 2.0, "test/error": 0.5}
    averaged = {"position": 9, "test_ema/loss": 2.0, "test_ema/error": 0.5}
    assert flat(evaluation | {"weights": "ema"}) == averaged
    changes = {"lr": [0.1, 0.2], "world_size": [1, None]}
    end = {"event": "end", "position": 9, "final_train_loss": 0.1, "train_seconds": 2.0, "seed": 1}
    assert flat(end) == {k: v for k, v in end.items() if k != "event"}
    change = {"event": "change", "position": 7, "rule": "x2", "changes": changes}
    assert flat(change) == {"position": 7, "change/lr": 0.2}


def test_disabled_touches_no_wandb(tmp_path):
    """Nothing heavy is imported, neither by the module nor by a run without W&B and TensorBoard."""
    code = (
        "import sys, pathlib; from adabatch import trackers; import adabatch.console; "
        f"t = trackers.build({OFF!r}, pathlib.Path({str(tmp_path)!r})); t.resume(0, 0); "
        "t.log({'event': 'train', 'position': 1}); t.close(0); "
        "print([m for m in ('torch', 'numpy', 'wandb', 'tensorboard') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert os.listdir(tmp_path) == ["metrics.jsonl"]


def test_unknown_mode_is_refused_with_a_suggestion(tmp_path):
    with pytest.raises(UserError, match="disabled, not 'ofline'. Did you mean 'offline'"):
        trackers.build({"trackers": {"wandb": {"mode": "ofline"}}}, tmp_path)


def test_missing_tensorboard_is_said_before_anything_starts(tmp_path, monkeypatch):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install tensorboard"):
        trackers.build({"trackers": {"wandb": {"mode": "disabled"}, "tensorboard": True}}, tmp_path)


def test_tensorboard_reads_back_and_purges_what_a_resume_repeats(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    threads = threading.enumerate()
    config = {"trackers": {"wandb": {"mode": "disabled"}, "tensorboard": True}}
    first = trackers.build(config, tmp_path)
    first.resume(0, 0)
    for step in range(1, 6):
        first.log(row(step))
    first.sync()
    first.close(1)
    again = trackers.build(config, tmp_path)
    again.resume(96, 3)
    for step in range(4, 7):
        again.log(row(step, train_loss=9.0))
    again.close(0)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("train/loss")
    assert [(event.step, round(event.value, 4)) for event in events] == [
        (32, 0.5), (64, 0.3333), (96, 0.25), (128, 9.0), (160, 9.0), (192, 9.0)
    ]  # fmt: skip
    assert threading.enumerate() == threads


def test_tensorboard_has_the_configuration_and_the_final_figures_as_hparams(tmp_path):
    """One session, in the run's own event file; the figures are scalars too, as the plugin asks."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import plugin_data_pb2

    config = {
        "trackers": {"wandb": {"mode": "disabled"}, "tensorboard": True},
        "seed": 3,
        "epochs": 2,
        "options": {"schedule": "adabatch", "model": "vgg"},
        "optimizer": {"momentum": 0.9, "nesterov": True},
        "schedule": {"base_batch": 32, "twin": None, "growth": {"factor": 2, "every": [1]}},
    }
    made = trackers.build(config, tmp_path)
    made.resume(0, 0)
    made.log(row(1))
    made.log({"event": "end", "position": 64, "step": 2, "final_test_error": 0.25, "best_test_error": None,
              "train_seconds": 5.5, "weights_sha256": "ab"})  # fmt: skip
    made.close(0)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    tags = events.PluginTagToContent("hparams")
    found = {tag: plugin_data_pb2.HParamsPluginData.FromString(content) for tag, content in tags.items()}
    (start,) = [data.session_start_info for data in found.values() if data.HasField("session_start_info")]
    told = {key: getattr(value, value.WhichOneof("kind")) for key, value in start.hparams.items()}
    assert told == {
        "arm": "adabatch 32", "model": "vgg", "seed": 3, "epochs": 2, "optimizer.momentum": 0.9,
        "optimizer.nesterov": True, "schedule.base_batch": 32, "schedule.growth.factor": 2,
    }  # fmt: skip
    (experiment,) = [data.experiment for data in found.values() if data.HasField("experiment")]
    metrics = {info.name.tag for info in experiment.metric_infos}
    assert metrics == {"final_test_error", "train_seconds"}
    for name, value in (("final_test_error", 0.25), ("train_seconds", 5.5)):
        assert [(e.step, e.value) for e in events.Scalars(name)] == [(64, value)]
    assert sorted(os.listdir(tmp_path)) == ["metrics.jsonl", "tensorboard"]
    assert not [p for p in (tmp_path / "tensorboard").iterdir() if p.is_dir()], (
        "hparams are no run of their own"
    )
