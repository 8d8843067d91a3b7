"""Batch-size schedules as plain Python objects: no torch, no Hydra."""

from adabatch.schedules.closed import Controller, Rule, Seen, closed_loop
from adabatch.schedules.core import Schedule, walk
from adabatch.schedules.curves import Cosine, CosineSteps, LinearRamp, OneCycle, PadaDamp, PiecewiseLinear
from adabatch.schedules.factors import Constant, Factor, Steps
from adabatch.schedules.replay import replay
from adabatch.schedules.setting import Frame, Observation, Setting

__all__ = [
    "Constant",
    "Controller",
    "Cosine",
    "CosineSteps",
    "Factor",
    "Frame",
    "LinearRamp",
    "Observation",
    "OneCycle",
    "PadaDamp",
    "PiecewiseLinear",
    "Rule",
    "Schedule",
    "Seen",
    "Setting",
    "Steps",
    "closed_loop",
    "replay",
    "walk",
]
