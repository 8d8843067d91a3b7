"""Pre-activation ResNet for CIFAR (He et al. 2016, arXiv 1603.05027; NVlabs/AdaBatch models/cifar/preresnet).

Projection shortcuts are a 1x1 convolution of the raw input, without a norm. `bottleneck=True`: NVlabs' deeper
networks, whose blocks are counted as for basic ones (see adabatch.models.resnet).
"""

from torch import nn

from adabatch.models.parts import activated, blocks_per_stage, conv, he_normal, yes_or_no
from adabatch.models.resnet import stages


class _Block(nn.Module):
    """x + residual(x), or projection(x) + residual(x) where shapes differ. Nothing follows the sum."""

    def __init__(self, inputs: int, outputs: int, stride: int, residual: nn.Sequential):
        super().__init__()
        self.residual = residual
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else conv(inputs, outputs, 1, stride)

    def forward(self, x):
        return self.residual(x) + self.shortcut(x)


class BasicBlock(_Block):
    """x: [n, inputs, h, w] -> [n, width, h/stride, w/stride]."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int, norm: str, ghost: int):
        residual = nn.Sequential(
            activated(norm, inputs, ghost), conv(inputs, width, 3, stride),
            activated(norm, width, ghost), conv(width, width, 3),
        )  # fmt: skip
        super().__init__(inputs, width, stride, residual)


class Bottleneck(_Block):
    """x: [n, inputs, h, w] -> [n, 4 * width, h/stride, w/stride]."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int, norm: str, ghost: int):
        residual = nn.Sequential(
            activated(norm, inputs, ghost), conv(inputs, width, 1),
            activated(norm, width, ghost), conv(width, width, 3, stride),
            activated(norm, width, ghost), conv(width, self.expansion * width, 1),
        )  # fmt: skip
        super().__init__(inputs, self.expansion * width, stride, residual)


class PreResNet(nn.Module):
    """x: [n, channels, 32, 32] -> logits [n, num_classes]; depth 6n+2."""

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
        count = blocks_per_stage("preresnet", depth, 6, 2)
        block = Bottleneck if bottleneck else BasicBlock
        self.body = nn.Sequential(
            conv(channels, 16, 3),
            *stages(block, count, 16, (16, 32, 64), norm=norm, ghost=ghost),
            activated(norm, 64 * block.expansion, ghost),
        )
        self.head = nn.Linear(64 * block.expansion, num_classes)
        he_normal(self)

    def forward(self, x):
        return self.head(self.body(x).mean((2, 3)))
