"""DenseNet-BC for CIFAR (Huang et al. 2016, arXiv 1608.06993; NVlabs/AdaBatch models/cifar/densenet)."""

import torch
from torch import nn

from adabatch.layers import Dropout
from adabatch.models.parts import activated, blocks_per_stage, conv, he_normal, positive


class DenseLayer(nn.Module):
    """Appends `growth` maps, made through 4 * growth: [n, inputs, h, w] -> [n, inputs + growth, h, w]."""

    def __init__(self, inputs: int, growth: int, dropout: float, norm: str, ghost: int):
        super().__init__()
        self.new = nn.Sequential(
            activated(norm, inputs, ghost), conv(inputs, 4 * growth, 1),
            activated(norm, 4 * growth, ghost), conv(4 * growth, growth, 3),
            Dropout(dropout),
        )  # fmt: skip

    def forward(self, x):
        return torch.cat((x, self.new(x)), 1)


class DenseNet(nn.Module):
    """x: [n, channels, 32, 32] -> logits [n, num_classes]; depth 6n+4, three blocks of n layers.

    growth: maps that a layer adds. compression: a transition between blocks divides the number of maps by it.
    """

    size = 32

    def __init__(
        self,
        num_classes: int,
        channels: int,
        *,
        depth: int = 100,
        growth: int = 12,
        compression: int = 2,
        dropout: float = 0.0,
        norm: str = "ghost",
        ghost: int = 32,
    ):
        super().__init__()
        positive(growth=growth, compression=compression)
        count = blocks_per_stage("densenet", depth, 6, 4)
        maps = 2 * growth
        layers = [conv(channels, maps, 3)]
        for block in range(3):
            if block > 0:  # transition: fewer maps, half the side
                layers += [activated(norm, maps, ghost), conv(maps, maps // compression, 1), nn.AvgPool2d(2)]
                maps //= compression
            for _ in range(count):
                layers.append(DenseLayer(maps, growth, dropout, norm, ghost))
                maps += growth
        self.body = nn.Sequential(*layers, activated(norm, maps, ghost))
        self.head = nn.Linear(maps, num_classes)
        he_normal(self)

    def forward(self, x):
        return self.head(self.body(x).mean((2, 3)))
