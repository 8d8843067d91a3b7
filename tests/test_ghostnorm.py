"""The kernel in C against batch norm of each group in float64, and its cuts, threads and absence."""

import math
import os
import shutil
import subprocess
import sys

import pytest
import support
import torch
import torch.nn.functional as F
from torch import nn

from adabatch import ghostnorm, layers, native
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


@pytest.mark.parametrize("clip", [None, math.inf, 0.8])
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


def test_the_bits_depend_neither_on_threads_nor_on_what_else_a_call_holds():
    shape, sizes = (75, 48, 7, 7), (25, 25, 25)
    x, plus, weight, bias, grad = drawn(shape, sizes, torch.float32)
    whole = ours(x, plus, weight, bias, grad, sizes, math.inf)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        again = ours(x, plus, weight, bias, grad, sizes, math.inf)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(whole, again))
    parts = [
        ours(x[i : i + 25], plus[i : i + 25], weight, bias, grad[i : i + 25], (25,), math.inf)
        for i in (0, 25, 50)
    ]
    for index in (0, 1, 2, 3, 4):  # y, moments, and the gradients by x and plus
        assert torch.equal(torch.cat([part[index] for part in parts]), whole[index])


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("dtype", BOUNDS)
def test_what_is_not_finite_stays_so(dtype, value):
    x, plus, weight, bias, _ = drawn((8, 16, 2, 2), (4, 4), dtype)
    x[5, 3, 1, 1] = value
    y, mean, var = ghostnorm.grouped(x, weight, bias, (4, 4), 1e-5, plus, math.inf, ours=True)
    assert y[4:, 3].isnan().all() and not y[:4].isnan().any() and not var[1, 3].isfinite()
    assert y[4:, 4:].isfinite().all()


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


@pytest.mark.parametrize("model", ["resnet", "resnext", "mobilenet_v2", "densenet", "wide_resnet"])
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


def test_single_samples_under_vmap_do_without_it():
    net = nn.Sequential(nn.Linear(4, 6), layers.Chain(layers.norm("ghost", 6, 4), nn.ReLU()), nn.Linear(6, 1))
    ghostnorm.adopt(layers.ghost_layers(net))
    net.eval()
    values = dict(net.named_parameters()) | dict(net.named_buffers())

    def loss(own, x):
        return torch.func.functional_call(net, own | dict(net.named_buffers()), x[None]).sum()

    each = torch.func.vmap(torch.func.grad(loss), (None, 0))(
        {k: v for k, v in values.items() if v.requires_grad}, torch.randn(5, 4)
    )
    assert each["0.weight"].shape == (5, 6, 4)


SCRIPT = """
import sys, torch
from adabatch import ghostnorm, layers, native
norm = layers.norm("ghost", 8, 4)
ghostnorm.adopt([norm])
print(norm.ours)
"""


@pytest.mark.parametrize(
    "compiler",
    [
        None,
        "#!/bin/sh\nexit 1\n",
        '#!/bin/sh\n[ "$1" = --version ] && exit 0\necho no such flag >&2; exit 1\n',
    ],
)
def test_without_a_working_compiler_torchs_kernel_does_it(tmp_path, compiler):
    """Also where an earlier build lies in the cache of another compiler."""
    (tmp_path / "bin").mkdir()
    if compiler:
        (tmp_path / "bin/cc").write_text(compiler)
        (tmp_path / "bin/cc").chmod(0o755)
    environment = {k: v for k, v in os.environ.items() if k != "CC"} | {"PATH": str(tmp_path / "bin")}
    if compiler is None:
        environment["PATH"] = str(tmp_path)
    else:
        environment["PATH"] += os.pathsep + "/bin"
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.strip() == "False", done.stderr


@pytest.mark.parametrize("home", ["new", "read-only"])
def test_it_is_compiled_once_and_kept_where_that_may_be(tmp_path, home, monkeypatch):
    """A home that cannot be written to (a file in its place): for this process alone."""
    cache = tmp_path / "cache"
    if home == "read-only":
        cache.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    compiler = shutil.which("cc")
    first = native._built(compiler)
    assert first.exists() and (cache in first.parents) == (home == "new")
    if home == "new":
        before = first.stat().st_mtime_ns
        assert native._built(compiler) == first and first.stat().st_mtime_ns == before
        assert [path.name for path in first.parent.iterdir()] == [first.name]


def test_a_kernel_that_is_wrong_is_not_used(monkeypatch):
    ghostnorm.checked.cache_clear()
    apply = ghostnorm.Native.apply
    monkeypatch.setattr(ghostnorm.Native, "apply", lambda *given: (apply(*given)[0] * 1.001, None, None))
    norm = layers.norm("ghost", 8, 4)
    ghostnorm.adopt([norm])
    assert not norm.ours
    monkeypatch.undo()
    ghostnorm.checked.cache_clear()
    ghostnorm.adopt([norm])
    assert norm.ours


def test_another_value_is_refused():
    with pytest.raises(UserError, match="hardware.ghost_norm is one of auto, library, got 'fast'"):
        support.resolved("hardware.ghost_norm=fast")
