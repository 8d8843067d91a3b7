"""Images a second from a folder of JPEGs, as the training reads it, against torchvision's in a DataLoader.

    python benchmarks/imagenet.py [--rounds 7] [--pictures 400] [--batches 64 256] [--out imagenet.json]

The folder is made for the occasion: pictures of 500 x 375 with about as many bytes as ImageNet's. Everybody
crops (RandomResizedCrop to 224), flips, and hands out normalised float32 batches; the same number of workers,
one thread of torch. `DataLoader`: ImageFolder with the transforms of torchvision's reference (per picture);
`lean`: bytes from the workers, normalised by the batch as we do. The consumer takes no time, or sleeps as a
host does that waits for its GPU: then `adabatch` and `lean` hand out bytes, which are normalised over there.
Each round starts everybody anew; what fills the pipe is not timed.

`change`: seconds that a consumer waits for its first batch after the batch size changed; the DataLoaders are
built anew for it. Rounds alternate, so that a busy machine slows all alike: read the ratios.
"""

import argparse
import itertools
import json
import os
import platform
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from adabatch.data.augment import Prepare
from adabatch.data.imagenet import ImageFolderSamples
from adabatch.data.stream import Stream
from adabatch.environment import keep_memory

MEAN, STD, CLASSES = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225], 10


def picture(number: int):
    """A random field with detail at all scales, like a photograph's, and a few sharp edges: 375 x 500 x 3."""
    from PIL import Image

    rng = np.random.default_rng(number)
    field = torch.full((3, 375, 500), 128.0)
    for exponent in range(1, 9):
        cells = rng.normal(0, 100 * 0.78**exponent, (1, 3, 2**exponent, 2**exponent))
        field += F.interpolate(torch.from_numpy(cells).float(), size=(375, 500), mode="bilinear")[0]
    y, x = torch.meshgrid(torch.arange(375.0), torch.arange(500.0), indexing="ij")
    for _ in range(6):
        angle, offset = rng.uniform(0, 2 * np.pi), rng.uniform(-150, 150)
        side = (x - 250) * np.cos(angle) + (y - 187) * np.sin(angle) > offset
        field += side * torch.from_numpy(rng.normal(0, 20, (3, 1, 1))).float()
    return Image.fromarray(field.clamp(0, 255).byte().permute(1, 2, 0).numpy())


def make_folder(root: Path, count: int) -> int:
    """root/<class>/<number>.JPEG; mean bytes of a file."""
    for number in range(count):
        path = root / f"{number % CLASSES}" / f"{number}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(number).save(path, quality=92)
    return sum(path.stat().st_size for path in root.glob("*/*")) // count


class Endless(torch.utils.data.Sampler):
    """One permutation after another."""

    def __init__(self, count: int, seed: int):
        self.count, self.generator = count, torch.Generator().manual_seed(seed)

    def __iter__(self):
        while True:
            yield from torch.randperm(self.count, generator=self.generator).tolist()


def unprepared(x, keys=None):
    """Bytes for a device that normalises them itself."""
    return x


class Ours:
    def __init__(self, folder, workers: int, prepare):
        self.samples = ImageFolderSamples(folder, workers=workers)
        self.stream, self.position, self.prepare = Stream(self.samples, prepare, seed=0), 0, prepare

    def batches(self, size: int, elsewhere: bool):
        self.stream.prepare = unprepared if elsewhere else self.prepare
        while True:
            batch = self.stream.batch(self.position, self.position + size)
            self.position += size
            yield batch

    def change(self, loop, size: int):
        return self.batches(size, elsewhere=True)

    def stop(self, loop) -> None:
        self.samples.close()


