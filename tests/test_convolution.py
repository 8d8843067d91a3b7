"""Convolutions as products of matrices against torch's own, in float64; which layers and maps take them."""

import pytest
import torch
import torch.nn.functional as F
from support import resolved
from torch import nn

from adabatch import bilinear, convolution
from adabatch import pieces as near_cache
from adabatch.build import build
from adabatch.schedules.setting import Setting

# n, channels in, out, height, width, kernel, stride, padding
SHAPES = [
    (3, 5, 7, 4, 4, 3, 1, 1), (2, 3, 4, 2, 2, 3, 1, 1), (2, 3, 4, 4, 4, 5, 1, 2), (3, 3, 6, 32, 32, 11, 4, 5),
    (2, 4, 5, 8, 8, 3, 2, 1), (2, 4, 5, 7, 9, 3, 2, 1), (2, 4, 5, 4, 4, 2, 2, 0), (2, 4, 5, 1, 1, 3, 1, 1),
    (2, 4, 5, 5, 6, 3, 3, 0), (2, 4, 5, 6, 6, 4, 3, 2), (1, 1, 1, 3, 2, 3, 1, 2), (5, 4, 3, 2, 1, 5, 2, 4),
]  # fmt: skip


def tensors(shape, dtype=torch.float64):
    n, c, o, height, width, k, s, p = shape
    generator = torch.Generator().manual_seed(sum(shape))
    x = torch.randn(n, c, height, width, generator=generator, dtype=torch.float64)
    weight = torch.randn(o, c, k, k, generator=generator, dtype=torch.float64) / (k * c**0.5)
    x = x.to(dtype).to(memory_format=torch.channels_last)
    return x.requires_grad_(), weight.to(dtype).requires_grad_(), s, p


def results(function, x, weight, s, p):
    """[output, gradient by the input, by the weight], of one made-up gradient."""
    out = function(x, weight, s, p)
    grad = torch.cos(torch.arange(out.numel(), dtype=torch.float64)).view(out.shape).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, [x, weight], grad)]


def library(x, weight, s, p):
    return F.conv2d(x, weight, None, s, p)


