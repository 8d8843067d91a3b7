"""Gradients of single samples: their squared norms, and the gradient diversity of an epoch,

    Delta = sum_i |g_i|^2 / |sum_i g_i|^2          (DiveBatch, arXiv 2509.16173, along the moving weights).

The network is in evaluation mode meanwhile (norm layers use their running statistics, no dropout), because a
sample's gradient is not defined where its neighbours enter its loss; the source does the same with its norm
layers; under bf16 they are taken in the weights' own precision. Both sums are of these gradients, the
source's denominator is of the training gradients: with ours the ratio is exactly that of the formula. Cost of
a measuring step: a second forward and backward pass, sample by sample, in which every sample of a chunk has a
gradient of its own; one gradient more in memory and in the checkpoint.
"""

import contextlib
from dataclasses import replace

import torch
from torch.func import functional_call, grad, vmap

from adabatch.errors import UserError
from adabatch.noise import Noise, estimate

ELEMENTS = 1 << 26  # of the gradients that are held at once: a constant, so that any machine sums up alike


def load() -> None:
    """The first use of torch.func imports sympy, which takes seconds: before the clock of training runs."""
    vmap(grad(torch.square))(torch.zeros(1))


@contextlib.contextmanager
def evaluating(model):
    """Evaluation mode inside; every module's own mode comes back."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def squared_norms(model, loss, x, y, chunk: int, sums: dict | None = None) -> torch.Tensor:
    """|g_i|^2 of every sample, float64 [n], by at most `chunk` samples at once.

    x: [n, ...], y: [n, ...]. loss: (outputs, labels) -> losses [n]. sums: {parameter's name: tensor like it},
    to which the gradients are added. Nothing else is changed: modes, buffers, gradients and torch's generator
    stay as they were. UserError: a network that torch.func cannot differentiate sample by sample.
    """
    params = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    fixed = {name: p.detach() for name, p in model.named_parameters() if not p.requires_grad}
    fixed |= {name: buffer.detach().clone() for name, buffer in model.named_buffers()}
    dtype = next(iter(params.values())).dtype

    def of_one(params, x, y):
        outputs = functional_call(model, (params, fixed), (x[None],))
        return loss(outputs.to(dtype), y[None]).sum()

    gradients, norms = vmap(grad(of_one), in_dims=(None, 0, 0)), []
    with evaluating(model):
        for inputs, labels in zip(x.split(chunk), y.split(chunk)):
            try:
                found = gradients(params, inputs, labels)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                raise UserError(
                    f"gradients of single samples need a network that torch.func.vmap can run in evaluation "
                    f"mode, without random numbers; {type(model).__name__} is none: {error}. Take "
                    "schedule=divebatch, which needs no such gradients"
                ) from error
            norms.append(sum(_squares(g) for g in found.values()))
            for name, g in found.items() if sums else ():
                sums[name].add_(g.sum(0))
    return torch.cat(norms)


def _squares(g) -> torch.Tensor:
    """[n, ...] -> squared norms, float64 [n]."""
    return torch.linalg.vector_norm(g.flatten(1), dim=1, dtype=torch.float64).square()


class Singles:
    """Sums over the samples of a batch, and over those of an epoch. flat: the network's parameters. samples:
    in an epoch. A batch belongs to the epoch in which it starts."""

    def __init__(self, flat, samples: int):
        self.flat, self.samples = flat, samples
        self.epoch, self.squares, self.sum = None, 0.0, None

    def begin(self) -> None:
        self.total = torch.zeros_like(self.flat.grads)
        self.norms = torch.zeros(1, dtype=torch.float64, device=self.total.device)
        names = (name for name, *_ in self.flat.layout)
        self.views = dict(zip(names, self.flat.views(self.total)))

    @torch.no_grad()
    def add(self, model, loss, x, y) -> None:
        chunk = max(1, ELEMENTS // max(1, len(self.total)))
        self.norms += squared_norms(model, loss, x, y, chunk, self.views).sum()

    def sums(self) -> list:
        """What must be added up over the ranks."""
        return [self.total, self.norms]

    def finish(self, start: int, setting, needs: frozenset, noise: Noise | None) -> Noise:
        """`noise` with what the single samples say; without one, tr(S) and |G|^2 from them as groups of one
        sample. Waits for the device."""
        batch, squares = setting.batch_size, float(self.norms)
        diversity = self._of_epoch(start, batch, squares) if "epoch_sum" in needs else None
        if noise is None:
            small, large = squares / batch, float(self._square(self.total)) / batch**2
            # One sample has no variance: marked as a fallback, which spoils no average.
            trace, sq_norm = estimate(small, large, batch, batch) if batch > 1 else (0.0, large)
            noise = Noise(batch, batch, trace, sq_norm, biased=batch == 1)
        self.total, self.views = None, None
        return replace(noise, per_sample=squares / batch, diversity=diversity)

    @staticmethod
    def _square(vector) -> torch.Tensor:
        return torch.linalg.vector_norm(vector, dtype=torch.float64).square()

    def _of_epoch(self, start: int, batch: int, squares: float) -> float | None:
        """The batch joins its epoch. Delta if that ends with it (or if the last one ended short of its last
        sample, as under compat=nvlabs, and so is known to have ended only now)."""
        epoch, found = start // self.samples, None
        if self.epoch != epoch:
            found = self._diversity()
            self.epoch, self.squares, self.sum = epoch, 0.0, torch.zeros_like(self.total)
        self.squares += squares
        self.sum += self.total
        if (start + batch) // self.samples > epoch:
            found = self._diversity()
            self.epoch, self.squares, self.sum = None, 0.0, None
        return found

    def _diversity(self) -> float | None:
        """None before any gradient; infinite where the gradients cancel."""
        if self.sum is None:
            return None
        whole = float(self._square(self.sum))
        return self.squares / whole if whole else float("inf")

    def state_dict(self) -> dict:
        return {"epoch": self.epoch, "squares": self.squares, "sum": self.sum}

    def load_state_dict(self, state: dict) -> None:
        self.epoch, self.squares = state["epoch"], state["squares"]
        self.sum = None if state["sum"] is None else state["sum"].to(self.flat.grads)
