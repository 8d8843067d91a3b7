"""Ranks that are threads of this process: what `adabatch.ranks.Ranks` promises, without processes."""

import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import torch


class Threads:
    """Rank `rank` of `world`; `slots` and `barrier` are shared by all."""

    def __init__(self, rank, world, slots, barrier):
        self.rank, self.world, self.slots, self.barrier = rank, world, slots, barrier
        self.sent = 0  # bytes that this rank gave to collectives

    def _all(self, tensor):
        self.sent += tensor.nbytes
        self.slots[self.rank] = tensor.clone()
        self.barrier.wait()
        found = list(self.slots)
        self.barrier.wait()
        return found

    def reduce(self, *tensors, flags=()):
        sums = torch.tensor([float(flag) for flag in flags], dtype=torch.float64)
        for tensor in (*tensors, sums):
            tensor.copy_(torch.stack(self._all(tensor)).sum(0))
        return sums.tolist()

    def start(self, tensor):
        self.reduce(tensor)
        return SimpleNamespace(wait=lambda: None)

    def broadcast(self, tensor, source=0):
        tensor.copy_(self._all(tensor)[source])

    def align(self, tensors, source):
        for tensor in tensors:
            self.broadcast(tensor, source)

    def spread(self, values):
        found = torch.stack(self._all(torch.tensor(values)))
        return found.amin(0).tolist(), found.amax(0).tolist()


def together(world, work):
    """[work(ranks) of each rank], run at once."""
    barrier, slots = threading.Barrier(world, timeout=60), [None] * world

    def rank(index):
        try:
            return work(Threads(index, world, slots, barrier))
        except BaseException:
            barrier.abort()  # the others must not wait for it
            raise

    with ThreadPoolExecutor(world) as pool:
        ranks = [pool.submit(rank, index) for index in range(world)]
    errors = [error for r in ranks if (error := r.exception())]
    for error in sorted(errors, key=lambda e: isinstance(e, threading.BrokenBarrierError)):
        raise error  # the one that broke it for the others, if there is one
    return [r.result() for r in ranks]
