"""A small network for small images: the default, made so that 8x8 digits train in seconds on a CPU."""

from torch import nn

from adabatch.layers import Dropout
from adabatch.models.parts import activated, conv, he_normal, positive


class ConvNet(nn.Module):
    """x: [n, channels, h, w], 8x8 or larger -> logits [n, num_classes].

    width: channels of the first convolution; the others have twice and four times as many.
    """

    size = 8

    def __init__(
        self,
        num_classes: int,
        channels: int,
        *,
        width: int = 16,
        dropout: float = 0.0,
        norm: str = "ghost",
        ghost: int = 32,
    ):
        super().__init__()
        positive(width=width)
        self.body = nn.Sequential(
            conv(channels, width, 3), activated(norm, width, ghost),
            conv(width, 2 * width, 3), activated(norm, 2 * width, ghost), nn.MaxPool2d(2),  # 8 -> 4
            conv(2 * width, 4 * width, 3), activated(norm, 4 * width, ghost),
        )  # fmt: skip
        self.dropout = Dropout(dropout)
        self.head = nn.Linear(4 * width, num_classes)
        he_normal(self)

    def forward(self, x):
        return self.head(self.dropout(self.body(x).mean((2, 3))))
