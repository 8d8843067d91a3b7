"""MobileNetV2 (Sandler et al. 2018, arXiv 1801.04381); at 224 pixels the same network as torchvision's.

For 32x32 images (`stem="cifar"`) the first convolution and the first stage that would halve the side keep it:
the last map is 4x4 instead of 1x1. The parameters are the same.
"""

from functools import partial

from torch import nn

from adabatch.layers import Dropout
from adabatch.layers import norm as norm_layer
from adabatch.models.parts import activated, conv, he_normal, one_of, small_normal

SIZES = {"cifar": 32, "imagenet": 224}  # stem -> image side
# Table 2 of the paper: expansion, output channels, blocks, stride of the first block.
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class InvertedBottleneck(nn.Module):
    """1x1 to `expansion` times the channels, depthwise kernel x kernel, 1x1 without activation.

    x: [n, inputs, h, w] -> [n, outputs, h/stride, w/stride]. The input is added where the shapes agree;
    there is no first convolution where the expansion is 1.
    """

    def __init__(self, inputs, outputs, stride, expansion, norm, ghost, *, kernel=3, eps=1e-5):
        super().__init__()
        inner = inputs * expansion
        act = partial(activated, norm, inner, ghost, eps, six=True)
        expand = [] if expansion == 1 else [conv(inputs, inner, 1), act()]
        self.residual = nn.Sequential(
            *expand,
            conv(inner, inner, kernel, stride, groups=inner), act(),
            conv(inner, outputs, 1), norm_layer(norm, outputs, ghost, eps),
        )  # fmt: skip
        self.keeps_shape = stride == 1 and inputs == outputs

    def forward(self, x):
        return x + self.residual(x) if self.keeps_shape else self.residual(x)


class MobileNetV2(nn.Module):
    """x: [n, channels, size, size] -> logits [n, num_classes]; size 32 or 224, by `stem`."""

    def __init__(
        self,
        num_classes: int,
        channels: int,
        *,
        stem: str = "cifar",
        dropout: float = 0.2,
        norm: str = "ghost",
        ghost: int = 32,
    ):
        super().__init__()
        self.size = SIZES[one_of("stem", stem, SIZES)]
        cifar = stem == "cifar"
        layers, inputs = [conv(channels, 32, 3, 1 if cifar else 2), activated(norm, 32, ghost, six=True)], 32
        for stage, (expansion, outputs, count, stride) in enumerate(STAGES):
            for i in range(count):
                halves = i == 0 and stride == 2 and not (cifar and stage == 1)
                layers.append(InvertedBottleneck(inputs, outputs, 2 if halves else 1, expansion, norm, ghost))
                inputs = outputs
        self.body = nn.Sequential(*layers, conv(inputs, 1280, 1), activated(norm, 1280, ghost, six=True))
        self.dropout = Dropout(dropout)
        self.head = nn.Linear(1280, num_classes)
        he_normal(self)
        small_normal(self.head)

    def translated(self, weights: dict) -> dict:
        """Weights of torchvision's network under the names here, where they are that; others as they are.
        Both have the same tensors in the same order."""
        own, counter = list(self.state_dict()), ".num_batches_tracked"  # of torch's batch norm only
        counted = any(name.endswith(counter) for name in own)
        theirs = [name for name in weights if counted or not name.endswith(counter)]
        if "features.0.0.weight" not in weights or len(own) != len(theirs):
            return dict(weights)
        return {name: weights[other] for name, other in zip(own, theirs, strict=True)}

    def forward(self, x):
        return self.head(self.dropout(self.body(x).mean((2, 3))))
