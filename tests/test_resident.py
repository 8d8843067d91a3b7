"""Pictures laid out in memory: the same as made one by one, whatever the source; laid out once, and only if
they are small."""

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adabatch import draws
from adabatch.data import augment, resident
from adabatch.data.augment import Augment, Prepare
from adabatch.data.resident import Resident
from adabatch.data.samples import MapSamples, Samples, Subset, TensorSamples
from adabatch.data.stream import Stream
from adabatch.data.windows import Windows, padded
from adabatch.errors import UserError

N = 23
MEAN, STD = [0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.2010]
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def pictures(channels=3, dtype=torch.uint8, n=N, height=9, width=7):
    generator = torch.Generator().manual_seed(n + channels)
    x = torch.randint(0, 256, (n, channels, height, width), generator=generator)
    return x.to(dtype) / 7 - 9 if dtype.is_floating_point else x.to(dtype)


def drawn(key: int, purpose: int, count: int) -> int:
    return draws.integers(draws.AUGMENT, key * 8 + purpose, count)


def one(picture, key: int, pad, mode, flip, cutout, mean, std, dtype):
    """One picture in plain NumPy: pad, cut out a window, mirror, normalise in `dtype`, cutout."""
    x = picture.numpy()
    _, height, width = x.shape
    if pad:
        how = (
            {"mode": "reflect"} if mode == "reflect" else {"constant_values": 0 if mode == "zeros" else mode}
        )
        x = np.pad(x, ((0, 0), (pad, pad), (pad, pad)), **how)
        top, left = (drawn(key, what, 2 * pad + 1) for what in (augment.ROW, augment.COLUMN))
        x = x[:, top : top + height, left : left + width]
    if flip and drawn(key, augment.FLIP, 2):
        x = x[:, :, ::-1]
    mean, std = (np.array(v, dtype=dtype)[:, None, None] for v in (mean, std))
    if x.dtype == np.uint8:
        x = x.astype(dtype) * (dtype(1) / (dtype(255) * std)) - mean / std
    else:
        x = (x.astype(dtype) - mean) / std
    if cutout:
        top = drawn(key, augment.CUT_ROW, height - cutout + 1)
        left = drawn(key, augment.CUT_COLUMN, width - cutout + 1)
        x[:, top : top + cutout, left : left + cutout] *= 0
    return torch.from_numpy(x.copy())


def bits(x):
    """Bytes of the elements in the order of their indices, whatever the layout."""
    return x.contiguous().numpy().tobytes()


@settings(deadline=None, max_examples=150)
@given(
    st.sampled_from([torch.uint8, torch.float32, torch.float64]),
    st.sampled_from([np.float32, np.float64]),
    st.sampled_from([0, 1, 4]),
    st.sampled_from(["zeros", "reflect", 127]),
    st.booleans(),
    st.sampled_from([0, 3, 7]),
    st.sampled_from(sorted(FORMATS)),
    st.sampled_from([1, 2, 3, 5]),
    st.integers(0, 3 * N),
    st.integers(0, 2 * N),
)
def test_the_bits_of_pictures_made_one_by_one(
    stored, dtype, pad, mode, flip, cutout, layout, channels, start, count
):
    x, labels = pictures(channels, stored), torch.arange(N)
    mean, std = (MEAN + MEAN)[:channels], (STD + STD)[:channels]
    prepare = Prepare(
        "cpu", torch.from_numpy(np.zeros(0, dtype)).dtype, FORMATS[layout], mean, std,
        augment=Augment(pad, mode, flip, cutout),
    )  # fmt: skip
    samples = TensorSamples(x, labels)
    sources = {
        "laid out": resident.resident(samples, prepare),
        "batch by batch": (samples, prepare),
        "map": (MapSamples(list(zip(x, labels, strict=True))), prepare),
        "subset": (Subset(samples, torch.arange(N)), prepare),
    }
    assert isinstance(sources["laid out"][0], Resident) == bool(pad or flip)
    for name, (source, ready) in sources.items():
        if name == "map" and not count:
            continue  # nothing to stack
        stream = Stream(source, ready, seed=5)
        before = x.clone()
        found, said = stream.batch(start, start + count)
        order, keys = (
            stream.indices(start, start + count).tolist(),
            stream.keys(start, start + count).tolist(),
        )
        expected = [
            one(x[i], k, pad, mode, flip, cutout, mean, std, dtype) for i, k in zip(order, keys, strict=True)
        ]
        assert said.tolist() == order and found.shape == (count, channels, 9, 7)
        assert found.is_contiguous(memory_format=FORMATS[layout])
        assert bits(found) == b"".join(bits(picture) for picture in expected), name
        assert torch.equal(x, before), name


