"""Images read from folders while training: train/<class>/*.JPEG and val/<class>/*.JPEG.

The crop and the flip of a training image are functions of the key that comes with it (its place in the run),
so they do not depend on the batch, the number of threads or what was read before. Threads decode ahead of
what is asked for; Pillow lets go of the interpreter while it decodes. Pixels equal those of torchvision's
transforms on Pillow images: RandomResizedCrop + horizontal flip in training, Resize + CenterCrop otherwise
(NVlabs/AdaBatch, adabatch_imagenet.py).
"""

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch

from adabatch import draws, environment
from adabatch.data.boxes import TRIES, crop_box
from adabatch.data.samples import Samples
from adabatch.errors import UserError
from adabatch.published import default_root

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # torchvision's
FLIP = 4 * TRIES  # number of the draw that decides the flip, after those of the crop


def imagenet(root=None, crop=224, resize=256, workers=None, ahead=512):
    """(train, test) of a folder with train/ and val/, or of the folder imagenet/ in it.

    root: None is $ADABATCH_DATA, else ~/.cache/adabatch/data; the others: see ImageFolderSamples.
    """
    base = default_root(root)
    if not (base / "train").is_dir() and (base / "imagenet").is_dir():
        base = base / "imagenet"
    splits = [ImageFolderSamples(base / part, crop, resize, workers, ahead) for part in ("train", "val")]
    train, test = (set(split.classes) for split in splits)
    if train != test:
        odd = sorted(train ^ test)
        raise UserError(
            f"{base}: train/ and val/ must hold the same class folders; {len(odd)} are in one only, "
            f"e.g. {odd[0]!r} is not in {'val/' if odd[0] in train else 'train/'}"
        )
    return tuple(splits)


