"""The parameters, gradients and running statistics of a network as a few flat vectors."""

import torch
from torch import nn

from adabatch import layers

PAD = 16  # elements: every tensor in a flat vector starts on a border of 64 bytes or more


class Flat:
    """Parameters, gradients and running statistics of a network as views of a few flat tensors.

    One vector is zeroed, reduced, clipped and updated in a single operation each, and a gradient never moves:
    autograd adds into the views. `groups` lists (name, parameter) per optimizer group; a group is one
    contiguous range.
    """

    def __init__(self, model: nn.Module, groups: list[list[tuple[str, nn.Parameter]]]):
        named = [pair for group in groups for pair in group]
        self.params = self._pack([p for _, p in named])
        self.grads = torch.zeros_like(self.params)
        self.ranges, start = [], 0
        for group in groups:
            stop = start + sum(self._room(p) for _, p in group)
            self.ranges.append((start, stop))
            start = stop
        self.members = [p for _, p in named]
        for p, view in zip(self.members, self.views(self.grads)):
            p.grad = view
        norms = layers.ghost_layers(model)
        self.running = self._pack([statistic for norm in norms for statistic in norm.running()])
        self.pending = self._pack([statistic for norm in norms for statistic in norm.pending()])
        self.layout = [[name, list(p.shape), list(p.stride())] for name, p in named]

    @staticmethod
    def _room(t) -> int:
        return -(-t.numel() // PAD) * PAD

    @classmethod
    def _views(cls, flat, tensors):
        """Views of `flat` shaped as `tensors` and strided as dense copies of them: channels_last weights stay
        so, a slice of something larger becomes whole."""
        start = 0
        for t in tensors:
            yield torch.as_strided(flat, t.shape, torch.empty_like(t).stride(), start)
            start += cls._room(t)

    @classmethod
    def _pack(cls, tensors):
        """A flat copy of dense tensors; each tensor's data becomes a view of it."""
        if not tensors:
            return torch.zeros(0)
        flat = torch.zeros(sum(map(cls._room, tensors)), dtype=tensors[0].dtype, device=tensors[0].device)
        for t, view in zip(tensors, cls._views(flat, tensors)):
            view.copy_(t.detach())
            t.data = view
        return flat

    def views(self, vector):
        """A vector like `params` as views shaped as the parameters, in their order."""
        return self._views(vector, self.members)

    def vectors(self) -> list:
        """One vector per group, with its gradient: what an elementwise optimizer updates in place of the
        parameters."""
        out = []
        for start, stop in self.ranges:
            vector = self.params[start:stop].detach()
            vector.grad = self.grads[start:stop]
            out.append(vector)
        return out

    def buckets(self, size: int) -> list[tuple[int, int, list]]:
        """(start, stop, parameters) of pieces of `grads` of about `size` bytes that cover it once, the last
        parameter's first: the order in which a backward pass completes them."""
        found, stop, members = [], len(self.grads), []
        start = stop
        for p in reversed(self.members):
            start -= self._room(p)
            members.append(p)
            if (stop - start) * self.grads.element_size() >= size:
                found.append((start, stop, members))
                stop, members = start, []
        return found + ([(start, stop, members)] if members else [])
