"""Augmentation against torchvision picture by picture, with the same draws; preparation against float64."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from adabatch import draws
from adabatch.data import augment
from adabatch.data.augment import Augment, Prepare
from adabatch.errors import UserError

MEAN, STD = [0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.2010]


def pictures(n=24, channels=3, height=32, width=32, dtype=torch.uint8):
    generator = torch.Generator().manual_seed(n + height)
    return torch.randint(0, 256, (n, channels, height, width), generator=generator).to(dtype)


def keys(n=24, start=0):
    return torch.arange(start, start + n) * 2_654_435_761 % 2**32


def draw(keys, purpose: int, count: int):
    """keys: int64 [n] -> uniform integers [n] in [0, count), by torch; the code's own are by NumPy."""
    return draws.integers(draws.AUGMENT, keys * 8 + purpose, count)


def reference(x, keys, pad, mode, flip, fill=0):
    """torchvision, one picture after the other."""
    from torchvision.transforms.v2 import functional as tv

    rows, columns = (draw(keys, what, 2 * pad + 1).tolist() for what in (augment.ROW, augment.COLUMN))
    flips = draw(keys, augment.FLIP, 2).tolist()
    out = []
    for i, picture in enumerate(x):
        picture = tv.pad(picture, [pad], fill=fill, padding_mode=mode) if pad else picture
        picture = tv.crop(picture, rows[i], columns[i], x.shape[2], x.shape[3]) if pad else picture
        out.append(tv.horizontal_flip(picture) if flip and flips[i] else picture)
    return torch.stack(out)


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("pad", [0, 1, 4])
@pytest.mark.parametrize(
    "mode, fill",
    [("zeros", 0), ("reflect", 0), (127, 127), (255, 255)],
    ids=["zeros", "reflect", "grey", "white"],
)
@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 20)], ids=str)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float64], ids=str)
def test_crop_and_flip_equal_torchvision(flip, pad, mode, fill, shape, dtype):
    x = pictures(24, *shape, dtype=dtype)
    if dtype == torch.float64:
        x = x / 3 if mode != "reflect" else x * (1 + 2**-40)  # not exact in float32
    tv_mode = "reflect" if mode == "reflect" else "constant"
    varied = Augment(pad, mode, flip)(x, keys())
    assert varied.dtype == dtype
    assert torch.equal(varied, reference(x, keys(), pad, tv_mode, flip, fill))


def test_every_shift_and_both_directions_occur():
    n = 4000
    rows = draw(keys(n), augment.ROW, 9)
    columns = draw(keys(n), augment.COLUMN, 9)
    flips = draw(keys(n), augment.FLIP, 2)
    assert len(torch.unique(rows * 18 + columns * 2 + flips)) == 9 * 9 * 2


def test_a_batch_in_channels_last_is_the_same():
    x = pictures()
    same = Augment(4, "zeros", True)(x.contiguous(memory_format=torch.channels_last), keys())
    assert torch.equal(same, Augment(4, "zeros", True)(x, keys()))


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=8),
    st.sampled_from(["zeros", "reflect", 127]),
    st.booleans(),
)
def test_a_picture_depends_on_its_key_alone(sizes, mode, flip):
    """Neither on its neighbours nor on where the batch is cut."""
    n = sum(sizes)
    x, k = pictures(n, height=8, width=8), keys(n)
    prepare = Prepare("cpu", mean=MEAN, std=STD, augment=Augment(2, mode, flip, cutout=3))
    whole = prepare(x, k)
    assert torch.equal(
        torch.cat([prepare(a, b) for a, b in zip(x.split(sizes), k.split(sizes), strict=True)]), whole
    )
    shuffled = torch.randperm(n, generator=torch.Generator().manual_seed(n))
    assert torch.equal(prepare(x[shuffled], k[shuffled]), whole[shuffled])


@pytest.mark.parametrize("side, shape", [(8, (32, 32)), (1, (5, 9)), (5, (5, 9))])
def test_cutout_is_one_square_inside_the_picture_set_to_the_mean(side, shape):
    n = 600
    x, k = pictures(n, 3, *shape), keys(n)
    plain = Prepare("cpu", mean=MEAN, std=STD)(x)
    cut = Prepare("cpu", mean=MEAN, std=STD, augment=Augment(cutout=side))(x, k)
    tops = draw(k, augment.CUT_ROW, shape[0] - side + 1).tolist()
    lefts = draw(k, augment.CUT_COLUMN, shape[1] - side + 1).tolist()
    for i, (top, left) in enumerate(zip(tops, lefts, strict=True)):
        plain[i, :, top : top + side, left : left + side] = 0  # normalised: the mean
    assert torch.equal(cut, plain)
    corners = {(top, left) for top, left in zip(tops, lefts, strict=True)}
    assert {0, shape[0] - side} <= {t for t, _ in corners} and {0, shape[1] - side} <= {c for _, c in corners}


