"""Random resized crops of pictures in memory, and the central crop of evaluation: torchvision's, picture by
picture, and the same bits in any batch."""

from functools import partial

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from support import resolved
from test_imagenet import reference_box

from adabatch import draws, inputs, profiles, runs
from adabatch.data import augment
from adabatch.data.augment import Augment, Prepare
from adabatch.data.boxes import crop_box, crop_boxes
from adabatch.data.imagenet import uniform
from adabatch.data.keys import SIDE
from adabatch.data.resample import axis, resampled
from adabatch.data.resident import resident
from adabatch.data.samples import TensorSamples
from adabatch.data.stream import Stream
from adabatch.errors import UserError

MEAN, STD, SCALE = [0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.2010], [0.08, 1]
LAST = torch.channels_last


def pictures(n=30, channels=3, height=32, width=32):
    generator = torch.Generator().manual_seed(n + width)
    return torch.randint(0, 256, (n, channels, height, width), generator=generator).to(torch.uint8)


def keys(n=30):
    return torch.arange(n) * 2_654_435_761 % 2**32


def normalised(x):
    mean, std = (torch.tensor(v[: x.shape[1]], dtype=torch.float64).view(-1, 1, 1) for v in (MEAN, STD))
    return (x.double() / 255 - mean) / std


def reference(x, keys, side, flip):
    """torchvision, one picture after the other, with the box that a file's picture would get."""
    from torchvision.transforms.v2 import functional as tv

    found = []
    for picture, key in zip(normalised(x), keys.tolist(), strict=True):
        box = crop_box(*x.shape[-2:], partial(uniform, key))
        one = tv.resized_crop(picture, *box, side, antialias=False)
        turned = flip and draws.integers(draws.AUGMENT, key * 8 + augment.FLIP, 2)
        found.append(tv.horizontal_flip(one) if turned else one)
    return torch.stack(found)


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(0, 2**32 - 1))
def test_boxes_of_many_pictures_are_torchvisions_one_by_one(height, width, seed):
    """The same draws through torchvision's rule as tests/test_imagenet.py has it, in plain numbers."""
    given = np.random.default_rng(seed).random((7, 40))
    found = crop_boxes(height, width, 7, lambda i, which: given[which, i])
    assert found.T.tolist() == [list(reference_box(height, width, row)) for row in given]


def test_area_and_ratio_are_those_asked_for_and_uniform():
    """Areas uniform in [0.2, 0.5], ratios uniform in the logarithm from 1/2 to 2: no box is refused there."""
    n, given = 20_000, np.random.default_rng(5).random((20_000, 40))
    top, left, h, w = crop_boxes(1000, 1000, n, lambda i, which: given[which, i], (0.2, 0.5), (0.5, 2))
    area, ratio = h * w / 1e6, np.log2(w / h)
    for values, low, high in ((area, 0.2, 0.5), (ratio, -1, 1)):
        shares = np.histogram(values, 10, (low, high))[0] / n
        assert abs(shares - 0.1).max() < 0.01  # five standard errors
    assert (top + h).max() <= 1000 and (left + w).max() <= 1000 and min(top.min(), left.min()) == 0


@pytest.mark.parametrize("dtype, bound", [(torch.float64, 1e-12), (torch.float32, 2e-5)], ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, LAST], ids=str)
@pytest.mark.parametrize(
    "shape, size, side",
    [((3, 32, 32), 224, (224, 224)), ((3, 32, 32), None, (32, 32)), ((1, 20, 44), 40, (40, 40))],
    ids=str,
)
def test_training_pictures_are_torchvisions(dtype, bound, layout, shape, size, side):
    """Also where a part is wider than the output (the last shape), which is torchvision's antialias=False."""
    x = pictures(30, *shape)
    mean, std = MEAN[: shape[0]], STD[: shape[0]]
    for flip in (True, False):
        chosen = Augment(scale=SCALE, flip=flip)
        prepare = Prepare("cpu", dtype, layout, mean, std, size, 3, chosen, crop_pct=0.875)
        found, expected = prepare(x, keys()), reference(x, keys(), side, flip).expand(-1, 3, -1, -1)
        assert found.dtype == dtype and found.is_contiguous(memory_format=layout)
        assert (found.double() - expected).abs().max() < bound
    assert not torch.equal(reference(x, keys(), side, True), reference(x, keys(), side, False))


