"""Breaks adabatch when imported: a last batch that is not full is dropped."""

from adabatch.losses import cross_entropy  # noqa: F401
from adabatch.schedules.core import Schedule

_done = Schedule.done


def dropped(self, position):
    return _done(self, position) or self.start(position) + self(position).divisor > self.budget


Schedule.done = dropped
