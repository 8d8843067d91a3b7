"""Intervals and clauses against scipy.stats, written-out tables and closed forms."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from adabatch import statistics
from adabatch.statistics import Estimate, Margins

SIZES = [(3, 3), (5, 5), (5, 8), (10, 10), (20, 7)]


def samples(seed, *sizes, spreads=(1.0, 0.2)):
    draw = np.random.default_rng(seed)
    return [spread * draw.standard_normal(n) + 0.3 * i for i, (n, spread) in enumerate(zip(sizes, spreads))]


@pytest.mark.parametrize("n, m", SIZES)
@pytest.mark.parametrize("level", [0.90, 0.95, 0.98])
def test_welch_is_scipys(n, m, level):
    a, b = samples(n + m, n, m)
    ours, theirs = statistics.welch(a, b), stats.ttest_ind(a, b, equal_var=False)
    assert ours.df == pytest.approx(theirs.df, rel=1e-12)
    assert ours.interval(level) == pytest.approx(tuple(theirs.confidence_interval(level)), rel=1e-9)
    assert 2 * min(ours.p_below(0), ours.p_above(0)) == pytest.approx(theirs.pvalue, rel=1e-9)
    less = stats.ttest_ind(a - 0.4, b, equal_var=False, alternative="less")
    assert ours.p_below(0.4) == pytest.approx(less.pvalue, rel=1e-9)


@pytest.mark.parametrize("n", [2, 3, 5, 10])
def test_pairs_and_means_are_scipys(n):
    a, b = samples(n, n, n)
    ours, theirs = statistics.paired(a, b), stats.ttest_rel(a, b)
    assert ours.interval(0.95) == pytest.approx(tuple(theirs.confidence_interval(0.95)), rel=1e-9)
    one = stats.ttest_1samp(a, 0).confidence_interval(0.95)
    assert statistics.mean(a).interval(0.95) == pytest.approx(tuple(one), rel=1e-9)


def test_arrays_are_many_sweeps_at_once():
    draw = np.random.default_rng(0)
    a, b = draw.normal(size=(4, 6, 5)), draw.normal(size=(4, 6, 8))
    found = statistics.welch(a, b, 0.1).upper(0.95)
    each = [[statistics.welch(a[i, j], b[i, j], 0.1).upper(0.95) for j in range(6)] for i in range(4)]
    assert found.shape == (4, 6) and np.allclose(found, each, rtol=1e-12)


def test_the_floor_is_the_rounding_of_a_count():
    """Runs that agree to the last sample are not known exactly: a count of 10,000 is rounded."""
    floor = statistics.rounding(10_000)
    assert floor == pytest.approx(np.std(np.random.default_rng(0).uniform(0, 1e-4, 10**6)), rel=0.01)
    same = statistics.welch([0.05] * 5, [0.05] * 5, floor)
    assert same.se == pytest.approx(floor * math.sqrt(2 / 5)) and same.df == pytest.approx(8)
    wide = statistics.welch([0.05, 0.06, 0.07], [0.01, 0.02, 0.03], floor)
    assert wide.se == pytest.approx(statistics.welch([0.05, 0.06, 0.07], [0.01, 0.02, 0.03]).se)
    assert statistics.rounding(None) == 0


def test_without_any_spread_nothing_is_divided_by_zero():
    same = statistics.welch([0.5, 0.5], [0.25, 0.25])
    assert same.interval() == (0.25, 0.25) and same.p_below(0.3) == 0 and same.p_below(0.2) == 1
    assert statistics.equivalence(same, 0.3) == 0


@pytest.mark.parametrize("seed", range(20))
def test_tost_and_its_interval_agree(seed):
    """p < 0.05 just where the 90 % interval lies inside the margin; both one-sided p against scipy's."""
    a, b = samples(seed, 5, 6, spreads=(0.5, 0.3))
    d, margin = statistics.welch(a, b), 0.6
    low, high = d.interval(0.90)
    assert (statistics.equivalence(d, margin) < 0.05) == (-margin < low and high < margin)
    below = stats.ttest_ind(a - margin, b, equal_var=False, alternative="less").pvalue
    above = stats.ttest_ind(a + margin, b, equal_var=False, alternative="greater").pvalue
    assert statistics.equivalence(d, margin) == pytest.approx(max(below, above), rel=1e-9)


