"""No step of an open-loop run reads a value from the device, where the host would wait for a GPU: that is for
`fetch`, once in a while. Seen on a CPU, by the operations that such reading dispatches."""

import pytest
import torch
from support import SMALL, resolved
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from adabatch import build, memory, train
from adabatch.ledger import Ledger
from adabatch.record import Record

# The host needs the value of a result, or its shape. (A mask as an index is turned into numbers by nonzero.)
VALUES = {"_local_scalar_dense", "is_nonzero", "equal", "allclose", "item"}
SHAPES = {"nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "bincount"}
# No operation tells of these on a CPU. Indices and keys, integers, are on the host anyway.
METHODS = {"tolist", "numpy", "__array__", "cpu"}


class Dispatched(TorchDispatchMode):
    def __init__(self, seen: list):
        super().__init__()
        self.seen = seen

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        masks = [i for i in (args[1] if name == "index" else ()) if i is not None and i.dtype == torch.bool]
        if name in VALUES | SHAPES or masks:
            self.seen.append(name)
        return function(*args, **(kwargs or {}))


class Called(TorchFunctionMode):
    def __init__(self, seen: list):
        super().__init__()
        self.seen = seen

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if (name := getattr(function, "__name__", "")) in METHODS and args[0].is_floating_point():
            self.seen.append(name)
        return function(*args, **(kwargs or {}))


def waits(tmp_path, monkeypatch, *overrides: str) -> tuple[list, set]:
    """(what a run's loop reads after its first step, batch sizes); rows are left on the device."""
    monkeypatch.setattr(Record, "fetch", lambda self: None)
    keys = (
        "epochs=3",
        "evaluate.every=100",
        "schedule.base_batch=16",
        "log.every_samples=1000000000",
        *overrides,
    )
    config, ledger = resolved(*SMALL, *keys), Ledger()
    parts = build.build(config, ledger)
    run = Record(config, tmp_path, parts, ledger)
    parts.step.micro_batch = memory.choose(parts.step, parts.schedule, config, parts.data.classes, tmp_path)
    seen, count = [], 0

    def stop() -> None:
        nonlocal count
        if count == 1:  # buffers and kernels of the first step stand
            modes.extend((Dispatched(seen), Called(seen)))
            for mode in modes:
                mode.__enter__()
        count += 1

    modes = []
    try:
        train.loop(run, stop)
    finally:
        for mode in reversed(modes):
            mode.__exit__(None, None, None)
    sizes = {row["batch_size"] for row in run.pending if row["event"] == "train"}
    assert count == run.steps > 10 and len(run.pending) == run.steps
    return seen, sizes


@pytest.mark.parametrize(
    "overrides",
    [
        ["schedule=adabatch"], ["schedule=fixed", "clip_norm=1"], ["schedule=adabatch", "ema=1000"],
        ["schedule=adabatch", "optimizer=muon"],  # torch keeps the step of Adam on the CPU, to be read
        ["schedule=adabatch", "hardware.micro_batch=8", "model.ghost=8"],
        ["schedule=adabatch", "hardware.micro_batch=8", "model.ghost=8", "hardware.reduction=ordered"],
        ["dataset.augment.pad=1", "dataset.augment.flip=true", "schedule=adabatch"],
        ["schedule=adabatch", "log.distance=true"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_an_open_loop_run_never_reads_from_the_device(tmp_path, monkeypatch, overrides):
    seen, sizes = waits(tmp_path, monkeypatch, *overrides)
    assert not seen
    assert "schedule=fixed" in overrides or len(sizes) > 2, "through changes of the batch"


@pytest.mark.parametrize("schedule", ["noise_scale", "cabs"])
def test_a_rule_that_decides_by_what_it_sees_does(tmp_path, monkeypatch, schedule):
    assert waits(tmp_path, monkeypatch, f"schedule={schedule}", "schedule.noise_group=8", "model.ghost=8")[0]
