"""Memory that runs out during a run: half the micro-batch, the step again, and nothing else changed.

The reference is a run in which nothing fails and whose micro-batch is set, by hand, to what the first came
to, before the same step. Rows, summary and weights of the two are the same bits.
"""

from pathlib import Path

import pytest
import ranks_run
import torch
from support import SMALL, outcome, resolved, run

from adabatch import checkpoint, memory, runs, summing
from adabatch.build import build
from adabatch.errors import Interrupted, OutOfMemory
from adabatch.models.convnet import ConvNet
from adabatch.persample import Singles
from adabatch.step import Step
from adabatch.train import train

OWN = ("model={_target_: test_short_memory.Moving}", "schedule=adabatch")
LOOP = ("schedule.noise_group=16", "schedule.hysteresis=0.01", "schedule.max_batch=64", "model.ghost=8")
RUNS = {
    "ghost norm": ("schedule=adabatch", "model.ghost=8", "model.dropout=0.2"),
    "plain batch norm and torch's dropout": OWN,
    "ordered": ("schedule=adabatch", "model.ghost=8", "hardware.reduction=ordered"),
    "noise scale": ("schedule=noise_scale", *LOOP),
    "a second pass": ("schedule=inner_product_test", *LOOP),
    "single samples": ("schedule=divebatch_exact", "model.norm=group", "schedule.max_batch=64"),
    "a shadow": (
        "schedule=adabatch",
        "shadow={noise_scale:{noise_group:16,hysteresis:0.0}}",
        "model.ghost=8",
    ),
}
COMMON = (
    *SMALL, "epochs=2", "schedule.base_batch=32", "hardware.micro_batch=32", "log.every_samples=50",
    "checkpoint.every_seconds=0", "ema=200",
)  # fmt: skip


class Moving(torch.nn.Module):
    """Plain batch norm, which moves buffers, and torch's dropout, which moves its generator."""

    def __init__(self, num_classes, channels, shape):
        super().__init__()
        self.body = torch.nn.Linear(channels * shape[1] * shape[2], 32)
        self.norm, self.drop = torch.nn.BatchNorm1d(32), torch.nn.Dropout(0.2)
        self.head = torch.nn.Linear(32, num_classes)

    def forward(self, x):
        return self.head(self.drop(self.norm(self.body(x.flatten(1))).relu()))


def no_memory(*_):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


class Watched:
    """Counts a run's works (steps and probes) and its forward passes in training; what to do at them is
    asked of `at_work(number, step)` and `at_pass(watched, samples)`."""

    def __init__(self, monkeypatch, at_work=lambda *_: None, at_pass=lambda *_: None, late=False):
        self.works = self.passes = 0
        self.probing = False  # in the pass in progress

        def counted(method):
            def call(step, *args, **kwargs):
                self.works, self.probing = self.works + 1, method.__name__ == "probe"
                at_work(self.works, step)
                return method(step, *args, **kwargs)

            return call

        def watched(forward):
            def call(model, x):
                outputs = forward(model, x)  # before the failure: what a pass moves has moved
                if model.training and isinstance(x, torch.Tensor):
                    self.passes += 1
                    if late and outputs.requires_grad:
                        outputs.register_hook(lambda grad: at_pass(self, len(x)))
                    else:
                        at_pass(self, len(x))
                return outputs

            return call

        monkeypatch.setattr(Step, "__call__", counted(Step.__call__))
        monkeypatch.setattr(Step, "probe", counted(Step.probe))
        for network in (ConvNet, Moving):
            monkeypatch.setattr(network, "forward", watched(network.forward))


def failing(monkeypatch, folder, own, fails, late=False) -> list:
    """A run in which passes fail where fails(watched, samples) says; [(work, micro-batch from then on)]."""
    seen, halved = [], memory.halved

    def noted(*args):
        seen.append((watched.works, halved(*args)))
        return seen[-1][1]

    with monkeypatch.context() as patch:
        patch.setattr(memory, "halved", noted)
        watched = Watched(patch, at_pass=lambda *now: no_memory() if fails(*now) else None, late=late)
        run(folder, *own)
    return seen


def by_hand(monkeypatch, folder, own, seen) -> None:
    """The same with the micro-batch set beforehand, and no failure."""

    def set_to(work, step):
        for number, size in seen:
            if number == work:
                step.micro_batch = size

    with monkeypatch.context() as patch:
        Watched(patch, at_work=set_to)
        run(folder, *own)