@pytest.mark.parametrize("piece", [1, 400, 1 << 24])
@pytest.mark.parametrize("form", ["_Windows", "_Dense"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_both_forms_are_the_convolution(shape, form, piece, monkeypatch):
    """piece: bytes of windows at once; 1 = sample by sample."""
    monkeypatch.setattr(near_cache, "PIECE", piece)
    function = getattr(convolution, form).apply
    for ours, theirs in zip(
        results(function, *tensors(shape)), results(library, *tensors(shape)), strict=True
    ):
        assert ours.shape == theirs.shape
        assert (ours - theirs).abs().max() <= 1e-13 * max(1.0, theirs.abs().max())


@pytest.mark.parametrize("shape", SHAPES[:5], ids=str)
def test_bf16_is_as_near_to_float64_as_the_library_is(shape):
    exact = results(
        library, *(t.double() if torch.is_tensor(t) else t for t in tensors(shape, torch.bfloat16))
    )
    ours, theirs = (results(f, *tensors(shape, torch.bfloat16)) for f in (convolution.product, library))
    for a, b, true in zip(ours, theirs, exact, strict=True):
        size = true.abs().max()
        assert (a - true).abs().max() / size <= max(2 * (b - true).abs().max() / size, 2**-8)


def test_pieces_of_a_large_batch_add_up_in_float32(monkeypatch):
    """4,096 samples one by one: sums in bf16 would stop growing at 256 times a term."""
    monkeypatch.setattr(near_cache, "PIECE", 1)
    x = torch.ones(4096, 1, 1, 1, dtype=torch.bfloat16)
    weight = torch.ones(1, 1, 2, 2, dtype=torch.bfloat16, requires_grad=True)
    out = convolution._Windows.apply(F.pad(x, (0, 1, 0, 1)), weight, 1, 0)
    assert torch.autograd.grad(out.sum(), weight)[0][0, 0, 0, 0] == 4096


def layer(c, o, k, **more):
    net = nn.Sequential(nn.Conv2d(c, o, k, **more))
    convolution.adopt(net)
    return net[0]


@pytest.mark.parametrize(
    "made, adopted",
    [
        (dict(padding=1), True), (dict(stride=2), True), (dict(padding="same"), False),
        (dict(groups=2), False), (dict(dilation=2), False), (dict(padding=3), False),
        (dict(padding=1, padding_mode="reflect"), False), (dict(stride=(1, 2)), False),
    ],
)  # fmt: skip
def test_which_layers_choose(made, adopted):
    assert (type(layer(4, 4, 3, **made)) is convolution.Conv2d) == adopted


def test_a_layer_of_somebody_elses_class_is_left_alone():
    class Own(nn.Conv2d):
        pass

    net = nn.Sequential(Own(3, 4, 3), nn.Conv2d(4, 4, 1), nn.Conv1d(3, 3, 3))
    convolution.adopt(net)
    assert [type(m) for m in net] == [Own, nn.Conv2d, nn.Conv1d]


@pytest.mark.parametrize(
    "side, k, s, p, dtype, form",
    [
        (4, 3, 1, 1, torch.bfloat16, "product"), (4, 3, 1, 1, torch.float32, "bilinear"),
        (4, 5, 1, 2, torch.float32, "bilinear"), (4, 5, 1, 1, torch.float32, "product"),
        (2, 3, 1, 1, torch.float32, "bilinear"), (2, 3, 1, 1, torch.float64, "product"),
        (4, 3, 1, 1, torch.float64, None), (4, 3, 2, 1, torch.float32, "product"),
        (8, 3, 1, 1, torch.float32, None), (3, 3, 1, 1, torch.float32, None),
        (8, 3, 1, 1, torch.bfloat16, None), (8, 3, 2, 1, torch.bfloat16, "product"),
        (32, 11, 4, 5, torch.bfloat16, "product"), (32, 11, 4, 5, torch.float32, None),
        (224, 11, 4, 2, torch.bfloat16, None),
    ],
)  # fmt: skip
def test_which_maps_are_small(side, k, s, p, dtype, form):
    conv = layer(64, 64, k, stride=s, padding=p)
    x = torch.zeros(32, 64, side, side, dtype=dtype).to(memory_format=torch.channels_last)
    assert chosen(conv, x) == form
    assert chosen(conv, x[:31]) == (form if dtype == torch.bfloat16 else None)
    conv.eval()
    assert chosen(conv, x) is None  # single samples under vmap
    with torch.no_grad():
        assert chosen(conv, x) == form


def chosen(conv, x) -> str | None:
    form = conv.form(x)
    return form and ("bilinear" if form == bilinear.Bilinear.apply else "product")


@pytest.mark.parametrize(
    "c, o, height, width, form",
    [(64, 64, 4, 2, None), (63, 64, 4, 4, None), (64, 63, 4, 4, None), (1, 2, 2, 2, "bilinear")],
)
def test_which_maps_take_fewer_products(c, o, height, width, form):
    x = torch.zeros(32, c, height, width).to(memory_format=torch.channels_last)
    assert chosen(layer(c, o, 3, padding=1), x) == form


def test_a_layer_under_autocast_is_torchs(monkeypatch):
    """Dtypes of output and gradients, the bias, and values within bf16."""
    found = []
    for adopt in (True, False):
        torch.manual_seed(0)
        conv = nn.Conv2d(6, 5, 3, padding=1).to(memory_format=torch.channels_last)
        if adopt:
            convolution.adopt(conv)
        x = torch.randn(4, 6, 4, 4).to(memory_format=torch.channels_last).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            out = conv(x)
        out.float().square().sum().backward()
        found.append([out, x.grad, conv.weight.grad, conv.bias.grad])
    for ours, theirs in zip(*found, strict=True):
        assert ours.dtype == theirs.dtype
        assert (ours - theirs).abs().max() <= 0.02 * theirs.abs().max()


VGG = pytest.param(["model=vgg", "model.depth=11"], marks=pytest.mark.slow)


@pytest.mark.parametrize("model", [["model=alexnet"], VGG], ids=str)
@pytest.mark.parametrize("precision, bound", [("fp64", 1e-12), ("fp32", 2e-3)])
def test_a_step_of_a_whole_network(model, precision, bound, monkeypatch):
    """The gradient with products and with torch's kernels only; the state has the same names. In float32
    all layers of AlexNet behind the first take fewer products, in either direction and for both cuts; a ReLU
    that rounding turns over moves its gradient by some 5e-4."""
    found, names, kinds, calls = [], [], [], []
    mix = bilinear.Mix.__call__
    monkeypatch.setattr(bilinear.Mix, "__call__", lambda *given: (calls.append(way), mix(*given))[1])
    for way in ("auto", "library"):
        parts = build(
            resolved(*model, "dataset=synthetic", "dataset.samples=64", f"hardware.precision={precision}",
                     f"hardware.convolution={way}")
        )  # fmt: skip
        parts.step.micro_batch = 32
        parts.step.flat.pending.zero_()
        parts.step._gradient(0, Setting(64, 0.0, 64), None, frozenset())
        found.append(parts.step.flat.grads.clone())
        names.append(list(parts.step.model.state_dict()))
        kinds.append({type(m) for m in parts.step.model.modules()})
    assert (found[0] - found[1]).abs().max() <= bound * found[1].abs().max() and found[1].abs().max() > 0
    assert names[0] == names[1] and [convolution.Conv2d in kind for kind in kinds] == [True, False]
    assert "library" not in calls and (precision == "fp32") == ("auto" in calls)
    if model == ["model=alexnet"] and precision == "fp32":
        assert len(calls) == 4 * 2 * (
            3 + 4
        )  # layers, cuts, forward (taps, in, out) and backward (and in again)
