"""The cut never enters the mathematics: ranks x micro-batches under a changing batch, and real processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support import difference, outcome
from threads import together
from torch import nn

from adabatch import layers, optim, runs
from adabatch.data.augment import Augment, Prepare
from adabatch.data.samples import TensorSamples
from adabatch.data.stream import Stream
from adabatch.flat import Flat
from adabatch.hardware import Hardware
from adabatch.losses import cross_entropy
from adabatch.measure import Meter
from adabatch.ranks import Alone
from adabatch.schedules.setting import Setting
from adabatch.step import Step

NEEDS = frozenset({"trace", "sq_norm", "halves", "inner"})


def samples(count=45):
    generator = torch.Generator().manual_seed(3)
    pictures = torch.randint(0, 256, (count, 1, 6, 6), generator=generator, dtype=torch.uint8)
    return TensorSamples(pictures, torch.randint(0, 3, (count,), generator=generator))


def network(ghost, norm="ghost"):
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False), layers.norm(norm, 4, ghost), nn.ReLU(), layers.Dropout(0.3),
        nn.Flatten(), nn.Linear(64, 5, bias=False), layers.norm(norm, 5, ghost), nn.Tanh(),
        nn.Linear(5, 3),
    ).double()  # fmt: skip
    generator = torch.Generator().manual_seed(5)  # one of our own: ranks are threads here
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.rand(p.shape, generator=generator, dtype=p.dtype) - 0.5 * (p.dim() > 1))
    return model


def trained(ranks, ghost, batches, micro_batch, ordered, measured, norm="ghost"):
    """Weights, running statistics and what was measured after training on batches of these sizes."""
    hardware = Hardware(device="cpu", precision="fp64", threads=1, reduction="ordered" if ordered else "fast")
    hardware.ranks = ranks
    model, micro = network(ghost, norm), layers.MicroBatch(0)
    layers.bind(model, micro)
    flat = Flat(model, [list(model.named_parameters())])
    optimizer = optim.SGD([{"params": [v]} for v in flat.vectors()], lr=0.0, momentum=0.9, weight_decay=0.01)
    prepare = Prepare(
        hardware.device,
        hardware.dtype,
        hardware.memory_format,
        mean=[0.5],
        std=[0.3],
        augment=Augment(1, "zeros", True),
    )
    stream = Stream(samples(), prepare, 0, hardware.device)
    meter = Meter(flat, 2 * ghost, ghost)
    step = Step(
        model, model, flat, optimizer, cross_entropy, stream, hardware, micro, micro_batch, 1.0, None, meter
    )
    position, said = 0, []
    for index, batch in enumerate(batches):
        needs = NEEDS if measured and index % 2 else frozenset()
        result = step(position, Setting(batch, 0.05 + 0.01 * index, batch), needs)
        position += batch
        said += [float(result.loss), float(result.wrong)]
        if (noise := result.noise) is not None:
            said += [noise.trace, noise.sq_norm, noise.cosine or 0.0, noise.inner or 0.0]
    return {k: v.clone() for k, v in model.state_dict().items()}, said


cases = dict(
    ghost=st.sampled_from([2, 3, 8]),
    batches=st.lists(st.integers(1, 60), min_size=2, max_size=5),
    micro=st.integers(1, 70),
    world=st.integers(1, 4),
    measured=st.booleans(),
)


@given(**cases)
@settings(max_examples=40, deadline=None)
@example(ghost=8, batches=[20, 45, 1], micro=8, world=3, measured=True)  # tails of 4, 5; one sample
@example(ghost=8, batches=[5, 60], micro=16, world=4, measured=False)  # ranks without work
def test_ranks_and_micro_batches_change_nothing(ghost, batches, micro, world, measured):
    """float64: weights, statistics, losses and measurements equal those of one process and one pass."""
    expected, told = trained(Alone(), ghost, batches, 10**6, False, measured)
    for weights, said in together(world, lambda r: trained(r, ghost, batches, micro, False, measured)):
        assert difference(weights, expected) <= 1e-10
        assert said == pytest.approx(told, rel=1e-8, abs=1e-10)


@given(**cases)
@settings(max_examples=40, deadline=None)
@example(ghost=8, batches=[20, 45, 1], micro=8, world=3, measured=True)
def test_ordered_is_the_same_bits_on_any_number_of_ranks(ghost, batches, micro, world, measured):
    expected, told = trained(Alone(), ghost, batches, micro, True, measured)
    plain, _ = trained(Alone(), ghost, batches, 10**6, False, measured)
    assert difference(expected, plain) <= 1e-10
    for weights, said in together(world, lambda r: trained(r, ghost, batches, micro, True, measured)):
        assert all(torch.equal(weights[name], expected[name]) for name in expected)
        assert said == told


@given(**cases)
@settings(max_examples=10, deadline=None)
@example(ghost=8, batches=[20, 45, 1], micro=8, world=3, measured=True)  # tails of 4, 5; one sample
@example(ghost=2, batches=[5, 60], micro=4, world=4, measured=False)  # a last group of one sample
def test_l1_norm_knows_no_cut_either(ghost, batches, micro, world, measured):
    """Fast within rounding in float64; ordered to the bit on any number of ranks."""
    expected, told = trained(Alone(), ghost, batches, 10**6, False, measured, "l1")
    for weights, said in together(world, lambda r: trained(r, ghost, batches, micro, False, measured, "l1")):
        assert difference(weights, expected) <= 1e-10
        assert said == pytest.approx(told, rel=1e-8, abs=1e-10)
    alone, _ = trained(Alone(), ghost, batches, micro, True, measured, "l1")
    for weights, _ in together(world, lambda r: trained(r, ghost, batches, micro, True, measured, "l1")):
        assert all(torch.equal(weights[name], alone[name]) for name in alone)


def test_plain_batch_norm_does_depend_on_the_cut():
    """The control: without ghost groups the same comparison fails."""

    def plain(micro_batch):
        model = nn.Sequential(
            nn.Flatten(), nn.Linear(36, 5), layers.norm("batch", 5), nn.Linear(5, 3)
        ).double()
        with torch.no_grad():
            for p in model.parameters():
                p.copy_(torch.linspace(-1, 1, p.numel()).view(p.shape))
        hardware = Hardware(device="cpu", precision="fp64", threads=1)
        flat, micro = Flat(model, [list(model.named_parameters())]), layers.MicroBatch(0)
        prepare = Prepare(hardware.device, hardware.dtype, hardware.memory_format, mean=[0.5], std=[0.3])
        optimizer = optim.SGD([{"params": [v]} for v in flat.vectors()], lr=0.0)
        stream = Stream(samples(), prepare, 0, hardware.device)
        step = Step(model, model, flat, optimizer, cross_entropy, stream, hardware, micro, micro_batch)
        step(0, Setting(40, 0.1, 40))
        return {k: v.clone() for k, v in model.state_dict().items() if v.is_floating_point()}

    assert difference(plain(8), plain(40)) > 1e-3


# -- processes -------------------------------------------------------------------------------------

DIGITS = ("dataset=digits", "schedule=adabatch", "schedule.base_batch=32", "model.ghost=16", "epochs=14",
          "hardware.device=cpu", "hardware.threads=1", "hardware.micro_batch=32",
          "trackers.wandb.mode=disabled", "checkpoint.every_seconds=0", "evaluate.every=6")  # fmt: skip


def adabatch(folder, *overrides, processes=1):
    """The command as a user gives it."""
    command = [sys.executable, "-m", "adabatch", *DIGITS, *overrides, f"hydra.run.dir={folder}"]
    command += [f"hardware.processes={processes}"] if processes > 1 else []
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=280, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    return done


def weights(folder):
    return torch.load(Path(folder) / "weights.pt", weights_only=True)


@pytest.mark.slow
def test_two_hundred_steps_of_the_digits_on_one_two_and_three_processes(tmp_path):
    """float64, across changes of batch, within 1e-10; a world of three does not divide the batch."""
    for world in (1, 2, 3):
        done = adabatch(tmp_path / str(world), "hardware.precision=fp64", processes=world)
        assert done.returncode == 0, done.stderr + done.stdout
    rows = [row for row in runs.read_rows(tmp_path / "3") if row["event"] == "train"]
    assert len(rows) >= 200 and len({row["batch_size"] for row in rows}) >= 4
    assert {row["world_size"] for row in rows} == {3}
    for world in (2, 3):
        assert difference(weights(tmp_path / str(world)), weights(tmp_path / "1")) <= 1e-10


@pytest.mark.slow
def test_ordered_processes_give_the_same_bits(tmp_path):
    """float32: rows (less the times and the world) and weights of one, two and three processes."""
    found = {}
    for world in (1, 2, 3):
        done = adabatch(tmp_path / str(world), "hardware.reduction=ordered", "epochs=4", processes=world)
        assert done.returncode == 0, done.stderr + done.stdout
        found[world] = outcome(tmp_path / str(world))
        del found[world]["summary"]["overrides"]
        for row in found[world]["rows"]:
            for key in ("world_size", "accumulation", "changes"):
                row.pop(key, None)
    assert found[2] == found[1] and found[3] == found[1]


@pytest.mark.slow
def test_plain_batch_norm_trains_on_several_processes(tmp_path):
    """Nothing is promised of its statistics, but that all ranks go by the same ones: else the ranks would
    find at the first checkpoint that they differ, and end."""
    done = adabatch(tmp_path / "run", "model.norm=batch", "epochs=1", processes=3)
    assert done.returncode == 0, done.stderr + done.stdout
    assert float(weights(tmp_path / "run")["body.1.0.running_mean"].abs().max()) > 0