def passes_of(monkeypatch, folder, own) -> int:
    with monkeypatch.context() as patch:
        watched = Watched(patch)
        run(folder, *own)
    return watched.passes


@pytest.mark.parametrize("late", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("name", RUNS)
def test_a_failed_pass_leaves_a_run_with_the_smaller_micro_batch(name, late, tmp_path, monkeypatch):
    """One pass in the middle of the run fails, in its forward or its backward half."""
    own = (*COMMON, *RUNS[name])
    middle = passes_of(monkeypatch, tmp_path / "quiet", own) // 2
    seen = failing(monkeypatch, tmp_path / "failed", own, lambda now, _: now.passes == middle, late)
    # Half of the pass: 32 samples, or a noise group of 16.
    assert [size for _, size in seen] in ([16], [8]) and 1 < seen[0][0]
    by_hand(monkeypatch, tmp_path / "by_hand", own, seen)
    assert outcome(tmp_path / "failed") == outcome(tmp_path / "by_hand")
    assert outcome(tmp_path / "failed") != outcome(tmp_path / "quiet")


@pytest.mark.parametrize("name", list(RUNS)[:4])
def test_the_second_pass_of_a_batch_may_fail_as_well(name, tmp_path, monkeypatch):
    """Batches of 32 in passes of 16: what the first pass of the third batch added up is gone."""
    own = (*COMMON, *RUNS[name], "hardware.micro_batch=16")
    seen = failing(monkeypatch, tmp_path / "failed", own, lambda now, _: now.passes == 6)
    assert seen == [(3, 8)]
    by_hand(monkeypatch, tmp_path / "by_hand", own, seen)
    assert outcome(tmp_path / "failed") == outcome(tmp_path / "by_hand")


def test_a_probe_may_fail_as_well(tmp_path, monkeypatch):
    own, probes = (*COMMON, *RUNS["a shadow"]), []

    def fails(now, samples):
        if now.probing:
            probes.append(now.works)
        return len(probes) == 3 and now.probing

    seen = failing(monkeypatch, tmp_path / "failed", own, fails)
    assert seen == [(probes[2], 8)]  # its passes are noise groups of 16
    by_hand(monkeypatch, tmp_path / "by_hand", own, seen)
    assert outcome(tmp_path / "failed") == outcome(tmp_path / "by_hand")


def test_the_gradients_of_single_samples_may_fail_as_well(tmp_path, monkeypatch):
    own, add, calls, seen = (*COMMON, *RUNS["single samples"]), Singles.add, [], []

    def fails_once(self, *args):
        calls.append(1)
        add(self, *args)
        if len(calls) == 5:
            no_memory()

    with monkeypatch.context() as patch:
        patch.setattr(Singles, "add", fails_once)
        seen = failing(patch, tmp_path / "failed", own, lambda *_: False)
    assert [size for _, size in seen] == [16]
    by_hand(monkeypatch, tmp_path / "by_hand", own, seen)
    assert outcome(tmp_path / "failed") == outcome(tmp_path / "by_hand")


def test_a_row_says_so_and_the_run_goes_on_with_it(tmp_path, monkeypatch, caplog):
    """Never more than 10 samples fit: 32 is halved twice, to whole ghost groups, in the first step."""
    own = (*COMMON, *RUNS["ghost norm"])
    failing(monkeypatch, tmp_path / "failed", own, lambda _, samples: samples > 10)
    rows = runs.read_rows(tmp_path / "failed")
    found = [
        row["changes"]["micro_batch"] for row in rows if row["event"] == "change" and "out of" in row["rule"]
    ]
    assert found == [[32, 8]]
    assert {row["micro_batch"] for row in rows if row["event"] == "train"} == {8}
    assert "from 32 to 16" in caplog.text and "from 16 to 8" in caplog.text
    assert checkpoint.load(tmp_path / "failed" / "checkpoint.pt")["micro_batch"] == 8
    run(tmp_path / "small", *own, "hardware.micro_batch=8")
    assert outcome(tmp_path / "small")["weights"] == outcome(tmp_path / "failed")["weights"]


def test_a_quiet_run_says_nothing_of_it(tmp_path):
    run(tmp_path / "run", *COMMON, *RUNS["ghost norm"])
    assert not [row for row in runs.read_rows(tmp_path / "run") if row.get("rule") == "out of memory"]


def test_stopped_after_it_and_repeated_goes_on_with_the_smaller(tmp_path, monkeypatch):
    own = (*COMMON, *RUNS["ghost norm"], "hardware.micro_batch=auto")
    failing(monkeypatch, tmp_path / "whole", own, lambda now, _: now.passes == 5)
    calls = []

    def stop():
        calls.append(1)
        return "SIGTERM" if len(calls) == 8 else None

    with monkeypatch.context() as patch:
        Watched(patch, at_pass=lambda now, _: no_memory() if now.passes == 5 else None)
        with pytest.raises(Interrupted):
            run(tmp_path / "stopped", *own, stop=stop)
    run(tmp_path / "stopped", *own)
    assert outcome(tmp_path / "stopped") == outcome(tmp_path / "whole")


def test_where_a_single_group_does_not_fit_the_run_ends_and_loses_nothing(tmp_path, monkeypatch):
    own = (*COMMON, *RUNS["ghost norm"])
    with monkeypatch.context() as patch:
        Watched(patch, at_pass=lambda now, _: no_memory() if now.passes > 6 else None)
        with pytest.raises(OutOfMemory, match="a smaller model.ghost"):
            run(tmp_path / "run", *own)
    state = checkpoint.load(tmp_path / "run" / "checkpoint.pt")
    assert 0 < state["step"] < 7
    run(tmp_path / "run", *own)
    run(tmp_path / "quiet", *own)
    assert outcome(tmp_path / "run") == outcome(tmp_path / "quiet")


def test_another_error_is_not_taken_for_it(tmp_path, monkeypatch):
    def broken(watched, samples):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with monkeypatch.context() as patch:
        Watched(patch, at_pass=broken)
        with pytest.raises(RuntimeError, match="illegal memory access"):
            run(tmp_path / "run", *COMMON, *RUNS["ghost norm"])


# -- several ranks ---------------------------------------------------------------------------------


def trained(meeting, folder, overrides, fails, late, seen) -> list:
    """One rank's run. fails: (rank, number of the pass that fails). seen: [(work, micro-batch set by hand)].
    Returns what the first came to: [(work, micro-batch from then on)]."""
    summing.BUCKET = 4096  # bytes: a small network has several
    rank, folder, found, halved = meeting.place.rank, Path(folder), [], memory.halved

    def noted(*args):
        found.append((watched.works, halved(*args)))
        return found[-1][1]

    def set_to(work, step):
        step.micro_batch = dict(seen).get(work, step.micro_batch)

    patch = pytest.MonkeyPatch()  # of a process that ends with this
    patch.setattr(memory, "halved", noted)
    failing = lambda now, _: no_memory() if (rank, now.passes) == tuple(fails) else None  # noqa: E731
    watched = Watched(patch, at_work=set_to, at_pass=failing, late=late)
    if rank == 0:
        folder.mkdir()
    train(resolved(*overrides), folder, meeting=meeting)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("reduction, late", [("fast", False), ("fast", True), ("ordered", True)])
def test_one_rank_of_two_runs_out_of_memory_and_both_repeat_the_step(reduction, late, tmp_path):
    """Batches of 64: each rank's one pass of 32 samples, and rank 1's third fails, also after parts of its
    gradient have been sent."""
    own = (
        *COMMON, "schedule=adabatch", "schedule.base_batch=64", "model.ghost=8", "evaluate.every=1",
        f"hardware.reduction={reduction}",
    )  # fmt: skip
    first = ranks_run.world(tmp_path, trained, 2, str(tmp_path / "failed"), own, (1, 3), late, [])
    seen = ranks_run.values(first)
    assert seen == [[[3, 16]], [[3, 16]]]
    again = ranks_run.world(tmp_path, trained, 2, str(tmp_path / "by_hand"), own, (None, 0), late, seen[0])
    assert ranks_run.values(again) == [[], []]
    assert outcome(tmp_path / "failed") == outcome(tmp_path / "by_hand")
    rows = [row for row in runs.read_rows(tmp_path / "failed") if row["event"] == "train"]
    assert [row["micro_batch"] for row in rows[:4]] == [32, 32, 16, 16]


# -- a real GPU ------------------------------------------------------------------------------------

GPU = (
    *SMALL, "dataset.side=32", "model.width=64", "model.ghost=8", "hardware=gpu", "hardware.threads=1",
    "hardware.deterministic=true", "epochs=2", "schedule=fixed", "schedule.base_batch=256",
)  # fmt: skip


@pytest.fixture
def room():
    """Leaves torch so many bytes of the GPU beside what it holds."""
    device = torch.device("cuda", torch.cuda.current_device())
    whole = torch.cuda.get_device_properties(device).total_memory

    def limit(size):
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(
            (torch.cuda.memory_reserved(device) + size) / whole, device
        )

    yield limit
    torch.cuda.set_per_process_memory_fraction(1.0, device)
    torch.cuda.empty_cache()


def needed(samples: int) -> int:
    """Bytes that a forward and backward pass takes on the GPU."""
    parts = build(resolved(*GPU))
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    memory.passes(parts.step, samples, timed=1)
    return torch.cuda.max_memory_allocated() - before


@pytest.mark.needs_gpu
def test_a_gpu_that_runs_out_of_memory_goes_on_with_less(tmp_path, room):
    """A batch of 256 in one pass where there is room for half of it: the run ends with the bits of a run in
    the micro-batch that it came to."""
    size = needed(256)
    room(int(0.6 * size) + (64 << 20))  # and what the run itself takes
    run(tmp_path / "short", *GPU, "hardware.micro_batch=256")
    rows = runs.read_rows(tmp_path / "short")
    (change,) = [row["changes"]["micro_batch"] for row in rows if row.get("rule") == "out of memory"]
    assert change[0] == 256 and change[1] < 256
    assert {row["micro_batch"] for row in rows if row["event"] == "train"} <= set(range(8, change[1] + 1))
    room(4 * size)
    run(tmp_path / "small", *GPU, f"hardware.micro_batch={change[1]}")
    assert outcome(tmp_path / "short")["weights"] == outcome(tmp_path / "small")["weights"]


@pytest.mark.needs_gpu
def test_on_a_gpu_a_real_pass_confirms_the_largest(tmp_path, room, monkeypatch):
    """A budget that promises too much is found out before the run, nothing of the trial stays in memory, and
    the run itself meets no lack."""
    monkeypatch.setenv("ADABATCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("adabatch.hardware.Hardware.activation_budget", lambda self: 1e15)
    room(int(0.6 * needed(256)) + (64 << 20))
    run(tmp_path / "run", *GPU)
    kept = runs.read_json(tmp_path / "run" / "micro_batch.json")
    assert 8 <= kept["micro_batch"] < 256 and kept["depends_on"]["at_most"] == 256
    rows = runs.read_rows(tmp_path / "run")
    assert not [row for row in rows if row.get("rule") == "out of memory"]
    assert max(row["micro_batch"] for row in rows if row["event"] == "train") == kept["micro_batch"]


@pytest.mark.needs_gpu
def test_a_trial_that_fails_on_a_gpu_gives_its_memory_back(room):
    parts = build(resolved(*GPU))
    hardware = parts.hardware
    memory.together(hardware, lambda: memory.passes(parts.step, 8, timed=1))  # workspaces stay
    held = torch.cuda.memory_allocated()
    room(int(0.5 * needed(256)))
    assert memory.together(hardware, lambda: memory.passes(parts.step, 256, timed=1)) is None
    assert torch.cuda.memory_allocated() <= held + (8 << 20)
    assert memory.together(hardware, lambda: memory.passes(parts.step, 16, timed=1)) is not None


@pytest.mark.needs_gpu
def test_the_fastest_on_a_gpu_is_measured_once(tmp_path, monkeypatch):
    monkeypatch.setenv("ADABATCH_CACHE", str(tmp_path / "cache"))
    own = (*GPU, "hardware.prefer=fastest")
    run(tmp_path / "first", *own)
    kept = runs.read_json(tmp_path / "first" / "micro_batch.json")
    assert len(kept["curve"]) >= 3 and kept["depends_on"]["device"] == torch.cuda.get_device_name()
    monkeypatch.setattr(memory, "passes", None)
    run(tmp_path / "second", *own)
    assert outcome(tmp_path / "second") == outcome(tmp_path / "first")
