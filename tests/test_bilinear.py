"""Convolutions with fewer multiplications against torch's own in float64, and what they save."""

import ctypes
import itertools
import math
import platform
import shutil
import types

import pytest
import torch
import torch.nn.functional as F

from adabatch import bilinear, native, pieces

# Vectors of 16, 8 and 4 floats: what the processor has, and less.
NARROWER = ((), ("-mno-avx512f",), ("-mno-avx",)) if platform.machine() == "x86_64" else ((),)
CASES = [(2, 3), (4, 3), (8, 3), (2, 5), (4, 5), (4, 7), (1, 3), (2, 1)]


def tensors(side: int, k: int, dtype, n=5, c=6, o=7):
    """x, weight and a gradient of the output."""
    generator = torch.Generator().manual_seed(side * 10 + k)
    shapes = (n, c, side, side), (o, c, k, k), (n, o, side, side)
    x, weight, grad = (torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes)
    return [(t / size).to(dtype) for t, size in ((x, 1), (weight, k * c**0.5), (grad, 1))]


def results(function, x, weight, grad):
    x, weight = (t.to(memory_format=torch.channels_last).requires_grad_() for t in (x, weight))
    out = function(x, weight)
    return [out.detach(), *torch.autograd.grad(out, [x, weight], grad)]


def library(x, weight):
    return F.conv2d(x, weight, padding=weight.shape[2] // 2)


@pytest.mark.parametrize("piece", [1, 1 << 24])  # sample by sample; all at once
@pytest.mark.parametrize("side, k", CASES)
def test_it_is_the_convolution(side, k, piece, monkeypatch):
    monkeypatch.setattr(pieces, "PIECE", piece)
    given = tensors(side, k, torch.float64)
    for ours, theirs in zip(results(bilinear.Bilinear.apply, *given), results(library, *given), strict=True):
        assert ours.shape == theirs.shape
        assert (ours - theirs).abs().max() <= 1e-13 * theirs.abs().max()


def test_a_first_layers_input_needs_no_gradient():
    x, weight, grad = tensors(4, 3, torch.float64)
    weight.requires_grad_()
    out = bilinear.Bilinear.apply(x, weight)
    (ours,) = torch.autograd.grad(out, weight, grad)
    (theirs,) = torch.autograd.grad(library(x, weight), weight, grad)
    assert (ours - theirs).abs().max() <= 1e-13 * theirs.abs().max()
    assert out.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("side, k, products, tiles", [(2, 3, 9, 1), (4, 3, 16, 4), (4, 5, 81, 1)])
def test_how_many_products_it_takes(side, k, products, tiles):
    """Three for a 2x2 Toeplitz matrix (nine when nested), four for F(2, 3); squared for two axes. The plain
    sum has one for every pair of pixels that a tap joins."""
    by = bilinear.scheme(side, k)
    assert (len(by.taps.rows), len(by.inputs.rows)) == (products, products * tiles)
    joined = sum(2 * abs(i - j) < k for i, j in itertools.product(range(side), repeat=2)) ** 2
    assert products * tiles < joined
    for mix in by:  # what makes every multiplication of a mix exact
        assert {abs(factor) for row in mix.rows for _, factor in row} <= {1, 0.5, 0.25}


@pytest.fixture(scope="module", params=NARROWER, ids=" ".join)
def compiled(request, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("ADABATCH_CACHE", str(tmp_path_factory.mktemp("kernels")))
        patched.setattr(native, "FLAGS", (*native.FLAGS, *request.param))
        yield native._loaded("cc")


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("c", [1, 15, 16, 17, 64, 200])
def test_the_kernel_in_c_has_the_bits_of_torchs_operations(compiled, c, threads):
    """All six mixes of 4x4 and 5x5, of vectors that fill the processor's registers and that do not, read and
    written with gaps between them. A run is then the same where there is no compiler."""
    assert bilinear.compiled() is not None
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for mix in bilinear.scheme(4, 5):
            columns = 1 + max(m for row in mix.rows for m, _ in row)
            maps = torch.randn(columns, 3, c + 2, generator=torch.Generator().manual_seed(c))[:, :, :c]
            ours, theirs = torch.full((2, len(mix.rows), 3, c + 5), 7.0)
            mix.by_c(compiled, maps, ours[:, :, :c])
            mix.by_torch(maps, theirs[:, :, :c])
            assert torch.equal(ours, theirs) and (ours[:, :, c:] == 7).all()
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("trouble", ["none", "wrong"])
def test_without_a_right_kernel_torch_does_it(trouble, monkeypatch, caplog):
    """No compiler, or a function that does nothing, which must not find an earlier check's answer where it
    should have written: told once, and the same bits."""
    given = tensors(4, 5, torch.float32)
    before, found = results(bilinear.Bilinear.apply, *given), []

    def nothing(_, out, *__):
        found.append(ctypes.c_float.from_address(out.value).value)

    def kernels():
        if trouble == "none":
            raise native.Unavailable("no cc")
        return types.SimpleNamespace(mixed=nothing)

    monkeypatch.setattr(native, "kernels", kernels)
    bilinear.compiled.cache_clear()
    try:
        with caplog.at_level("INFO", logger="adabatch"):
            after = results(bilinear.Bilinear.apply, *given)
    finally:
        bilinear.compiled.cache_clear()
    assert all(map(torch.equal, before, after))
    assert len(found) == (trouble == "wrong") and all(map(math.isnan, found))
    assert len(caplog.messages) == 1 and ("no cc" if trouble == "none" else "wrong") in caplog.messages[0]


def test_it_trains_after_an_evaluation_in_inference_mode():
    x, weight, grad = tensors(4, 3, torch.float32)
    bilinear.scratch.kept.clear()
    with torch.inference_mode():
        seen = bilinear.Bilinear.apply(x, weight)
    assert torch.equal(results(bilinear.Bilinear.apply, x, weight, grad)[0], seen)


@pytest.mark.parametrize("side, k", [(2, 3), (4, 3), (4, 5)])
def test_its_rounding_is_near_that_of_a_plain_sum(side, k):
    """float32 against float64, with as many channels as AlexNet and VGG have: the largest error of any entry
    within five times that of torch's kernel, some 1e-6 of the largest value, or, where that adds in blocks,
    of what roundings come to in a sum of so many terms, 2^-24 sqrt(terms)."""
    n, c, o = 64, 256, 192
    given, terms = tensors(side, k, torch.float32, n=n, c=c, o=o), (c * k * k, o * k * k, n * side * side)
    exact = results(library, *(t.double() for t in given))
    for a, b, true, count in zip(
        results(bilinear.Bilinear.apply, *given), results(library, *given), exact, terms, strict=True
    ):
        largest = true.abs().max()
        bound = 5 * max((b.double() - true).abs().max() / largest, 2**-24 * count**0.5)
        assert (a.double() - true).abs().max() / largest <= bound < 3e-5
