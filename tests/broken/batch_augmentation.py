"""Breaks adabatch when imported: augmentation is drawn per batch instead of per sample."""

from adabatch.data.stream import Stream
from adabatch.losses import cross_entropy  # noqa: F401

_keys = Stream.keys


def of_the_first(self, start, stop):
    return _keys(self, start, start + 1).expand(stop - start)


Stream.keys = of_the_first
