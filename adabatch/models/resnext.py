"""ResNeXt for CIFAR (Xie et al. 2016, arXiv 1611.05431), as in NVlabs/AdaBatch (models/cifar/resnext)."""

from torch import nn

from adabatch.layers import Joined
from adabatch.layers import norm as norm_layer
from adabatch.models.parts import activated, blocks_per_stage, conv, he_normal, positive
from adabatch.models.resnet import projection


class Block(nn.Module):
    """1x1, grouped 3x3, 1x1 convolutions, `inner` channels between them.

    x: [n, inputs, h, w] -> [n, outputs, h/stride, w/stride].
    """

    def __init__(self, inputs, inner, outputs, stride, groups, norm, ghost):
        super().__init__()
        self.residual = Joined(
            conv(inputs, inner, 1), activated(norm, inner, ghost),
            conv(inner, inner, 3, stride, groups), activated(norm, inner, ghost),
            conv(inner, outputs, 1), norm_layer(norm, outputs, ghost),
        )  # fmt: skip
        self.shortcut = projection(inputs, outputs, stride, norm, ghost)

    def forward(self, x):
        return self.residual(x, self.shortcut(x))


class ResNeXt(nn.Module):
    """x: [n, channels, 32, 32] -> logits [n, num_classes]; depth 9n+2.

    cardinality: groups of the 3x3 convolution; group_width: channels of each in the first stage, doubled in
    the next ones; widen: the stages put out 64, 128, 256 times this many channels.
    """

    size = 32

    def __init__(
        self,
        num_classes: int,
        channels: int,
        *,
        depth: int = 29,
        cardinality: int = 8,
        group_width: int = 64,
        widen: int = 4,
        norm: str = "ghost",
        ghost: int = 32,
    ):
        super().__init__()
        positive(cardinality=cardinality, group_width=group_width, widen=widen)
        count = blocks_per_stage("resnext", depth, 9, 2)
        layers, inputs = [conv(channels, 64, 3), activated(norm, 64, ghost)], 64
        for stage in range(3):
            inner, outputs = cardinality * group_width * 2**stage, 64 * widen * 2**stage
            for i in range(count):
                stride = 2 if stage and i == 0 else 1
                layers.append(Block(inputs, inner, outputs, stride, cardinality, norm, ghost))
                inputs = outputs
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(inputs, num_classes)
        he_normal(self)
        nn.init.kaiming_normal_(self.head.weight)  # by fan-in: N(0, sqrt(2 / inputs))
        nn.init.zeros_(self.head.bias)

    def forward(self, x):
        return self.head(self.body(x).mean((2, 3)))