class ImageFolderSamples(Samples):
    """The images below `folder`, one folder per class; class numbers follow the sorted folder names.

    crop: side of the images returned, in pixels; resize: the shorter side before the central crop of
    evaluation; workers: decoding threads (None: one per CPU this process may use); ahead: images that were
    expected, are decoded or being decoded and not yet read, at most (3 * crop * crop bytes each, whatever the
    batch size).
    """

    def __init__(self, folder, crop=224, resize=256, workers=None, ahead=512):
        workers = environment.cores() if workers is None else workers
        for name, value in {"crop": crop, "resize": resize, "workers": workers, "ahead": ahead}.items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise UserError(f"dataset.{name} must be a whole number above 0; it is {value!r}")
        if resize < crop:
            raise UserError(
                f"dataset.resize must not be below dataset.crop; it is {resize} with a crop of {crop}"
            )
        self.folder, self.crop, self.resize = Path(folder), crop, resize
        self.workers, self.ahead = workers, ahead
        self.look_ahead = ahead
        self.classes, self.files, labels = list_images(self.folder)
        self.labels = torch.tensor(labels, dtype=torch.int64)
        self._pool, self._lock = None, threading.Lock()
        self._futures = {}  # (index, key) -> its image to be: started, not yet read, in the order expected
        self._hints = {}  # (index, key) -> None: expected, not yet started, in the order expected

    def __len__(self) -> int:
        return len(self.files)

    def read(self, indices, keys=None):
        """uint8 [n, 3, crop, crop] (channels last in memory, as Pillow has them) and int64 [n]. Raises
        UserError naming the file that cannot be decoded."""
        tasks = _tasks(indices, keys)
        images = torch.empty(len(tasks), self.crop, self.crop, 3, dtype=torch.uint8)
        pixels = images.numpy()
        window = 2 * self.workers  # keeps every thread busy, even while `ahead` others wait to be read later
        with self._lock:
            self._drop_stale(set(tasks))
            for task in tasks[:window]:
                self._start(task)
            for row, task in enumerate(tasks):
                if row + window < len(tasks):
                    self._start(tasks[row + window])
                else:
                    self._fill()
                self._start(task)  # only does something where one read names a sample twice
                pixels[row] = self._futures.pop(task).result()
            self._fill()
        return images.permute(0, 3, 1, 2), self.labels[indices]

    def expect(self, indices, keys=None) -> None:
        """What will be read next, in this order, instead of all that was expected before. It may be wrong."""
        tasks = dict.fromkeys(_tasks(indices, keys))
        with self._lock:
            for task in [task for task in self._futures if task not in tasks]:
                self._futures.pop(task).cancel()
            self._hints = {task: None for task in tasks if task not in self._futures}
            self._fill()

    def close(self) -> None:
        """Stop the threads and drop what they have decoded. Reading again starts new ones."""
        with self._lock:
            pool, self._pool, self._futures, self._hints = self._pool, None, {}, {}
        if pool:
            pool.shutdown(wait=True, cancel_futures=True)

    def _start(self, task) -> None:
        if task in self._futures:
            return
        if self._pool is None:  # not before: a process that is going to fork must not have threads
            self._pool = ThreadPoolExecutor(self.workers, thread_name_prefix="adabatch-decode")
        self._hints.pop(task, None)
        self._futures[task] = self._pool.submit(self._decode, *task)

    def _fill(self) -> None:
        while self._hints and len(self._futures) < self.ahead:
            self._start(next(iter(self._hints)))

    def _drop_stale(self, wanted: set) -> None:
        """Forget hints that were due before something that is read now: they would block the window."""
        order = [*self._futures, *self._hints]
        last = max((place for place, task in enumerate(order) if task in wanted), default=0)
        for task in order[:last]:
            if task not in wanted:
                self._hints.pop(task, None)
                if future := self._futures.pop(task, None):
                    future.cancel()

    def _decode(self, index: int, key: int | None) -> np.ndarray:
        """uint8 [crop, crop, 3]; runs in a thread."""
        from PIL import Image

        path = self.folder / self.files[index]
        try:
            with Image.open(path) as file:
                file.load()  # first: for some formats only this settles the mode
                image = file if file.mode == "RGB" else file.convert("RGB")  # of RGB that would be a copy
        except MemoryError:
            raise
        except Exception as error:  # Pillow's readers raise almost anything at broken files
            raise UserError(
                f"the image {path} cannot be decoded: {error or type(error).__name__}. What to do: replace it"
            ) from error
        if key is None:
            return np.asarray(self._central(image))
        top, left, height, width = crop_box(image.height, image.width, partial(uniform, key))
        image = image.crop((left, top, left + width, top + height))
        image = image.resize((self.crop, self.crop), Image.BILINEAR)
        if uniform(key, FLIP) < 0.5:
            image = image.transpose(Image.FLIP_LEFT_RIGHT)
        return np.asarray(image)

    def _central(self, image):
        """The central square of the image scaled so that its shorter side is `resize`."""
        from PIL import Image

        width, height = image.size
        scaled = (self.resize, int(self.resize * height / width))
        if height < width:
            scaled = (int(self.resize * width / height), self.resize)
        image = image.resize(scaled, Image.BILINEAR)
        left, top = (round((side - self.crop) / 2) for side in scaled)
        return image.crop((left, top, left + self.crop, top + self.crop))


def uniform(key: int, counter: int) -> float:
    """Draw number `counter` of the sample with this key, in [0, 1)."""
    return draws.bits(key, counter) / 2**32


def list_images(folder: Path):
    """(classes, files, labels): sorted folder names; paths below `folder`, sorted in a class; class numbers.

    Raises UserError for a missing folder, one without class folders, and a class without images.
    """
    try:
        classes = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
    except OSError as error:
        raise UserError(
            f"the folder {folder} cannot be read: {error.strerror}. What to do: dataset.root=FOLDER or "
            "$ADABATCH_DATA names the folder with train/ and val/ in it, each with one folder per class"
        ) from error
    if not classes:
        raise UserError(f"{folder} has no class folders; its images must be sorted into one folder per class")
    files, labels = [], []
    for number, name in enumerate(classes):
        before = len(files)
        for place, _, names in sorted(os.walk(folder / name, followlinks=True)):
            found = sorted(file for file in names if file.lower().endswith(EXTENSIONS))
            files += [os.path.relpath(os.path.join(place, file), folder) for file in found]
        if len(files) == before:
            raise UserError(f"class folder {folder / name} holds no image (one of {', '.join(EXTENSIONS)})")
        labels += [number] * (len(files) - before)
    return classes, files, labels


def _tasks(indices, keys) -> list:
    return list(zip(indices.tolist(), [None] * len(indices) if keys is None else keys.tolist(), strict=True))
