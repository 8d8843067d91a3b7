"""Gradient statistics of groups of samples, taken while a batch is trained or in passes of their own.

Groups are counted from the batch's first sample (`group` samples each; a remainder below half a group joins
the last), so what is measured does not depend on micro-batches or ranks. A group's gradient is taken from
zero; the groups are then added up in order. Cost of a measuring step: one more vector of gradients in memory,
two passes over it per group, and forward passes no longer than a group. `inner` takes a second pass over the
batch (twice the time of the step) and two gradients in double precision.
"""

import contextlib
import itertools
from dataclasses import replace

import torch

from adabatch import layers
from adabatch.noise import Noise, differenced, estimate
from adabatch.persample import Singles

# What is taken from the gradients of groups, and what from those of single samples.
GROUPED = frozenset({"trace", "sq_norm", "halves", "inner"})
SINGLE = frozenset({"per_sample", "epoch_sum"})


@contextlib.contextmanager
def untouched(model):
    """Passes inside leave nothing behind: buffers (plain batch norm counts passes) and torch's generator are
    put back."""
    kept = {name: b.clone() for name, b in model.named_buffers()}
    own = {p.device for p in model.parameters() if p.is_cuda}  # all GPUs would otherwise be woken up
    try:
        with torch.random.fork_rng(devices=list(own)):
            yield
    finally:
        with torch.no_grad():
            for name, b in model.named_buffers():
                b.copy_(kept[name])


