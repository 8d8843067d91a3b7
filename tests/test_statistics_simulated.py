"""The decision procedure where the truth is known: coverage of what decides, false verdicts, true ones found.

Each figure is a share of SWEEPS simulated sweeps, so it is known to ERROR (three standard errors at 5 %).
"""

import math

import numpy as np
import pytest

from adabatch import statistics
from adabatch.statistics import Margins

SWEEPS = 10_000
ERROR = 3 * math.sqrt(0.05 * 0.95 / SWEEPS)
LOOKS = (5, 10, 20)
FIXED, ADAPTIVE = False, True
SPREADS = [(0.5, 0.5), (1.0, 0.2), (0.2, 1.0)]  # of fixed and of adaptive arms; the margin is 1
R0 = math.log(1.05)


@pytest.mark.parametrize("n", [3, 5, 10])
@pytest.mark.parametrize("spreads", [(1.0, 1.0), (1.0, 0.2), (0.2, 1.0), (1.0, 0.5)])
def test_what_decides_about_errors_covers(n, spreads):
    """The one-sided limits of one look, of one of three, and of two candidates at each; the intervals that
    are printed. Welch's approximation is known to give away up to 1 % at n = 3 and a ratio of 5."""
    draw = np.random.default_rng(n)
    a, b = (0.3 + spread * draw.standard_normal((SWEEPS, n)) for spread in spreads)
    found = statistics.welch(a, b)
    slack = 0.011 if n == 3 else 0.002
    for share in (0.95, 1 - 0.05 / 3, 1 - 0.05 / 6, 1 - 0.05 / 12):
        error = 3 * math.sqrt(share * (1 - share) / SWEEPS)
        assert np.mean(found.upper(share) > 0) >= share - slack - error
        assert np.mean(found.lower(share) < 0) >= share - slack - error
    for level in (0.90, 0.95):
        low, high = found.interval(level)
        error = 3 * math.sqrt(level * (1 - level) / SWEEPS)
        assert level - slack - error <= np.mean((low < 0) & (high > 0)) <= level + 0.025


@pytest.mark.parametrize("n", [3, 5, 10])
def test_what_decides_about_times_covers(n):
    """Pairs within a block: whatever blocks have in common goes out, also where arms differ in spread."""
    draw = np.random.default_rng(n)
    block = 0.3 * draw.standard_normal((SWEEPS, n))
    rival, own = (
        block + mean + sd * draw.standard_normal((SWEEPS, n)) for mean, sd in ((0.2, 0.05), (0, 0.01))
    )
    found = statistics.paired(rival, own)
    for share in (0.95, 1 - 0.05 / 6, 1 - 0.05 / 12):
        error = 3 * math.sqrt(share * (1 - share) / SWEEPS)
        assert abs(np.mean(found.lower(share) < 0.2) - share) <= error
    low, high = statistics.mean(own - block).interval(0.95)
    assert abs(np.mean((low < 0) & (high > 0)) - 0.95) <= ERROR


@pytest.mark.parametrize("n", [4, 5, 8, 10])
@pytest.mark.parametrize("misses", [0.0, 0.2, 0.4])
def test_the_ratio_to_the_target_covers(n, misses):
    """Both arms miss equally often, so the true ratio of the times is that of those that reach it."""
    draw = np.random.default_rng(n)
    covered, sweeps = 0, 2000
    for _ in range(sweeps):
        rival, own = 1.3 * np.exp(draw.normal(0, 0.2, n)), np.exp(draw.normal(0, 0.2, n))
        rival[draw.random(n) < misses] = math.inf
        own[draw.random(n) < misses] = math.inf
        low, high = statistics.shift_interval(rival, own)
        covered += (low is None or low <= 1.3) and (high is None or high >= 1.3)
    assert covered / sweeps >= 0.95 - 3 * math.sqrt(0.05 * 0.95 / sweeps)


@pytest.mark.parametrize("truth", [0.5, 0.8, 0.95])
@pytest.mark.parametrize("n", [3, 5, 10])
def test_the_exact_interval_of_a_fraction_covers(n, truth):
    """Summed over all outcomes, not simulated."""
    chances = [math.comb(n, k) * truth**k * (1 - truth) ** (n - k) for k in range(n + 1)]
    bounds = [statistics.fraction_interval(k, n) for k in range(n + 1)]
    assert sum(c for c, (low, high) in zip(chances, bounds) if low <= truth <= high) >= 0.95


def verdicts(arms, looks=LOOKS, alpha=0.05, noise=0.02, sweeps=SWEEPS, seed=0):
    """Shares of ("adaptive", "fixed") where every look up to a verdict is taken. arms: (kind, mean error, its
    spread, mean log time); the margin is 1."""
    draw = np.random.default_rng(seed)
    block = 0.05 * draw.standard_normal((sweeps, looks[-1]))
    errors = [mean + sd * draw.standard_normal(block.shape) for _, mean, sd, _ in arms]
    logs = [mean + block + noise * draw.standard_normal(block.shape) for *_, mean in arms]
    margins = Margins(delta=1.0, alpha=alpha / len(looks))
    found = np.zeros(sweeps, int)
    for n in looks:
        now = statistics.decisions(
            [e[:, :n] for e in errors], [t[:, :n] for t in logs], [kind for kind, *_ in arms], margins
        )
        found = np.where(found == 0, now, found)
    return float(np.mean(found == 1)), float(np.mean(found == -1))


