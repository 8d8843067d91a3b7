"""Convolutions that keep the side of a small map, with fewer multiplications, on a CPU.

Along one axis such a convolution is a product with a Toeplitz matrix. It can be had with fewer
multiplications than the matrix has entries (Winograd, Arithmetic Complexity of Computations, 1980): of blocks
that may be Toeplitz themselves

    [t0 t1; t-1 t0] [x0; x1] = [m0 + m1; m0 + m2]
    m0 = t0 (x0 + x1),  m1 = (t1 - t0) x1,  m2 = (t-1 - t0) x0

or, for three taps on larger maps, Winograd's F(2, 3) for every two outputs (Lavin and Gray, arXiv
1509.09308), whose transformed kernels the tiles share. Two axes multiply: 2x2 pixels and 3x3 taps take 9
products of [samples, in] x [in, out] instead of 16, 4x4 pixels 64 instead of 100 and, with 5x5 taps, 81
instead of 196. All factors are 0, 1, -1 and 1/2, so that the rounding stays near that of the plain sum
(tests); schemes with still fewer products have larger factors, and do not.
"""

import ctypes
import functools
import logging
import math
import threading
from typing import NamedTuple

import torch

from adabatch import native
from adabatch.pieces import pieces

log = logging.getLogger("adabatch")

F23 = (  # taps [4, 3], inputs [4, 4], outputs [2, 4]
    torch.tensor([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]]),
    torch.tensor([[1.0, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]]),
    torch.tensor([[1.0, 1, 1, 0], [0, 1, -1, -1]]),
)


def _toeplitz(diagonals: dict, n: int):
    """The product with T[i, j] = diagonals[j - i], i, j < n = a power of two, whose diagonals are
    combinations of taps: taps [r, k], inputs [r, n], outputs [n, r], and
    T x = outputs @ ((taps @ kernel) * (inputs @ x))."""
    if n == 1:
        return diagonals[0][None], torch.ones(1, 1), torch.ones(1, 1)
    half = n // 2
    same, right, left = ({d: diagonals[d + by] for d in range(1 - half, half)} for by in (0, half, -half))
    parts = [  # a block, of which halves of x it is a product, to which halves of the result it is added
        (_toeplitz(same, half), [1, 1], [1, 1]),
        (_toeplitz({d: right[d] - same[d] for d in same}, half), [0, 1], [1, 0]),
        (_toeplitz({d: left[d] - same[d] for d in same}, half), [1, 0], [0, 1]),
    ]
    return (
        torch.cat([block[0] for block, _, _ in parts]),
        torch.cat([torch.kron(torch.tensor(of), block[1]) for block, of, _ in parts]),
        torch.cat([torch.kron(torch.tensor(to)[:, None], block[2]) for block, _, to in parts], 1),
    )


