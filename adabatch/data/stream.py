"""The training data as one endless stream of samples addressed by position.

Sample number p of a run is fixed by (seed, p) alone: which one it is (epoch p // n reads its own permutation)
and how it is augmented (a key hashed from p). No loader, no state: any range of positions can be asked for at
any time, by any rank, so a change of batch size is a longer range and a resume is a number.
"""

import torch

from adabatch import draws
from adabatch.data.samples import Samples


class Stream:
    """samples: the training split. prepare: (inputs, keys) -> network inputs. device: of the labels."""

    def __init__(self, samples: Samples, prepare, seed: int, device="cpu"):
        self.samples, self.prepare, self.seed, self.device = samples, prepare, seed, device
        self._orders: dict[int, torch.Tensor] = {}
        self._keys = draws.key(seed, draws.AUGMENT)

    def __len__(self) -> int:
        return len(self.samples)

    def order(self, epoch: int):
        """The permutation of an epoch: int64 [samples] on the CPU."""
        if epoch not in self._orders:
            # Two epochs are kept: batches straddle their border.
            self._orders = {e: o for e, o in self._orders.items() if e == epoch - 1}
            self._orders[epoch] = draws.permutation(draws.key(self.seed, draws.ORDER, epoch), len(self))
        return self._orders[epoch]

    def indices(self, start: int, stop: int):
        """Which samples stand at positions start <= p < stop: int64 [stop - start] on the CPU."""
        parts = []
        while start < stop:
            epoch, offset = divmod(start, len(self))
            parts.append(self.order(epoch)[offset : offset + stop - start])
            start += len(parts[-1])
        return torch.cat(parts)

    def keys(self, start: int, stop: int):
        """The random key of each position: int64 [stop - start] on the CPU, below 2^32."""
        return draws.bits(self._keys, torch.arange(start, stop))

    def batch(self, start: int, stop: int):
        """Positions start <= p < stop -> network inputs [n, ...], labels [n, ...], on the device."""
        keys = self.keys(start, stop)
        inputs, labels = self.samples.read(self.indices(start, stop), keys)
        if ahead := self.samples.look_ahead:
            self.samples.expect(self.indices(stop, stop + ahead), self.keys(stop, stop + ahead))
        return self.prepare(inputs, keys), labels.to(self.device, non_blocking=True)
