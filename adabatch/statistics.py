"""The statistics of a comparison: intervals, one-sided clauses, and how often they would decide.

Every function that takes runs takes an array [..., n]: the runs lie on the last axis, the axes before it are
simulated sweeps, and results have their shape. Shares are probabilities, one-sided unless said otherwise.

Errors of two arms are compared by Welch's test: training is chaotic, so a shared seed makes no pair of them
(arXiv 2304.01910). Times are compared in pairs within a block, on the log scale. No bootstrap: with three to
ten runs a nominal 95 % interval of the percentiles covers 75 to 90 %.
"""

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Estimate:
    """A mean with its standard error and degrees of freedom: floats, or arrays of one shape."""

    mean: float
    se: float
    df: float

    def lower(self, share: float):
        """The limit below which the truth lies with probability 1 - share."""
        return self.mean - t_quantile(share, self.df) * self.se

    def upper(self, share: float):
        return self.mean + t_quantile(share, self.df) * self.se

    def interval(self, level: float = 0.95) -> tuple:
        """Two-sided."""
        share = (1 + level) / 2
        return self.lower(share), self.upper(share)

    def p_below(self, bound: float) -> float:
        """The p-value against "the truth is at or above the bound"."""
        return t_probability(_ratio(self.mean - bound, self.se), self.df)

    def p_above(self, bound: float) -> float:
        """The p-value against "the truth is at or below the bound"."""
        return t_probability(_ratio(bound - self.mean, self.se), self.df)


def _ratio(difference, se):
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(np.asarray(se) > 0, np.divide(difference, se), np.sign(difference) * math.inf)


def t_quantile(share: float, df):
    """Of Student's t."""
    from scipy import special  # an import of seconds that most commands do without

    return special.stdtrit(df, share)


def t_probability(value, df):
    """That Student's t lies at or below the value."""
    from scipy import special

    return special.stdtr(df, value)


def rounding(evaluated: int | None) -> float:
    """The least standard deviation that an error counted over so many samples can have: that of rounding to
    1 / evaluated."""
    return 1 / (evaluated * math.sqrt(12)) if evaluated else 0.0


def mean(values) -> Estimate:
    """Of one arm's runs; two at least."""
    values = np.asarray(values, float)
    n = values.shape[-1]
    return Estimate(values.mean(-1), values.std(-1, ddof=1) / math.sqrt(n), float(n - 1))


def welch(a, b, floor: float = 0.0) -> Estimate:
    """mean(a) - mean(b) of independent runs with spreads of their own (Welch and Satterthwaite).

    floor: no arm's standard deviation is taken to be smaller. Two arms without any spread have se 0.
    """
    a, b = np.asarray(a, float), np.asarray(b, float)
    n, m = a.shape[-1], b.shape[-1]
    va = np.maximum(a.var(-1, ddof=1), floor**2) / n
    vb = np.maximum(b.var(-1, ddof=1), floor**2) / m
    total = va + vb
    with np.errstate(divide="ignore", invalid="ignore"):
        df = total**2 / (va**2 / (n - 1) + vb**2 / (m - 1))
    return Estimate(a.mean(-1) - b.mean(-1), np.sqrt(total), np.where(total > 0, df, n + m - 2.0))


def paired(a, b) -> Estimate:
    """mean(a - b) of pairs."""
    return mean(np.asarray(a, float) - np.asarray(b, float))


def correlation(a, b) -> float | None:
    """Of pairs; None where one of them does not vary."""
    a, b = np.asarray(a, float), np.asarray(b, float)
    if len(a) < 3 or len(a) != len(b) or min(a.std(), b.std()) < 1e-12:
        return None
    return float(np.corrcoef(a, b)[0, 1])


def equivalence(difference: Estimate, margin: float) -> float:
    """p of two one-sided tests (TOST), the larger of both: below 0.05 where the 90 % interval lies inside
    +-margin, and only there."""
    return np.maximum(difference.p_below(margin), difference.p_above(-margin))


def fraction_interval(hits: int, of: int, level: float = 0.95) -> tuple[float, float]:
    """The exact interval of a fraction (Clopper and Pearson)."""
    from scipy import special

    tail = (1 - level) / 2
    low = special.betaincinv(hits, of - hits + 1, tail) if hits else 0.0
    high = special.betaincinv(hits + 1, of - hits, 1 - tail) if hits < of else 1.0
    return float(low), float(high)


def rank(n: int, m: int, tail: float = 0.025) -> int:
    """How many of the n * m ordered ratios may be left out at each end of a two-sided interval: the largest k
    with P(U < k) <= tail for Mann and Whitney's U. 0: there is none (n = m = 3 at 95 %)."""
    counts = [1]  # of the partitions into at most n parts of at most m: Gauss's binomial coefficients
    for i in range(1, n + 1):  # times (1 - q^(m+i)) / (1 - q^i)
        counts += [0] * m
        for degree in range(len(counts) - 1, m + i - 1, -1):
            counts[degree] -= counts[degree - m - i]
        for degree in range(i, len(counts)):
            counts[degree] += counts[degree - i]
    below, k = 0, 0
    while below + counts[k] <= tail * math.comb(n + m, n):
        below, k = below + counts[k], k + 1
    return k


