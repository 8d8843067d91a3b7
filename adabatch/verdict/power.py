"""How many seeds would decide, by simulation of what was seen."""

import math

import numpy as np

from adabatch import statistics
from adabatch.verdict import words
from adabatch.verdict.arms import SEEDS, Arm, Comparison, Plan
from adabatch.verdict.pairs import timed

ENOUGH = 0.8
UNSTEADY = 2.0  # times what the evaluation set explains


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
    spreads = [max(sd, floor) for sd in upper_spreads(alive, made)]
    logs, log_sd = _times(alive, made)
    kinds = [arm.adaptive for arm in alive]

    def power(look: int, sharper: float = 1.0) -> float:
        sds = [sd / sharper for sd in spreads]
        return statistics.power(means, sds, logs, log_sd, kinds, look, margins, floor / sharper)

    for look in later:
        if power(look) >= ENOUGH:
            return look, last, True
    return None, last, power(last, 100.0) >= ENOUGH


def unsteady(arms: list[Arm], plan: Plan) -> str | None:
    """What to do where runs of one arm differ by more than the evaluation set makes them, about
    sqrt(err / (2 n)) for n samples (Jordan 2023, arXiv 2304.01910): a larger one would not help."""
    errors = [arm.errors for arm in arms if len(arm.errors) > 1]
    if not errors or not plan.evaluated:
        return None
    sd = float(statistics.pooled(errors)[0])
    explained = math.sqrt(float(np.mean(np.concatenate(errors))) / (2 * plan.evaluated))
    if sd <= UNSTEADY * explained:
        return None
    return (
        f"runs of one arm differ by {words.points(sd)}, and {plan.evaluated:,} evaluated samples explain "
        f"{words.points(explained)}: train longer, or with a smaller learning rate"
    )


def upper_spreads(arms: list[Arm], made: list[Comparison]) -> list[float]:
    """The upper 80 % limit of the pooled standard deviation, of every arm (science: A8): five runs that
    happen to agree are no proof of a small spread.

    But not of an arm that every arm of the other class has shown to be less accurate by more than the margin:
    of its error nothing is open. A batch far too large has a spread of its own, which must not make the
    others look unresolvable.
    """
    against = {arm.name: [c.clauses for c in made if c.rival == arm.name] for arm in arms}
    lost = {name for name, found in against.items() if found and all(k and k.worse for k in found)}
    alike = [arm.errors for arm in arms if arm.name not in lost] or [arm.errors for arm in arms]
    limit = statistics.upper_spread(*statistics.pooled(alike))
    own = {arm.name: statistics.upper_spread(*statistics.pooled([arm.errors])) for arm in arms}
    return [own[arm.name] if arm.name in lost else limit for arm in arms]


def _times(arms: list[Arm], made: list[Comparison]) -> tuple[list[float] | None, float]:
    """Means of the log times and their spread within a block; None where they cannot be compared."""
    if any(c.speed is None for c in made if c.difference is not None):
        return None, 0.0
    blocks = set.intersection(*(set(arm.counted) for arm in arms))
    if len(blocks) < 2 or not timed(arms[0], arms[1]):
        return None, 0.0
    logs = [[math.log(arm.counted[s].seconds) for s in sorted(blocks)] for arm in arms]
    return [float(np.mean(x)) for x in logs], statistics.upper_spread(*statistics.within_blocks(logs))
