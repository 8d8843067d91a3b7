"""VGG for 32x32 images (Simonyan & Zisserman 2014, arXiv 1409.1556; NVlabs/AdaBatch models/cifar/vgg).

The paper's three large linear layers are one small one here.
"""

from torch import nn

from adabatch.layers import Chain
from adabatch.models.parts import activated, he_normal, one_of, small_normal

# Convolutions in each of the five stages; configurations A, B, D, E of the paper.
STAGES = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
WIDTHS = (64, 128, 256, 512, 512)


class Vgg(nn.Module):
    """x: [n, channels, 32, 32] -> logits [n, num_classes]. norm="none" is the plain network of the paper."""

    size = 32

    def __init__(
        self,
        num_classes: int,
        channels: int,
        *,
        depth: int = 19,
        norm: str = "ghost",
        ghost: int = 32,
    ):
        super().__init__()
        layers = []
        for count, width in zip(STAGES[one_of("depth", depth, STAGES)], WIDTHS, strict=True):
            for _ in range(count):
                # With a bias also where a norm follows, as in the source: its parameter counts include them.
                layers += [nn.Conv2d(channels, width, 3, padding=1), *activated(norm, width, ghost)]
                channels = width
            layers.append(nn.MaxPool2d(2))
        self.body = Chain(*layers)
        self.head = nn.Linear(WIDTHS[-1], num_classes)
        he_normal(self)
        small_normal(self.head)

    def forward(self, x):
        return self.head(self.body(x).mean((2, 3)))
