"""The small networks of eladhoffer/bigBatch (Hoffer et al. 2017, arXiv 1705.08741): mnist_f1, cifar_shallow.

Their first linear layer sees every pixel, so they take the shape of a sample instead of pooling. The
source's other networks are elsewhere: ResNet-44 is resnet with depth 44, its Wide ResNet is wide_resnet with
variant bigbatch. Initialised as torch does by default, as there.
"""

import math

from torch import nn

from adabatch.errors import UserError
from adabatch.layers import Dropout
from adabatch.models.parts import activated, conv, positive


class MnistF1(nn.Module):
    """x: [n, *shape] of any shape -> `layers` linear layers of `width` units -> logits [n, num_classes]."""

    size = 28

    def __init__(
        self,
        num_classes: int,
        shape,
        *,
        layers: int = 5,
        width: int = 512,
        norm: str = "ghost",
        ghost: int = 32,
    ):
        super().__init__()
        positive(layers=layers, width=width)
        inputs, hidden = math.prod(shape), []
        for _ in range(layers):
            hidden += [nn.Linear(inputs, width), activated(norm, width, ghost)]
            inputs = width
        self.body = nn.Sequential(nn.Flatten(), *hidden)
        self.head = nn.Linear(inputs, num_classes)

    def forward(self, x):
        return self.head(self.body(x))


class CifarShallow(nn.Module):
    """Two convolutions and two hidden layers: x: [n, *shape], shape (c, h, w) -> logits [n, num_classes].

    Pooling comes before the norm, as in the source. There, cifar10_shallow and cifar100_shallow are this.
    """

    size = 32

    def __init__(
        self,
        num_classes: int,
        shape,
        *,
        dropout: float = 0.5,
        norm: str = "ghost",
        ghost: int = 32,
    ):
        super().__init__()
        if len(shape) != 3 or min(shape[1:]) < 7:
            raise UserError(f"a shallow CIFAR network takes images [c, h, w] from 7 x 7; got {tuple(shape)}.")
        channels, *sides = shape
        pixels = math.prod(((side - 1) // 2 - 1) // 2 for side in sides)  # 32 -> 15 -> 7
        self.body = nn.Sequential(
            conv(channels, 64, 5), nn.MaxPool2d(3, 2), activated(norm, 64, ghost),
            conv(64, 64, 5), nn.MaxPool2d(3, 2), activated(norm, 64, ghost),
            nn.Flatten(),
            nn.Linear(64 * pixels, 384, bias=False), activated(norm, 384, ghost), Dropout(dropout),
            nn.Linear(384, 192, bias=False), activated(norm, 192, ghost), Dropout(dropout),
        )  # fmt: skip
        self.head = nn.Linear(192, num_classes)

    def forward(self, x):
        return self.head(self.body(x))
