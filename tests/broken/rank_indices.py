"""Breaks adabatch when imported: each rank permutes in its own way, which ranks find out at the start."""

import os

from adabatch.data.stream import Order
from adabatch.losses import cross_entropy  # noqa: F401

_indices = Order.indices


def shifted(self, start, stop):
    own = 7 * int(os.environ.get("RANK", 0))
    return _indices(self, start + own, stop + own)


Order.indices = shifted
