"""AlexNet for 32x32 images, as in NVlabs/AdaBatch (models/cifar/alexnet; after Krizhevsky et al. 2012).

No norm and no dropout. Initialised as torch does by default.
"""

from torch import nn


class AlexNet(nn.Module):
    """x: [n, channels, 32, 32] -> logits [n, num_classes]."""

    size = 32

    def __init__(self, num_classes: int, channels: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, 64, 11, stride=4, padding=5), nn.ReLU(inplace=True), nn.MaxPool2d(2),  # 4
            nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(inplace=True), nn.MaxPool2d(2),  # 2
            nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(inplace=True),
            nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(inplace=True),
            nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2),  # 1
        )  # fmt: skip
        self.head = nn.Linear(256, num_classes)

    def forward(self, x):
        return self.head(self.body(x).mean((2, 3)))
