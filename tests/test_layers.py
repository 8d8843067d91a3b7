"""Ghost batch norm against torch's batch norm group by group, L1 and layer norm against their formulas, and
dropout addressed by position."""

import math

import pytest
import torch
import torch.nn.functional as F
from support import resolved

from adabatch import build, ghostnorm, layers
from adabatch.errors import UserError
from adabatch.ghostnorm import Library, traced


@pytest.mark.parametrize(
    "count, ghost, expected",
    [
        (128, 32, [32, 32, 32, 32]),
        (100, 32, [32, 32, 36]),  # remainder 4 < 16 joins
        (112, 32, [32, 32, 32, 16]),  # remainder 16 is half a group: its own
        (20, 32, [20]),
        (1, 32, [1]),
        (33, 32, [33]),
        (5, 2, [2, 2, 1]),
    ],
)
def test_groups_of_a_batch(count, ghost, expected):
    assert layers.group_sizes(count, ghost) == expected


def reference(x, weight, bias, sizes, running_mean, running_var):
    """One torch batch norm per group, one exponential update per group in order."""
    out = []
    for part in x.split(sizes):
        if len(part) == 1:
            out.append(F.batch_norm(part, running_mean, running_var, weight, bias, False, 0.0, 1e-5))
            continue
        momentum = 1 - 0.9 ** (len(part) / 128)
        out.append(F.batch_norm(part, running_mean, running_var, weight, bias, True, momentum, 1e-5))
    return torch.cat(out)


