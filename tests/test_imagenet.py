"""Images from folders: crops as torchvision makes them, the same whatever threads, batches and hints."""

import gc
import math
import threading
from functools import partial

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from PIL import Image
from support import run

from adabatch.data import imagenet
from adabatch.data.imagenet import crop_box, uniform
from adabatch.data.samples import Subset
from adabatch.data.stream import Stream
from adabatch.errors import Interrupted, UserError

CLASSES = ["ant", "bee", "cat"]
SIZES = [(80, 60), (50, 91), (86, 64), (200, 33), (40, 120)]  # (width, height), most beyond 3/4 to 4/3


def picture(number: int, size) -> Image.Image:
    """Smooth enough for JPEG, different everywhere."""
    width, height = size
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    planes = [(x * (3 + number) + y) % 256, (y * (2 + number) + 40 * number) % 256, (x + y * number) % 256]
    return Image.fromarray(np.stack(planes, -1).astype(np.uint8))


@pytest.fixture
def root(tmp_path):
    """15 training and 6 test images in 3 classes: PNG, JPEG, grey and with transparency."""
    number = 0
    for part, count in (("train", 5), ("val", 2)):
        for name in CLASSES:
            folder = tmp_path / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                image = picture(number, SIZES[i])
                image = [image, image.convert("L"), image, image.convert("RGBA"), image][i]
                image.save(folder / f"{i}.{['png', 'png', 'JPEG', 'PNG', 'jpg'][i]}", quality=90)
                number += 1
            (folder / "notes.txt").write_text("no image")
    return tmp_path


@pytest.fixture
def load():
    """imagenet(...) whose threads are stopped after the test."""
    opened = []

    def load(root, **arguments):
        splits = imagenet.imagenet(root, **{"crop": 24, "resize": 32, "workers": 2, **arguments})
        opened.extend(splits)
        return splits

    yield load
    for samples in opened:
        samples.close()


def keys_for(count: int):
    return torch.arange(count) * 7919 + 11


# ---------------------------------------------------------------- listing


def test_classes_files_and_labels_are_torchvisions(root, load):
    from torchvision.datasets import ImageFolder

    (root / "train" / "bee" / "more").mkdir()
    picture(3, (10, 10)).save(root / "train" / "bee" / "more" / "0.png")
    for samples, part in zip(load(root), ("train", "val"), strict=True):
        known = ImageFolder(root / part)
        assert samples.classes == known.classes == CLASSES
        assert [str(samples.folder / file) for file in samples.files] == [path for path, _ in known.samples]
        assert samples.labels.tolist() == known.targets and len(samples) == len(known)


def test_the_folder_may_lie_below_the_common_root(root, load, tmp_path, monkeypatch):
    (root / "imagenet").mkdir()
    for part in ("train", "val"):
        (root / part).rename(root / "imagenet" / part)
    monkeypatch.setenv("ADABATCH_DATA", str(root))
    train, test = load(None)
    assert (len(train), len(test)) == (15, 6)


def refused(*arguments, **keywords) -> str:
    with pytest.raises(UserError) as caught:
        imagenet.imagenet(*arguments, **keywords)
    return str(caught.value)


def test_a_folder_that_is_not_as_it_must_be_is_refused(root, tmp_path):
    message = refused(tmp_path / "nowhere")
    assert str(tmp_path / "nowhere" / "train") in message and "dataset.root=" in message
    (root / "val" / "cat").rename(root / "val" / "dog")
    message = refused(root)
    assert "same class folders" in message and "2 are" in message and "'cat' is not in val/" in message
    for file in (root / "val" / "dog").glob("*.[pj]*"):
        file.unlink()
    assert str(root / "val" / "dog") in refused(root)
    for name in ("ant", "bee", "dog"):
        for file in (root / "val" / name).iterdir():
            file.unlink()
        (root / "val" / name).rmdir()
    assert "no class folders" in refused(root)
    (root / "val").rmdir()
    assert str(root / "val") in refused(root)


