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
NORMS = ("ghost", "l1", "batch", "group", "layer", "none")


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

    A group of one sample has no spread: it is normalised by the running statistics and does not move them.
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


class GhostNorm(nn.Module):
    """A norm over groups of `ghost` samples: what its kinds share. x: [n, c] or [n, c, ...], the same shape
    out.

    plus, clip: what is added to it, and the end of the range [0, clip] that it is cut to (`ghostnorm.py`).
    A kind names in `spread` what it keeps beside the mean, and has two formulas: `_grouped`, groups of two
    samples and more by their own statistics -> (y, means [groups, c], spreads), and `_by` given ones, [c].
    """

    spread = ""

    def __init__(self, channels: int, ghost: int = 32, eps: float = 1e-5):
        super().__init__()
        if ghost < 2:
            raise UserError(
                f"a ghost group needs at least 2 samples for a spread, got model.ghost={ghost}: take 16 "
                "to 128"
            )
        self.ghost, self.eps, self.micro = ghost, eps, None
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer(f"running_{self.spread}", torch.ones(channels))
        # Sums over the groups of a step, folded into the running statistics at its end; never saved.
        self.register_buffer("pending_mean", torch.zeros(channels), persistent=False)
        self.register_buffer(f"pending_{self.spread}", torch.zeros(channels), persistent=False)

    def running(self) -> tuple:
        """(mean, spread), each [c]."""
        return self.running_mean, getattr(self, f"running_{self.spread}")

    def pending(self) -> tuple:
        return self.pending_mean, getattr(self, f"pending_{self.spread}")

    def extra_repr(self) -> str:
        return f"{len(self.weight)}, ghost={self.ghost}, eps={self.eps}"

    def forward(self, x, plus=None, clip: float | None = None):
        if not self.training:
            return ghostnorm.followed(self._by(x, *self.running()), plus, clip)
        if self.micro is None:  # in somebody's own loop: this input is a whole batch
            sizes = group_sizes(len(x), self.ghost)
            weights, kept = group_weights(sizes)
            out, *found = self._normalise(x, sizes, plus, clip)
            with torch.no_grad():
                weights = found[0].new_tensor(weights)
                for running, values in zip(self.running(), found):
                    running.mul_(kept).add_(weights @ values)
            return out
        out, *found = self._normalise(x, self.micro.groups, plus, clip)
        if self.micro.record:
            with torch.no_grad():
                for pending, values in zip(self.pending(), found):
                    pending.add_(self.micro.weights @ values)
        return out

    def _normalise(self, x, sizes, plus, clip):
        if sizes[-1] > 1:
            return self._grouped(x, sizes, plus, clip)
        # The last group is one sample (only the last one can be): it has weight 0 in the statistics, which
        # are copied because backward wants them as they were.
        last = self._by(x[-1:], *(statistic.clone() for statistic in self.running()))
        nothing = last.new_zeros(1, len(self.weight), dtype=self.weight.dtype)
        if len(sizes) == 1:
            return ghostnorm.followed(last, plus, clip), nothing, nothing
        out, mean, spread = self._grouped(x[:-1], sizes[:-1])
        out = ghostnorm.followed(torch.cat([out, last]), plus, clip)
        return out, torch.cat([mean, nothing]), torch.cat([spread, nothing])


class GhostBatchNorm(GhostNorm):
    """(x - mean) / sqrt(variance + eps) * weight + bias. ours: by the kernel in C where it fits."""

    spread, ours = "var", False

    def _grouped(self, x, sizes, plus=None, clip=None):
        return ghostnorm.grouped(x, self.weight, self.bias, sizes, self.eps, plus, clip, self.ours)

    def _by(self, x, mean, var):
        return F.batch_norm(x, mean, var, self.weight, self.bias, False, 0.0, self.eps)


class GhostL1Norm(GhostNorm):
    """L1 batch norm (Hoffer et al. 2018, arXiv 1803.01814; Wu et al. 2018, arXiv 1802.09769): batch norm with

        deviation = sqrt(pi / 2) * mean |x - mean|

    in place of the standard deviation, which it equals for normal x; y = (x - mean) / (deviation + eps) *
    weight + bias. running_deviation is an average of deviations, not of variances.
    """

    spread = "deviation"

    def _grouped(self, x, sizes, plus=None, clip=None):
        return ghostnorm.grouped_l1(x, self.weight, self.bias, sizes, self.eps, plus, clip)

    def _by(self, x, mean, deviation):
        scale = self.weight / (deviation + self.eps)
        return ghostnorm.affine(x, scale, self.bias - mean * scale)


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
    if kind == "l1":
        return GhostL1Norm(channels, ghost, eps)
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
            if isinstance(layer, GhostNorm) and left and type(left[0]) in CLIPS:
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
        if isinstance(last, GhostNorm):
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
    for index, layer in enumerate(m for m in model.modules() if isinstance(m, (GhostNorm, Dropout))):
        layer.micro = micro
        if isinstance(layer, Dropout):
            layer.index = index


def ghost_layers(model: nn.Module) -> list[GhostNorm]:
    return [m for m in model.modules() if isinstance(m, GhostNorm)]


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
            or type(m).__name__ in ("StochasticDepth", "DropPath")  # torchvision's, timm's
        ):
            names.append(f"{name} ({type(m).__name__})")
    return names