def shift_interval(rival, own, level: float = 0.95) -> tuple[float | None, float | None]:
    """The interval of the ratio rival / own of two samples of times by inverting Mann and Whitney's test.

    Times may be infinite: the target was missed. A pair of two misses says nothing, so it counts as 0 for the
    lower limit and as infinite for the upper. None: not bounded on that side.
    """
    k = rank(len(rival), len(own), (1 - level) / 2)
    if not k:
        return None, None
    low, high = [], []
    for a in rival:
        for b in own:
            both = math.isinf(a) and math.isinf(b)
            ratio = math.nan if both else math.inf if math.isinf(a) else a / b
            low.append(0.0 if both else ratio)
            high.append(math.inf if both else ratio)
    lower, upper = sorted(low)[k - 1], sorted(high)[-k]
    return lower if lower > 0 else None, upper if upper < math.inf else None


@dataclass(frozen=True)
class Margins:
    """delta: of an error, a fraction. r0: the ratio of times that counts as faster. alpha: of one look."""

    delta: float = 0.01
    r0: float = 1.05
    alpha: float = 0.05


@dataclass(frozen=True)
class Clauses:
    """What candidate w shows of rival j: booleans, or arrays of them, with the limits that decided.

    not_worse: its error is not larger by delta.     limit: the upper limit of the difference w - j
    worse: the rival's error is larger by delta.     worse_limit: the lower limit of j - w
    fast: it is faster (adaptive), or not slower (fixed), by r0.  fast_limit: lower limit of log(T_j / T_w)
    """

    not_worse: bool
    worse: bool
    fast: bool
    limit: float
    worse_limit: float
    fast_limit: float | None

    @property
    def beats(self):
        return self.not_worse & (self.fast | self.worse)


def clauses(
    difference: Estimate, speed: Estimate | None, margins: Margins, adaptive: bool, m: int
) -> Clauses:
    """difference: of errors, candidate less rival. speed: of log(T_rival / T_candidate); None: no times that
    can be compared. m: candidates in the candidate's class."""
    limit = difference.upper(1 - margins.alpha / m)
    worse_limit = -difference.upper(1 - margins.alpha / (2 * m))
    rho = math.log(margins.r0) if adaptive else -math.log(margins.r0)
    fast_limit = None if speed is None else speed.lower(1 - margins.alpha / (2 * m))
    fast = np.zeros(np.shape(limit), bool) if speed is None else np.asarray(fast_limit > rho)
    return Clauses(
        np.asarray(limit < margins.delta), np.asarray(worse_limit > margins.delta), fast,
        limit, worse_limit, fast_limit,
    )  # fmt: skip


def winners(beats: dict, adaptive: list[bool]) -> dict:
    """{arm: whether it beats every arm of the other class}. beats: {(arm, rival): boolean or array}."""
    found = {}
    for w, own in enumerate(adaptive):
        against = [beats[w, j] for j, other in enumerate(adaptive) if own != other]
        if against:
            found[w] = np.logical_and.reduce(against)
    return found


def decisions(errors: list, logs: list | None, adaptive: list[bool], margins: Margins, floor: float = 0.0):
    """1 where "adaptive" is decided, -1 where "fixed", 0 where neither or both are: an int array [...].

    errors: of each arm, [..., n]. logs: of its times, by block; None: no times that can be compared.
    """
    beats = {}
    for w, own in enumerate(adaptive):
        for j in (j for j, other in enumerate(adaptive) if other != own):
            difference = welch(errors[w], errors[j], floor)
            speed = None if logs is None else paired(logs[j], logs[w])
            beats[w, j] = clauses(difference, speed, margins, own, adaptive.count(own)).beats
    won = winners(beats, adaptive)
    by = [np.logical_or.reduce([won[w] for w in won if adaptive[w] is kind]) for kind in (True, False)]
    return by[0].astype(int) - by[1].astype(int)


SIMULATED = 2000  # sweeps: a power of 0.8 within +-0.02


def upper_spread(sd: float, df: float, share: float = 0.8) -> float:
    """The upper limit of a standard deviation that was estimated with so many degrees of freedom."""
    from scipy import special

    return sd * math.sqrt(df / (2 * special.gammaincinv(df / 2, 1 - share)))


def power(means, sds, log_means, log_sd: float, adaptive: list[bool], n: int, margins: Margins,
          floor: float = 0.0) -> float:  # fmt: skip
    """The share of simulated sweeps of n runs an arm in which anything is decided; the same every time.

    means, sds: of each arm's errors. log_means: of log times (None: no times), log_sd
    their spread within a block.
    """
    generator = np.random.default_rng(n)
    errors = [x + sd * generator.standard_normal((SIMULATED, n)) for x, sd in zip(means, sds)]
    logs = None
    if log_means is not None:
        logs = [x + log_sd * generator.standard_normal((SIMULATED, n)) for x in log_means]
    return float(np.mean(decisions(errors, logs, adaptive, margins, floor) != 0))


def pooled(groups) -> tuple[float, float]:
    """(standard deviation, degrees of freedom) within groups of runs."""
    squares = sum(np.var(g, ddof=1) * (len(g) - 1) for g in groups)
    df = sum(len(g) - 1 for g in groups)
    return math.sqrt(squares / df), float(df)


def within_blocks(logs) -> tuple[float, float]:
    """(standard deviation, degrees of freedom) of log times [arms, n] less the means of arms and blocks."""
    logs = np.asarray(logs, float)
    rest = logs - logs.mean(0, keepdims=True) - logs.mean(1, keepdims=True) + logs.mean()
    df = (logs.shape[0] - 1) * (logs.shape[1] - 1)
    return math.sqrt(np.sum(rest**2) / df), float(df)
