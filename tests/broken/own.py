"""Networks as a user may bring them; nothing is broken here."""

import torch
from torch import nn


class Dropping(nn.Module):
    """With torch's own dropout."""

    def __init__(self, num_classes: int, shape: tuple):
        super().__init__()
        size = shape[0] * shape[1] * shape[2]
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(size, 16), nn.ReLU(), nn.Dropout(0.3))
        self.head = nn.Linear(16, num_classes)

    def forward(self, x):
        return self.head(self.body(x))


class Single(nn.Module):
    """That computes in float32 whatever it is given."""

    def __init__(self, num_classes: int, shape: tuple):
        super().__init__()
        self.head = nn.Linear(shape[0] * shape[1] * shape[2], num_classes)

    def forward(self, x):
        return torch.nn.functional.linear(x.flatten(1).float(), self.head.weight, self.head.bias)