def corners(fixed, adaptive):
    """Sweeps in which one decision is just false: {name: (arms, which decision)}. Elsewhere nothing is in
    doubt: the candidate is far faster, or equal in error."""
    fast, slow = 0.0, 1.0
    rival, loser = (FIXED, 0.0, fixed, slow), (ADAPTIVE, 1.0, adaptive, fast)
    even = [(FIXED, 0.0, fixed / 10, R0), (ADAPTIVE, 0.0, adaptive / 10, fast)]
    return {
        "adaptive exactly the margin worse": ([rival, loser], 0),
        "the same of three rivals": ([rival, rival, rival, loser], 0),
        "two adaptive arms": ([rival, loser, loser], 0),
        "two adaptive arms, two rivals": ([rival, rival, loser, loser], 0),
        "adaptive exactly r0 faster": (even, 0),
        "two adaptive arms exactly r0 faster": ([*even, even[1]], 0),
        "fixed exactly the margin worse": ([(FIXED, 1.0, fixed, fast), (ADAPTIVE, 0.0, adaptive, slow)], 1),
        "three fixed arms": ([*[(FIXED, 1.0, fixed, fast)] * 3, (ADAPTIVE, 0.0, adaptive, slow)], 1),
        "fixed exactly r0 slower": (even, 1),
        "three fixed arms exactly r0 slower": ([*[even[0]] * 3, even[1]], 1),
        "the rival exactly the margin worse": (
            [(FIXED, 1.0, fixed, fast), (ADAPTIVE, 0.0, adaptive, slow)], 0,
        ),
        "two adaptive arms exactly the margin better": (
            [(FIXED, 1.0, fixed, fast), *[(ADAPTIVE, 0.0, adaptive, slow)] * 2], 0,
        ),
    }  # fmt: skip


@pytest.mark.parametrize("spreads", SPREADS, ids=str)
@pytest.mark.parametrize("name", list(corners(1, 1)))
def test_false_verdicts_at_the_corners(name, spreads):
    arms, which = corners(*spreads)[name]
    assert verdicts(arms)[which] <= 0.05 + ERROR


@pytest.mark.parametrize("spreads", SPREADS, ids=str)
@pytest.mark.parametrize("n", [5, 10])
def test_false_verdicts_of_one_look(n, spreads):
    for name, (arms, which) in corners(*spreads).items():
        assert verdicts(arms, looks=(n,))[which] <= 0.05 + ERROR, name


def test_testing_until_it_passes_is_what_looks_prevent():
    """The control: the same corner, tested at every n without a share of alpha, is wrong far more often."""
    arms, which = corners(0.5, 0.5)["adaptive exactly the margin worse"]
    every = tuple(range(3, 21))
    assert verdicts(arms, looks=every, alpha=0.05 * len(every), sweeps=2000)[which] > 0.13


def test_without_bonferroni_two_candidates_are_wrong_too_often():
    """The control of m: of four candidates one passes by chance."""
    arms, which = corners(0.2, 1.0)["two adaptive arms"]
    arms = [*arms, arms[-1], arms[-1]]
    assert verdicts(arms)[which] <= 0.05 + ERROR
    assert verdicts(arms, alpha=4 * 0.05)[which] > 0.10


@pytest.mark.parametrize("spread, found", [(0.25, 0.99), (0.5, 0.99), (1.0, 0.6)])
@pytest.mark.parametrize("speed", [1.2, 1.3])
def test_true_wins_are_found(spread, found, speed):
    """Equal errors, faster than the fastest of three fixed arms: by n = 20; and never "fixed"."""
    log = math.log(speed)
    fixed = [(FIXED, 0.0, spread, log + more) for more in (0.3, 0.1, 0.0)]
    adaptive, other = verdicts([*fixed, (ADAPTIVE, 0.0, spread, 0.0)], sweeps=2000)
    assert adaptive >= found and other == 0


def test_ties_go_to_the_fixed_arm():
    arms = [(FIXED, 0.0, 0.25, 0.0), (ADAPTIVE, 0.0, 0.25, 0.0)]
    adaptive, fixed = verdicts(arms, sweeps=2000)
    assert adaptive == 0 and fixed > 0.95


def test_the_accurate_one_wins_though_slower():
    arms = [(FIXED, 4.0, 0.5, 0.0), (FIXED, 4.0, 0.5, 0.2), (ADAPTIVE, 0.0, 0.5, 1.0)]
    assert verdicts(arms, sweeps=2000)[0] == 1.0
