"""Batch-size schedules as plain Python objects: no torch, no Hydra."""

from adabatch.schedules.core import Schedule, walk
from adabatch.schedules.factors import Constant, Factor, Steps
from adabatch.schedules.setting import Observation, Setting

__all__ = ["Constant", "Factor", "Observation", "Schedule", "Setting", "Steps", "walk"]
