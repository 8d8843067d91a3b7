"""ResNet for CIFAR (He et al. 2015, arXiv 1512.03385, section 4.2) with projection shortcuts ("option B").

As in NVlabs/AdaBatch (models/cifar/resnet) and eladhoffer/bigBatch (models/resnet). NVlabs builds every depth
from 44 up of bottlenecks but counts them as if they were basic blocks, n = (depth - 2) / 6, so that its
"ResNet-110" has 164 layers: `bottleneck=True` gives those networks, `bottleneck=False` the named depth.
"""

from torch import nn

from adabatch.layers import Joined
from adabatch.layers import norm as norm_layer
from adabatch.models.parts import activated, blocks_per_stage, conv, he_normal, yes_or_no


class BasicBlock(nn.Module):
    """relu(norm(conv(relu(norm(conv(x))))) + shortcut(x)).

    x: [n, inputs, h, w] -> [n, width, h/stride, w/stride].
    """

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int, norm: str, ghost: int):
        super().__init__()
        self.residual = Joined(
            conv(inputs, width, 3, stride), activated(norm, width, ghost),
            conv(width, width, 3), norm_layer(norm, width, ghost),
        )  # fmt: skip
        self.shortcut = projection(inputs, width, stride, norm, ghost)

    def forward(self, x):
        return self.residual(x, self.shortcut(x))


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions. x: [n, inputs, h, w] -> [n, 4 * width, h/stride, w/stride]."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int, norm: str, ghost: int):
        super().__init__()
        outputs = self.expansion * width
        self.residual = Joined(
            conv(inputs, width, 1), activated(norm, width, ghost),
            conv(width, width, 3, stride), activated(norm, width, ghost),
            conv(width, outputs, 1), norm_layer(norm, outputs, ghost),
        )  # fmt: skip
        self.shortcut = projection(inputs, outputs, stride, norm, ghost)

    def forward(self, x):
        return self.residual(x, self.shortcut(x))


def projection(inputs: int, outputs: int, stride: int, norm: str, ghost: int) -> nn.Module:
    """The input itself where the shapes agree, else a 1x1 convolution with a norm."""
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return nn.Sequential(conv(inputs, outputs, 1, stride), norm_layer(norm, outputs, ghost))


def stages(block, count: int, inputs: int, widths, **keys) -> list[nn.Module]:
    """`count` blocks of each width; the first of every stage but the first halves the side."""
    layers = []
    for stage, width in enumerate(widths):
        for i in range(count):
            layers.append(block(inputs, width, 2 if stage and i == 0 else 1, **keys))
            inputs = width * block.expansion
    return layers


class ResNet(nn.Module):
    """x: [n, channels, 32, 32] -> logits [n, num_classes]; depth 6n+2. `head` initialised as torch does."""

    size = 32

    def __init__(
        self,
        num_classes: int,
        channels: int,
        *,
        depth: int = 20,
        bottleneck: bool = False,
        norm: str = "ghost",
        ghost: int = 32,
    ):
        super().__init__()
        yes_or_no(bottleneck=bottleneck)
        count = blocks_per_stage("resnet", depth, 6, 2)
        block = Bottleneck if bottleneck else BasicBlock
        self.body = nn.Sequential(
            conv(channels, 16, 3), activated(norm, 16, ghost),
            *stages(block, count, 16, (16, 32, 64), norm=norm, ghost=ghost),
        )  # fmt: skip
        self.head = nn.Linear(64 * block.expansion, num_classes)
        he_normal(self)

    def forward(self, x):
        return self.head(self.body(x).mean((2, 3)))
