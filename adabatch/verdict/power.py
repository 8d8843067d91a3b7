"""How many seeds would decide, by simulation of what was seen."""

import math

import numpy as np

from adabatch import statistics
from adabatch.verdict.arms import SEEDS, Arm, Comparison, Plan
from adabatch.verdict.pairs import timed

ENOUGH = 0.8


def seeds(arms: list[Arm], made: list[Comparison], plan: Plan, n: int) -> tuple[int | None, int, bool]:
    """(seeds, the last look that was tried, whether a better known error would decide there).

    seeds: the next planned look at which something is decided in 80 % of sweeps whose arms have the means
    seen here and spreads at their upper limit; None: at no look. Past the last planned look it is
    the size of a new comparison. An arm that counts as beaten is left out; one that diverged now and then
    leaves nothing to decide.
    """
    planned = [look for look in plan.looks if look > n]
    later = planned or [look for look in SEEDS if look > n]
    last = (later or [n])[-1]
    alive = [arm for arm in arms if not arm.gone]
    if any(arm.diverged for arm in alive) or len({arm.adaptive for arm in alive}) < 2:
        return None, last, False
    margins = plan.margins if planned else statistics.Margins(plan.delta, plan.r0, plan.alpha)
    means = [float(np.mean(arm.errors)) for arm in alive]
    floor = statistics.rounding(plan.evaluated)
    spreads = [max(sd, floor) for sd in upper_spreads([arm.errors for arm in alive])]
    logs, log_sd = _times(alive, made)
    kinds = [arm.adaptive for arm in alive]

    def power(look: int, sharper: float = 1.0) -> float:
        sds = [sd / sharper for sd in spreads]
        return statistics.power(means, sds, logs, log_sd, kinds, look, margins, floor / sharper)

    for look in later:
        if power(look) >= ENOUGH:
            return look, last, True
    return None, last, power(last, 100.0) >= ENOUGH


def upper_spreads(groups: list[list[float]]) -> list[float]:
    """Each arm's standard deviation, raised as the pooled one is raised to its upper 80 % limit: a batch far
    too large has a spread of its own, and must not make the others look unresolvable."""
    sd, df = statistics.pooled(groups)
    raised = statistics.upper_spread(sd, df) / sd if sd else 1.0
    return [raised * float(np.std(group, ddof=1)) for group in groups]


def _times(arms: list[Arm], made: list[Comparison]) -> tuple[list[float] | None, float]:
    """Means of the log times and their spread within a block; None where they cannot be compared."""
    if any(c.speed is None for c in made if c.difference is not None):
        return None, 0.0
    blocks = set.intersection(*(set(arm.counted) for arm in arms))
    if len(blocks) < 2 or not timed(arms[0], arms[1]):
        return None, 0.0
    logs = [[math.log(arm.counted[s].seconds) for s in sorted(blocks)] for arm in arms]
    return [float(np.mean(x)) for x in logs], statistics.upper_spread(*statistics.within_blocks(logs))
