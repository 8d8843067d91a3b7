"""What benchmarks/ computes beside its timings: FLOP, groups of operations, what a contender lacks."""

import sys
import types
from pathlib import Path

import pytest
import torch
from torch import nn

BENCHMARKS = str(Path(__file__).parents[1] / "benchmarks")


@pytest.fixture(scope="module")
def modules():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        import loops
        import techniques
        import train_loop
        import where

        yield types.SimpleNamespace(loops=loops, techniques=techniques, train_loop=train_loop, where=where)
        for name in ("loops", "techniques", "train_loop", "turns", "where"):
            sys.modules.pop(name, None)


@pytest.mark.parametrize("name", ["resnet", "alexnet", "vgg", "resnet9"])
def test_flop_with_padding_are_those_of_torchs_counter(modules, name):
    net = modules.loops.NETWORKS[name](modules.loops.plain, nn.BatchNorm2d)
    assert modules.where.flop(net, modules.loops.SIDE, padding=True) == modules.train_loop.flop(name)


@pytest.mark.parametrize(
    "kernel, stride, padding, dilation",
    [(3, 1, 1, 1), (5, 1, 2, 1), (3, 2, 1, 1), (11, 4, 5, 1), (3, 1, 2, 2)],
)
@pytest.mark.parametrize("side", [2, 4, 7])
def test_taps_that_meet_a_pixel_are_what_ones_convolved_with_ones_count(
    modules, side, kernel, stride, padding, dilation
):
    layer = nn.Conv2d(1, 1, kernel, stride, padding, dilation, bias=False)
    ones = nn.functional.conv2d(
        torch.ones(1, 1, side, side), torch.ones_like(layer.weight), None, stride, padding, dilation
    )
    along = modules.where.taps(layer, 0, side, padding=False)
    assert along**2 == ones.sum().item()
    assert modules.where.taps(layer, 0, side, padding=True) == ones.shape[2] * kernel


def test_flop_of_a_network_by_hand(modules):
    """2x2 pixels, 3x3 taps: each of 4 pixels meets 4 taps. 3 to 5 channels: 3 * 5 * 16 multiplications
    forward and as many for the weights, none for the picture; 20 to 10 units: three times 200."""
    net = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.Flatten(), nn.Linear(20, 10))
    assert modules.where.flop(net, 2) == 2 * (2 * 3 * 5 * 16 + 3 * 20 * 10)


def test_a_step_in_passes_is_torchs_sgd(modules):
    for nesterov in (False, True):
        start = [torch.randn(7, 5, dtype=torch.float64) for _ in range(2)]
        theirs = [nn.Parameter(t.clone()) for t in start]
        reference = torch.optim.SGD(theirs, lr=0.1, momentum=0.9, weight_decay=0.01, nesterov=nesterov)
        ours, buffers = [t.clone() for t in start], [torch.full_like(t, torch.nan) for t in start]
        for step in range(3):
            grads = [torch.randn_like(t) for t in ours]
            for p, g in zip(theirs, grads, strict=True):
                p.grad = g.clone()
            reference.step()
            modules.techniques.in_passes(
                ours, grads, buffers, weight_decay=0.01, momentum=0.9, lr=0.1, dampening=0.0,
                nesterov=nesterov, maximize=False, is_first_step=step == 0,
            )  # fmt: skip
        for p, q in zip(ours, theirs, strict=True):
            torch.testing.assert_close(p, q.detach(), rtol=1e-12, atol=0)


def test_a_technique_is_never_without_what_it_needs(modules):
    names = list(modules.techniques.TECHNIQUES)
    sides = {name: modules.techniques.sides(name, names) for name in names}
    for name, ratios in sides.items():
        for above, below in ratios.values():
            assert above - below == {name} and below < above
            assert all(modules.techniques.NEEDS.get(n, n) in above for n in above)
            assert all(modules.techniques.NEEDS.get(n, n) in below for n in below)
    assert sides["kernel of ghost norm"]["alone"] == (
        {"channels_last", "kernel of ghost norm"},
        {"channels_last"},
    )
    assert set(names) - sides["every core"]["last"][0] == {"threads wait awake"}
    assert sides["memory kept"]["last"][0] == set(names)


def test_own_times_of_the_training_thread_are_grouped_and_the_rest_is_python(modules):
    event = types.SimpleNamespace
    events = [
        event(name="aten::mkldnn_convolution", thread=1, self_cpu_time_total=3000),
        event(name="aten::convolution_backward", thread=1, self_cpu_time_total=1000),
        event(name="ours: forward_f", thread=1, self_cpu_time_total=500),
        event(name="aten::roll", thread=1, self_cpu_time_total=200),
        event(name="aten::mm", thread=2, self_cpu_time_total=9000),
    ]
    found = modules.where.grouped(events, milliseconds=10.0, steps=2)
    told = {name: spent for name, spent in found["groups"].items() if spent}
    assert told == {
        "convolutions, library": 2.0,
        "ghost norm, our kernel": 0.25,
        "other operations": 0.1,
        "Python outside operations": pytest.approx(2.65),
    }
    assert found["profiled"] == 5.0 and found["rest"] == {"aten::roll": 0.1}
