"""Airbench's network: its count in closed form, its graph written out with torch's functions, its whitening
by NumPy, and convolutions that begin as the identity."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support import killed, outcome, resolved, run
from test_train import kill_at_step
from torch import nn

from adabatch import build, checkpoint, layers
from adabatch.errors import UserError
from adabatch.models import airbench
from adabatch.models.airbench import Airbench

RUN = (
    "dataset=synthetic", "dataset.samples=40", "dataset.test_samples=10", "model=airbench", "model.ghost=8",
    "schedule.base_batch=10", "evaluate.every=9",
)  # fmt: skip


@pytest.fixture
def narrow(monkeypatch):
    monkeypatch.setattr(airbench, "WIDTHS", (26, 28, 30))


def pictures(count=60):
    generator = torch.Generator().manual_seed(count)
    x = torch.randn(count, 3, 34, 34, generator=generator)
    return F.avg_pool2d(x, 3, stride=1) + 0.1 * torch.randn(count, 3, 32, 32, generator=generator)


def test_the_parameters_are_those_of_the_source():
    """24 filters of 2x2x3 whiten; widths 64, 256, 256, two 3x3 convolutions a block; a head without bias; a
    bias a norm and a channel of the whitening."""
    convolutions = 9 * (24 * 64 + 64 * 64 + 64 * 256 + 256 * 256 + 256 * 256 + 256 * 256)
    trained = convolutions + 256 * 10 + 2 * (64 + 256 + 256) + 24
    net = Airbench(10, 3)
    assert trained == 1_971_352 == sum(p.numel() for p in net.parameters() if p.requires_grad)
    scales = sum(len(norm.weight) for norm in layers.ghost_layers(net))
    frozen = sum(p.numel() for p in net.parameters() if not p.requires_grad)
    assert frozen - scales == 24 * 12 and scales == 2 * (64 + 256 + 256)
    never = Airbench(10, 3, whiten_bias_epochs=0)
    assert not never.whiten.bias.requires_grad and not never.trained_for


def written_out(net, x):
    """The source's graph, one line a layer; all of x is one group of the norms."""
    convs = iter([m.weight for m in net.body.modules() if isinstance(m, nn.Conv2d)])
    biases = iter([norm.bias for norm in layers.ghost_layers(net)])

    def normed(y):
        mean, var = y.mean((0, 2, 3), keepdim=True), y.var((0, 2, 3), keepdim=True, correction=0)
        y = (y - mean) / (var + 1e-5).sqrt() + next(biases).view(1, -1, 1, 1)
        return y * (1 + torch.erf(y / 2**0.5)) / 2

    x = F.conv2d(x, net.whiten.weight, net.whiten.bias)
    x = x * (1 + torch.erf(x / 2**0.5)) / 2
    for _ in range(3):
        x = normed(F.max_pool2d(F.conv2d(x, next(convs), padding=1), 2))
        x = normed(F.conv2d(x, next(convs), padding=1))
    return F.max_pool2d(x, 3).flatten(1) @ net.head.weight.t() / 9


def test_the_graph_is_that_of_the_source(narrow):
    torch.manual_seed(0)
    net = Airbench(5, 3, ghost=12, dirac=False).double()
    for bias in (net.whiten.bias, *(norm.bias for norm in layers.ghost_layers(net))):
        nn.init.normal_(bias)
    x = torch.randn(12, 3, 32, 32, dtype=torch.float64)
    net.first_look(iter([x.float()]))
    found, expected = net(x), written_out(net, x)
    assert (found - expected).abs().max() < 1e-12 * expected.abs().max()


def test_the_whitening_has_every_axis_of_2x2_patches_with_both_signs():
    x, net = pictures(), Airbench(10, 3)
    net.first_look(iter(x.split(16)))
    rows = np.lib.stride_tricks.sliding_window_view(x.double().numpy(), (2, 2), axis=(2, 3))
    rows = rows.transpose(0, 2, 3, 1, 4, 5).reshape(-1, 12)
    assert len(rows) == 60 * 31 * 31
    values, vectors = np.linalg.eigh(rows.T @ rows / (len(rows) - 1))
    expected = (vectors / np.sqrt(values + 5e-4)).T[::-1]
    found = net.whiten.weight.detach().double().numpy().reshape(24, 12)
    assert np.array_equal(found[12:], -found[:12])
    signs = np.sign((found[:12] * expected).sum(1, keepdims=True))
    assert np.abs(found[:12] - signs * expected).max() < 1e-4 * np.abs(expected).max()
    assert not net.whiten.bias.any() and not net.whiten.weight.requires_grad