@pytest.mark.parametrize("key, value", [("crop", 0), ("resize", 16.5), ("workers", -1), ("ahead", True)])
def test_a_size_that_cannot_be_is_refused(root, key, value):
    message = refused(root, **{key: value})
    assert f"dataset.{key}" in message and repr(value) in message
    assert "100 with a crop of 224" in refused(root, resize=100)


# ---------------------------------------------------------------- crops


def reference_box(height, width, draws):
    """torchvision's RandomResizedCrop.get_params with its draws given, written anew."""
    draws = iter(draws)
    for _ in range(10):
        target = height * width * np.interp(next(draws), [0, 1], [0.08, 1])
        aspect = np.exp(np.interp(next(draws), [0, 1], np.log([3 / 4, 4 / 3])))
        w, h = int(np.rint(np.sqrt(target * aspect))), int(np.rint(np.sqrt(target / aspect)))
        up, along = next(draws), next(draws)
        if 0 < w <= width and 0 < h <= height:
            return math.floor(up * (height - h + 1)), math.floor(along * (width - w + 1)), h, w
    if width < height * 3 / 4:
        w, h = width, int(np.rint(width * 4 / 3))
    elif width > height * 4 / 3:
        w, h = int(np.rint(height * 4 / 3)), height
    else:
        w, h = width, height
    return (height - h) // 2, (width - w) // 2, h, w


@settings(deadline=None, max_examples=300)
@given(
    st.integers(1, 700),
    st.integers(1, 700),
    st.lists(st.floats(0, 1, exclude_max=True), min_size=40, max_size=40),
)
def test_the_crop_is_torchvisions_on_the_same_draws(height, width, draws):
    box = crop_box(height, width, draws.__getitem__)
    assert box == reference_box(height, width, draws)
    top, left, h, w = box
    assert h > 0 and w > 0 and 0 <= top <= height - h and 0 <= left <= width - w


def torchvisions_box(height: int, width: int, key: int, monkeypatch):
    """What torchvision's own code gives where both functions that it draws with are fed with ours."""
    from torchvision.transforms import RandomResizedCrop

    draws = iter([uniform(key, counter) for counter in range(40)])
    held = []

    def uniform_(tensor, low, high):  # first the area of a try, then the logarithm of its ratio
        if len(held) == 2:  # the try before did not fit and left its two draws for the place
            next(draws), next(draws)
            held.clear()
        held.append(tensor)
        return tensor.fill_(low + (high - low) * next(draws))

    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "uniform_", uniform_)
        patch.setattr(torch, "randint", lambda low, high, size: torch.tensor([int(next(draws) * high)]))
        return RandomResizedCrop.get_params(Image.new("RGB", (width, height)), (0.08, 1.0), (3 / 4, 4 / 3))


def test_the_crop_is_that_of_torchvisions_code(monkeypatch):
    for key in range(200):
        width, height = SIZES[key % len(SIZES)]
        assert crop_box(height, width, partial(uniform, key)) == torchvisions_box(
            height, width, key, monkeypatch
        )