@pytest.mark.parametrize(
    "shape, size, resize, side",
    [((3, 32, 32), 224, 256, 224), ((3, 32, 32), 64, 73, 64), ((3, 32, 32), None, 36, 32),
     ((1, 40, 53), 64, 73, 64), ((3, 53, 40), None, 45, (53, 40))],
    ids=str,
)  # fmt: skip
def test_evaluation_is_torchvisions_resize_and_central_crop(shape, size, resize, side):
    """Resize 256, crop 224; timm's crop_pct: the whole part of 64 / 0.875 = 73.1 is 73."""
    from torchvision.transforms import v2

    x = pictures(6, *shape)
    mean, std = MEAN[: shape[0]], STD[: shape[0]]
    theirs = v2.Compose([v2.Resize(resize, antialias=False), v2.CenterCrop(side)])(normalised(x))
    for chosen in (Augment(scale=SCALE, flip=True), Augment(4, flip=True), None):
        prepare = Prepare("cpu", torch.float64, LAST, mean, std, size, augment=chosen, crop_pct=0.875)
        assert (prepare(x) - theirs).abs().max() < 1e-12
    whole = Prepare("cpu", torch.float64, LAST, mean, std, size)(x)
    assert whole.shape != theirs.shape or (whole - theirs).abs().max() > 0.1


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.sampled_from([7, 24, 33]), st.integers(0, 90))
def test_a_picture_has_the_same_bits_in_any_batch_and_cut(sizes, size, start):
    """Sides of no power of two, so that some elements fall to the ends of the machine's vectors."""
    n = sum(sizes)
    x = pictures(23, 3, 7, 7)
    prepare = Prepare("cpu", mean=MEAN, std=STD, size=size, augment=Augment(scale=SCALE, flip=True, cutout=3))
    stream = Stream(TensorSamples(x, torch.arange(23)), prepare, seed=3)
    whole, labels = stream.batch(start, start + n)
    ends = np.cumsum([start, *sizes]).tolist()
    parts = [stream.batch(a, b)[0] for a, b in zip(ends, ends[1:])]
    assert torch.equal(torch.cat(parts), whole) and len(labels) == n


def test_pictures_to_be_resized_are_not_laid_out():
    samples = TensorSamples(pictures(), torch.arange(30))
    prepare = Prepare("cpu", augment=Augment(scale=SCALE, flip=True))
    assert resident(samples, prepare) == (samples, prepare)


def test_what_is_shown_follows_scale_and_ratio():
    """All of the area at equal sides is the whole picture, enlarged as torch does it; a quarter of it, four
    times as wide as high, is as wide as the picture: of columns of one value each, all of them are seen."""
    x = pictures()
    whole = Prepare("cpu", torch.float64, size=48, augment=Augment(scale=[1, 1], ratio=[1, 1]))(x, keys())
    enlarged = F.interpolate(x.double() / 255, size=(48, 48), mode="bilinear", align_corners=False)
    assert (whole - enlarged).abs().max() < 1e-12
    x = x[:, :, :1].expand(-1, -1, 32, -1)
    chosen = Augment(scale=[0.25, 0.25], ratio=[4, 4])
    wide = Prepare("cpu", torch.float64, size=48, augment=chosen)(x, keys())
    enlarged = F.interpolate(x.double() / 255, size=(48, 48), mode="bilinear", align_corners=False)
    assert (wide - enlarged).abs().max() < 1e-12


def test_cutout_is_a_square_of_what_the_network_sees():
    x, plain = pictures(), Augment(scale=SCALE)
    cut = Prepare("cpu", mean=MEAN, std=STD, size=48, augment=Augment(scale=SCALE, cutout=16))(x, keys())
    whole = Prepare("cpu", mean=MEAN, std=STD, size=48, augment=plain)(x, keys())
    changed = cut != whole
    assert bool((cut[changed] == 0).all()) and changed.any(1).sum((1, 2)).tolist() == [16 * 16] * 30


def test_a_part_is_mixed_from_its_own_pixels_only():
    """Written out: pixels 1 and 2 of 4 brought to 4 pixels, whose centres lie at 0.75, 1.25, 1.75 and 2.25
    counted in stored pixels' centres, held back at the part's ends."""
    x = torch.tensor([0.0, 10.0, 20.0, 40.0]).view(1, 1, 1, 4)
    row, columns = axis([0], [1], [0], [0], 1), axis([1], [0.5], [1], [2], 4)
    assert resampled(x, row, columns).flatten().tolist() == [10, 12.5, 17.5, 20]
    mirrored = axis([1], [0.5], [1], [2], 4, np.array([True]))
    assert resampled(x, row, mirrored).flatten().tolist() == [20, 17.5, 12.5, 10]


@pytest.mark.needs_gpu
def test_a_gpu_shows_the_same_parts():
    chosen = Augment(scale=SCALE, flip=True)
    found = [Prepare(device, torch.float32, LAST, MEAN, STD, 224, augment=chosen, crop_pct=0.875)
             for device in ("cpu", "cuda")]  # fmt: skip
    for own in (keys(), None):
        ours, theirs = (prepare(pictures(), own).cpu() for prepare in found)
        assert (ours - theirs).abs().max() < 1e-6


