"""Published batch-size rules, one family per file. Each is a `Rule` with one method, `wish`."""

from adabatch.schedules.rules.noise_scale import NoiseScale

__all__ = ["NoiseScale"]
