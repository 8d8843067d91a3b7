"""Breaks adabatch when imported: each rank trains in a data order of its own. The 64 samples that ranks
compare with each other (agreement.py) are left alone, or the run would refuse by itself."""

import os

from adabatch.agreement import SAMPLES
from adabatch.data.stream import Stream
from adabatch.losses import cross_entropy  # noqa: F401


def shifted(self, start, stop):
    own = 7 * int(os.environ.get("RANK", 0)) if stop - start != SAMPLES else 0
    inputs, labels = self.samples.read(self.indices(start + own, stop + own), self.keys(start, stop))
    return self.prepare(inputs, self.keys(start, stop)), labels.to(self.device)


Stream.batch = shifted
