"""Convolutions on small maps as products of matrices, on a CPU.

A library's direct convolution is slow on a map of 4x4 or 2x2 pixels: 512 channels of 4x4 in bf16 took three
times what the same sums take as one product of matrices, 2x2 four to six times (docs/performance.md). In
float32 such a map, if the convolution keeps its side, takes fewer multiplications (`bilinear.py`). Else two
forms, by which does less work: the windows of the input as rows of a matrix (im2col), or, where the map has
fewer pixels than the kernel, every pixel of the input against every pixel of the output with a matrix made of
the kernel's taps. Both are the convolution's own sums in another order.
"""

import math
from functools import lru_cache, partial

import torch
import torch.nn.functional as F
from torch import nn

from adabatch.bilinear import Bilinear
from adabatch.pieces import pieces

SMALL = {torch.bfloat16: 16}  # pixels of the output up to which a product is faster; measured
OTHERWISE, ENOUGH = 4, 32  # in the other dtypes, from so many samples on: fewer do not pay for the matrix
FEWER = {
    2: 1,
    4: 64,
}  # sides of maps that `bilinear.py` is faster on, and from how many channels on; measured


def adopt(model: nn.Module) -> None:
    """Let every plain Conv2d of a network choose: names, weights and hooks stay."""
    for layer in model.modules():
        if type(layer) is nn.Conv2d and _plain(layer):
            layer.__class__ = Conv2d


def _plain(layer: nn.Conv2d) -> bool:
    """One group, no dilation, the same kernel, stride and zero padding down and across."""
    numeric = not isinstance(layer.padding, str) and layer.padding_mode == "zeros"
    return (
        numeric
        and layer.groups == 1
        and layer.dilation == (1, 1)
        and all(len(set(pair)) == 1 for pair in (layer.kernel_size, layer.stride, layer.padding))
        and layer.kernel_size[0] > 1
        and layer.padding[0] < layer.kernel_size[0]
    )


class Conv2d(nn.Conv2d):
    """torch's, with `product` where that is faster. x: [n, c, h, w], better in channels_last."""

    def _conv_forward(self, x, weight, bias):
        if torch.is_autocast_enabled(x.device.type):
            kind = torch.get_autocast_dtype(x.device.type)
            x, weight, bias = x.to(kind), weight.to(kind), None if bias is None else bias.to(kind)
        form = self.form(x)
        if form is None:
            return super()._conv_forward(x, weight, bias)
        out = form(x, weight)
        return out if bias is None else out + bias.view(1, -1, 1, 1)

    def form(self, x):
        """What takes (x, weight) faster than torch's kernel does, or None."""
        k, s, p = self.kernel_size[0], self.stride[0], self.padding[0]
        if x.dim() != 4 or x.device.type != "cpu" or not x.is_contiguous(memory_format=torch.channels_last):
            return None
        if torch.compiler.is_compiling():  # traced, the copies of windows cost more than they save
            return None
        if not self.training and torch.is_grad_enabled():  # single samples under vmap (`persample.py`)
            return None
        same = s == 1 and 2 * p + 1 == k and x.shape[2] == x.shape[3]
        if x.dtype == torch.float32 and same and len(x) >= ENOUGH:
            if min(self.in_channels, self.out_channels) >= FEWER.get(x.shape[2], math.inf):
                return Bilinear.apply
        height, width = out_side(x.shape[2], k, s, p), out_side(x.shape[3], k, s, p)
        small = SMALL.get(x.dtype, OTHERWISE if len(x) >= ENOUGH else 0)
        # Few windows that hardly overlap (AlexNet's first layer) are as good.
        pays = 0 < height * width <= small or (s > 2 and x.dtype in SMALL and height * width <= 4 * small)
        return partial(product, stride=s, padding=p) if pays else None


def out_side(side: int, k: int, s: int, p: int) -> int:
    return (side + 2 * p - k) // s + 1


def product(x, weight, stride: int, padding: int):
    """The convolution as products of matrices. x: [n, c, h, w], weight: [o, c, k, k] -> [n, o, ho, wo] in
    channels_last."""
    k = weight.shape[2]
    if x.shape[2] * x.shape[3] < k * k:
        return _Dense.apply(x, weight, stride, padding)
    return _Windows.apply(x, weight, stride, padding)


def _rows(x):
    """[n, c, h, w] as [n, h, w, c], which is its memory in channels_last."""
    return x.permute(0, 2, 3, 1).contiguous()


def _windows(x, k: int, s: int, p: int):
    """x: [n, h, w, c] -> [n * ho * wo, k * k * c]."""
    x = F.pad(x, (0, 0, p, p, p, p)) if p else x
    n, height, width, c = x.shape
    ho, wo = out_side(height, k, s, 0), out_side(width, k, s, 0)
    a, b, d, e = x.stride()
    return x.as_strided((n, ho, wo, k, k, c), (a, b * s, d * s, b, d, e)).reshape(n * ho * wo, k * k * c)


