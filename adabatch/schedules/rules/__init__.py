"""Published batch-size rules, one family per file. Each is a `Rule` with one method, `wish`."""

from adabatch.schedules.rules.cabs import CABS
from adabatch.schedules.rules.dampers import AdaDamp, RadaDamp
from adabatch.schedules.rules.diversity import Diversity
from adabatch.schedules.rules.goodput import Goodput
from adabatch.schedules.rules.noise_scale import NoiseScale
from adabatch.schedules.rules.norm_test import InnerProductTest, NormTest
from adabatch.schedules.rules.plateau import Plateau, PlateauDecay
from adabatch.schedules.rules.simigrad import SimiGrad

__all__ = [
    "CABS",
    "AdaDamp",
    "Diversity",
    "Goodput",
    "InnerProductTest",
    "NoiseScale",
    "NormTest",
    "Plateau",
    "PlateauDecay",
    "RadaDamp",
    "SimiGrad",
]
