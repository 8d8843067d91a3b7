"""How well an evaluation set can tell two arms apart, before any run.

The spread of a final test error between seeds is about sqrt(err / (2 n)) for n evaluated samples (Jordan
2023, arXiv 2304.01910): training is chaotic, so a seed draws anew which hard samples are missed. The question
is the one that a comparison asks: is an arm that is truly as good shown to be at most `margin` worse
(non-inferiority, one-sided Welch test of two means of `seeds` runs at 5 %)?

Power = Phi(margin / (sd sqrt(2 / seeds)) - t), t the quantile of Student's t with 2 seeds - 2 degrees of
freedom: 0.40, 0.69, 0.93 at sd = margin for 5, 10, 20 seeds.
"""

import math
from statistics import NormalDist

from adabatch.student import quantile

MARGIN = 0.01  # of an error rate: one percentage point
ASSUMED_ERROR = 0.10  # nobody knows the error before the run
SEEDS = 5  # runs of each arm
ALPHA, POWER = 0.05, 0.8
MOST_SEEDS = 20  # more than this is no advice


def spread(error: float, samples: int) -> float:
    """Planning standard deviation of an error rate between seeds."""
    return math.sqrt(error / (2 * samples))


def power(sd: float, seeds: int, margin: float = MARGIN, alpha: float = ALPHA) -> float:
    """Chance that non-inferiority is shown where the arms are equal."""
    t = quantile(1 - alpha, 2 * seeds - 2)
    return NormalDist().cdf(margin / (sd * math.sqrt(2 / seeds)) - t)


def seeds_needed(sd: float, margin: float = MARGIN, alpha: float = ALPHA) -> int | None:
    """Fewest seeds per arm, 3 at the least, with power POWER; None above MOST_SEEDS."""
    enough = (n for n in range(3, MOST_SEEDS + 1) if power(sd, n, margin, alpha) >= POWER)
    return next(enough, None)


def largest_spread(seeds: int = SEEDS, margin: float = MARGIN) -> float:
    """The standard deviation at which the power is just POWER."""
    needed = quantile(1 - ALPHA, 2 * seeds - 2) + NormalDist().inv_cdf(POWER)
    return margin / (needed * math.sqrt(2 / seeds))


def resolved(samples: int, seeds: int, margin: float = MARGIN, alpha: float = ALPHA) -> str:
    """Whether `seeds` runs of each arm and this evaluation set can show that an arm is not worse."""
    sd, enough = spread(ASSUMED_ERROR, samples), f"more than {MOST_SEEDS}"
    enough = seeds_needed(sd, margin, alpha) or enough
    points = f"{100 * margin:g} percentage point{'' if margin == MARGIN else 's'}"
    told = f"{points} at an error of {100 * ASSUMED_ERROR:g} % on {samples:,} samples"
    if seeds < 2:
        return f"seeds      one run of each arm resolves nothing; {enough} resolve {told}"
    chance = power(sd, seeds, margin, alpha)
    if chance >= POWER:
        return f"seeds      {seeds} of each arm resolve {told}: power {chance:.0%}"
    return f"seeds      {seeds} of each arm do not resolve {told}: power {chance:.0%}; {enough} would"


def too_small(samples: int, split: str) -> str | None:
    """A sentence about an evaluation set that cannot resolve the margin; None where it can."""
    sd = spread(ASSUMED_ERROR, samples)
    if power(sd, SEEDS) >= POWER:
        return None
    top = largest_spread()
    enough, seeds = math.ceil(ASSUMED_ERROR / (2 * top**2)), seeds_needed(sd)
    remedy = f"{seeds} seeds would do, or" if seeds else f"more than {MOST_SEEDS} seeds would be needed:"
    return (
        f"{samples:,} {split} samples are too few to tell arms {100 * MARGIN:g} percentage point apart with "
        f"{SEEDS} seeds each: at an assumed error of {100 * ASSUMED_ERROR:g} % seeds differ by about "
        f"{100 * sd:.2g} points (sd), a power of {power(sd, SEEDS):.0%}; {remedy} an evaluation set of "
        f"{enough:,}, or an error below {200 * samples * top**2:.2g} %"
    )