def _axis(side: int, k: int):
    """Along one axis: taps [r, k], inputs [tiles, r, side], outputs [side, tiles, r]."""
    if k == 3 and side > 2:
        taps, window, pair = F23
        inputs, outputs = torch.zeros(side // 2, 4, side + 2), torch.zeros(side, side // 2, 4)
        for tile in range(side // 2):
            inputs[tile, :, 2 * tile : 2 * tile + 4] = window
            outputs[2 * tile : 2 * tile + 2, tile] = pair
        return taps, inputs[:, :, 1:-1], outputs  # without what only padding would be multiplied with
    unit = torch.eye(k)
    diagonals = {d: unit[k // 2 + d] if 2 * abs(d) < k else torch.zeros(k) for d in range(1 - side, side)}
    taps, inputs, outputs = _toeplitz(diagonals, side)
    return taps, inputs[None], outputs[:, None]


class Mix:
    """Combinations of maps by a matrix [r, m] of 0, 1, -1 and powers of two: in C where there is a compiler,
    and with the same bits where there is none."""

    def __init__(self, matrix):
        self.rows = [[(m, factor) for m, factor in enumerate(row) if factor] for row in matrix.tolist()]
        flat, starts = [term for row in self.rows for term in row], [0]
        for row in self.rows:
            starts.append(starts[-1] + len(row))
        columns, factors = zip(*flat)
        self.sparse = (
            (ctypes.c_int64 * len(starts))(*starts), (ctypes.c_int64 * len(flat))(*columns),
            (ctypes.c_float * len(flat))(*factors),
        )  # fmt: skip

    def __call__(self, maps, out=None):
        """maps: [m, n, c] whose last axis is dense -> [r, n, c]: `out`, which is alike, or a new one."""
        if out is None:
            out = maps.new_empty(len(self.rows), *maps.shape[1:])
        if maps.dtype == torch.float32 and (found := compiled()):
            self.by_c(found, maps, out)
        else:
            self.by_torch(maps, out)
        return out

    def by_c(self, found, maps, out) -> None:
        sizes = (len(self.rows), *maps.shape[1:], *maps.stride()[:2], *out.stride()[:2])
        found.mixed(
            ctypes.c_void_p(maps.data_ptr()), ctypes.c_void_p(out.data_ptr()), *self.sparse,
            *map(ctypes.c_int64, sizes), torch.get_num_threads(),
        )  # fmt: skip

    def by_torch(self, maps, out) -> None:
        for made, row in zip(out, self.rows):
            made.zero_()
            for m, factor in row:
                made.add_(maps[m], alpha=factor)


@functools.cache
def compiled():
    """The functions in C, held once against torch's; None where there are none, or wrong ones."""
    try:
        found = native.kernels()
    except native.Unavailable as error:
        log.info(f"convolutions on small maps go without a kernel in C, slower: {error}")
        return None
    mix, maps = scheme(2, 3).inputs, torch.arange(4 * 2 * 85.0).sin().view(4, 2, 85)
    ours, theirs = torch.full((2, len(mix.rows), 2, 85), math.nan)  # no answer that an earlier check left
    mix.by_c(found, maps, ours)
    mix.by_torch(maps, theirs)
    if torch.equal(ours, theirs):
        return found
    log.info("convolutions on small maps go without the kernel in C, slower: the compiled one is wrong here")
    return None


class Scheme(NamedTuple):
    """What is mixed before the products and behind them, and the same turned around for the gradients."""

    taps: Mix  # kernels [k * k, o, c] -> [r, o, c]
    inputs: Mix  # pixels [side * side, n, c] -> [r * tiles, n, c]
    outputs: Mix  # products [r * tiles, n, o] -> pixels [side * side, n, o]
    taps_back: Mix
    inputs_back: Mix
    outputs_back: Mix


@functools.cache
def scheme(side: int, k: int) -> Scheme:
    """Of a square map, its side a power of two, and k x k taps, k odd."""
    taps, inputs, outputs = _axis(side, k)
    taps = torch.einsum("ra,sb->rsab", taps, taps).reshape(-1, k * k)
    inputs = torch.einsum("tra,usb->rstuab", inputs, inputs).reshape(-1, side * side)
    outputs = torch.einsum("atr,bus->abrstu", outputs, outputs).reshape(side * side, -1)
    return Scheme(*map(Mix, (taps, inputs, outputs, taps.T, inputs.T, outputs.T)))


class Scratch(threading.local):
    """Room for what lies between, kept from call to call: memory that is asked for anew made a forward and
    backward pass twice as slow (docs/performance.md). At most a piece for each name."""

    def __init__(self):
        self.kept = {}

    def __call__(self, name: str, like, *shape: int):
        size, key = math.prod(shape), (name, like.dtype)
        if key not in self.kept or self.kept[key].numel() < size:
            with torch.inference_mode(False):  # what that makes may not be written to outside it
                self.kept[key] = torch.empty(size, dtype=like.dtype)
        return self.kept[key][:size].view(shape)


scratch = Scratch()


class Bilinear(torch.autograd.Function):
    """x: [n, c, side, side], weight: [o, c, k, k] -> [n, o, side, side] in channels_last; padded by k // 2
    zeros. side: a power of two; k: odd."""

    @staticmethod
    def forward(ctx, x, weight):
        (n, c, side, _), (o, _, k, _) = x.shape, weight.shape
        x, by, out = _dense(x), scheme(side, k), _empty(x, n, o, side, side)
        kernels, m = by.taps(_maps(_dense(weight))), len(by.inputs.rows)
        for rows in pieces(n, m * max(c, o) * x.element_size()):
            count = rows.stop - rows.start
            mixed = by.inputs(_maps(x[rows]), scratch("in", x, m, count, c))
            products = scratch("out", x, len(kernels), m // len(kernels) * count, o)
            torch.bmm(mixed.view(*products.shape[:2], c), kernels.transpose(1, 2), out=products)
            by.outputs(products.view(m, count, o), _maps(out[rows]))
        ctx.save_for_backward(x, kernels)
        ctx.k = k
        return out

    @staticmethod
    def backward(ctx, grad):
        (x, kernels), k = ctx.saved_tensors, ctx.k
        (r, o, c), (n, _, side, _) = kernels.shape, grad.shape
        grad, by, total = _dense(grad), scheme(side, k), torch.zeros_like(kernels)
        grad_x = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        m = len(by.inputs.rows)
        for rows in pieces(n, m * max(c, o) * x.element_size()):
            count = rows.stop - rows.start
            products = by.outputs_back(_maps(grad[rows]), scratch("out", x, m, count, o)).view(r, -1, o)
            mixed = by.inputs(_maps(x[rows]), scratch("in", x, m, count, c)).view(r, -1, c)
            total.baddbmm_(products.transpose(1, 2), mixed)
            if grad_x is not None:
                torch.bmm(products, kernels, out=mixed)
                by.inputs_back(mixed.view(m, count, c), _maps(grad_x[rows]))
        grad_weight = _empty(x, o, c, k, k)
        by.taps_back(total, _maps(grad_weight))
        return grad_x, grad_weight


def _dense(x):
    return x.contiguous(memory_format=torch.channels_last)


def _empty(like, *shape: int):
    return torch.empty(shape, dtype=like.dtype, memory_format=torch.channels_last)


def _maps(x):
    """[n, c, h, w] in channels_last as [h * w, n, c], not copied."""
    n, c, height, width = x.shape
    return x.as_strided((height * width, n, c), (c, height * width * c, 1))
