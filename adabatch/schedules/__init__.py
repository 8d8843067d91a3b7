"""Batch-size schedules as plain Python objects: no torch, no Hydra."""

from adabatch.schedules.core import Constant, Factor, Observation, Schedule, Setting, Steps, walk

__all__ = ["Constant", "Factor", "Observation", "Schedule", "Setting", "Steps", "walk"]
