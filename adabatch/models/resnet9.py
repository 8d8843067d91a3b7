"""ResNet-9, the network of the fast CIFAR-10 runs: davidcpage/cifar10-fast (dawn.py, new_dawn.py) and
apple/ml-cifar-10-faster.

Three convolutions of which each halves the map, two residual blocks, the largest value of each channel, a
linear layer without bias, and logits times a constant. The later recipes change four things, each a key here:
a first layer that whitens patches and is not trained, pooling before the norm, CELU (Barron 2017, arXiv
1704.07483), and norms whose scale stays at 1. Weights start as torch draws them, as there.
"""

import torch
import torch.nn.functional as F
from torch import nn

from adabatch.errors import UserError
from adabatch.layers import Chain
from adabatch.layers import norm as norm_layer
from adabatch.models.parts import conv, number, yes_or_no

WIDTHS = (64, 128, 256, 512)
LOOK, EPS = 10_000, 1e-2  # pictures whose patches are measured; what is added to their variances
PIXELS = 1 << 18  # of the pictures whose patches are held at once
KERNEL = 3


class Whitening(nn.Conv2d):
    """Patches of `kernel` x `kernel` pixels along their principal axes, each axis scaled to variance 1 (PCA
    whitening; sources as above). x: [n, c, h, w] -> [n, k, h, w] with padding 1 under kernel 3; k is
    kernel^2 c, the axes, or with `both` twice as many, each axis with either sign. Its weights are measured,
    not trained; a bias starts at 0 and is. eps: added to the variances. look: pictures that are measured.
    """

    def __init__(self, channels: int, kernel=KERNEL, padding=1, both=False, bias=False, eps=EPS, look=None):
        axes = channels * kernel**2
        super().__init__(channels, axes * (1 + both), kernel, padding=padding, bias=bias)
        self.both, self.eps, self.look = both, eps, look or LOOK
        if bias:
            nn.init.zeros_(self.bias)
        self.weight.requires_grad_(False)
        self._set(torch.eye(axes))  # until they are measured: the pixels of the patch

    @torch.no_grad()
    def _set(self, rows) -> None:
        self.weight.copy_((torch.cat([rows, -rows]) if self.both else rows).view_as(self.weight))

    @torch.no_grad()
    def measure(self, batches) -> None:
        """Takes the weights from the patches of the first `look` pictures. batches: of [n, c, h, w], in
        order.

        w_i = v_i / sqrt(l_i + eps), l_1 >= l_2 >= ... and v_i the eigenvalues and eigenvectors of the second
        moment sum(p p^T) / (patches - 1), which is not centred, as in the sources. Products in float32 within
        a picture, sums over pictures and eigenvectors in float64, all in one thread: neither threads nor
        ranks leave a trace. The sign of an eigenvector, which is LAPACK's choice, is such that its largest
        element is positive.
        """
        size, threads = self.weight[0].numel(), torch.get_num_threads()
        moment, seen, patches = torch.zeros(size, size, dtype=torch.float64), 0, 0
        torch.set_num_threads(1)
        try:
            for x in batches:
                x = x[: self.look - seen]
                for part in x.split(max(1, PIXELS // x[0, 0].numel())):
                    p = F.unfold(part, self.kernel_size)  # [n, k, patches of a picture]
                    moment += (p @ p.transpose(1, 2)).double().sum(0)
                    patches += p.shape[0] * p.shape[2]
                seen += len(x)
                if seen == self.look:
                    break
            values, vectors = torch.linalg.eigh(moment / max(1, patches - 1))
        finally:
            torch.set_num_threads(threads)
        rows = vectors.t().flip(0)
        signs = rows.gather(1, rows.abs().argmax(1, keepdim=True)).sign()
        found = rows * signs / (values.flip(0).clamp(min=0) + self.eps).sqrt()[:, None]
        self._set(found.to(self.weight.dtype))


class Residual(nn.Module):
    """x + layers(x). x: [n, c, h, w], the same shape out; no activation after the sum."""

    def __init__(self, *layers: nn.Module):
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x):
        return x + self.layers(x)


class ResNet9(nn.Module):
    """x: [n, channels, 32, 32] -> logits [n, num_classes]; the map before the last pooling is 4x4.

    whiten: a Whitening and a 1x1 convolution instead of the first 3x3 one. celu: alpha of CELU, None for
    ReLU. pool_first: pooling before norm and activation. norm_scale: whether norms have a trained scale; else
    it is frozen at 1, and their biases are trained. logit_scale: what logits are multiplied by.
    """

    size = 32

    def __init__(
        self,
        num_classes: int,
        channels: int,
        *,
        whiten: bool = False,
        celu: float | None = None,
        pool_first: bool = False,
        norm_scale: bool = True,
        logit_scale: float = 0.125,
        norm: str = "ghost",
        ghost: int = 32,
    ):
        super().__init__()
        yes_or_no(whiten=whiten, pool_first=pool_first, norm_scale=norm_scale)
        number(logit_scale=logit_scale, **({} if celu is None else {"celu": celu}))
        if norm == "none" and not norm_scale:
            raise UserError("model.norm_scale=false freezes the scale of norms, and model.norm=none has none")
        self.celu, self.pool_first, self.norm_scale = celu, pool_first, norm_scale
        self.norm, self.ghost, self.logit_scale = norm, ghost, logit_scale
        first, second, third, last = WIDTHS
        stem = [Whitening(channels), conv(KERNEL**2 * channels, first, 1)] if whiten else None
        self.body = nn.Sequential(
            Chain(*(stem or [conv(channels, first, 3)]), *self._after(first)),
            self._halving(first, second), self._residual(second),
            self._halving(second, third),
            self._halving(third, last), self._residual(last),
        )  # fmt: skip
        self.head = nn.Linear(last, num_classes, bias=False)

    def first_look(self, batches) -> None:
        """See parts.py. Without a whitening layer nothing is read."""
        for layer in self.body[0]:
            if isinstance(layer, Whitening):
                layer.measure(batches)

    def _after(self, width: int, pool: bool = False) -> list[nn.Module]:
        """What follows a convolution: norm and activation, with a pooling before or behind them."""
        own = norm_layer(self.norm, width, self.ghost)
        if not self.norm_scale:
            own.weight.requires_grad_(False)
        inplace = self.norm != "none"  # a norm returns a tensor of its own
        layers = [own, nn.ReLU(inplace) if self.celu is None else nn.CELU(self.celu, inplace)]
        halves = [nn.MaxPool2d(2)] if pool else []
        return halves + layers if self.pool_first else layers + halves

    def _halving(self, inputs: int, outputs: int) -> nn.Module:
        return Chain(conv(inputs, outputs, 3), *self._after(outputs, pool=True))

    def _residual(self, width: int) -> nn.Module:
        return Residual(
            *(Chain(conv(width, width, 3), *self._after(width)) for _ in range(2)),
        )

    def forward(self, x):
        maps = self.body(x)
        return self.head(F.max_pool2d(maps, maps.shape[-2:]).flatten(1)) * self.logit_scale
