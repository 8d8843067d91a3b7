"""The kernel in C against batch norm of each group in float64, and its cuts, threads and absence."""

import math
import shutil

import pytest
import support
import torch
import torch.nn.functional as F
from torch import nn

from adabatch import ghostnorm, layers
from adabatch.build import build
from adabatch.errors import UserError

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
BOUNDS = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 1e-2}
SHAPES = [
    ((96, 16, 5, 5), (32, 32, 32)), ((7, 64, 3, 2), (3, 4)), ((9, 100, 4, 4), (4, 5)),
    ((40, 7, 1, 1), (20, 20)), ((50, 130), (16, 16, 18)), ((2, 32, 9, 9), (2,)),
]  # fmt: skip


def drawn(shape, sizes, dtype, offset=0.0):
    """x, plus, weight, bias and a gradient, as the network holds them."""
    torch.manual_seed(len(sizes) + shape[1])
    wide = torch.promote_types(dtype, torch.float32)
    x, plus, grad = (torch.randn(shape, dtype=torch.float64) for _ in range(3))
    tensors = [(x + offset).to(dtype), plus.to(dtype), grad.to(dtype)]
    if len(shape) == 4:
        tensors = [t.to(memory_format=torch.channels_last) for t in tensors]
    weight, bias = torch.rand(shape[1], dtype=wide) + 0.5, torch.randn(shape[1], dtype=wide)
    return (*tensors[:2], weight, bias, tensors[2])


def formula(x, plus, weight, bias, grad, sizes, clip):
    """[y, means, variances, gradients] in float64, by torch's batch norm of each group."""
    x, plus, weight, bias = (t.detach().double().requires_grad_() for t in (x, plus, weight, bias))
    y = torch.cat([F.batch_norm(part, None, None, weight, bias, True) for part in x.split(sizes)]) + plus
    y = y if clip is None else y.clamp(0, clip)
    y.backward(grad.double())
    axes = [0, *range(2, x.dim())]
    moments = [
        torch.stack([f(part, axes) for part in x.detach().split(sizes)]) for f in (torch.mean, torch.var)
    ]
    return [y.detach(), *moments, *(t.grad for t in (x, plus, weight, bias))]


def ours(x, plus, weight, bias, grad, sizes, clip):
    x, plus, weight, bias = (t.detach().clone().requires_grad_() for t in (x, plus, weight, bias))
    assert ghostnorm.fits(x, weight)
    y, mean, var = ghostnorm.grouped(x, weight, bias, sizes, 1e-5, plus, clip, ours=True)
    y.backward(grad)
    return [y.detach(), mean, var, *(t.grad for t in (x, plus, weight, bias))]


@pytest.mark.parametrize("clip", [None, math.inf, 0.7, 0.9])
@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("shape, sizes", SHAPES)
def test_the_kernel_is_the_formula(shape, sizes, dtype, clip):
    given = drawn(shape, sizes, dtype)
    right = formula(*given, sizes, clip)
    if clip is not None:  # a value that rounding moves across an end changes its gradient wholly
        raw = formula(*given, sizes, None)[0]
        near = torch.minimum(raw.abs(), (raw - clip).abs()) < 4 * BOUNDS[dtype]
        given[4][near] = 0
        right = formula(*given, sizes, clip)
    for found, true in zip(ours(*given, sizes, clip), right):
        assert (found.double() - true).abs().max() <= BOUNDS[dtype] * true.abs().max().clamp(min=1)


def test_a_mean_far_from_zero_costs_no_digits():
    """x near 1000 with spread 1: a variance as a difference of squares would have an error of 6 %."""
    shape, sizes = SHAPES[0]
    given = drawn(shape, sizes, torch.float32, offset=1000.0)
    found, right = (f(*given, sizes, None) for f in (ours, formula))
    assert ((found[2] - right[2]) / right[2]).abs().max() < 1e-4
    assert (found[0] - right[0]).abs().max() < 1e-3  # x itself is known to 6e-5


@pytest.mark.parametrize("dtype", BOUNDS)
def test_the_bits_depend_neither_on_threads_nor_on_what_else_a_call_holds(dtype):
    shape, sizes = (75, 48, 7, 7), (25, 25, 25)
    x, plus, weight, bias, grad = drawn(shape, sizes, dtype)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(ours(x, plus, weight, bias, grad, sizes, math.inf))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*found))
    slices = [slice(i, i + 25) for i in (0, 25, 50)]
    parts = [ours(x[at], plus[at], weight, bias, grad[at], (25,), math.inf) for at in slices]
    for index in range(5):  # y, moments, and the gradients by x and plus
        assert torch.equal(torch.cat([part[index] for part in parts]), found[0][index])


