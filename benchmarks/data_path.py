"""Images a second of our data path against a DataLoader with torchvision's transforms, side by side.

    python benchmarks/data_path.py [--rounds 7] [--samples 10000] [--batches 128 1024] [--out data_path.json]

Both make ready batches of the same CIFAR-shaped pictures (pad 4, random crop, horizontal flip, normalise); no
network is trained. Rounds alternate between the two, so that a busy machine slows both: read the ratios. Also
timed: three ways to crop and flip, of which augment.py has the first.
"""

import argparse
import json
import os
import platform
import statistics
import time

import torch
import torch.nn.functional as F

from adabatch.data.augment import COLUMN, FLIP, ROW, Augment, Prepare, draw
from adabatch.data.samples import TensorSamples
from adabatch.data.stream import Stream

MEAN, STD, PAD, WORKERS = [0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.2010], 4, 2


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


def one_gather(x, keys):
    """By flat pixel index, flipped in the same index: what augment.py does."""
    return Augment(PAD, "zeros", True)(x, keys)


def windows(x, keys):
    """All windows as strides, one advanced index, then a flip of everything."""
    n, _, h, w = x.shape
    views = F.pad(x, (PAD,) * 4).unfold(2, h, 1).unfold(3, w, 1)
    x = views[torch.arange(n), :, draw(keys, ROW, 2 * PAD + 1), draw(keys, COLUMN, 2 * PAD + 1)]
    return torch.where(draw(keys, FLIP, 2).bool()[:, None, None, None], x.flip(3), x)


def loop(x, keys):
    """Picture by picture."""
    _, _, h, w = x.shape
    padded, out = F.pad(x, (PAD,) * 4), torch.empty_like(x)
    corners = (draw(keys, what, count).tolist() for what, count in ((ROW, 9), (COLUMN, 9), (FLIP, 2)))
    for i, (top, left, flip) in enumerate(zip(*corners, strict=True)):
        picture = padded[i, :, top : top + h, left : left + w]
        out[i] = picture.flip(2) if flip else picture
    return out


def timed(count, work):
    """Images a second of work(), which makes `count` images."""
    start = time.perf_counter()
    work()
    return count / (time.perf_counter() - start)


def contenders(inputs, labels, batch):
    """name -> a function that makes one epoch of whole batches."""
    n = len(inputs) // batch * batch
    prepare = Prepare(
        "cpu", memory_format=torch.channels_last, mean=MEAN, std=STD, augment=Augment(PAD, "zeros", True)
    )
    stream, passed = Stream(TensorSamples(inputs, labels), prepare, seed=0), iter(range(0, 10**15, n))
    loader = torch.utils.data.DataLoader(
        Pictures(inputs, labels),
        batch,
        shuffle=True,
        drop_last=True,
        num_workers=WORKERS,
        persistent_workers=True,
    )

    def ours():
        first = next(passed)  # each round the next epoch: its permutation is part of the work
        for start in range(first, first + n, batch):
            stream.batch(start, start + batch)

    def theirs():
        for _ in loader:
            pass

    def crop(way):
        keys = stream.keys(0, n)
        return lambda: [way(inputs[s : s + batch], keys[s : s + batch]) for s in range(0, n, batch)]

    ways = {f"crop: {way.__name__}": crop(way) for way in (one_gather, windows, loop)}
    return n, {"adabatch": ours, "DataLoader": theirs, **ways}


def measure(inputs, labels, batch, rounds):
    n, works = contenders(inputs, labels, batch)
    found = {name: [] for name in works}
    for i in range(rounds + 1):
        for name, work in works.items():
            speed = timed(n, work)
            if i:  # the first round starts the workers and warms the caches
                found[name].append(speed)
    result = {
        name: {"median": statistics.median(v), "min": min(v), "max": max(v), "rounds": v}
        for name, v in found.items()
    }
    ratios = [a / b for a, b in zip(found["adabatch"], found["DataLoader"], strict=True)]
    result["adabatch / DataLoader"] = {
        "median": statistics.median(ratios),
        "min": min(ratios),
        "max": max(ratios),
    }
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--batches", type=int, nargs="+", default=[128, 1024])
    parser.add_argument("--out", help="JSON file; default: print it")
    args = parser.parse_args()
    import torchvision

    torch.set_num_threads(1)
    inputs = torch.randint(0, 256, (args.samples, 3, 32, 32), dtype=torch.uint8)
    labels = torch.randint(0, 10, (args.samples,))
    report = {
        "unit": "images/s",
        "threads": 1,
        "workers of the DataLoader": WORKERS,
        "cores": os.cpu_count(),
        "machine": platform.processor() or platform.machine(),
        "load before": os.getloadavg(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "samples": args.samples,
        "batch": {batch: measure(inputs, labels, batch, args.rounds) for batch in args.batches},
    }
    text = json.dumps(report, indent=1)
    if args.out:
        with open(args.out, "w") as file:
            file.write(text + "\n")
    for batch, result in report["batch"].items():
        for name, v in result.items():
            print(f"batch {batch:5}  {name:22} {v['median']:10,.1f}  ({v['min']:,.1f} to {v['max']:,.1f})")
    if not args.out:
        print(text)


if __name__ == "__main__":
    main()
