"""The training data as one endless stream of samples addressed by position.

Sample number p of a run is fixed by (seed, p) alone: which one it is (epoch p // n reads its own permutation)
and how it is augmented (a key hashed from p). No loader, no state: any range of positions can be asked for at
any time, by any rank, so a change of batch size is a longer range and a resume is a number.
"""

import numpy as np
import torch

from adabatch import draws
from adabatch.data.keys import Keys
from adabatch.data.samples import Samples


class Order:
    """Which of `count` samples stands at a position: each epoch is a permutation of its own, fixed by (seed,
    epoch). shuffle=False: every epoch in the order of the data."""

    def __init__(self, count: int, seed: int, shuffle: bool = True):
        self.count, self.seed, self.shuffle = count, seed, shuffle
        self._kept: dict[int, torch.Tensor] = {}

    def epoch(self, epoch: int):
        """The permutation of an epoch: int64 [count] on the CPU."""
        if epoch not in self._kept:
            # Two epochs are kept: batches straddle their border.
            self._kept = {e: o for e, o in self._kept.items() if e == epoch - 1}
            key = draws.key(self.seed, draws.ORDER, epoch)
            self._kept[epoch] = (
                draws.permutation(key, self.count) if self.shuffle else torch.arange(self.count)
            )
        return self._kept[epoch]

    def at(self, positions):
        """Which samples stand at `positions`, a NumPy array: int64 of the same shape on the CPU."""
        epochs, offsets = (torch.from_numpy(part) for part in np.divmod(positions, self.count))
        found = torch.empty_like(offsets)
        for epoch in epochs.unique().tolist():
            found[epochs == epoch] = self.epoch(epoch)[offsets[epochs == epoch]]
        return found

    def indices(self, start: int, stop: int):
        """Which samples stand at positions start <= p < stop: int64 [stop - start] on the CPU."""
        parts = []
        while start < stop or not parts:
            epoch, offset = divmod(start, self.count)
            parts.append(self.epoch(epoch)[offset : offset + stop - start])
            start += len(parts[-1])
        return torch.cat(parts) if len(parts) > 1 else parts[0]


class Stream:
    """samples: the training split. prepare: (inputs, keys) -> network inputs. alternate: as `Keys` has it."""

    def __init__(self, samples: Samples, prepare, seed: int, device="cpu", alternate: bool = False):
        self.samples, self.prepare, self.device = samples, prepare, device
        self.order = Order(len(samples), seed)
        self._keys = Keys(seed, self.order, alternate)
        self._share = None

    def __len__(self) -> int:
        return len(self.samples)

    def indices(self, start: int, stop: int):
        """Which samples stand at positions start <= p < stop: int64 [stop - start] on the CPU."""
        return self.order.indices(start, stop)

    def share(self, first: int, last: int, batch: int) -> None:
        """A hint: of the batch that is read now, `batch` long, this process has first <= p < last, and
        it will have the same part of those that follow. What it looks ahead at is its own part."""
        self._share = first, last, batch

    def ahead(self, stop: int):
        """The positions that this process reads after stop - 1: int64 [look_ahead]; none where what stands
        before `stop` was not of its share, and only looked at."""
        first, last, batch = self._share or (stop - 1, stop, 1)
        if not first < stop <= last:
            return np.empty(0, dtype=np.int64)
        order = np.arange(stop - first, stop - first + self.samples.look_ahead, dtype=np.int64)
        batches, rows = np.divmod(order, last - first)
        return first + batches * batch + rows

    def keys(self, start: int, stop: int):
        """The random key of each position: int64 [stop - start] on the CPU."""
        return self._keys(np.arange(start, stop, dtype=np.int64))

    def batch(self, start: int, stop: int):
        """Positions start <= p < stop -> network inputs [n, ...], labels [n, ...], on the device."""
        keys = self.keys(start, stop)
        inputs, labels = self.samples.read(self.indices(start, stop), keys)
        if self.samples.look_ahead and len(ahead := self.ahead(stop)):
            self.samples.expect(self.order.at(ahead), self._keys(ahead))
        return self.prepare(inputs, keys), labels.to(self.device, non_blocking=True)
