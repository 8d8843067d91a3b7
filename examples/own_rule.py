"""A batch-size rule of your own: a class with one method, and a YAML that names it.

    cd examples
    adabatch --config-dir conf schedule=own_rule
    adabatch --config-dir conf schedule=own_rule schedule.growth.ratio=4 schedule.max_batch=256
    adabatch schedule=noise_scale schedule.growth._target_=own_rule.Doubling +schedule.growth.ratio=4

The second way needs no YAML. Rounding, the cap, dwell, hysteresis and shrinkage are not the rule's business:
they are keys of the schedule.
"""

from adabatch import Rule


class Doubling(Rule):
    """Twice the batch when the gradient's noise scale tr(S) / |G|^2 is `ratio` batches or more."""

    needs = frozenset(
        {"trace", "sq_norm"}
    )  # what is to be measured: names of adabatch.schedules.closed.NEEDS

    def __init__(self, ratio: float = 2.0):
        self.ratio = ratio

    def wish(self, seen):
        """The batch size in samples that it would choose now; None: no decision."""
        if seen.scale is None:  # |G|^2 does not stand out of its own error yet
            return None
        return 2 * seen.batch if seen.scale >= self.ratio * seen.batch else seen.batch
