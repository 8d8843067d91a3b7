"""How the parts of a batch are added up: over micro-batches, then over ranks.

`Fast` adds micro-batches up where autograd puts them, and the ranks in one sum that overlaps the backward
pass of the last micro-batch. Its last bits depend on the number of ranks and on the micro-batch.

`Ordered` takes every micro-batch from zero and adds along one binary tree over the batch's micro-batches,
whoever computed them: the same bits on any number of ranks. Node (level, i) holds the parts i * 2^level up to
(i + 1) * 2^level; a rank keeps the sums of subtrees that are wholly its own, and these are passed round and
combined. Cost: a copy of the gradient per micro-batch, one more for each level of the tree, no overlap, and
up to 2 log2(parts) gradients sent per rank instead of one.
"""

import contextlib

import torch

from adabatch.errors import UserError

BUCKET = 8 << 20  # bytes of gradient that are sent at once while the backward pass goes on


class Fast:
    """flat: parameters and gradients. ranks: `Alone` or `Ranks`."""

    ordered = False

    def __init__(self, flat, ranks):
        self.flat, self.ranks, self.active, self.works = flat, ranks, False, []
        self.buckets, self.tensors = [], []
        if ranks.world == 1:
            return
        self.buckets = flat.buckets(BUCKET)
        self.waiting, self.seen = [0] * len(self.buckets), set()
        for index, (_, _, members) in enumerate(self.buckets):
            for p in members:
                p.register_post_accumulate_grad_hook(lambda p, index=index: self._ready(p, index))

    def begin(self, tensors: list, first: int, count: int) -> None:
        """tensors: where the sums stand; flat.grads first, if it is among them. This rank has the parts from
        `first` on of `count`."""
        self.tensors, self.works, self.seen = tensors, [], set()
        self.waiting = [len(members) for *_, members in self.buckets]

    @contextlib.contextmanager
    def last(self):
        """Inside goes the backward pass after which flat.grads holds this rank's share."""
        self.active = bool(self.buckets) and self.tensors[0] is self.flat.grads
        try:
            yield
        finally:
            self.active = False

    def _ready(self, p, index: int) -> None:
        """A parameter of a bucket has its gradient. Buckets leave in one order on every rank."""
        if not self.active:
            return
        if id(p) in self.seen:  # its bucket may have left without the rest
            raise UserError(
                "on several processes a backward pass gives each parameter its gradient once, and one of "
                "this "
                "network got it twice (a block that is recomputed at each of its uses?): take "
                "use_reentrant=False in "
                "torch.utils.checkpoint, or hardware.reduction=ordered, which waits for the whole pass"
            )
        self.seen.add(id(p))
        self.waiting[index] -= 1
        while len(self.works) < len(self.buckets) and not self.waiting[len(self.works)]:
            self._send()

    def _send(self) -> None:
        start, stop, _ = self.buckets[len(self.works)]
        self.works.append(self.ranks.start(self.flat.grads[start:stop]))

    def part(self) -> None:
        """A part is complete: it stands in the sums already."""

    def end(self, flags=()) -> list[float]:
        """The sums over all ranks, in place; returns the flags', which are host numbers."""
        rest = self.tensors
        if self.works or (self.buckets and rest[0] is self.flat.grads):
            while len(self.works) < len(self.buckets):  # also those of parameters that got no gradient
                self._send()
            rest = rest[1:]
        flags = self.ranks.reduce(*rest, flags=flags)
        for work in self.works:
            work.wait()
        return flags


class Ordered:
    """The same calls; the result is the same bits for any number of ranks."""

    ordered = True

    def __init__(self, flat, ranks):
        self.ranks = ranks

    def begin(self, tensors: list, first: int, count: int) -> None:
        self.tensors, self.index, self.count, self.blocks = tensors, first, count, []

    def last(self):
        return contextlib.nullcontext()

    def part(self) -> None:
        """The sums hold one part, from zero: it moves into the tree."""
        push(self.blocks, 0, self.index, [t.clone() for t in self.tensors])
        self.index += 1
        for t in self.tensors:
            t.zero_()

    def end(self, flags=()) -> list[float]:
        """flags[0] says that a rank ran out of memory: then nothing is added up, by nobody."""
        agreed = self.ranks.reduce(flags=flags)
        if agreed and agreed[0]:
            return agreed
        own, tree = {(level, index): found for level, index, found in self.blocks}, []
        for rank in range(self.ranks.world):
            start, stop = self.count * rank // self.ranks.world, self.count * (rank + 1) // self.ranks.world
            for level, index in subtrees(start, stop):
                found = (
                    own[level, index]
                    if rank == self.ranks.rank
                    else list(map(torch.empty_like, self.tensors))
                )
                if self.ranks.world > 1:
                    for t in found:
                        self.ranks.broadcast(t, rank)
                push(tree, level, index, found)
        for t, total in zip(self.tensors, root(tree)):
            t.copy_(total)
        self.blocks = []
        return agreed


def push(blocks: list, level: int, index: int, tensors) -> None:
    """Add a subtree to the right of those in `blocks`; siblings become one. tensors: lists, added in place to
    the left one's (None: only the shape of the tree is wanted)."""
    while blocks and blocks[-1][:2] == (level, index - 1) and index % 2:
        _, _, left = blocks.pop()
        if tensors is not None:
            torch._foreach_add_(left, tensors)
        level, index, tensors = level + 1, index // 2, left
    blocks.append((level, index, tensors))


def subtrees(start: int, stop: int) -> list[tuple[int, int]]:
    """(level, index) of the largest complete subtrees that hold the parts start <= i < stop, in order."""
    blocks = []
    for index in range(start, stop):
        push(blocks, 0, index, None)
    return [block[:2] for block in blocks]


def root(blocks: list) -> list:
    """The sum of all parts, from subtrees that cover them in order. A node without a right child is its left
    one, so what is left at the end is added from the right: ((a) + ((b) + (c)))."""
    *_, total = blocks[-1]
    for _, _, left in reversed(blocks[:-1]):
        torch._foreach_add_(left, total)
        total = left
    return total