@pytest.mark.parametrize("dtype, bound", [(torch.float32, 1e-6), (torch.float64, 1e-14)], ids=str)
def test_bytes_are_normalised(dtype, bound):
    x = torch.arange(256, dtype=torch.uint8).repeat(3, 1).view(1, 3, 16, 16)
    mean, std = (torch.tensor(v, dtype=torch.float64).view(1, 3, 1, 1) for v in (MEAN, STD))
    out = Prepare("cpu", dtype, mean=MEAN, std=STD)(x)
    assert out.dtype == dtype
    assert (out.double() - (x.double() / 255 - mean) / std).abs().max() < bound
    unscaled = Prepare("cpu", dtype)(x)
    assert (unscaled.double() - x.double() / 255).abs().max() < bound


def test_float_images_are_normalised_and_the_stored_ones_kept():
    x = pictures(dtype=torch.float32) / 255
    stored, mean, std = (
        x.clone(),
        *(torch.tensor(v, dtype=torch.float64).view(1, 3, 1, 1) for v in (MEAN, STD)),
    )
    out = Prepare("cpu", mean=MEAN, std=STD)(x)
    assert (out.double() - (stored.double() - mean) / std).abs().max() < 2e-6
    assert torch.equal(x, stored)
    assert torch.equal(Prepare("cpu")(x), stored)


def test_tokens_and_vectors():
    tokens = torch.tensor([[5, 2**40], [0, 1]])
    prepare = Prepare("cpu", mean=MEAN, std=STD, augment=Augment(2))
    assert torch.equal(prepare(tokens, keys(2)), tokens) and prepare(tokens).dtype == torch.int64
    vectors = torch.tensor([[0.5, 2], [-1, 3]], dtype=torch.float64)
    assert torch.equal(prepare(vectors, keys(2)), vectors.float())


@pytest.mark.parametrize(
    "shape, size, enlarged", [((8, 8), 20, True), ((8, 30), 20, True), ((20, 20), 20, False)]
)
def test_small_pictures_are_enlarged(shape, size, enlarged):
    x = pictures(4, 3, *shape)
    plain = Prepare("cpu", mean=MEAN, std=STD)(x)
    expected = (
        F.interpolate(plain, size=(size, size), mode="bilinear", align_corners=False) if enlarged else plain
    )
    assert torch.equal(Prepare("cpu", mean=MEAN, std=STD, size=size)(x), expected)


def test_grey_pictures_are_repeated():
    x = pictures(4, 1)
    plain = Prepare("cpu", mean=[0.5], std=[0.25])(x)
    out = Prepare("cpu", mean=[0.5], std=[0.25], channels=3)(x)
    assert out.shape == (4, 3, 32, 32) and all(torch.equal(out[:, i : i + 1], plain) for i in range(3))
    assert out.is_contiguous()


def test_evaluation_is_not_augmented():
    x = pictures()
    prepare = Prepare("cpu", mean=MEAN, std=STD, augment=Augment(4, "zeros", True, 8))
    plain = Prepare("cpu", mean=MEAN, std=STD)(x)
    assert torch.equal(prepare(x), plain)
    assert not torch.equal(prepare(x, keys()), plain)


@pytest.mark.parametrize(
    "settings", [{}, {"size": 40}, {"channels": 3, "grey": True}], ids=["plain", "size", "grey"]
)
def test_channels_last_comes_out(settings):
    grey = settings.pop("grey", False)
    x = pictures(4, 1 if grey else 3)
    mean, std = ([0.5], [0.25]) if grey else (MEAN, STD)
    for chosen in (None, Augment(4, "zeros", True, 8)):
        last = Prepare("cpu", torch.float32, torch.channels_last, mean, std, augment=chosen, **settings)(
            x, keys(4)
        )
        assert last.is_contiguous(memory_format=torch.channels_last) and not last.is_contiguous()
        first = Prepare("cpu", torch.float32, torch.contiguous_format, mean, std, augment=chosen, **settings)
        assert (last - first(x, keys(4))).abs().max() < 1e-6


@pytest.mark.needs_gpu
def test_a_gpu_draws_the_same_augmentation():
    x, chosen = pictures(), Augment(4, "reflect", True, 8)
    on_gpu = Prepare("cuda", mean=MEAN, std=STD, augment=chosen)(x, keys()).cpu()
    assert (on_gpu - Prepare("cpu", mean=MEAN, std=STD, augment=chosen)(x, keys())).abs().max() < 1e-6


@pytest.mark.parametrize(
    "arguments, said",
    [
        ({"pad_mode": "reflct"}, "Did you mean 'reflect'"),
        ({"pad": -1}, "pad=-1"),
        ({"cutout": -1}, "cutout=-1"),
        ({"pad": 4, "pad_mode": "reflect"}, "got pad=4 for 4x9"),
        ({"pad": 1, "pad_mode": 300}, "0 to 255, got 300"),
        ({"pad": 1, "pad_mode": 12.5}, "0 to 255, got 12.5"),
        ({"cutout": 5}, "got 5 for 4x9"),
    ],
)
def test_mistakes_are_explained(arguments, said):
    with pytest.raises(UserError, match=said):
        Prepare("cpu", augment=Augment(**arguments))(pictures(2, 3, 4, 9), keys(2))
