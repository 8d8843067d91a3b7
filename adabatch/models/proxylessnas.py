"""ProxylessNAS-Mobile (Cai et al. 2018, arXiv 1812.00332) as pytorchcv has it: searched for a phone's speed.

For 32x32 images (`stem="cifar"`) the first convolution and the second stage keep the side (see mobilenet_v2).
Initialised like MobileNetV2; pytorchcv leaves torch's defaults, since it loads trained weights.
"""

from torch import nn

from adabatch.layers import Dropout
from adabatch.models.mobilenet_v2 import SIZES, InvertedBottleneck
from adabatch.models.parts import activated, conv, he_normal, one_of, small_normal

EPS = 1e-3  # of every norm, as published
# Blocks (output channels, kernel, expansion) of each stage; the blocks that the search left out are left out.
STAGES = (
    ((16, 3, 1),),
    ((32, 5, 3), (32, 3, 3)),
    ((40, 7, 3), (40, 3, 3), (40, 5, 3), (40, 5, 3)),
    ((80, 7, 6), (80, 5, 3), (80, 5, 3), (80, 5, 3), (96, 5, 6), (96, 5, 3), (96, 5, 3), (96, 5, 3)),
    ((192, 7, 6), (192, 7, 6), (192, 7, 3), (192, 7, 3), (320, 7, 6)),
)


class ProxylessNasMobile(nn.Module):
    """x: [n, channels, size, size] -> logits [n, num_classes]; size 32 or 224, by `stem`."""

    def __init__(
        self,
        num_classes: int,
        channels: int,
        *,
        stem: str = "cifar",
        dropout: float = 0.0,
        norm: str = "ghost",
        ghost: int = 32,
    ):
        super().__init__()
        self.size = SIZES[one_of("stem", stem, SIZES)]
        kept = 2 if stem == "cifar" else 1  # stages that leave the side as it is
        # ReLU after the first and the last convolution, ReLU6 within the blocks.
        layers = [conv(channels, 32, 3, 1 if stem == "cifar" else 2), activated(norm, 32, ghost, EPS)]
        inputs, keys = 32, {"norm": norm, "ghost": ghost, "eps": EPS}
        for stage, blocks in enumerate(STAGES):
            for i, (outputs, kernel, expansion) in enumerate(blocks):
                stride = 2 if i == 0 and stage >= kept else 1
                layers.append(InvertedBottleneck(inputs, outputs, stride, expansion, kernel=kernel, **keys))
                inputs = outputs
        self.body = nn.Sequential(*layers, conv(inputs, 1280, 1), activated(norm, 1280, ghost, EPS))
        self.dropout = Dropout(dropout)
        self.head = nn.Linear(1280, num_classes)
        he_normal(self)
        small_normal(self.head)

    def forward(self, x):
        return self.head(self.dropout(self.body(x).mean((2, 3))))