class Meter:
    """flat: the network's gradients. group: samples in a noise group, whole ghost groups of `unit`.
    differenced: whether two successive batches serve where a batch is a single group. metric: None, or a
    function that returns a vector by which gradients are multiplied first (Adam's preconditioner; None while
    there is none yet, and then nothing is measured). samples: in an epoch, for what runs over one."""

    def __init__(self, flat, group: int, unit: int, differenced: bool = True, metric=None, samples: int = 0):
        self.flat = flat
        self.size = max(1, group // unit) * unit
        self.differenced, self.metric = differenced, metric
        self.total = torch.zeros_like(flat.grads)  # taken before the run: what does not fit is known then
        self.previous = None  # (position after it, batch, gradient) of a measured batch of one group
        self.singles = Singles(flat, samples)

    def begin(self, setting, needs: frozenset) -> None:
        self.setting, self.needs = setting, needs
        self.sizes = layers.group_sizes(setting.batch_size, self.size)
        grads = self.flat.grads
        self.vector = self.metric() if self.metric else None
        self.blind = self.metric is not None and self.vector is None
        self.total.zero_()
        self.small = torch.zeros(len(self.flat.ranges), dtype=torch.float64, device=grads.device)
        self.half = torch.zeros_like(grads) if "halves" in needs else None
        self.border = sum(self.sizes[: len(self.sizes) // 2])
        self.products = None  # <g_k, g> by group, after a second pass

    def norms(self, vector) -> torch.Tensor:
        """Squared norms by group of parameters: float64 [ranges]."""
        vector = vector if self.vector is None else vector * self.vector
        parts = [
            torch.linalg.vector_norm(vector[a:b], dtype=torch.float64).square() for a, b in self.flat.ranges
        ]
        return torch.stack(parts)

    def group(self, stop: int, size: int) -> None:
        """flat.grads holds the gradient of one group of `size` samples that ends at row `stop`: it is
        measured and moved to the sum."""
        if self.needs:
            self.small.add_(self.norms(self.flat.grads), alpha=1.0 / size)
        self.total.add_(self.flat.grads)
        if self.half is not None and stop <= self.border:
            self.half.add_(self.flat.grads)
        self.flat.grads.zero_()

    def sums(self) -> list:
        """What is added up over the groups, and must be over the ranks: the gradient first."""
        return [self.total, self.small] + ([self.half] if self.half is not None else [])

    def end(self) -> None:
        """The batch's gradient returns to flat.grads."""
        self.flat.grads.copy_(self.total)

    @property
    def second_pass(self) -> bool:
        """Whether the groups must be gone through again, now that the batch's gradient is known."""
        return "inner" in self.needs and len(self.sizes) > 1 and not self.blind

    def along(self) -> None:
        """flat.grads holds the batch's gradient over all ranks: it is kept, and the coming groups are
        projected on it."""
        self.total.copy_(self.flat.grads)
        self.direction = self._weighed(self.total)
        self.ends = {stop: index for index, stop in enumerate(itertools.accumulate(self.sizes))}
        self.products = torch.zeros(len(self.sizes), dtype=torch.float64, device=self.total.device)
        self.flat.grads.zero_()

    def project(self, stop: int) -> None:
        """flat.grads holds again the gradient of the group that ends at row `stop`."""
        index = self.ends[stop]
        scale = self.setting.divisor**2 / (self.sizes[index] * self.setting.batch_size)
        self.products[index] = torch.dot(self._weighed(self.flat.grads), self.direction) * scale
        self.flat.grads.zero_()

    def restore(self) -> torch.Tensor:
        """The batch's gradient returns to flat.grads, bit for bit; what must be added up over the ranks."""
        self.flat.grads.copy_(self.total)
        self.direction = None
        return self.products

    def _weighed(self, vector) -> torch.Tensor:
        return (vector if self.vector is None else vector * self.vector).double()

    def _inner(self) -> float | None:
        """Variance over samples of <g_i, g>, from groups of n_k samples: a group's mean varies by 1 / n_k of
        it, so sum n_k (<g_k, g> - mean)^2 / (K - 1) is unbiased for a given g, whatever the sizes."""
        if self.products is None:
            return None
        products = self.products.tolist()
        mean = sum(n * p for n, p in zip(self.sizes, products)) / self.setting.batch_size
        spread = sum(n * (p - mean) ** 2 for n, p in zip(self.sizes, products))
        return spread / (len(products) - 1)

    def finish(self, start: int) -> Noise | None:
        """The measurement, from sums over all ranks; waits for the device."""
        s, groups = self.setting, len(self.sizes)
        batch, scale = s.batch_size, s.divisor**2  # gradients are sums over `divisor`
        if self.blind:
            return None
        if groups < 2:
            return self._from_two(start) if self.differenced else None
        self.previous = None
        small = (self.small * (scale / batch)).tolist()
        large = (self.norms(self.flat.grads) * (scale / batch**2)).tolist()
        parts = tuple(estimate(a, b, batch, groups) for a, b in zip(small, large))
        trace, sq_norm = estimate(sum(small), sum(large), batch, groups)
        cosine = self._cosine() if self.half is not None else None
        parts = parts if len(parts) > 1 else ()
        return Noise(batch, groups, trace, sq_norm, cosine=cosine, inner=self._inner(), parts=parts)

    def _cosine(self) -> float:
        other = self.flat.grads - self.half
        first, second = (v if self.vector is None else v * self.vector for v in (self.half, other))
        product = torch.dot(first.double(), second.double())
        return float(
            product / (torch.linalg.vector_norm(first.double()) * torch.linalg.vector_norm(second.double()))
        )

    def _from_two(self, start: int) -> Noise | None:
        """By the batch before, if that was as large and ended where this one starts."""
        before, s = self.previous, self.setting
        gradient = self.flat.grads * (s.divisor / s.batch_size)
        self.previous = (start + s.batch_size, s.batch_size, gradient)
        if before is None or before[:2] != (start, s.batch_size):
            return None
        a, b = self._weighed(gradient), self._weighed(before[2])
        noise = differenced(float((a - b).square().sum()), float(torch.dot(a, b)), s.batch_size)
        if "inner" not in self.needs:
            return noise
        # The two batches as two groups, projected on their mean: <a, g> - <b, g> = (|a|^2 - |b|^2) / 2.
        return replace(noise, inner=s.batch_size * float(torch.dot(a - b, a + b)) ** 2 / 8)

    def state_dict(self) -> dict:
        return {"previous": self.previous and list(self.previous), "singles": self.singles.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        kept = state["previous"]
        self.previous = kept and (kept[0], kept[1], kept[2].to(self.flat.grads))
        self.singles.load_state_dict(state["singles"])
