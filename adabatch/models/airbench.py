"""The network of KellerJordan/cifar10-airbench (Jordan 2024, arXiv 2404.00498): 94 % on CIFAR-10 for
little arithmetic.

A layer that whitens patches of 2x2 pixels and gives each axis with both signs; three blocks of two
convolutions, each block with a pooling behind its first; the largest value of each channel; a linear layer
without bias, and logits times a constant. No shortcut: convolutions start as the identity instead, as far as
they have inputs. Norms have no trained scale.
"""

import torch
import torch.nn.functional as F
from torch import nn

from adabatch.layers import Chain
from adabatch.layers import norm as norm_layer
from adabatch.models.parts import conv, number, yes_or_no
from adabatch.models.resnet9 import Whitening

WIDTHS = (64, 256, 256)
KERNEL, LOOK, EPS = 2, 5_000, 5e-4  # of the whitening: pixels of a side, pictures, added to the variances


@torch.no_grad()
def dirac(layer: nn.Conv2d) -> None:
    """The first filters hand the inputs on: output i is input i, for i < min(inputs, outputs). The others
    stay as drawn."""
    nn.init.dirac_(layer.weight[: layer.in_channels])


class Airbench(nn.Module):
    """x: [n, channels, 32, 32] -> logits [n, num_classes]; maps of 31, 15, 7 and 3 pixels a side.

    whiten_bias_epochs: for how many epochs the bias of the whitening is trained, its learning rate falling to
    0 over them; then it stands, and nothing goes backward through the layer. 0: never, and it is 0; None: as
    long as all others. dirac: see there. logit_scale: what logits are multiplied by.
    """

    size = 32

    def __init__(
        self,
        num_classes: int,
        channels: int,
        *,
        whiten_bias_epochs: float | None = 3,
        dirac: bool = True,
        logit_scale: float = 1 / 9,
        norm: str = "ghost",
        ghost: int = 32,
    ):
        super().__init__()
        yes_or_no(dirac=dirac)
        number(logit_scale=logit_scale)
        if whiten_bias_epochs not in (None, 0):
            number(whiten_bias_epochs=whiten_bias_epochs)
        self.norm, self.ghost, self.dirac, self.logit_scale = norm, ghost, dirac, logit_scale
        self.whiten = Whitening(channels, KERNEL, 0, both=True, bias=True, eps=EPS, look=LOOK)
        self.trained_for = {}  # {parameter: epochs}: what is trained for a part of the run (`fading.py`)
        if whiten_bias_epochs == 0:
            self.whiten.bias.requires_grad_(False)
        elif whiten_bias_epochs is not None:
            self.trained_for = {"whiten.bias": whiten_bias_epochs}
        sizes = (self.whiten.out_channels, *WIDTHS)
        self.body = nn.Sequential(nn.GELU(), *map(self._block, sizes, WIDTHS))
        self.head = nn.Linear(WIDTHS[-1], num_classes, bias=False)

    def first_look(self, batches) -> None:
        """See parts.py."""
        self.whiten.measure(batches)

    def _conv(self, inputs: int, outputs: int) -> nn.Conv2d:
        layer = conv(inputs, outputs, 3)
        if self.dirac:
            dirac(layer)
        return layer

    def _norm(self, width: int) -> nn.Module:
        layer = norm_layer(self.norm, width, self.ghost)
        if self.norm != "none":
            layer.weight.requires_grad_(False)
        return layer

    def _block(self, inputs: int, outputs: int) -> nn.Module:
        """[n, inputs, s, s] -> [n, outputs, s // 2, s // 2]. Pooling stands before the norm, which then sees
        a quarter of the pixels."""
        return Chain(
            self._conv(inputs, outputs), nn.MaxPool2d(2), self._norm(outputs), nn.GELU(),
            self._conv(outputs, outputs), self._norm(outputs), nn.GELU(),
        )  # fmt: skip

    def forward(self, x):
        maps = self.body(self.whiten(x))
        return self.head(F.max_pool2d(maps, maps.shape[-2:]).flatten(1)) * self.logit_scale
