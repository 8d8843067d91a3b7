"""A run from its configuration: bitwise when repeated, killed anywhere, or continued; what it writes."""

import math
import os

import pytest
import torch
from support import SMALL, die, difference, killed, outcome, resolved, run

from adabatch import checkpoint, runs
from adabatch.build import build
from adabatch.errors import Diverged, Interrupted
from adabatch.train import crossed

# 300 samples, 4 epochs: batches 16, 32 and 64 (changes at positions 400 and 800), an EMA and every kind of
# row.
FULL = (
    *SMALL,
    "epochs=4",
    "schedule=adabatch",
    "schedule.base_batch=16",
    "schedule.max_batch=64",
    "ema=200",
    "schedule.growth.every_samples=400",
    "schedule.decay.every_samples=400",
    "checkpoint.every_seconds=0",
    "log.every_samples=50",
)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    run(folder, *FULL)
    return folder


def test_same_command_twice_is_bitwise_equal(uninterrupted, tmp_path):
    run(tmp_path / "again", *FULL, "checkpoint.every_seconds=1000", "log.every_samples=10000")
    assert outcome(tmp_path / "again") == outcome(uninterrupted)


def kill_at_step(number: int):
    def arrange():
        from adabatch.step import Step

        call, count = Step.__call__, [0]

        def counted(self, *args):
            count[0] += 1
            if count[0] == number:
                die()
            return call(self, *args)

        Step.__call__ = counted

    return arrange


def kill_in_checkpoint(number: int, where: str):
    """Inside the write (before fsync), before the rename, or right after it."""

    def arrange():
        fsync, replace, count = os.fsync, os.replace, [0]

        def synced(handle):
            count[0] += 1
            if count[0] >= number and where == "write":
                die()
            fsync(handle)

        def moved(source, target):
            if count[0] >= number and str(target).endswith("checkpoint.pt"):
                if where == "after":
                    replace(source, target)
                die()
            replace(source, target)

        os.fsync = synced
        if where != "write":
            os.replace = moved

    return arrange


# Changes of batch at positions 400 (step 26) and 800 (step 39): kills within five steps of each, first and
# last step.
@pytest.mark.parametrize("step", [1, 2, 24, 25, 26, 27, 30, 38, 39, 40, 44])
def test_killed_at_any_step_and_repeated_is_bitwise_equal(uninterrupted, tmp_path, step):
    killed(tmp_path / "run", *FULL, arrange=kill_at_step(step))
    run(tmp_path / "run", *FULL)
    assert outcome(tmp_path / "run") == outcome(uninterrupted)


@pytest.mark.parametrize("where", ["write", "rename", "after"])
@pytest.mark.parametrize("number", [2, 9, 31])
def test_killed_in_a_checkpoint_and_repeated_is_bitwise_equal(uninterrupted, tmp_path, where, number):
    killed(tmp_path / "run", *FULL, arrange=kill_in_checkpoint(number, where))
    run(tmp_path / "run", *FULL)
    assert outcome(tmp_path / "run") == outcome(uninterrupted)


@pytest.mark.slow
def test_killed_many_times_with_rare_checkpoints(uninterrupted, tmp_path):
    rare = (*FULL, "checkpoint.every_seconds=0.02")
    for step in (3, 5, 9, 17):
        killed(tmp_path / "run", *rare, arrange=kill_at_step(step))
    run(tmp_path / "run", *rare)
    assert outcome(tmp_path / "run") == outcome(uninterrupted)


