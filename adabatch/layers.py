"""Norms and dropout whose result does not depend on how a batch is cut into ranks and micro-batches.

Ghost batch norm (Hoffer et al. 2017, arXiv 1705.08741): statistics over groups of `ghost` consecutive samples
of the *global* batch. A remainder of less than half a group joins the last group, otherwise it is a group of
its own. Running statistics have a horizon in samples and are exact in position order, in one sum over groups
i with means mu_i:

    r <- exp(-B/h) r + sum_i m_i exp(-(samples after group i)/h) mu_i,      m_i = 1 - exp(-n_i/h)

which equals one exponential update per group in order (m_i is torch's momentum, 0.1 at 128 samples for the
default h = 128 / -ln 0.9). A sum over groups may be split over micro-batches and ranks; a chain of updates
may not.

Layers learn which samples they hold from one `MicroBatch` that the step fills in; a layer used without one
(in somebody's own loop) takes each input for a whole batch.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from adabatch import draws, ghostnorm
from adabatch.errors import UserError, suggest

HORIZON = 128 / -math.log(0.9)  # samples; torch's momentum 0.1 at a batch of 128
CLIPS = {nn.ReLU: math.inf, nn.ReLU6: 6.0}  # the upper end of their range from 0
NORMS = ("ghost", "batch", "group", "layer", "none")


def group_sizes(count: int, ghost: int) -> list[int]:
    """Ghost groups of a batch of `count` samples, e.g. (100, 32) -> [32, 32, 36] and (112, 32) -> [32, 32,
    32, 16]."""
    whole, rest = divmod(count, ghost)
    if whole == 0:
        return [count]
    sizes = [ghost] * whole
    if 2 * rest < ghost:
        sizes[-1] += rest
    else:
        sizes.append(rest)
    return sizes


def group_weights(sizes: list[int], horizon: float = HORIZON) -> tuple[list[float], float]:
    """Weight of each group of a batch in the running statistics, and the factor of the old value.

    A group of one sample has no variance: it is normalised by the running statistics and does not move them.
    """
    weights, after = [], 0
    for size in reversed(sizes):
        counted = size if size > 1 else 0
        weights.append(-math.expm1(-counted / horizon) * math.exp(-after / horizon))
        after += counted
    return weights[::-1], math.exp(-after / horizon)


class MicroBatch:
    """The samples in the forward pass in progress; shared by all layers of a network, filled in by the step.

    positions: int64 [n] on the device. groups: sizes of the ghost groups it holds, in order. weights:
    [groups]. record: whether statistics are collected (not while measuring or probing).
    """

    def __init__(self, seed: int):
        self.seed, self.positions, self.groups, self.weights, self.record = seed, None, [], None, False


class GhostBatchNorm(nn.Module):
    """Batch norm over groups of `ghost` samples. x: [n, c] or [n, c, ...], the same shape out.

    plus, clip: what is added to it, and the end of the range [0, clip] that it is cut to (`ghostnorm.py`).
    """

    def __init__(self, channels: int, ghost: int = 32, eps: float = 1e-5):
        super().__init__()
        if ghost < 2:
            raise UserError(
                f"a ghost group needs at least 2 samples for a variance, got model.ghost={ghost}: take 16 "
                "to 128"
            )
        self.ghost, self.eps, self.micro, self.ours = ghost, eps, None, False
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        # Sums over the groups of a step, folded into the running statistics at its end; never saved.
        self.register_buffer("pending_mean", torch.zeros(channels), persistent=False)
        self.register_buffer("pending_var", torch.zeros(channels), persistent=False)

    def extra_repr(self) -> str:
        return f"{len(self.weight)}, ghost={self.ghost}, eps={self.eps}"

    def forward(self, x, plus=None, clip: float | None = None):
        if not self.training:
            out = self._by_running_statistics(x, self.running_mean, self.running_var)
            return ghostnorm.followed(out, plus, clip)
        if self.micro is None:  # in somebody's own loop: this input is a whole batch
            sizes = group_sizes(len(x), self.ghost)
            weights, kept = group_weights(sizes)
            out, mean, var = self._normalise(x, sizes, plus, clip)
            with torch.no_grad():
                weights = mean.new_tensor(weights)
                self.running_mean.mul_(kept).add_(weights @ mean)
                self.running_var.mul_(kept).add_(weights @ var)
            return out
        out, mean, var = self._normalise(x, self.micro.groups, plus, clip)
        if self.micro.record:
            with torch.no_grad():
                self.pending_mean.add_(self.micro.weights @ mean)
                self.pending_var.add_(self.micro.weights @ var)
        return out

    def _normalise(self, x, sizes, plus, clip):
        own = self.weight, self.bias
        if sizes[-1] > 1:
            return ghostnorm.grouped(x, *own, sizes, self.eps, plus, clip, self.ours)
        # The last group is one sample (only the last one can be): it has weight 0 in the statistics, which
        # are copied because backward wants them as they were.
        last = self._by_running_statistics(x[-1:], self.running_mean.clone(), self.running_var.clone())
        nothing = last.new_zeros(1, len(self.weight), dtype=self.weight.dtype)
        if len(sizes) == 1:
            return ghostnorm.followed(last, plus, clip), nothing, nothing
        out, mean, var = ghostnorm.grouped(x[:-1], *own, sizes[:-1], self.eps, ours=self.ours)
        out = ghostnorm.followed(torch.cat([out, last]), plus, clip)
        return out, torch.cat([mean, nothing]), torch.cat([var, nothing])

    def _by_running_statistics(self, x, mean, var):
        return F.batch_norm(x, mean, var, self.weight, self.bias, False, 0.0, self.eps)


class PlainBatchNorm(nn.BatchNorm1d):
    """torch's batch norm for [n, c] and [n, c, h, w]: statistics of whatever the forward pass holds, so the
    cut matters."""

    def _check_input_dim(self, x):
        if x.dim() < 2:
            raise ValueError(f"batch norm takes [n, c] or [n, c, ...], got {tuple(x.shape)}")


def norm(kind: str, channels: int, ghost: int = 32, eps: float = 1e-5) -> nn.Module:
    """The norm named by `model.norm`; group norm takes the largest number of groups <= 32 that divides the
    channels."""
    if kind == "ghost":
        return GhostBatchNorm(channels, ghost, eps)
    if kind == "batch":
        return PlainBatchNorm(channels, eps)
    if kind == "group":
        return nn.GroupNorm(next(g for g in range(32, 0, -1) if channels % g == 0), channels, eps)
    if kind == "layer":  # over all of a sample, with a weight per channel
        return nn.GroupNorm(1, channels, eps)
    if kind == "none":
        return nn.Identity()
    raise UserError(f"model.norm is one of {', '.join(NORMS)}; got {kind!r}.{suggest(kind, NORMS)}")


class Chain(nn.Sequential):
    """Layers in order, of which a ghost norm and the ReLU or ReLU6 behind it go over x in one pass."""

    def forward(self, x):
        left = list(self)
        while left:
            layer = left.pop(0)
            if isinstance(layer, GhostBatchNorm) and left and type(left[0]) in CLIPS:
                x = layer(x, clip=CLIPS[type(left.pop(0))])
            else:
                x = layer(x)
        return x


class Joined(nn.Sequential):
    """The layers of a residual block, of which the last is a norm: relu(layers(x) + plus)."""

    def forward(self, x, plus):
        *before, last = self
        for layer in before:
            x = layer(x)
        if isinstance(last, GhostBatchNorm):
            return last(x, plus, math.inf)
        return F.relu(last(x) + plus, inplace=True)


class Dropout(nn.Module):
    """Dropout by a counter: the mask of an element is a hash of (seed, layer, position, element). x: [n,
    ...]."""

    def __init__(self, p: float = 0.5):
        super().__init__()
        if not 0 <= p < 1:
            raise UserError(f"dropout probability lies in [0, 1), got {p}")
        self.p, self.index, self.micro = p, 0, None

    def extra_repr(self) -> str:
        return f"p={self.p}"

    def forward(self, x):
        if not self.training or self.p == 0:
            return x
        if self.micro is None:  # in somebody's own loop there are no positions
            return F.dropout(x, self.p)
        per_sample = x[0].numel()
        elements = torch.arange(per_sample, device=x.device)
        counters = self.micro.positions[:, None] * per_sample + elements
        kept = draws.bits(draws.key(self.micro.seed, draws.DROPOUT, self.index), counters) >= int(
            self.p * 2**32
        )
        return x * kept.view(x.shape) / (1 - self.p)


def bind(model: nn.Module, micro: MicroBatch) -> None:
    """Show every layer of ours the micro-batch in progress, and number the dropout layers in module order."""
    for index, layer in enumerate(m for m in model.modules() if isinstance(m, (GhostBatchNorm, Dropout))):
        layer.micro = micro
        if isinstance(layer, Dropout):
            layer.index = index


def ghost_layers(model: nn.Module) -> list[GhostBatchNorm]:
    return [m for m in model.modules() if isinstance(m, GhostBatchNorm)]


def ghost_size(model: nn.Module) -> int:
    """The one ghost size of a network; 1 where it has no ghost norm (any cut is exact)."""
    sizes = sorted({layer.ghost for layer in ghost_layers(model)})
    if len(sizes) > 1:
        raise UserError(
            f"a network has one ghost size, so that a batch can be cut at its borders; found {sizes}"
        )
    return sizes[0] if sizes else 1


def foreign_buffers(model: nn.Module) -> list:
    """Buffers that a forward pass may move, as plain batch norm's: all but those of our norms."""
    own = {id(b) for layer in ghost_layers(model) for b in layer.buffers()}
    return [b for b in model.buffers() if id(b) not in own]


def split_dependent(model: nn.Module) -> list[str]:
    """Names of layers whose result depends on how a batch is cut: nothing exact is promised for them."""
    batch = (nn.modules.batchnorm._NormBase,)
    torch_dropout = nn.modules.dropout._DropoutNd
    names = []
    for name, m in model.named_modules():
        stateful = isinstance(m, batch) and not isinstance(m, nn.modules.instancenorm._InstanceNorm)
        if (
            stateful
            or (isinstance(m, torch_dropout) and m.p > 0)
            or (isinstance(m, nn.RNNBase) and m.dropout > 0)
        ):
            names.append(f"{name} ({type(m).__name__})")
    return names
