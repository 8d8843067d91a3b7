"""Three ways to normalise the groups of a batch and to do what follows: a kernel of ours in C (`native/`) on
a CPU, torch's own kernel, and operations that torch.compile fuses.

x: [n, c, ...] in groups of consecutive samples -> y like x, means and unbiased variances [groups, c]:

    y = clip((x - mean of its group) / sqrt(variance + eps) * weight + bias + plus)

plus: None, or like x (a residual block's shortcut). clip: None, or the upper end of [0, clip]: infinity is
ReLU, 6 is ReLU6.
"""

import ctypes
import functools
import logging
import math

import torch
import torch.nn.functional as F
from torch.autograd import grad as gradients
from torch.autograd.function import once_differentiable

from adabatch import native

KINDS = {torch.float32: "float", torch.bfloat16: "bf16", torch.float64: "double"}
CHANNELS = 16_384  # at most: a thread keeps four numbers for each on its stack

log = logging.getLogger("adabatch")


def followed(y, plus=None, clip: float | None = None):
    """What follows a norm, by torch. y is a tensor that nobody else keeps."""
    if plus is not None:
        y = y + plus
    if clip is None:
        return y
    return F.relu(y, inplace=True) if clip == math.inf else F.hardtanh(y, 0.0, clip, inplace=True)


def grouped(x, weight, bias, sizes, eps: float, plus=None, clip=None, ours: bool = False):
    """The page's formula. ours: the kernel in C is asked for, and used where it has a form for x."""
    _fitting(x, weight, sizes)
    if not (_pixels_first(x) or x.is_contiguous()):
        x = x.contiguous()  # with other strides torch's kernel gives wrong values, without a word (2.15)
    if torch.compiler.is_compiling():
        y, mean, var = traced(x, weight, bias, sizes, eps)
    elif ours and fits(x, weight):
        alike = plus is None or (plus.dtype == x.dtype and plus.shape == x.shape)
        low, high = (-math.inf, math.inf) if clip is None or not alike else (0.0, clip)
        inside = plus if alike else None
        y, mean, var = Native.apply(x, inside, weight, bias, tuple(sizes), eps, low, high)
        if alike:
            return y, mean, var
    else:
        y, mean, var = Library.apply(x, weight, bias, sizes, eps)
    return followed(y, plus, clip), mean, var


def _fitting(x, weight, sizes) -> None:
    if sum(sizes) != len(x) or x.shape[1] != len(weight):
        raise ValueError(
            f"ghost norm of {len(weight)} channels over {sum(sizes)} samples in groups got x of shape "
            f"{tuple(x.shape)}: a network normalises all samples of a micro-batch, in their order"
        )


def adopt(layers: list, ranks=None) -> str:
    """Let ghost norms use the kernel in C, if all ranks have it; "c" or "library". Where there is none that
    is said, and torch's stays."""
    why = _lacking()
    lacking = ranks.reduce(flags=[why is not None])[0] if ranks else why is not None
    if lacking:
        log.info(f"ghost norm by torch's kernel, the slower one: {why or 'another rank has no other'}")
        return "library"
    for layer in layers:
        layer.ours = True
    return "c"


def _lacking() -> str | None:
    """Why there is no kernel in C here; None where there is one."""
    try:
        checked()
    except native.Unavailable as error:
        return (str(error).strip().splitlines() or ["the compiler failed"])[-1]
    return None


@functools.cache
def checked() -> ctypes.CDLL:
    """The kernel, held once against torch's in float64. Unavailable: there is none, or it is wrong."""
    found = native.kernels()
    generator = torch.Generator().manual_seed(0)
    x, plus, grad = (torch.randn(5, 20, 3, 2, generator=generator, dtype=torch.float64) for _ in range(3))
    for dtype, bound in ((torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)):
        wide = torch.promote_types(dtype, torch.float32)
        end = math.inf if dtype == torch.bfloat16 else 1.0  # rounding to bf16 may reach the end of a clip
        weight, bias = torch.linspace(0.5, 2, 20, dtype=wide), torch.linspace(-1, 1, 20, dtype=wide)
        answers = []
        for ours in (True, False):
            given = [t.to(dtype) if ours else t.to(dtype).double() for t in (x, plus, grad)]
            given = [t.to(memory_format=torch.channels_last).requires_grad_() for t in given]
            own = [w.to(wide if ours else torch.float64).clone().requires_grad_() for w in (weight, bias)]
            if ours:
                y, *_ = Native.apply(given[0], given[1], *own, (2, 3), 1e-5, -end, end)
            else:
                y, *_ = Library.apply(given[0], *own, (2, 3), 1e-5)
                y = (y + given[1]).clamp(-end, end)
            total = (y * given[2].detach()).sum()  # a gradient that is given imports sympy, 2 s
            answers.append([y.detach(), *gradients(total, [*given[:2], *own])])
        for ours, right in zip(*answers):
            if not torch.allclose(ours.double(), right.double(), rtol=bound, atol=bound * right.abs().max()):
                raise native.Unavailable("the compiled kernel is wrong here")
    return found