class Theirs:
    def __init__(self, folder, workers: int, prepare, lean: bool):
        from torchvision import datasets, transforms

        last = (
            [transforms.PILToTensor()] if lean else [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
        )
        crop = [transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip()]
        self.dataset = datasets.ImageFolder(folder, transforms.Compose([*crop, *last]))
        self.workers, self.prepare, self.round = workers, prepare if lean else None, 0

    def batches(self, size: int, elsewhere: bool):
        self.round += 1
        prepare = unprepared if elsewhere or not self.prepare else self.prepare
        loader = torch.utils.data.DataLoader(
            self.dataset, size, sampler=Endless(len(self.dataset), self.round), num_workers=self.workers
        )
        for x, y in loader:
            yield prepare(x), y

    def change(self, loop, size: int):
        loop.close()
        return self.batches(size, elsewhere=True)

    def stop(self, loop) -> None:
        loop.close()  # ends the workers


def consume(loop, batches: int, size: int, pace: float) -> float:
    """Seconds that the consumer of so many batches waited. pace: seconds it takes for an image."""
    waited = 0.0
    for _ in range(batches):
        began = time.perf_counter()
        next(loop)
        waited += time.perf_counter() - began
        time.sleep(pace * size)
    return waited


def speed(way, size: int, count: int, pace: float) -> float:
    """Images a second, once the pipe is full."""
    loop = way.batches(size, elsewhere=pace > 0)
    consume(loop, 2, size, pace)  # a DataLoader's workers make a batch each: the first come late, at once
    began = time.perf_counter()
    consume(loop, -(-count // size), size, pace)
    took = time.perf_counter() - began
    way.stop(loop)
    return -(-count // size) * size / took


def change(way, sizes, pace: float) -> float:
    """Seconds waited for the first batch of the second size."""
    loop = way.batches(sizes[0], elsewhere=True)
    consume(loop, 8, sizes[0], pace)
    began = time.perf_counter()
    loop = way.change(loop, sizes[1])
    next(loop)
    took = time.perf_counter() - began
    way.stop(loop)
    return took


def spread(values) -> dict:
    low, middle, high = statistics.quantiles(values, n=4)
    return {"median": middle, "quartiles": [low, high], "rounds": list(values)}


def interleaved(ways: dict, measure, rounds: int) -> dict:
    """name -> figures of `rounds` rounds, ratios within a round; one more before them warms the caches."""
    found = {name: [] for name in ways}
    for index in range(rounds + 1):
        for name in sorted(ways, reverse=index % 2):
            value = measure(ways[name])
            if index:
                found[name].append(value)
    result = {name: spread(values) for name, values in found.items()}
    for name in set(ways) - {"adabatch"}:
        pairs = zip(found["adabatch"], found[name], strict=True)
        result[f"adabatch / {name}"] = spread([ours / theirs for ours, theirs in pairs])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--pictures", type=int, default=400)
    parser.add_argument("--images", type=int, default=1024, help="timed in a round")
    parser.add_argument("--batches", type=int, nargs="*", default=[64, 256])
    parser.add_argument(
        "--paces", type=float, nargs="+", default=[0.0, 3.0], help="ms an image of the consumer"
    )
    parser.add_argument("--change", type=int, nargs="*", default=[64, 256])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--folder", help="pictures to keep and use again; default: made and removed")
    parser.add_argument("--out", help="JSON file; default: print it")
    asked = parser.parse_args()
    keep_memory()  # as the command does; the DataLoaders' processes inherit it
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(asked.folder or temporary)
        made = folder.is_dir() and any(folder.iterdir())
        size = 0 if made else make_folder(folder, asked.pictures)
        prepare = Prepare("cpu", memory_format=torch.channels_last, mean=MEAN, std=STD)
        ways = {
            "adabatch": Ours(folder, asked.workers, prepare),
            "DataLoader": Theirs(folder, asked.workers, prepare, lean=False),
            "lean": Theirs(folder, asked.workers, prepare, lean=True),
        }
        report = {
            "machine": platform.processor() or platform.machine(),
            "cores": len(os.sched_getaffinity(0)),
            "workers": asked.workers,
            "torch": torch.__version__,
            "bytes of a picture": size,
            "load before": os.getloadavg(),
        }
        for batch, pace in itertools.product(asked.batches, asked.paces):
            said = f"batch {batch}, consumer {pace:g} ms an image: images/s"
            timed = partial(speed, size=batch, count=asked.images, pace=pace / 1000)
            show(report, said, interleaved(ways, timed, asked.rounds))
        if asked.change:
            said = f"batch {asked.change[0]} to {asked.change[1]}: seconds waited for the first"
            timed = partial(change, sizes=asked.change, pace=asked.paces[-1] / 1000)
            show(report, said, interleaved(ways, timed, asked.rounds))
    text = json.dumps(report, indent=1)
    if asked.out:
        Path(asked.out).write_text(text + "\n")
    else:
        print(text)


def show(report: dict, said: str, result: dict) -> None:
    report[said] = result
    print(said)
    for name, v in result.items():
        low, high = v["quartiles"]
        print(f"  {name:22} {v['median']:9.3f}  ({low:.3f} to {high:.3f})", flush=True)


if __name__ == "__main__":
    main()