def test_training_pixels_are_torchvisions_and_half_are_flipped(root, load):
    from torchvision.transforms.v2 import functional

    train, _ = load(root)
    count = 120
    indices, keys = torch.arange(count) % 15, keys_for(count)
    images, labels = train.read(indices, keys)
    assert images.dtype == torch.uint8 and images.shape == (count, 3, 24, 24)
    assert labels.tolist() == [i // 5 for i in indices.tolist()]
    flipped = 0
    for image, index, key in zip(images, indices.tolist(), keys.tolist(), strict=True):
        with Image.open(train.folder / train.files[index]) as file:
            whole = file.convert("RGB")
        box = crop_box(whole.height, whole.width, partial(uniform, key))
        known = functional.pil_to_tensor(functional.resized_crop(whole, *box, size=[24, 24]))
        straight, mirrored = torch.equal(image, known), torch.equal(image, known.flip(2))
        assert straight or mirrored
        flipped += not straight
    assert 35 < flipped < 85  # 60 expected, standard deviation 5.5


def test_evaluation_pixels_are_torchvisions(root, load):
    from torchvision.transforms import v2

    known = v2.Compose([v2.Resize(32), v2.CenterCrop(24), v2.PILToTensor()])
    for samples in load(root):
        images, _ = samples.read(torch.arange(len(samples)))
        for image, file in zip(images, samples.files, strict=True):
            with Image.open(samples.folder / file) as opened:
                assert torch.equal(image, known(opened.convert("RGB"))), file


def test_crops_differ_between_keys_and_cover_the_image(root, load):
    boxes = {crop_box(90, 90, partial(uniform, key)) for key in range(500)}
    assert len(boxes) > 450
    shares = np.array([h * w / 8100 for _, _, h, w in boxes])
    assert 0.07 < shares.min() < 0.12 and 0.85 < shares.max() <= 1 and 0.35 < shares.mean() < 0.55


# ---------------------------------------------------------------- look-ahead


def cut(total: int, sizes):
    starts = [0]
    while starts[-1] < total:
        starts.append(min(total, starts[-1] + sizes[len(starts) % len(sizes)]))
    return [slice(a, b) for a, b in zip(starts, starts[1:], strict=False)]


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("ahead", [1, 7, 100])
@pytest.mark.parametrize("sizes", [[60], [1], [4, 13, 2]])
def test_pixels_do_not_depend_on_threads_batches_or_hints(root, load, workers, ahead, sizes):
    indices, keys = torch.arange(60) * 4 % 15, keys_for(60)
    expected = load(root, workers=2)[0].read(indices, keys)[0]
    train, _ = load(root, workers=workers, ahead=ahead)
    parts = []
    for part in cut(60, sizes):
        parts.append(train.read(indices[part], keys[part])[0])
        train.expect(indices[part.stop : part.stop + ahead], keys[part.stop : part.stop + ahead])
        assert len(train._futures) <= ahead
    assert torch.equal(torch.cat(parts), expected)
    assert not train._futures and not train._hints


def test_what_was_expected_is_decoded_before_it_is_read(root, load, monkeypatch):
    train, _ = load(root, ahead=8)
    decoded, enough = [], threading.Event()
    decode = train._decode

    def spy(index, key):
        image = decode(index, key)
        decoded.append(index)
        if len(decoded) == 8:
            enough.set()
        return image

    monkeypatch.setattr(train, "_decode", spy)
    indices, keys = torch.arange(15), keys_for(15)
    train.expect(indices, keys)
    train.expect(indices, keys)  # said again: nothing is done twice
    assert enough.wait(20)
    assert sorted(decoded) == list(range(8)) and len(train._futures) == 8  # and no more than that
    train.read(indices[:5], keys[:5])
    train.read(indices[5:], keys[5:])
    assert sorted(decoded) == list(range(15))


def test_hints_that_did_not_come_true_do_not_block_the_window(root, load):
    train, _ = load(root, ahead=4)
    indices, keys = torch.arange(15), keys_for(15)
    wrong = keys + 1
    train.expect(indices[:6], wrong[:6])
    train.expect(indices[6:12], keys[6:12])
    train.read(indices[6:9], keys[6:9])
    assert set(train._futures) == {(i, int(keys[i])) for i in (9, 10, 11)} and not train._hints
    train.expect(indices, wrong)
    for _ in range(3):  # an evaluation in between has its own window
        train.read(indices)
    assert len(train._futures) == 4


def test_what_is_no_longer_expected_makes_room(root, load):
    """A rank's part of a batch may lie beyond all that it expected, once the batch has grown."""
    train, _ = load(root, ahead=4)
    indices, keys = torch.arange(15), keys_for(15)
    train.expect(indices[:8], keys[:8])
    train.expect(indices[6:12], keys[6:12])
    assert list(train._futures) == [(i, int(keys[i])) for i in (6, 7, 8, 9)] and len(train._hints) == 2
    train.read(indices[6:7], keys[6:7])
    train.expect(indices[12:], keys[12:])
    assert list(train._futures) == [(i, int(keys[i])) for i in (12, 13, 14)] and not train._hints


def test_one_read_may_name_a_sample_twice(root, load):
    train, _ = load(root, ahead=2)
    indices, keys = torch.tensor([3, 3, 1, 3]), torch.tensor([5, 5, 5, 6])
    train.expect(indices, keys)
    images, _ = train.read(indices, keys)
    assert torch.equal(images[0], images[1]) and not torch.equal(images[0], images[3])
    assert torch.equal(train.read(torch.tensor([2, 2, 2]))[0][0], train.read(torch.tensor([2]))[0][0])


def test_close_ends_the_threads_and_reading_goes_on_if_asked(root, load):
    train, _ = load(root, workers=3)
    before = threading.active_count()
    train.expect(torch.arange(15), keys_for(15))
    assert threading.active_count() > before
    train.close()
    assert threading.active_count() == before
    first = train.read(torch.arange(4))[0]
    train.close()
    train.close()
    assert torch.equal(train.read(torch.arange(4))[0], first)


@pytest.fixture
def started(monkeypatch):
    """Names of the decoding threads that were started."""
    names, start = [], threading.Thread.start

    def spy(thread):
        if thread.name.startswith("adabatch-decode"):
            names.append(thread.name)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", spy)
    return names


def test_neither_a_change_of_batch_nor_of_position_starts_a_thread(root, load, started):
    known = Stream(load(root, ahead=1)[0], lambda images, keys: images, seed=3).batch(0, 120)
    started.clear()
    train, test = load(root, ahead=8)
    position = 0
    for size in (4, 4, 16, 1, 31, 2, 60, 2):  # each a new stream: nothing but the threads is kept
        stream = Stream(train, lambda images, keys: images, seed=3)
        images, labels = stream.batch(position, position + size)
        assert torch.equal(images, known[0][position : position + size])
        assert torch.equal(labels, known[1][position : position + size])
        position += size
        train.read(torch.arange(3))  # an evaluation on the training images
    assert position == 120 and 1 <= len(started) <= 2
    Stream(train, lambda images, keys: images, seed=3).batch(50, 70)  # back to a checkpoint
    assert len(started) <= 2


RUN = ("dataset=imagenet", "dataset.crop=24", "dataset.resize=32", "dataset.workers=2", "dataset.ahead=8",
       "dataset.samples=15", "dataset.classes=3", "model=convnet", "schedule=adabatch",
       "schedule.base_batch=2", "epochs=5", "model.ghost=2")  # fmt: skip


def test_a_run_goes_through_all_its_batches_with_the_same_threads_and_resumes_exactly(
    root, tmp_path, started
):
    asked = (*RUN, f"dataset.root={root}")
    whole = run(tmp_path / "whole", *asked)
    assert len({phase["batch_size"] for phase in whole["phases"]}) >= 3
    assert sum(name.endswith("_0") for name in started) == 2  # two sources, training and test: a pool each
    assert len(started) <= 4
    asks = iter(["SIGTERM" if step == 12 else None for step in range(99)])
    with pytest.raises(Interrupted):
        run(tmp_path / "halves", *asked, stop=lambda: next(asks))
    assert run(tmp_path / "halves", *asked)["weights_sha256"] == whole["weights_sha256"]


def test_listing_starts_no_thread(root, load):
    gc.collect()
    before = threading.active_count()
    load(root)
    assert threading.active_count() == before


def test_validation_reads_its_part_through_the_training_samples(root, load):
    train, _ = load(root)
    held = Subset(train, torch.tensor([4, 9]))
    assert held.labels.tolist() == [0, 1]
    assert torch.equal(held.read(torch.arange(2))[0], train.read(torch.tensor([4, 9]))[0])


# ---------------------------------------------------------------- faults


@pytest.mark.parametrize("hinted", [False, True])
@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "gone"])
def test_a_broken_image_is_named(root, load, damage, hinted):
    train, _ = load(root)
    path = root / "train" / "bee" / "2.JPEG"
    data = path.read_bytes()
    path.write_bytes(
        {"truncated": data[: len(data) // 2], "text": b"<html>not found</html>"}.get(damage, b"")
    )
    if damage == "gone":
        path.unlink()
    indices = torch.arange(15)
    if hinted:
        train.expect(indices)
    with pytest.raises(UserError, match=r"bee/2\.JPEG") as caught:
        train.read(indices)
    assert "replace" in str(caught.value)
    assert len(train.read(torch.arange(5))[0]) == 5  # the others can still be read