def fits(x, weight) -> bool:
    """Whether the kernel has a form for x: on a CPU, [n, c] or channels_last."""
    if x.device.type != "cpu" or x.dtype not in KINDS or x.shape[1] > CHANNELS or len(x) == 0:
        return False
    return weight.dtype == torch.promote_types(x.dtype, torch.float32) and _pixels_first(x)


def _pixels_first(x) -> bool:
    if x.dim() == 2:
        return x.is_contiguous()
    return x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)


def _like(x, other):
    """`other` in the memory format of x."""
    return other.contiguous() if x.dim() == 2 else other.contiguous(memory_format=torch.channels_last)


@functools.lru_cache(maxsize=256)
def _chunks(sizes: tuple, pixels: int) -> tuple:
    """(borders, owners, firsts) as ghost.c has them: chunks of about 32 vectors or one sample, cut from each
    group's beginning, so that a group's chunks are the same whatever stands beside it."""
    borders, owners, firsts, each = [0], [], [0], max(1, 32 // pixels)
    for group, size in enumerate(sizes):
        end = borders[-1] + size
        while borders[-1] < end:
            borders.append(min(borders[-1] + each, end))
            owners.append(group)
        firsts.append(len(owners))
    return tuple((ctypes.c_int64 * len(v))(*v) for v in (borders, owners, firsts))


def _int64(*values: int) -> tuple:
    return tuple(map(ctypes.c_int64, values))


def _at(tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


class Native(torch.autograd.Function):
    """By ghost.c. low, high: the ends of the clip."""

    @staticmethod
    def forward(ctx, x, plus, weight, bias, sizes, eps, low, high):
        plus = None if plus is None else _like(x, plus)
        weight, bias = weight.contiguous(), bias.contiguous()
        y, (n, c) = torch.empty_like(x), x.shape[:2]
        stats, parts = weight.new_empty(3, len(sizes), c), weight.new_empty(n, 2, c)
        ctx.cut = (*_chunks(sizes, pixels := math.prod(x.shape[2:])), *_int64(len(sizes), pixels, c))
        mean, var, inverse = stats
        getattr(native.kernels(), f"forward_{KINDS[x.dtype]}")(
            _at(x), _at(plus), _at(y), _at(weight), _at(bias), *ctx.cut,
            ctypes.c_double(eps), ctypes.c_double(low), ctypes.c_double(high),
            _at(mean), _at(var), _at(inverse), _at(parts), torch.get_num_threads(),
        )  # fmt: skip
        # Without a clip y is not needed, and a ReLU behind may overwrite it.
        ctx.save_for_backward(x, y if high < math.inf or low > -math.inf else None, weight, stats)
        ctx.clip, ctx.joined = (low, high), plus is not None
        ctx.mark_non_differentiable(mean, var)
        return y, mean, var

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, _mean, _var):
        x, y, weight, (mean, _, inverse) = ctx.saved_tensors
        grad, dx = _like(x, grad), torch.empty_like(x)
        dplus = torch.empty_like(x) if ctx.joined else None
        by, parts = weight.new_empty(2, *mean.shape), weight.new_empty(len(x), 2, len(weight))
        getattr(native.kernels(), f"backward_{KINDS[x.dtype]}")(
            _at(x), _at(y), _at(grad), _at(dx), _at(dplus), _at(weight), *ctx.cut,
            *map(ctypes.c_double, ctx.clip),
            _at(mean), _at(inverse), _at(by[0]), _at(by[1]), _at(parts), torch.get_num_threads(),
        )  # fmt: skip
        return dx, dplus, by[0].sum(0), by[1].sum(0), None, None, None, None


class Library(torch.autograd.Function):
    """Batch norm of each group by torch's own kernel, written straight into one output (no copy of groups).
    A loop over groups is the fast way: a group is contiguous in either memory format, a reshape to groups is
    not."""

    @staticmethod
    def forward(ctx, x, weight, bias, sizes, eps):
        stats = weight.new_zeros(4, len(sizes), len(weight))  # mean, variance, and what backward wants
        mean, var, save_mean, save_invstd = stats
        out, start = torch.empty_like(x), 0
        for i, size in enumerate(sizes):
            rows = slice(start, start := start + size)
            # Momentum 1 leaves the group's own mean and unbiased variance in the "running" arguments.
            torch.ops.aten.native_batch_norm.out(
                x[rows], weight, bias, mean[i], var[i], True, 1.0, eps,
                out=out[rows], save_mean=save_mean[i], save_invstd=save_invstd[i],
            )  # fmt: skip
        ctx.save_for_backward(x, weight, stats)
        ctx.sizes, ctx.eps = sizes, eps
        ctx.mark_non_differentiable(mean, var)
        return out, mean, var

    @staticmethod
    def backward(ctx, grad, _mean, _var):
        x, weight, (mean, var, save_mean, save_invstd) = ctx.saved_tensors
        grad = _like(x, grad) if x.dim() == 4 and _pixels_first(x) else grad.contiguous()
        grad_x, grad_weight, grad_bias = torch.empty_like(x), torch.empty_like(mean), torch.empty_like(mean)
        start = 0
        for i, size in enumerate(ctx.sizes):
            rows = slice(start, start := start + size)
            torch.ops.aten.native_batch_norm_backward.out(
                grad[rows], x[rows], weight, mean[i], var[i], save_mean[i], save_invstd[i], True, ctx.eps,
                [True, True, True], out0=grad_x[rows], out1=grad_weight[i], out2=grad_bias[i],
            )  # fmt: skip
        return grad_x, grad_weight.sum(0), grad_bias.sum(0), None, None


def _equal(x, sizes):
    """x as pieces [groups, size, c, ...], and the axes of a group: equal groups at once, a longer or shorter
    last one apart."""
    equal = len(sizes) - (sizes[-1] != sizes[0])
    parts = [(0, equal, sizes[0])] + [(equal * sizes[0], 1, sizes[-1])] * (equal < len(sizes))
    for start, count, size in parts:
        groups = x[start : start + count * size].unflatten(0, (count, size))
        yield groups, [1, *range(3, groups.dim())]


def traced(x, weight, bias, sizes, eps):
    """The same in operations that torch.compile fuses."""
    outs, means, variances = [], [], []
    shape = [1, 1, -1] + [1] * (x.dim() - 2)
    for groups, axes in _equal(x, sizes):
        groups = groups.to(weight.dtype)
        var, mean = torch.var_mean(groups, axes, correction=0, keepdim=True)
        out = (groups - mean) * torch.rsqrt(var + eps) * weight.view(shape) + bias.view(shape)
        outs.append(out.to(x.dtype).flatten(0, 1))
        values = groups[0].numel() // len(weight)
        means.append(mean.detach().view(len(groups), -1))
        variances.append(var.detach().view(len(groups), -1) * (values / (values - 1)))
    return torch.cat(outs), torch.cat(means), torch.cat(variances)


def affine(x, scale, shift):
    """x * scale + shift by channel, like x. scale, shift: [c], in whose precision it is computed."""
    shape = [-1] + [1] * (x.dim() - 2)
    return (x * scale.view(shape) + shift.view(shape)).to(x.dtype)


def grouped_l1(x, weight, bias, sizes, eps: float, plus=None, clip=None):
    """`grouped` with sqrt(pi / 2) * mean |x - mean| + eps as the divisor: (y, means, deviations [groups, c],
    the latter without eps). By torch's operations: more passes over x than either kernel above makes."""
    _fitting(x, weight, sizes)
    outs, means, deviations = [], [], []
    for groups, axes in _equal(x, sizes):
        groups = groups.to(weight.dtype)
        mean = groups.mean(axes, keepdim=True)
        centred = groups - mean
        deviation = centred.abs().mean(axes, keepdim=True) * math.sqrt(math.pi / 2)
        outs.append((centred / (deviation + eps)).flatten(0, 1))
        means.append(mean.detach().view(len(groups), -1))
        deviations.append(deviation.detach().view(len(groups), -1))
    # The affine map comes last: its result is no view, so that what follows may overwrite it.
    y = affine(outs[0] if len(outs) == 1 else torch.cat(outs), weight, bias).to(x.dtype)
    return followed(y, plus, clip), torch.cat(means), torch.cat(deviations)