@pytest.mark.parametrize(
    "mode, flip, expected",
    [
        ("zeros", True, "b49866e7590b5cc8"),
        ("reflect", True, "241e4133f3b7a0ef"),
        (127, False, "03ac2e345bd48745"),
    ],
)
def test_pictures_are_what_they_were(mode, flip, expected):
    """Written down on 2026-11-22, before they were laid out. Another digest = other pictures in every run
    ever recorded: do not update it, find out what changed."""
    x = (torch.arange(50 * 3 * 8 * 8) * 37 % 251).to(torch.uint8).view(50, 3, 8, 8)
    samples, chosen = TensorSamples(x, torch.arange(50)), Augment(2, mode, flip)
    for layout in FORMATS.values():
        stream = Stream(Resident(samples, chosen, layout), lambda inputs, keys: inputs, seed=11)
        found, labels = stream.batch(2**33 + 7, 2**33 + 107)
        assert labels[:4].tolist() == [44, 22, 30, 45]
        assert hashlib.blake2b(bits(found), digest_size=8).hexdigest() == expected


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_every_window_of_every_picture(channels, layout):
    """Also the first and the last of all, which touch the ends of the memory."""
    whole = torch.randperm(4 * channels * 7 * 6).view(4, channels, 7, 6)
    whole = whole.contiguous(memory_format=FORMATS[layout])
    height, width = 5, 3
    windows = Windows(whole, height, width, FORMATS[layout])
    places = [(i, top, left) for i in range(4) for top in range(3) for left in range(4)]
    found = windows.read(*(np.array(part) for part in zip(*places, strict=True)))
    for x, (i, top, left) in zip(found, places, strict=True):
        assert torch.equal(x, whole[i, :, top : top + height, left : left + width])


def test_mirror_images_stand_behind():
    x = pictures(n=2 * 256 + 3)  # more than are laid out at a time
    both = padded(x, 2, 9, True, torch.channels_last)
    assert both.shape == (2 * len(x), 3, 13, 11) and both.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(both[: len(x), :, 2:-2, 2:-2], x)
    assert torch.equal(both[len(x) :], both[: len(x)].flip(3))
    frame = torch.ones(13, 11, dtype=torch.bool)
    frame[2:-2, 2:-2] = False
    assert bool((both[:, :, frame] == 9).all())


def made(x, chosen=None, most=None, monkeypatch=None):
    if most is not None:
        monkeypatch.setattr(resident, "MOST", most)
    prepare = Prepare("cpu", mean=MEAN, std=STD, augment=chosen)
    return (prepare, *resident.resident(TensorSamples(x, torch.arange(len(x))), prepare))


def test_what_is_not_laid_out_stays_as_it_is(monkeypatch):
    chosen = Augment(2, "zeros", True, 3)
    needed = 2 * 3 * N * 13 * 11
    for x, settled, most in (
        (pictures(), chosen, needed - 1),
        (pictures(), None, None),
        (pictures(), Augment(cutout=3), None),
        (torch.rand(N, 5), chosen, None),
    ):
        with monkeypatch.context() as patch:
            prepare, source, ready = made(x, settled, most, patch)
        assert type(source) is TensorSamples and ready is prepare
    foreign = MapSamples([(x, 0) for x in pictures()])
    assert resident.resident(foreign, Prepare("cpu", augment=chosen))[0] is foreign
    prepare, source, _ = made(pictures(), chosen, needed, monkeypatch)
    assert isinstance(source, Resident) and source.windows.view.untyped_storage().nbytes() == needed
    assert prepare.augment is chosen, "evaluation and others go on with what they had"


def test_laid_out_once_and_not_before_it_is_read(monkeypatch):
    asked, real = [], Augment.windows
    monkeypatch.setattr(Augment, "windows", lambda *a: asked.append(a) or real(*a))
    prepare, source, ready = made(pictures(), Augment(2, "zeros", True))
    stream = Stream(source, ready, seed=0)
    assert source.read(torch.arange(3))[0].equal(pictures()[:3]) and not asked, "no keys: as it is stored"
    for position in range(0, 3 * N, 5):
        stream.batch(position, position + 5)
    assert len(asked) == 1


def test_it_is_a_source_like_others():
    _, source, _ = made(pictures(), Augment(2))
    assert isinstance(source, Samples) and len(source) == N and source.labels.tolist() == list(range(N))
    source.close()


@pytest.mark.parametrize("mode, said", [("reflect", "got pad=7 for 9x7"), (300, "0 to 255, got 300")])
def test_mistakes_are_told_when_it_is_read(mode, said):
    _, source, ready = made(pictures(), Augment(7, mode))
    with pytest.raises(UserError, match=said):
        Stream(source, ready, seed=0).batch(0, 3)


@pytest.mark.needs_gpu
def test_a_gpu_reads_the_same_windows():
    chosen = Augment(2, "reflect", True, 3)
    found = []
    for device in ("cpu", "cuda"):
        for layout in FORMATS.values():
            prepare = Prepare(device, memory_format=layout, mean=MEAN, std=STD, augment=chosen)
            samples = TensorSamples(pictures(), torch.arange(N)).to(device)
            crops = resident.resident(samples, prepare)[0]
            stream = Stream(crops, lambda inputs, keys: inputs, seed=0, device=device)
            found.append([part.cpu() for part in stream.batch(3, 60)])
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(other, found[0], strict=True))
