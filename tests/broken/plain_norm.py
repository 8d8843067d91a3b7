"""Breaks adabatch when imported: norm=ghost builds torch's batch norm."""

from adabatch import layers
from adabatch.losses import cross_entropy  # noqa: F401
from adabatch.models import parts

_norm = layers.norm


def plain(kind, *more, **named):
    return _norm("batch" if kind == "ghost" else kind, *more, **named)


layers.norm = parts.norm = plain