@pytest.mark.parametrize("layout", [lambda g: g.contiguous(), lambda g: g.sum().expand_as(g), lambda g: g])
def test_a_gradient_in_any_layout(layout):
    x, plus, weight, bias, grad = drawn((8, 16, 3, 3), (4, 4), torch.float32)
    grad = layout(grad)
    found, right = (f(x, plus, weight, bias, grad, (4, 4), math.inf) for f in (ours, formula))
    for one, true in zip(found, right):
        torch.testing.assert_close(one.double(), true, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("wanted", ["x", "plus", "weight", "bias"])
def test_what_needs_no_gradient_gets_none(wanted):
    given = dict(zip(("x", "plus", "weight", "bias"), drawn((8, 16, 3, 3), (4, 4), torch.float32)))
    given[wanted].requires_grad_()
    y, *_ = ghostnorm.grouped(
        given["x"], given["weight"], given["bias"], (4, 4), 1e-5, given["plus"], math.inf, True
    )
    y.sum().backward()
    assert {name for name, t in given.items() if t.grad is not None} == {wanted}


@pytest.mark.parametrize("kernel", [True, False])
@pytest.mark.parametrize("channels, sizes", [(16, (4, 4, 4)), (16, (4,)), (8, (4, 4)), (32, (4, 4))])
def test_groups_and_channels_that_do_not_fit_are_refused(kernel, channels, sizes):
    x = torch.randn(8, 16, 2, 2).to(memory_format=torch.channels_last)
    with pytest.raises(ValueError, match="normalises all samples"):
        ghostnorm.grouped(x, torch.ones(channels), torch.zeros(channels), sizes, 1e-5, ours=kernel)


def test_a_gradient_of_a_gradient_is_refused():
    x, plus, weight, bias, _ = drawn((8, 16, 2, 2), (4, 4), torch.float64)
    x.requires_grad_()
    y, *_ = ghostnorm.grouped(x, weight, bias, (4, 4), 1e-5, plus, ours=True)
    (first,) = torch.autograd.grad((y**2).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("dtype", BOUNDS)
def test_what_is_not_finite_stays_so(dtype, value):
    x, plus, weight, bias, _ = drawn((8, 16, 2, 2), (4, 4), dtype)
    x[5, 3, 1, 1] = value
    y, mean, var = ghostnorm.grouped(x, weight, bias, (4, 4), 1e-5, plus, math.inf, ours=True)
    assert y[4:, 3].isnan().all() and not y[:4].isnan().any() and not var[1, 3].isfinite()
    assert y[4:, 4:].isfinite().all()


def test_the_gradient_behind_a_value_that_is_not_finite_is_as_torchs():
    """Through ReLU and the sum with a shortcut that is NaN, or infinite."""
    found = []
    for kernel in (True, False):
        x, plus, weight, bias, grad = drawn((8, 16, 2, 2), (4, 4), torch.float32)
        plus[1, 2, 0, 0], plus[2, 2, 1, 0], plus[3, 2, 1, 1] = math.nan, math.inf, -math.inf
        x.requires_grad_(), plus.requires_grad_()
        y, *_ = ghostnorm.grouped(x, weight, bias, (4, 4), 1e-5, plus, math.inf, kernel)
        y.backward(grad)
        found.append((y.detach(), x.grad, plus.grad))
    for a, b in zip(*found):
        torch.testing.assert_close(a, b, equal_nan=True, rtol=1e-4, atol=1e-5)


def by_torch(x, weight, bias):
    """Two groups, by batch norm of each."""
    return torch.cat(
        [F.relu(F.batch_norm(part, None, None, weight, bias, True)) for part in x.split(len(x) // 2)]
    )


@pytest.mark.parametrize("shape", [(8, 6, 3, 3), (8, 6, 3), (8, 6, 2, 3, 2)])
def test_what_it_has_no_form_for_goes_to_torchs_kernel(monkeypatch, shape):
    monkeypatch.setattr(ghostnorm.Native, "apply", lambda *_: pytest.fail("not for this input"))
    x, weight, bias = torch.randn(shape), torch.ones(6), torch.zeros(6)
    y, *_ = ghostnorm.grouped(x, weight, bias, (4, 4), 1e-5, clip=math.inf, ours=True)
    torch.testing.assert_close(y, by_torch(x, weight, bias))
    assert not ghostnorm.fits(x, weight) and not ghostnorm.fits(x.half(), weight)


@pytest.mark.parametrize("kernel", [True, False])
@pytest.mark.parametrize(
    "strided", [lambda: torch.randn(8, 12)[:, ::2], lambda: torch.randn(8, 6, 4, 4)[..., ::2]]
)
def test_any_strides_are_normalised(kernel, strided):
    """torch's kernel alone gives wrong values for them."""
    x, weight, bias = strided(), torch.ones(6), torch.zeros(6)
    y, *_ = ghostnorm.grouped(x, weight, bias, (4, 4), 1e-5, clip=math.inf, ours=kernel)
    torch.testing.assert_close(y, by_torch(x.contiguous(), weight, bias))


def test_what_stands_behind_a_norm_may_overwrite_it():
    net = nn.Sequential(layers.norm("ghost", 16, 4), nn.ReLU(inplace=True))
    ghostnorm.adopt([net[0]])
    x, _, _, _, grad = drawn((8, 16, 2, 2), (4, 4), torch.float32)
    x.requires_grad_()
    (net(x) * grad).sum().backward()
    fused, x.grad = x.grad, None
    (layers.Chain(*net)(x) * grad).sum().backward()
    torch.testing.assert_close(x.grad, fused)


def test_a_chain_leaves_out_nothing_and_clips_once():
    """Two norms of one ReLU object, a ReLU without a norm, a norm without ReLU."""
    relu = nn.ReLU()
    norms = [layers.norm("ghost", 16, 4) for _ in range(3)]
    conv, plain = nn.Conv2d(16, 16, 1), layers.norm("batch", 16)
    net = nn.Sequential(relu, norms[0], relu, conv, relu, norms[1], nn.ReLU6(), plain, relu, norms[2])
    x = torch.randn(8, 16, 2, 2)
    torch.testing.assert_close(layers.Chain(*net)(x), net(x))


def test_a_shortcut_of_another_precision_is_added_by_torch():
    x, plus, weight, bias, _ = drawn((8, 16, 2, 2), (4, 4), torch.bfloat16)
    y, *_ = ghostnorm.grouped(x, weight, bias, (4, 4), 1e-5, plus.float(), math.inf, ours=True)
    assert y.dtype == torch.float32


@pytest.mark.parametrize(
    "model",
    ["resnet", "resnext", "densenet", "wide_resnet", pytest.param("mobilenet_v2", marks=pytest.mark.slow)],
)
def test_a_network_is_the_same_function_by_either_kernel(model):
    """Loss and gradients of a training pass in float64."""
    found = []
    for kind in ("auto", "library"):
        lines = (f"model={model}", "model.ghost=8", *SMALL[model], f"hardware.ghost_norm={kind}")
        net = build(support.resolved("dataset=digits", "hardware.precision=fp64", *lines)).step.model
        norms = layers.ghost_layers(net)
        assert norms and all(layer.ours == (kind == "auto") for layer in norms)
        for layer in norms:
            layer.micro = None
        torch.manual_seed(0)
        side = getattr(net, "size", 8)
        x = torch.randn(20, next(net.parameters()).shape[1], side, side, dtype=torch.float64)
        out = net(x.to(memory_format=torch.channels_last))
        out.logsumexp(1).sum().backward()
        found.append(
            [out.detach(), *(p.grad.clone() for p in net.parameters()), *(b.clone() for b in net.buffers())]
        )
    for a, b in zip(*found):
        assert (a.double() - b.double()).abs().max() <= 1e-9 * b.double().abs().max().clamp(min=1)


SMALL = {
    "resnet": ["model.depth=8"], "resnext": ["model.depth=11", "model.group_width=4"],
    "mobilenet_v2": ["model.dropout=0"], "densenet": ["model.depth=10"],
    "wide_resnet": ["model.depth=10", "model.width=1"],
}  # fmt: skip


def test_another_value_is_refused():
    with pytest.raises(UserError, match="hardware.ghost_norm is one of auto, library, got 'fast'"):
        support.resolved("hardware.ghost_norm=fast")
