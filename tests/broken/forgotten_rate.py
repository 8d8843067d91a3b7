"""Breaks adabatch when imported: a resumed run begins again with the first learning rate."""

import dataclasses

from adabatch import train
from adabatch.losses import cross_entropy  # noqa: F401
from adabatch.step import Step

_restore, _update, first = train.restore, Step._update, []


def restored(run, state, *more, **named):
    if state["position"]:
        first[:] = [run.parts.schedule(0).lr]
    return _restore(run, state, *more, **named)


def updated(self, start, setting):
    return _update(self, start, dataclasses.replace(setting, lr=first[0]) if first else setting)


train.restore, Step._update = restored, updated
