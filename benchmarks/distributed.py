"""Our step on several gloo processes against a plain DistributedDataParallel loop over the same network.

python benchmarks/distributed.py [--world 2] [--rounds 9] [--steps 5] [--batches 128,512] [model=resnet ...]

Both train the same network (its ghost norms included) on the same samples, prepared by the same code, with
SGD and momentum, `--threads` per process. The other loop is what one writes by hand: DDP (buckets that
overlap the backward pass), torch.optim.SGD, the mean loss of each rank's half. Ours adds what exactness
needs: sums over the global batch, statistics and counts in the reduction, flags on which ranks agree. A round
times `--steps` steps of each, in an order that alternates; printed are the medians over rounds of images per
second of the slowest rank, and of the ratio within a round, with quartiles. `--ordered` adds
hardware.reduction=ordered.
"""

import argparse
import os
import socket
import statistics
import subprocess
import sys
import time

import torch

from adabatch import config, memory, places
from adabatch.build import build
from adabatch.losses import cross_entropy
from adabatch.meeting import Meeting
from adabatch.schedules.setting import Setting


def built(overrides, meeting):
    lines = [
        "dataset=synthetic",
        "dataset.samples=4096",
        "model=resnet",
        "trackers.wandb.mode=disabled",
        *overrides,
    ]
    with config.composer():
        tree = config.checked(config.load(lines)).config
    parts = build(tree, meeting=meeting)
    parts.step.micro_batch = memory.choose(parts.step, parts.schedule, tree, parts.data.classes)
    return parts


def ours(parts, batch: int):
    position = 0

    def step():
        nonlocal position
        parts.step(position, Setting(batch, 0.01, batch), wishes=lambda: [False, False, False])
        position += batch

    return step


def by_hand(overrides, meeting, batch: int):
    """DDP around a network like ours, fed with this rank's rows."""
    parts = built(overrides, None)  # alone: its step is not used
    model, stream, ranks = parts.step.model, parts.step.stream, meeting.ranks
    for p in model.parameters():
        p.grad = None
    for layer in model.modules():
        if hasattr(layer, "micro"):
            layer.micro = None  # each input is a batch of its own
    wrapped = torch.nn.parallel.DistributedDataParallel(model, broadcast_buffers=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    first, stop = batch * ranks.rank // ranks.world, batch * (ranks.rank + 1) // ranks.world
    position = 0

    def step():
        nonlocal position
        x, y = stream.batch(position + first, position + stop)
        optimizer.zero_grad(set_to_none=True)
        with parts.hardware.autocast():
            outputs = wrapped(x)
        cross_entropy(outputs.float(), y).mean().backward()
        optimizer.step()
        position += batch

    return step


def seconds(step, steps: int, ranks) -> float:
    """Of the slowest rank."""
    ranks.barrier()
    began = time.perf_counter()
    for _ in range(steps):
        step()
    return ranks.spread([int(1e9 * (time.perf_counter() - began))])[1][0] / 1e9


def quartiles(values) -> str:
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.3f} ({low:.3f} to {high:.3f})"


def rank(asked) -> None:
    meeting = Meeting(places.detect(), 120.0)
    batches = [int(batch) for batch in asked.batches.split(",")]
    # The micro-batch is chosen for the schedule's largest batch.
    common = [f"hardware.threads={asked.threads}", f"schedule.base_batch={max(batches)}", *asked.overrides]
    parts = {"ours": built(common, meeting)}
    ranks = meeting.ranks = parts["ours"].hardware.ranks
    if asked.ordered:
        parts["ordered"] = built([*common, "hardware.reduction=ordered"], None)
        parts["ordered"].hardware.ranks = parts["ordered"].step.summing.ranks = ranks
    for batch in batches:
        loops = {name: ours(p, batch) for name, p in parts.items()}
        loops["DDP"] = by_hand(common, meeting, batch)
        for step in loops.values():
            seconds(step, 2, ranks)
        took = {name: [] for name in loops}
        for index in range(asked.rounds):
            for name in sorted(loops, reverse=index % 2):
                took[name].append(seconds(loops[name], asked.steps, ranks))
        for name in loops if ranks.rank == 0 else ():
            speed = [asked.steps * batch / t for t in took[name]]
            ratio = [b / a for a, b in zip(took[name], took["DDP"])]
            print(f"batch {batch:5d}  {name:8s} {statistics.median(speed):8.0f} images/s   "
                  f"{quartiles(ratio)} of DDP", flush=True)  # fmt: skip
    meeting.leave()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--world", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--batches", default="128,512")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--ordered", action="store_true")
    parser.add_argument("overrides", nargs="*")
    asked = parser.parse_args()
    if "RANK" in os.environ:
        return rank(asked)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    print(
        f"{asked.world} gloo processes, {asked.threads} thread(s) each, torch {torch.__version__}, "
        f"{asked.rounds} rounds of {asked.steps} steps, {' '.join(asked.overrides) or 'model=resnet'}",
        flush=True,
    )
    shared = {"WORLD_SIZE": str(asked.world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    own = [
        {"RANK": str(r), "LOCAL_RANK": str(r), "LOCAL_WORLD_SIZE": str(asked.world)}
        for r in range(asked.world)
    ]
    children = [
        subprocess.Popen([sys.executable, *sys.argv], env={**os.environ, **shared, **env}) for env in own
    ]
    sys.exit(max(child.wait() for child in children))


if __name__ == "__main__":
    main()
