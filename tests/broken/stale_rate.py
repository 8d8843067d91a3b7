"""Breaks adabatch when imported: a resumed run keeps the learning rate of its checkpoint."""

import dataclasses

from adabatch import train
from adabatch.losses import cross_entropy  # noqa: F401
from adabatch.step import Step

_restore, _update, stale = train.restore, Step._update, []


def restored(run, state, *more, **named):
    if state["setting"]:
        stale[:] = [state["setting"]["lr"]]
    return _restore(run, state, *more, **named)


def updated(self, start, setting):
    return _update(self, start, dataclasses.replace(setting, lr=stale[0]) if stale else setting)


train.restore, Step._update = restored, updated