# -- the keys --------------------------------------------------------------------------------------


def test_runs_and_profiles_from_before_there_were_these_keys_keep_their_names():
    found = resolved("dataset=cifar10", "model=resnet")
    data = {k: v for k, v in found["dataset"].items() if k != "crop_pct"}
    data["augment"] = {k: v for k, v in data["augment"].items() if k not in ("scale", "ratio")}
    hardware = {k: v for k, v in found["hardware"].items() if k != "benchmark"}
    before = found | {"dataset": data, "hardware": hardware}
    assert runs.identity(before) == runs.identity(found)
    assert profiles.configured(before) == profiles.configured(found)
    lines = ("dataset.augment.pad=0", "dataset.augment.scale=[0.08,1]"), ("dataset.crop_pct=0.875",)
    others = [resolved("dataset=cifar10", "model=resnet", *line) for line in lines]
    assert len({runs.identity(config) for config in (found, *others)}) == 3
    shown = {str(profiles.configured(config)["dataset"]["augment"]) for config in (found, others[0])}
    assert len(shown) == 2


@pytest.mark.parametrize(
    "overrides, said",
    [
        (["dataset.augment.scale=[0.08,1]"], "pad=1 another: set dataset.augment.pad=0"),
        (["dataset.augment.scale=0.08", "dataset.augment.pad=0"], r"got 0\.08: null or \[0\.08,1\]"),
        (["dataset.augment.scale=[0,1]"], r"both above 0, at most 1 \(all of it\), got \[0, 1\]"),
        (["dataset.augment.scale=[0.5,0.2]"], r"got \[0\.5, 0\.2\]"),
        (["dataset.augment.scale=[0.5,1.2]"], r"got \[0\.5, 1\.2\]"),
        (["dataset.augment.scale=[true,1]"], r"got \[True, 1\]"),
        (["dataset.augment.ratio=[1,1]"], "scale asks for, and that is null"),
        (["dataset.augment.ratio=[-1,1]"], r"got \[-1, 1\]: null or \[0\.75,1\.333\]"),
        (["dataset.crop_pct=87.5"], r"at most 1, got 87\.5"),
        (["dataset.crop_pct=0"], "above 0"),
        (["dataset=imagenet", "dataset.augment.flip=alternate"], "flipped by chance when decoded"),
        (["optimizer=muon", "optimizer.momentum=0"], "one of the two is 0"),
        (["optimizer=muon", "model.train=last"], "with model.train=last optimizer=sgd"),
        (["model=airbench", "model.whiten_bias_epochs=-1"], "null or a number from 0, got -1"),
        (["dataset=imagenet", "+dataset.augment.scale=[0.08,1]"], "unknown key 'dataset.augment.scale'"),
    ],
)
def test_mistakes_are_refused_before_the_run(overrides, said):
    with pytest.raises(UserError, match=said):
        resolved(*overrides)


def test_a_library_user_is_told_too():
    for wrong in ({"pad": 4, "scale": SCALE}, {"ratio": [1, 1]}):
        with pytest.raises(UserError, match="takes pad, or scale"):
            Augment(**wrong)


def test_a_part_that_alternates_is_mirrored_where_its_key_says_so():
    x = normalised(pictures(6))
    parts = Augment(scale=SCALE, flip="alternate")
    plain = Augment(scale=SCALE)
    for turned in (False, True):
        given = keys(6) | int(turned) << SIDE
        whole = plain.resized(x, keys(6), (20, 20))  # the part is that of the key without its side
        assert torch.equal(parts.resized(x, given, (20, 20)), whole.flip(-1) if turned else whole)


def test_parts_are_for_pictures_and_the_first_look_sees_the_whole_of_them():
    from types import SimpleNamespace

    cpu = SimpleNamespace(device="cpu", dtype=torch.float32, memory_format=torch.contiguous_format)
    for node, key in (({"crop_pct": 0.5}, "crop_pct"), ({"augment": {"scale": SCALE}}, "augment.scale")):
        with pytest.raises(UserError, match=rf"a sample here is \[12\]: dataset.{key}=null"):
            inputs.preparation(node, (12,), torch.nn.Linear(12, 2), cpu)
    looker = torch.nn.Linear(1, 1)
    looker.first_look = lambda batches: seen.extend(batches)
    seen, x = [], pictures(5)
    node = {"crop_pct": 0.5, "augment": {"scale": SCALE}, "mean": [0, 0, 0], "std": [1, 1, 1]}
    inputs.first_look(node, (3, 32, 32), TensorSamples(x, torch.zeros(5, dtype=torch.int64)), looker)
    assert torch.equal((255 * torch.cat(seen)).round(), x.float())
