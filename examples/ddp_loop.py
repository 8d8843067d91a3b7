"""The same loop on several processes with accumulation: the weights are those of one process, however a
batch is cut.

    cd examples
    python ddp_loop.py                                              # one process
    torchrun --standalone --nproc-per-node=2 ddp_loop.py            # two, with gloo on a CPU

Each rank takes its share of every global batch and cuts it into micro-batches of 24. The losses of the
samples are summed and divided by `setting.divisor`, the size of the global batch; times `world`, because
DistributedDataParallel averages the gradients of the ranks where we want their sum.
"""

import argparse
import contextlib
import os
import sys

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

from adabatch import BatchSampler, Schedule, Steps

MICRO_BATCH = 24  # samples in one forward pass: memory only, the result does not depend on it


def train(rank: int, world: int, dtype: torch.dtype) -> nn.Module:
    inputs, labels = (torch.tensor(array) for array in load_digits(return_X_y=True))
    data = TensorDataset(inputs[:1437].to(dtype) / 16, labels[:1437])  # [1437, 64]
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)).to(dtype)
    model = DistributedDataParallel(net) if world > 1 else net
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    schedule = Schedule(samples=len(data), epochs=5, base_batch=32, base_lr=0.1,
                        growth=Steps(2, every=1), decay=Steps(0.375, every=1))  # fmt: skip
    sampler = BatchSampler(schedule, len(data), seed=0, rank=rank, world=world)

    for x, y in DataLoader(data, batch_sampler=sampler):
        setting = sampler.setting()
        for group in optimizer.param_groups:
            group["lr"] = setting.lr
        optimizer.zero_grad()
        parts = list(zip(x.split(MICRO_BATCH), y.split(MICRO_BATCH)))
        for number, (inputs, labels) in enumerate(parts, 1):
            # The ranks meet once a step, in the last backward pass. Their numbers of passes may differ.
            alone = world > 1 and number < len(parts)
            with model.no_sync() if alone else contextlib.nullcontext():
                loss = nn.functional.cross_entropy(model(inputs), labels, reduction="sum")
                (loss * world / setting.divisor).backward()
        optimizer.step()
        sampler.finish()
        if rank == 0 and setting.batch_size < setting.divisor:
            print(f"last batch: {setting.batch_size} of {setting.divisor} samples, at {sampler.position:,}")
    return net


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--float64", action="store_true", help="compute in double precision")
    parser.add_argument("--save", help="a file for the weights")
    asked = parser.parse_args()
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if world > 1:
        dist.init_process_group("gloo")
    net = train(rank, world, torch.float64 if asked.float64 else torch.float32)
    if asked.save and rank == 0:
        torch.save(net.state_dict(), asked.save)
    if world > 1:
        dist.destroy_process_group()
        # DistributedDataParallel keeps gloo's threads beyond that (torch 2.15.0). One that drops the
        # last sum while Python ends aborts the process ("terminate called without an active exception").
        sys.stdout.flush()
        os._exit(0)


if __name__ == "__main__":
    main()