@pytest.mark.parametrize("shape", [(100, 3, 4, 4), (20, 3, 4, 4), (65, 7), (1, 3, 4, 4)])
@pytest.mark.parametrize("channels_last", [False, True])
def test_ghost_norm_is_batch_norm_of_each_group(shape, channels_last):
    torch.manual_seed(0)
    layer = layers.norm("ghost", shape[1], 8).double()
    layer.weight.data.uniform_(0.5, 1.5)
    layer.bias.data.normal_()
    x = (torch.randn(shape, dtype=torch.float64) * 2 + 1).requires_grad_()
    given = x.contiguous(memory_format=torch.channels_last) if channels_last and x.dim() == 4 else x
    mean, var = torch.zeros(shape[1]).double(), torch.ones(shape[1]).double()
    grad = torch.randn(shape, dtype=torch.float64)
    weight, bias = (
        layer.weight.detach().clone().requires_grad_(),
        layer.bias.detach().clone().requires_grad_(),
    )
    expected = reference(x, weight, bias, layers.group_sizes(shape[0], 8), mean, var)
    expected_grads = torch.autograd.grad(expected, [x, weight, bias], grad)
    out = layer(given)
    grads = torch.autograd.grad(out, [x, layer.weight, layer.bias], grad)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    for ours, theirs in zip(grads, expected_grads):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(layer.running_mean, mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(layer.running_var, var, rtol=1e-12, atol=1e-12)


def l1_by_hand(x, weight, bias, mean=None, deviation=None, eps=1e-5):
    """One group, channel by channel: (y, its mean, its deviation)."""
    outs, means, deviations = [], [], []
    for c in range(x.shape[1]):
        values = x[:, c]
        mu = values.sum() / values.numel() if mean is None else mean[c]
        if deviation is None:
            s = math.sqrt(math.pi / 2) * (values - mu).abs().sum() / values.numel()
        else:
            s = deviation[c]
        outs.append(weight[c] * (values - mu) / (s + eps) + bias[c])
        means.append(mu.detach())
        deviations.append(s.detach())
    return torch.stack(outs, 1), torch.stack(means), torch.stack(deviations)


@pytest.mark.parametrize("shape", [(20, 3, 4, 4), (21, 3, 4, 4), (17, 5), (9, 5), (1, 3, 4, 4)])
def test_l1_norm_is_its_formula_in_each_group(shape):
    """Values, gradients, and the running statistics by one update for each group in order."""
    torch.manual_seed(0)
    layer = layers.norm("l1", shape[1], 8).double()
    layer.weight.data.uniform_(0.5, 1.5)
    layer.bias.data.normal_()
    x = (torch.randn(shape, dtype=torch.float64) * 2 + 1).requires_grad_()
    mean, deviation, outs = torch.zeros(shape[1]).double(), torch.ones(shape[1]).double(), []
    for part in x.split(layers.group_sizes(shape[0], 8)):
        if len(part) == 1:
            outs.append(l1_by_hand(part, layer.weight, layer.bias, mean, deviation)[0])
            continue
        out, mu, s = l1_by_hand(part, layer.weight, layer.bias)
        kept = 0.9 ** (len(part) / 128)
        mean, deviation = kept * mean + (1 - kept) * mu, kept * deviation + (1 - kept) * s
        outs.append(out)
    expected, grad, wanted = torch.cat(outs), torch.randn(shape).double(), [x, layer.weight, layer.bias]
    expected_grads = torch.autograd.grad(expected, wanted, grad)
    given = x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x
    out = layer(given)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    for ours, theirs in zip(torch.autograd.grad(out, wanted, grad), expected_grads):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(layer.running_mean, mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(layer.running_deviation, deviation, rtol=1e-12, atol=1e-12)
    layer.eval()
    expected, *_ = l1_by_hand(x, layer.weight, layer.bias, mean, deviation)
    torch.testing.assert_close(layer(given), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("train", [True, False])
def test_gradients_of_l1_norm_are_those_of_finite_differences(train):
    torch.manual_seed(0)
    x = torch.randn(9, 2, 3, dtype=torch.float64, requires_grad=True)
    layer = layers.norm("l1", 2, 4).double().train(train)
    layers.bind(layer, micro := layers.MicroBatch(0))
    micro.groups = [4, 4, 1]
    weight, bias = torch.rand(2, dtype=torch.float64) + 0.5, torch.randn(2, dtype=torch.float64)

    def normalised(x, weight, bias):
        return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, (x,))

    assert torch.autograd.gradcheck(normalised, (x, weight.requires_grad_(), bias.requires_grad_()))


def test_the_deviation_of_normal_numbers_is_their_standard_deviation():
    """What sqrt(pi / 2) is for: E|x - mu| = sigma sqrt(2 / pi)."""
    torch.manual_seed(0)
    layer = layers.norm("l1", 1, 2).double()
    layers.bind(layer, micro := layers.MicroBatch(0))
    x = 3 * torch.randn(200_000, 1, dtype=torch.float64) + 5
    micro.groups, micro.weights, micro.record = [len(x)], torch.ones(1).double(), True
    layer(x)
    assert layer.pending_deviation.item() == pytest.approx(3, rel=0.01)


@pytest.mark.parametrize(
    "kind, dtype", [("l1", torch.float32), ("l1", torch.bfloat16), ("ghost", torch.float32)]
)
def test_a_norm_keeps_precision_and_memory_format_and_may_be_overwritten(kind, dtype):
    """Statistics in the weights' precision; an in-place ReLU behind it changes no gradient."""
    torch.manual_seed(0)
    x = torch.randn(20, 4, 3, 3).to(dtype).contiguous(memory_format=torch.channels_last).requires_grad_()
    plus = torch.randn(20, 4, 3, 3).to(dtype).contiguous(memory_format=torch.channels_last)
    grads, layer = [], layers.norm(kind, 4, 8)
    for inplace in (False, True):
        y = layer(x)
        assert y.dtype == dtype and y.is_contiguous(memory_format=torch.channels_last)
        grads.append(torch.autograd.grad((F.relu(y, inplace) * plus).sum(), x)[0])
    grads.append(torch.autograd.grad((layer(x, clip=math.inf) * plus).sum(), x)[0])
    assert torch.equal(grads[0], grads[1]) and torch.equal(grads[0], grads[2])
    joined = layers.Joined(layer)(x, plus)
    torch.testing.assert_close(joined, F.relu(layer(x) + plus), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("norm, asked", [("l1", []), ("ghost", [[1]])])
def test_the_kernel_in_c_is_offered_to_batch_norm_only(norm, asked, monkeypatch):
    """It knows no other formula, and what a run says of its kernel would be wrong."""
    config, offered = resolved("model=convnet", f"model.norm={norm}", "dataset.limit=40"), []
    monkeypatch.setattr(ghostnorm, "adopt", lambda norms, ranks: offered.append([1]) or "c")
    parts = build.build(config)
    assert offered == asked and parts.hardware.ghost_norm == ("c" if asked else "library")
    assert layers.ghost_size(parts.step.model) == 32


@pytest.mark.parametrize("shape", [(3, 4, 2, 5), (3, 4)])
def test_layer_norm_is_its_formula(shape):
    """Ba et al. 2016 (arXiv 1607.06450): mean and variance of one sample, over all its numbers."""
    torch.manual_seed(0)
    layer = layers.norm("layer", 4).double()
    layer.weight.data.uniform_(0.5, 1.5)
    layer.bias.data.normal_()
    x = torch.randn(shape, dtype=torch.float64) * 2 + 1
    for one, y in zip(x, layer(x)):
        mean = one.sum() / one.numel()
        variance = ((one - mean) ** 2).sum() / one.numel()
        for c in range(4):
            expected = (one[c] - mean) / torch.sqrt(variance + 1e-5) * layer.weight[c] + layer.bias[c]
            torch.testing.assert_close(y[c], expected, rtol=1e-12, atol=1e-12)


def test_default_horizon_is_torchs_momentum_at_128():
    weights, kept = layers.group_weights([128])
    assert weights == pytest.approx([0.1]) and kept == pytest.approx(0.9)


def test_weights_of_groups_and_old_value_sum_to_one():
    weights, kept = layers.group_weights([32, 32, 1])
    assert weights[-1] == 0
    assert sum(weights) + kept == pytest.approx(1, rel=1e-14)


def test_evaluation_uses_running_statistics():
    layer = layers.norm("ghost", 2, 4).eval()
    x = torch.tensor([[1.0, 2.0], [3.0, -1.0]])
    torch.testing.assert_close(layer(x), x / (1 + 1e-5) ** 0.5)


def test_dropout_mask_follows_the_position_not_the_cut():
    layer, micro = layers.Dropout(0.3), layers.MicroBatch(seed=5)
    layers.bind(torch.nn.Sequential(torch.nn.Identity(), layer), micro)
    x = torch.ones(64, 3, 5, 5)
    micro.positions = torch.arange(1000, 1064)
    whole = layer(x)
    parts = []
    for start in (0, 10, 30):
        stop = {0: 10, 10: 30, 30: 64}[start]
        micro.positions = torch.arange(1000 + start, 1000 + stop)
        parts.append(layer(x[start:stop]))
    assert torch.equal(whole, torch.cat(parts))
    assert whole.mean().item() == pytest.approx(1, abs=0.05)
    assert (whole == 0).float().mean().item() == pytest.approx(0.3, abs=0.03)
    micro.positions = torch.arange(2000, 2064)
    assert not torch.equal(whole, layer(x))


def test_two_dropout_layers_have_different_masks():
    net, micro = torch.nn.Sequential(layers.Dropout(), layers.Dropout()), layers.MicroBatch(seed=1)
    layers.bind(net, micro)
    micro.positions = torch.arange(8)
    x = torch.ones(8, 100)
    assert not torch.equal(net[0](x), net[1](x))


def test_layers_that_depend_on_the_cut_are_named():
    net = torch.nn.Sequential(
        torch.nn.BatchNorm2d(2),
        layers.norm("ghost", 2),
        torch.nn.Dropout(0.1),
        layers.Dropout(0.1),
        layers.norm("batch", 2),
        torch.nn.Dropout(0.0),
    )
    assert layers.split_dependent(net) == ["0 (BatchNorm2d)", "2 (Dropout)", "4 (PlainBatchNorm)"]


def test_wrong_norm_gets_a_suggestion():
    with pytest.raises(UserError, match="Did you mean 'ghost'"):
        layers.norm("gost", 4)


def test_one_ghost_size_per_network():
    with pytest.raises(UserError, match=r"\[8, 16\]"):
        layers.ghost_size(torch.nn.Sequential(layers.norm("ghost", 2, 8), layers.norm("ghost", 2, 16)))


@pytest.mark.parametrize("shape", [(96, 3, 4, 4), (100, 3, 4, 4), (112, 5), (20, 3, 2, 2)])
def test_the_form_for_compilers_is_the_same_function(shape):
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    weight = torch.rand(shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.randn(shape[1], dtype=torch.float64, requires_grad=True)
    sizes, grad = layers.group_sizes(shape[0], 32), torch.randn(shape, dtype=torch.float64)
    found = []
    for form in (traced, Library.apply):
        out, mean, var = form(x, weight, bias, sizes, 1e-5)
        found.append((out, mean, var, *torch.autograd.grad(out, [x, weight, bias], grad)))
    for ours, theirs in zip(*found):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_the_norms_that_are_refused_without_torch_are_those_there_are():
    from adabatch import sanity

    assert sanity.NORMS == layers.NORMS