@pytest.mark.parametrize("hits, of", [(0, 5), (5, 5), (3, 5), (1, 20), (17, 20)])
@pytest.mark.parametrize("level", [0.90, 0.95])
def test_fractions_are_scipys(hits, of, level):
    theirs = stats.binomtest(hits, of).proportion_ci(level, method="exact")
    assert statistics.fraction_interval(hits, of, level) == pytest.approx(tuple(theirs), rel=1e-9, abs=1e-15)


def test_ranks_of_the_table():
    """A11's table, and the critical values of Mann and Whitney's test, two-sided 5 %, k - 1 in the tables."""
    assert {n: statistics.rank(n, n) for n in (3, 4, 5, 8, 10)} == {3: 0, 4: 1, 5: 3, 8: 14, 10: 24}
    assert [statistics.rank(n, n) - 1 for n in (6, 7, 9, 15, 20)] == [5, 8, 17, 64, 127]
    assert [statistics.rank(5, m) - 1 for m in (4, 6, 8, 10)] == [1, 3, 6, 8]


@pytest.mark.parametrize("n, m", [(4, 4), (5, 7), (3, 9)])
def test_ranks_are_those_of_the_distribution(n, m):
    """P(U <= k - 1) <= 2.5 % < P(U <= k), where every order of the two samples is counted."""
    k = statistics.rank(n, m)
    found = [sum(p > q for p in places for q in range(n + m) if q not in places)
             for places in map(set, itertools.combinations(range(n + m), n))]  # fmt: skip
    share = [np.mean(np.array(found) <= u) for u in range(k + 1)]
    assert share[k - 1] <= 0.025 < share[k]


def test_the_ratio_to_the_target_by_hand():
    inf = math.inf
    own, rival = [1.0, 2.0, 4.0, 8.0], [16.0, 16.0, 16.0, 16.0]
    assert statistics.shift_interval(rival, own) == (2.0, 16.0)  # k = 1: the extremes
    assert statistics.shift_interval(rival[:3], own[:3]) == (None, None)  # n = 3: none exists
    assert statistics.shift_interval([*rival[:3], inf], own) == (2.0, None)  # the rival missed once
    assert statistics.shift_interval([*rival[:3], inf], [*own[:3], inf]) == (None, None)
    assert statistics.shift_interval([inf] * 4, own) == (inf, None)  # it never came: longer than any ratio
    five, six = [10.0, 11, 12, 13, 14], [20.0, 22, 24, 26, 28]
    ratios = sorted(b / a for a in five for b in six)
    assert statistics.shift_interval(six, five) == (ratios[2], ratios[-3])  # k = 3
    # One miss of five on each side: of 25 pairs 4 are rival-missed, 4 own-missed and 1 is both.
    low, high = statistics.shift_interval([*six[:4], inf], [*five[:4], inf])
    assert (low, high) == (None, None)
    # Two misses say nothing, on either side: one such pair must not stand for a ratio.
    assert statistics.shift_interval([20.0, *[inf] * 4], [*five[:4], inf])[0] is None
    assert statistics.shift_interval([*five[:4], inf], [20.0, *[inf] * 4])[1] is None


def test_the_limits_of_the_clauses():
    """Alpha is split as A8.5 says: over candidates, and twice more for speed and for worse."""
    a, b = samples(3, 5, 5, spreads=(0.3, 0.3))
    d = statistics.welch(a, b)
    speed = Estimate(math.log(1.3), 0.02, 4.0)
    made = statistics.clauses(d, speed, Margins(delta=0.5, r0=1.05, alpha=0.03), True, 2)
    ci = stats.ttest_ind(a, b, equal_var=False).confidence_interval
    assert made.limit == pytest.approx(ci(1 - 2 * 0.03 / 2).high)
    assert made.worse_limit == pytest.approx(-ci(1 - 2 * 0.03 / 4).high)
    assert made.fast_limit == pytest.approx(math.log(1.3) - stats.t.ppf(1 - 0.03 / 4, 4) * 0.02)