def test_convolutions_begin_by_handing_their_inputs_on():
    torch.manual_seed(0)
    net, drawn = Airbench(10, 3), Airbench(10, 3, dirac=False)
    for layer, other in zip(net.body.modules(), drawn.body.modules()):
        if not isinstance(layer, nn.Conv2d):
            continue
        x = torch.randn(2, layer.in_channels, 5, 5)
        shared = min(layer.in_channels, layer.out_channels)
        assert torch.equal(layer(x)[:, :shared], x[:, :shared])
        drawn_too = layer.weight[shared:] if layer.out_channels > shared else other.weight
        bound = (layer.in_channels * 9) ** -0.5
        assert drawn_too.std().item() == pytest.approx(bound / 3**0.5, rel=0.05), (
            "the others as torch draws them"
        )
        assert other.weight[:shared].std().item() == pytest.approx(bound / 3**0.5, rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["muon", "adam"])
def test_killed_and_resumed_behind_the_bias_s_epochs_it_is_the_same_run(narrow, tmp_path, optimizer):
    """The length of the whole gradient, which clips it, would have the bias's in it."""
    words = (
        *RUN, f"optimizer={optimizer}", "clip_norm=1e-4", "epochs=4", "model.whiten_bias_epochs=1",
        "checkpoint.every_seconds=0",
    )  # fmt: skip
    run(tmp_path / "whole", *words)
    killed(tmp_path / "killed", *words, arrange=kill_at_step(6))
    run(tmp_path / "killed", *words)
    assert outcome(tmp_path / "whole") == outcome(tmp_path / "killed")


@pytest.mark.slow
def test_the_bias_of_the_whitening_stands_after_its_epochs_and_the_rest_goes_on(narrow, tmp_path):
    """Two of three epochs of four steps each: the bias at epoch 2 is the bias at the end; what stands before
    it is the same run."""
    kept = {}
    for name, words in {
        "two": ("epochs=2",), "three": ("epochs=3", "schedule.decay.every=9"), "whole": ("epochs=3",),
    }.items():  # fmt: skip
        words = (
            *words,
            "schedule.decay.factor=1",
            f"model.whiten_bias_epochs={2 if name != 'whole' else 'null'}",
        )
        run(tmp_path / name, *RUN, *words)
        kept[name] = checkpoint.weights_of(tmp_path / name)
    bias = {name: weights["whiten.bias"] for name, weights in kept.items()}
    assert bias["two"].abs().max() > 0
    assert torch.equal(bias["two"], bias["three"]) and not torch.equal(bias["three"], bias["whole"])
    assert not torch.equal(kept["two"]["head.weight"], kept["three"]["head.weight"])


def told(out, went: list) -> None:
    """Notes in `went` when a gradient arrives at `out`."""
    if out.requires_grad:
        out.register_hook(lambda gradient: went.append(True))


def test_behind_its_epochs_nothing_goes_backward_through_the_whitening(narrow):
    """Three epochs of 40 samples: 110 lies within, 120 behind; position alone decides, either way."""
    step = build.build(resolved(*RUN, "epochs=3", "hardware.micro_batch=8")).step
    went, layer = [], step.model.whiten
    layer.register_forward_hook(lambda _, x, out: told(out, went))
    setting = type("Setting", (), dict(batch_size=10, divisor=10, lr=0.1, group=0, growth=1.0))
    for start, expected in ((0, True), (110, True), (120, False), (0, True)):
        went.clear()
        before = layer.bias.detach().clone()
        step(start, setting)
        assert bool(went) == expected, start
        assert bool(layer.bias.grad.any()) == expected == (not torch.equal(layer.bias, before))


@pytest.mark.parametrize(
    "keys, message",
    [
        ({"dirac": 1}, "model.dirac is true or false; got 1."),
        ({"logit_scale": 0}, "model.logit_scale is a number above 0; got 0."),
        ({"whiten_bias_epochs": -1}, "model.whiten_bias_epochs is a number above 0; got -1."),
    ],
)
def test_a_wrong_key_is_refused(keys, message):
    with pytest.raises(UserError) as error:
        Airbench(10, 3, **keys)
    assert message in str(error.value)
