"""Images a second of our data path against a DataLoader with torchvision's transforms, side by side.

    python benchmarks/data_path.py [--threads 1 2] [--batches 128 1024] [--rounds 7] [--out data_path.json]

Both make ready batches of the same CIFAR-shaped pictures (pad 4, random crop, horizontal flip, normalise); no
network is trained. Rounds alternate between the contenders, so that a busy machine slows all: read the
ratios.
"""

import argparse
import functools
import json
import os
import platform
import statistics
import time

from adabatch import environment

environment.before_torch()  # as the command does, and crowding.watch below; the DataLoader has the same

import torch  # noqa: E402

from adabatch import crowding  # noqa: E402
from adabatch.data.augment import Augment, Prepare  # noqa: E402
from adabatch.data.resident import resident  # noqa: E402
from adabatch.data.samples import TensorSamples  # noqa: E402
from adabatch.data.stream import Stream  # noqa: E402

MEAN, STD, PAD, CUTOUT = [0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.2010], 4, 8
PEER = "DataLoader"
EPOCHS = 5  # of ours in a round: one takes some 50 ms, too little to time


class Pictures(torch.utils.data.Dataset):
    """What most training scripts do: a picture, its transforms, the next picture."""

    def __init__(self, inputs, labels):
        from torchvision import transforms

        self.pictures = [
            transforms.functional.to_pil_image(x) for x in inputs
        ]  # as torchvision's CIFAR10 holds them
        self.labels = labels.tolist()
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=PAD),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
            ]
        )

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return self.transform(self.pictures[index]), self.labels[index]


def stream(inputs, labels, cutout=0, laid_out=True, compiled=False) -> Stream:
    """As a run has it. laid_out=False: as for pictures that are not in memory, cropped batch by batch.
    compiled: the normalisation by torch.compile, for any size of batch."""
    augment = Augment(PAD, "zeros", True, cutout)
    prepare = Prepare("cpu", memory_format=torch.channels_last, mean=MEAN, std=STD, augment=augment)
    if compiled:
        prepare._normalise = torch.compile(prepare._normalise, dynamic=True)
    samples = TensorSamples(inputs, labels)
    return Stream(*(resident(samples, prepare) if laid_out else (samples, prepare)), seed=0)


def epochs(source: Stream, batch: int, n: int, starts) -> int:
    """Whole batches of n samples, some times over; each time new ones: permutations are part of the work.
    Returns how many samples that were."""
    first = next(starts)
    for start in range(first, first + EPOCHS * n, batch):
        source.batch(start, start + batch)
    return EPOCHS * n


def contenders(inputs, labels, batch: int, asked) -> dict:
    """name -> a function that makes whole batches and returns how many samples that were."""
    from torch.utils.data import DataLoader

    n = len(inputs) // batch * batch
    options = {
        "adabatch": {},
        f"adabatch, cutout {CUTOUT}": {"cutout": CUTOUT},
        "adabatch, batch by batch": {"laid_out": False},
    }
    if asked.compile:
        options["adabatch, compiled"] = {"compiled": True}
    works = {
        name: functools.partial(
            epochs, stream(inputs, labels, **o), batch, n, iter(range(0, 10**15, EPOCHS * n))
        )
        for name, o in options.items()
    }
    loader = DataLoader(
        Pictures(inputs, labels),
        batch,
        shuffle=True,
        drop_last=True,
        num_workers=asked.workers,
        persistent_workers=asked.workers > 0,
    )
    return {PEER: lambda: sum(len(labels) for _, labels in loader), **works}


def speed(work) -> float:
    """Images a second."""
    start = time.perf_counter()
    images = work()
    return images / (time.perf_counter() - start)


def spread(values) -> dict:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def measure(inputs, labels, batch: int, asked) -> dict:
    """{contender: {"images/s": spread, "ratio": spread}}, a ratio for each round."""
    works = contenders(inputs, labels, batch, asked)
    found = {name: [] for name in works}
    for turn in range(asked.rounds + 1):
        for name, work in works.items():
            fast = speed(work)
            if turn:  # the first round starts the workers, lays pictures out and compiles
                found[name].append(fast)
    pairs = {name: zip(speeds, found[PEER], strict=True) for name, speeds in found.items()}
    return {
        name: {"images/s": spread(speeds), "ratio": spread([a / b for a, b in pairs[name]])}
        for name, speeds in found.items()
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--batches", type=int, nargs="+", default=[128, 1024])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="of torch, in this process")
    parser.add_argument("--workers", type=int, default=2, help="of the DataLoader")
    parser.add_argument("--compile", action="store_true", help="also normalise by torch.compile")
    parser.add_argument("--out", help="JSON file; default: print it")
    asked = parser.parse_args()
    import torchvision

    generator = torch.Generator().manual_seed(0)
    inputs = torch.randint(0, 256, (asked.samples, 3, 32, 32), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 10, (asked.samples,), generator=generator)
    report = {
        "workers of the DataLoader": asked.workers,
        "cores": os.cpu_count(),
        "machine": platform.processor() or platform.machine(),
        "load before": os.getloadavg(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "samples": asked.samples,
        "rounds": asked.rounds,
        "measured": [],
    }
    for threads in asked.threads:
        torch.set_num_threads(threads)
        crowding.watch(threads)
        for batch in asked.batches:
            result = measure(inputs, labels, batch, asked)
            report["measured"].append({"threads": threads, "batch": batch, "contenders": result})
            for name, v in result.items():
                fast, ratio = v["images/s"], v["ratio"]
                print(
                    f"threads {threads}  batch {batch:5}  {name:26} {fast['median']:10,.0f} images/s  "
                    f"{ratio['median']:6.2f}x  ({ratio['min']:.2f} to {ratio['max']:.2f})",
                    flush=True,
                )
    text = json.dumps(report, indent=1)
    if asked.out:
        with open(asked.out, "w") as file:
            file.write(text + "\n")
    else:
        print(text)


if __name__ == "__main__":
    main()