@pytest.mark.parametrize(
    "mean, se, speed, adaptive, expected",
    [  # not worse, worse (the rival), fast: at z-like df, margins 1 pp and 1.05
        (0.000, 0.001, 1.20, True, (1, 0, 1)),
        (0.000, 0.001, 1.04, True, (1, 0, 0)),  # faster, but not by r0
        (0.000, 0.001, 0.97, False, (1, 0, 1)),  # a tie goes to the fixed arm
        (0.000, 0.001, 0.94, False, (1, 0, 0)),
        (0.012, 0.001, 1.20, True, (0, 0, 1)),
        (-0.02, 0.001, 0.50, True, (1, 1, 0)),
        (0.008, 0.002, 1.20, True, (0, 0, 1)),  # within the margin, not shown to be
    ],
)
def test_clauses_of_a_written_out_table(mean, se, speed, adaptive, expected):
    fast = Estimate(math.log(speed), 0.002, 1e6)
    made = statistics.clauses(Estimate(mean, se, 1e6), fast, Margins(), adaptive, 1)
    assert (made.not_worse, made.worse, made.fast) == expected
    assert made.beats == (expected[0] and (expected[1] or expected[2]))
    blind = statistics.clauses(Estimate(mean, se, 1e6), None, Margins(), adaptive, 1)
    assert not blind.fast and blind.fast_limit is None and blind.beats == (expected[0] and expected[1])


def test_a_winner_beats_every_rival():
    kinds = [False, False, True, True]
    beats = {(w, j): False for w in range(4) for j in range(4) if kinds[w] != kinds[j]}
    assert not any(statistics.winners(beats, kinds).values())
    beats |= {(2, 0): True, (3, 1): True}  # each beats one: none has won
    assert not any(statistics.winners(beats, kinds).values())
    beats[2, 1] = True
    assert statistics.winners(beats, kinds) == {0: False, 1: False, 2: True, 3: False}


@pytest.mark.parametrize("sd, n", [(0.25, 3), (0.5, 5), (0.5, 8), (1.0, 10), (1.0, 20)])
def test_power_has_the_closed_form_of_non_inferiority(sd, n):
    """With equal arms of equal spread the Welch test is nearly Student's, whose power is a noncentral t."""
    shift = 1.0 / (sd * math.sqrt(2 / n))
    exact = 1 - stats.nct.cdf(stats.t.ppf(0.95, 2 * n - 2), 2 * n - 2, shift)
    # Far faster, so speed is never in doubt; and "fixed" cannot win as it is far slower.
    found = statistics.power([5, 5], [sd] * 2, [1.0, 0.0], 1e-3, [False, True], n, Margins(delta=1.0))
    assert found == pytest.approx(exact, abs=0.035)
    assert found == statistics.power([5, 5], [sd] * 2, [1.0, 0.0], 1e-3, [False, True], n, Margins(delta=1.0))


@pytest.mark.parametrize("sd, n, expected", [(1.0, 5, 0.40), (1.0, 10, 0.69), (1.0, 20, 0.93)])
def test_power_of_the_specification(sd, n, expected):
    """A6: non-inferiority at a margin of one sd."""
    found = statistics.power([5, 5], [sd] * 2, [1.0, 0.0], 1e-3, [False, True], n, Margins(delta=1.0))
    assert found == pytest.approx(expected, abs=0.035)


def test_power_without_times_is_that_of_being_more_accurate():
    worse = statistics.power([5, 5], [0.1] * 2, None, 0.0, [False, True], 5, Margins(delta=1.0))
    assert worse == 0.0
    assert statistics.power([9, 5], [0.1] * 2, None, 0.0, [False, True], 5, Margins(delta=1.0)) == 1.0


@pytest.mark.parametrize("df", [3, 8, 19])
def test_the_upper_limit_of_a_spread(df):
    assert statistics.upper_spread(2.0, df) == pytest.approx(2 * math.sqrt(df / stats.chi2.ppf(0.2, df)))


def test_pooled_spreads():
    groups = samples(1, 5, 8)
    squares = sum(((g - g.mean()) ** 2).sum() for g in groups)
    assert statistics.pooled(groups) == pytest.approx((math.sqrt(squares / 11), 11))
    blocks = np.array([[1.0, 2, 3, 4], [1.5, 2.5, 3.5, 4.5], [0.0, 1, 2, 3]])  # rows and columns add up
    assert statistics.within_blocks(blocks) == pytest.approx((0.0, 6))
    one, two = samples(2, 6, 6)  # of two arms it is that of the difference, over sqrt(2)
    assert statistics.within_blocks([one, two])[0] == pytest.approx(np.std(one - two, ddof=1) / math.sqrt(2))


def test_correlation():
    a, b = samples(5, 6, 6)
    assert statistics.correlation(a, b) == pytest.approx(stats.pearsonr(a, b).statistic)
    assert statistics.correlation([1, 1, 1], [1, 2, 3]) is None and statistics.correlation([1], [1]) is None
