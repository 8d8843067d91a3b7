"""The random key of a position, from which all is drawn that is random about its sample."""

import torch

from adabatch import draws

SIDE = 32  # the bit above the random ones


class Keys:
    """int64 positions (NumPy) -> keys, int64 of the same shape on the CPU: 32 random bits from (seed,
    position).

    alternate: bit SIDE says whether the sample is mirrored: in epoch 0 by chance, in every later one the
    other way than in the one before (Jordan 2024, arXiv 2404.00498). A function of (seed, sample,
    epoch). order: which sample stands at a position (`stream.Order`).
    """

    def __init__(self, seed: int, order, alternate: bool = False):
        self.order, self.alternate = order, alternate
        self.random, self.first = draws.key(seed, draws.AUGMENT), draws.key(seed, draws.SIDE)

    def __call__(self, positions):
        found = draws.array_bits(self.random, positions)
        if self.alternate:
            first = draws.array_bits(self.first, self.order.at(positions).numpy())
            found |= (first + positions // self.order.count & 1) << SIDE
        return torch.from_numpy(found)