class _Windows(torch.autograd.Function):
    """im2col: one product of all windows with the kernel."""

    @staticmethod
    def forward(ctx, x, weight, s, p):
        o, c, k, _ = weight.shape
        ctx.save_for_backward(x, weight)
        ctx.sizes = s, p
        x, kernel = _rows(x), weight.permute(0, 2, 3, 1).reshape(o, -1)
        ho, wo = out_side(x.shape[1], k, s, p), out_side(x.shape[2], k, s, p)
        out = x.new_empty(len(x), ho, wo, o)
        for rows in pieces(len(x), ho * wo * kernel.shape[1] * x.element_size()):
            torch.mm(_windows(x[rows], k, s, p), kernel.t(), out=out[rows].view(-1, o))
        return out.permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        (s, p), (o, c, k, _) = ctx.sizes, weight.shape
        x, grad = _rows(x), _rows(grad)
        grad_x = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        each = grad.shape[1] * grad.shape[2] * k * k * c * x.element_size()
        # bf16 pieces are added up in float32, as the product does within a piece.
        total = torch.zeros(o, k * k * c, dtype=torch.promote_types(x.dtype, torch.float32))
        for rows in pieces(len(x), each):
            total += grad[rows].view(-1, o).t() @ _windows(x[rows], k, s, p)
            if grad_x is not None:
                grad_x[rows] = _scattered(grad[rows], weight, s, p, x.shape[1:3])
        grad_weight = total.to(x.dtype).view(o, k, k, c).permute(0, 3, 1, 2)
        return None if grad_x is None else grad_x.permute(0, 3, 1, 2), grad_weight, None, None


def _scattered(grad, weight, s: int, p: int, sides):
    """Gradient by the input. grad: [n, ho, wo, o] -> [n, h, w, c]."""
    o, c, k, _ = weight.shape
    n, ho, wo, _ = grad.shape
    if s == 1:  # a convolution with the kernel turned around: one rounding
        kernel = weight.flip(2, 3).permute(2, 3, 0, 1).reshape(-1, c)
        return (_windows(grad, k, 1, k - 1 - p) @ kernel).view(n, *sides, c)
    parts = (grad.view(-1, o) @ weight.permute(0, 2, 3, 1).reshape(o, -1)).view(n, ho, wo, k, k, c)
    wide = torch.promote_types(grad.dtype, torch.float32)
    reached = [max(side + 2 * p, k + s * out) for side, out in zip(sides, (ho, wo))]
    padded = grad.new_zeros(n, *reached, c, dtype=wide)
    for i in range(k):
        for j in range(k):
            padded[:, i : i + s * ho : s, j : j + s * wo : s] += parts[:, :, :, i, j]
    return padded[:, p : p + sides[0], p : p + sides[1]].to(grad.dtype)


@lru_cache(maxsize=64)
def _taps(height: int, width: int, k: int, s: int, p: int):
    """Which tap of the kernel joins an output pixel with an input pixel: int64 [ho * wo * h * w], k * k where
    none does."""
    down, across = (
        torch.arange(side)[None] - (torch.arange(out_side(side, k, s, p)) * s - p)[:, None]
        for side in (height, width)
    )
    inside = ((down >= 0) & (down < k))[:, None, :, None] & ((across >= 0) & (across < k))[None, :, None, :]
    return torch.where(inside, down[:, None, :, None] * k + across[None, :, None, :], k * k).flatten()


class _Dense(torch.autograd.Function):
    """All pixels of the input against all of the output."""

    @staticmethod
    def forward(ctx, x, weight, s, p):
        (n, c, height, width), (o, _, k, _) = x.shape, weight.shape
        taps, pixels = _taps(height, width, k, s, p), height * width
        kernel = torch.cat([weight.permute(2, 3, 0, 1).reshape(k * k, o, c), weight.new_zeros(1, o, c)])
        matrix = kernel[taps].view(-1, pixels, o, c).transpose(1, 2).reshape(-1, pixels * c)
        x = _rows(x).view(n, -1)
        ctx.save_for_backward(x, matrix, taps)
        ctx.sizes = (o, c, k), (height, width)
        ho, wo = out_side(height, k, s, p), out_side(width, k, s, p)
        return (x @ matrix.t()).view(n, ho, wo, o).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx, grad):
        x, matrix, taps = ctx.saved_tensors
        (o, c, k), (height, width) = ctx.sizes
        grad = _rows(grad).view(len(x), -1)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = (grad @ matrix).view(-1, height, width, c).permute(0, 3, 1, 2)
        pairs = (grad.t() @ x).view(-1, o, height * width, c).transpose(1, 2).reshape(-1, o, c)
        total = torch.zeros(k * k + 1, o, c, dtype=torch.promote_types(x.dtype, torch.float32))
        total.index_add_(0, taps, pairs.to(total.dtype))
        return grad_x, total[:-1].to(x.dtype).view(k, k, o, c).permute(2, 3, 0, 1), None, None