def test_a_full_disk_loses_nothing(uninterrupted, tmp_path, monkeypatch):
    """fsync fails with ENOSPC from the 20th call on: the run ends with the error, repeated it goes on."""
    real, count = os.fsync, [0]

    def full(handle):
        count[0] += 1
        if count[0] >= 20:
            raise OSError(28, "No space left on device")
        real(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        run(tmp_path / "run", *FULL)
    monkeypatch.setattr(os, "fsync", real)
    assert not list((tmp_path / "run").glob("*.tmp"))
    run(tmp_path / "run", *FULL)
    assert outcome(tmp_path / "run") == outcome(uninterrupted)


def test_told_to_stop_it_saves_and_goes_on_bitwise(uninterrupted, tmp_path):
    calls = []

    def stop():
        calls.append(1)
        return "SIGTERM" if len(calls) == 10 else None

    with pytest.raises(Interrupted, match="SIGTERM"):
        run(tmp_path / "run", *FULL, stop=stop)
    assert checkpoint.load(tmp_path / "run" / "checkpoint.pt")["step"] == 10
    run(tmp_path / "run", *FULL)
    assert outcome(tmp_path / "run") == outcome(uninterrupted)


@pytest.mark.parametrize("kind", [pytest.param("model=vgg", marks=pytest.mark.slow), "optimizer=adamw"])
def test_other_parts_resume_bitwise_too(tmp_path, kind):
    """Torch's own optimizer, and another network with enlarged pictures."""
    few = (
        *SMALL,
        "epochs=0.5",
        "schedule=adabatch",
        "schedule.base_batch=16",
        "model.ghost=16",
        kind,
        "checkpoint.every_seconds=0",
    )
    few = tuple(o for o in few if not (kind == "model=vgg" and o == "model=convnet")) + (
        ("model.depth=11",) if kind == "model=vgg" else ()
    )
    run(tmp_path / "whole", *few)
    killed(tmp_path / "run", *few, arrange=kill_at_step(4))
    run(tmp_path / "run", *few)
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")


def test_more_epochs_go_on_from_the_shorter_run(tmp_path, caplog):
    """Equal settings up to the end of the shorter run: its checkpoint is taken, and the result is that of one
    long run."""
    base = (*SMALL, "schedule.base_batch=20", "schedule.decay.every=2")
    run(tmp_path / "long" / "whole", *base, "epochs=4")
    run(tmp_path / "both" / "short", *base, "epochs=3")
    with caplog.at_level("INFO", logger="adabatch"):
        run(tmp_path / "both" / "long", *base, "epochs=4")
    assert "the first 3 epochs are those of" in caplog.text
    assert outcome(tmp_path / "both" / "long") == outcome(tmp_path / "long" / "whole")
    seconds = [
        row["seconds"] for row in runs.read_rows(tmp_path / "both" / "long") if row["event"] == "train"
    ]
    short = [row["seconds"] for row in runs.read_rows(tmp_path / "both" / "short") if row["event"] == "train"]
    assert seconds[: len(short)] == short  # copied, not trained again


@pytest.mark.parametrize(
    "change", [("seed=1",), ("schedule.base_lr=0.06",), ("hardware.micro_batch=16",), ("restart=true",)]
)
def test_a_run_that_differs_is_no_beginning(tmp_path, caplog, change):
    base = (*SMALL, "schedule.base_batch=32", "schedule.decay.every=2", "hardware.micro_batch=32")
    run(tmp_path / "short", *base, "epochs=1")
    with caplog.at_level("INFO", logger="adabatch"):
        run(tmp_path / "long", *base, *change, "epochs=1.5")
    assert "going on from there" not in caplog.text


def test_more_epochs_start_anew_where_the_schedules_differ(tmp_path, caplog):
    base = (*SMALL, "schedule.base_batch=20")  # decay every fifth of the run: the two differ early
    run(tmp_path / "short", *base, "epochs=1")
    with caplog.at_level("INFO", logger="adabatch"):
        run(tmp_path / "long", *base, "epochs=2")
    assert "going on from there" not in caplog.text


# -- the cut never enters the mathematics ----------------------------------------------------------

# Batches of 36 = 16 + 20 (the remainder joins) and 72 = 4 x 16 + 8 (a group of its own): each micro-batch
# below cuts one.
CUT = (
    *SMALL,
    "epochs=32",
    "schedule=adabatch",
    "schedule.base_batch=36",
    "schedule.max_batch=72",
    "model.ghost=16",
    "schedule.growth.every=16",
    "schedule.decay.every=16",
    "evaluate.every=40",
    "model.dropout=0.1",
    "dataset.augment.pad=1",
)


def weights(folder):
    return torch.load(folder / "weights.pt", weights_only=True)


@pytest.fixture(scope="module")
def uncut(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uncut") / "run"
    whole = run(folder, *CUT, "hardware.precision=fp64", "hardware.micro_batch=4096")
    assert whole["steps"] >= 200 and [p["batch_size"] for p in whole["phases"]] == [36, 72]
    return folder


@pytest.mark.parametrize("micro, passes", [(16, {2, 5}), (32, {1, 3}), (48, {1, 2})])
def test_micro_batches_change_nothing_in_float64(uncut, tmp_path, micro, passes):
    """Over 200 steps across a change of batch: 1e-10. A mean of micro-batch means fails at the uneven
    cuts."""
    run(tmp_path / "split", *CUT, "hardware.precision=fp64", f"hardware.micro_batch={micro}")
    rows = [row for row in runs.read_rows(tmp_path / "split") if row["event"] == "train"]
    assert passes <= {row["accumulation"] for row in rows} and max(passes) > 1
    (change,) = [row for row in runs.read_rows(tmp_path / "split") if row["event"] == "change"]
    seen = {row["batch_size"]: (row["micro_batch"], row["accumulation"]) for row in rows[:-1]}
    said = change["changes"]
    assert [seen[36], seen[72]] == list(zip(said["micro_batch"], said["accumulation"]))
    assert difference(weights(tmp_path / "split"), weights(uncut)) <= 1e-10


@pytest.mark.parametrize("batch, ghost", [(96, 16), (100, 16), (35, 2)])
def test_gradient_of_one_step_in_float32(batch, ghost):
    """From equal weights, the batch in one pass or in many; 35 = 16 groups of 2, then 3: none of one
    sample."""
    found = []
    for micro in (4096, 16):
        parts = build(resolved(*SMALL, f"schedule.base_batch={batch}", f"model.ghost={ghost}"))
        parts.step.micro_batch = micro
        result = parts.step(0, parts.schedule(0))
        found.append((parts.step.flat.grads.clone(), parts.step.flat.running.clone(), result.passes))
    (whole, running, _), (split, moved, passes) = found
    assert passes > 1
    assert ((split - whole).abs().max() / whole.abs().max()).item() <= 1e-5
    assert ((moved - running).abs().max() / running.abs().max()).item() <= 1e-5


def test_a_last_group_of_one_sample_is_cut_alike():
    """Ghost 2 and 33 samples: the 33rd is normalised by the running statistics, whichever pass it is in."""
    found = []
    for micro in (4096, 8):
        parts = build(resolved(*SMALL, "schedule.base_batch=33", "model.ghost=2", "hardware.precision=fp64"))
        parts.step.micro_batch = micro
        result = parts.step(0, parts.schedule(0))
        found.append((parts.step.flat.grads.clone(), parts.step.flat.running.clone(), result.passes))
    assert found[0][2] == 1 < found[1][2]
    torch.testing.assert_close(found[1][0], found[0][0], rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(found[1][1], found[0][1], rtol=1e-12, atol=1e-14)


@pytest.mark.slow
def test_compiled_is_the_same_function(tmp_path):
    """Two batch sizes, a cut last batch, plain and compiled, in float64."""
    few = (*SMALL, "epochs=0.4", "schedule=adabatch", "schedule.base_batch=32", "hardware.precision=fp64")
    few += ("schedule.growth.every_samples=64", "model.ghost=16")
    run(tmp_path / "plain", *few)
    run(tmp_path / "compiled", *few, "hardware.compile=true")
    assert difference(weights(tmp_path / "compiled"), weights(tmp_path / "plain")) <= 1e-9


def test_plain_batch_norm_does_depend_on_the_cut(tmp_path):
    """The control of the test above: it can fail."""
    one = (*SMALL, "schedule.base_batch=96", "epochs=1", "model.norm=batch", "hardware.precision=fp64")
    run(tmp_path / "whole", *one, "hardware.micro_batch=96")
    run(tmp_path / "split", *one, "hardware.micro_batch=16")
    assert difference(weights(tmp_path / "split"), weights(tmp_path / "whole")) > 1e-6


# -- what it writes --------------------------------------------------------------------------------


def test_rows_and_summary(uninterrupted):
    rows = runs.read_rows(uninterrupted)
    train = [row for row in rows if row["event"] == "train"]
    assert [row["position"] for row in train] == sorted({row["position"] for row in train})
    assert train[-1]["position"] == 1200 and train[-1]["step"] == len(train)
    assert sum(row["batch_size"] for row in train) == 1200
    assert all(row["batch_size"] <= row["micro_batch"] * row["accumulation"] for row in train)
    changes = [row for row in rows if row["event"] == "change"]
    assert [row["changes"]["batch_size"] for row in changes] == [[16, 32], [32, 64]]
    assert changes[0]["changes"]["lr"] == pytest.approx([0.05, 0.05 * 0.75])
    evaluations = [row for row in rows if row["event"] == "eval"]
    assert {row["weights"] for row in evaluations} == {"raw", "ema"} and {
        row["split"] for row in evaluations
    } == {"test"}
    raw = [row for row in evaluations if row["weights"] == "raw"]
    assert [math.floor(row["epoch"]) for row in raw] == [
        1,
        2,
        3,
        4,
    ]  # first step boundary at or after each mark
    summary = runs.read_json(uninterrupted / "summary.json")
    assert summary["samples"] == 1200 and summary["steps"] == len(train)
    assert [p["batch_size"] for p in summary["phases"]] == [16, 32, 64]
    assert sum(p["steps"] for p in summary["phases"]) == len(train)
    phases = sum(p["seconds"] for p in summary["phases"])
    assert train[-1]["seconds"] <= phases == pytest.approx(summary["train_seconds"])
    assert summary["final_test_error"] == evaluations[-1]["eval_error"]
    assert summary["best_test_error"] <= summary["final_test_error"]
    assert rows[-1]["event"] == "end"


def test_weights_hash_is_reproducible_by_hand(uninterrupted):
    import hashlib

    state = torch.load(uninterrupted / "checkpoint.pt", weights_only=True)["model"]
    digest = hashlib.sha256(b"".join(t.numpy().tobytes() for t in state.values())).hexdigest()
    assert digest == runs.read_json(uninterrupted / "summary.json")["weights_sha256"]


def test_ledger_adds_up_to_the_wall_and_redone_is_booked(tmp_path):
    """Killed with rows on the disk and no checkpoint since the start, then once more right after the
    resume."""
    rare = (*FULL, "checkpoint.every_seconds=1000", "log.every_samples=16")

    def rows_to_disk_then_die():
        kill_at_step(30)()
        from adabatch.trackers.jsonl import Jsonl

        make = Jsonl.__init__
        Jsonl.__init__ = lambda self, path, every=0.0: make(self, path, 0.0)

    killed(tmp_path / "run", *rare, arrange=rows_to_disk_then_die)
    lost = runs.read_rows(tmp_path / "run")[-1]["seconds"]
    killed(tmp_path / "run", *rare, arrange=kill_at_step(1))
    summary = run(tmp_path / "run", *rare)
    causes = summary["ledger"]
    assert all(causes[cause] > 0 for cause in ("compute", "data", "evaluation", "checkpoint", "other"))
    assert causes["redone"] >= lost * 0.999 > 0
    assert sum(causes.values()) == pytest.approx(summary["wall_seconds"], rel=0.01, abs=0.1)
    assert summary["train_seconds"] < summary["wall_seconds"]
    assert summary["device_seconds"] == pytest.approx(summary["train_seconds"])  # of one process


def test_timing_tells_forward_and_backward_apart_and_changes_nothing_else(tmp_path, uninterrupted):
    summary = run(tmp_path / "run", *FULL, "timing=phases")
    causes = summary["ledger"]
    assert causes["forward"] > 0 and causes["backward"] > 0
    assert sum(causes.values()) == pytest.approx(summary["wall_seconds"], rel=0.01, abs=0.1)
    counted = ("compute", "forward", "backward", "data", "exposed_communication", "measuring", "resize")
    assert summary["train_seconds"] == pytest.approx(sum(causes[c] for c in counted), rel=0.01, abs=0.1)
    without = runs.read_json(uninterrupted / "summary.json")
    assert summary["weights_sha256"] == without["weights_sha256"]
    assert not {"forward", "backward"} & set(without["ledger"])


VALIDATED = (*FULL, "dataset.validation=60", "checkpoint.best=true", "dataset.samples=360")


@pytest.fixture(scope="module")
def validated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("validated") / "run"
    run(folder, *VALIDATED)
    return folder


def kill_before(name: str):
    """Before the file `name` of the end of a run comes into being."""

    def arrange():
        replace = os.replace
        os.replace = lambda source, target: die() if str(target).endswith(name) else replace(source, target)

    return arrange


@pytest.mark.parametrize("name", ["weights.pt", "summary.json", "best.pt"])
def test_killed_at_the_end_and_repeated_is_bitwise_equal(validated, tmp_path, name):
    killed(tmp_path / "run", *VALIDATED, arrange=kill_before(name))
    run(tmp_path / "run", *VALIDATED)
    assert outcome(tmp_path / "run") == outcome(validated)


@pytest.mark.parametrize("step", [20, 33])
def test_killed_with_a_validation_split_the_best_weights_are_the_same(validated, tmp_path, step):
    killed(tmp_path / "run", *VALIDATED, "checkpoint.every_seconds=0.05", arrange=kill_at_step(step))
    run(tmp_path / "run", *VALIDATED)
    assert outcome(tmp_path / "run") == outcome(validated)


def test_killed_under_compat_nvlabs(tmp_path):
    few = (
        *SMALL,
        "epochs=4",
        "schedule.base_batch=128",
        "schedule.compat=nvlabs",
        "checkpoint.every_seconds=0",
    )
    run(tmp_path / "whole", *few)
    evaluations = [row for row in runs.read_rows(tmp_path / "whole") if row["event"] == "eval"]
    assert [row["step"] for row in evaluations] == [
        2,
        4,
        6,
        8,
    ]  # at each epoch's end, before the next one's first batch
    for step in (2, 3, 4):
        killed(tmp_path / f"run{step}", *few, arrange=kill_at_step(step))
        run(tmp_path / f"run{step}", *few)
        assert outcome(tmp_path / f"run{step}") == outcome(tmp_path / "whole")


def test_bf16_trains(tmp_path):
    run(tmp_path / "bf16", *SMALL, "epochs=2", "hardware.precision=bf16")
    run(tmp_path / "fp32", *SMALL, "epochs=2")
    losses = [runs.read_json(tmp_path / p / "summary.json")["final_train_loss"] for p in ("bf16", "fp32")]
    assert losses[0] == pytest.approx(losses[1], rel=0.1) and losses[0] != losses[1]


def test_two_owners_never_mix_their_rows(tmp_path):
    """A run that lost its folder drops what it had not written, instead of writing it into the new owner's
    file."""
    from adabatch.errors import Lost

    def stop():
        calls.append(1)
        if len(calls) == 20:
            (tmp_path / "run" / "metrics.jsonl").write_text("")  # the new owner began anew
            raise Lost("taken over")

    calls = []
    with pytest.raises(Lost):
        run(tmp_path / "run", *FULL, "checkpoint.every_seconds=1000", stop=stop)
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == ""


def test_validation_split_keeps_the_test_set_for_the_end(tmp_path):
    summary = run(tmp_path / "run", *SMALL, "epochs=2", "dataset.validation=60", "checkpoint.best=true")
    evaluations = [row for row in runs.read_rows(tmp_path / "run") if row["event"] == "eval"]
    assert [row["split"] for row in evaluations] == ["validation", "validation", "test"]
    assert summary["best_test_error"] is None and summary["final_test_error"] is not None
    assert summary["best_validation_error"] <= summary["final_validation_error"]
    assert (tmp_path / "run" / "best.pt").is_file()


def test_divergence_names_position_and_setting_and_keeps_a_good_checkpoint(tmp_path):
    with pytest.raises(Diverged, match=r"position \d+ .* batch size 16, lr 1e\+06"):
        run(
            tmp_path / "run",
            *SMALL,
            "epochs=3",
            "schedule.base_lr=1e6",
            "schedule.base_batch=16",
            "model.norm=none",
            "checkpoint.every_seconds=0",
        )
    state = checkpoint.load(tmp_path / "run" / "checkpoint.pt")
    assert all(torch.isfinite(t).all() for t in state["model"].values())


def test_init_from_starts_at_the_weights_of_another_run(tmp_path):
    run(tmp_path / "first", *SMALL, "epochs=2")
    found = runs.read_json(tmp_path / "first" / "summary.json")
    for source in (tmp_path / "first", tmp_path / "first" / "weights.pt"):
        target = tmp_path / f"second-{source.name}"
        run(
            target,
            *SMALL,
            "epochs=0.01",
            "schedule.base_lr=1e-30",
            "optimizer.weight_decay=0",
            f"model.init_from='{source}'",
        )
        state = torch.load(target / "weights.pt", weights_only=True)
        first = torch.load(tmp_path / "first" / "weights.pt", weights_only=True)
        assert all(torch.equal(state[k], first[k]) for k in state if "running" not in k)
    assert found["steps"] > 0


def test_compat_nvlabs_drops_tails_and_records_them(tmp_path):
    summary = run(tmp_path / "run", *SMALL, "epochs=2", "schedule.base_batch=128", "schedule.compat=nvlabs")
    train = [row for row in runs.read_rows(tmp_path / "run") if row["event"] == "train"]
    assert [(row["position"], row.get("skipped")) for row in train] == [
        (128, None),
        (256, None),
        (428, 44),
        (556, None),
    ]
    assert summary["steps"] == 4 and summary["samples"] == 512


def test_marks():
    assert [crossed(a, b, 100) for a, b in [(0, 99), (99, 100), (100, 101), (150, 320), (0, 100)]] == [
        False,
        True,
        False,
        True,
        True,
    ]


def test_configuration_of_the_tests_is_the_users(tmp_path):
    """`resolved` goes through the same checks as the command line."""
    with pytest.raises(Exception, match="epoch"):
        resolved("+epoch=3")


@pytest.mark.needs_gpu
def test_on_a_gpu_repeated_and_stopped_is_bitwise_equal(tmp_path):
    gpu = (*FULL, "hardware=gpu", "hardware.deterministic=true")
    run(tmp_path / "whole", *gpu)
    run(tmp_path / "again", *gpu)
    calls = []
    with pytest.raises(Interrupted):
        run(tmp_path / "run", *gpu, stop=lambda: calls.append(1) or ("SIGTERM" if len(calls) == 27 else None))
    run(tmp_path / "run", *gpu)
    assert outcome(tmp_path / "whole") == outcome(tmp_path / "again") == outcome(tmp_path / "run")


@pytest.mark.needs_gpu
def test_on_a_gpu_micro_batches_change_nothing_in_float64(tmp_path):
    for name, micro in (("whole", 4096), ("split", 16)):
        run(tmp_path / name, *CUT, "hardware=gpu", "hardware.precision=fp64", f"hardware.micro_batch={micro}")
    assert difference(weights(tmp_path / "split"), weights(tmp_path / "whole")) <= 1e-10
