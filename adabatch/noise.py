"""The noise of a gradient from groups of samples: tr(S), the trace of the per-sample covariance, and |G|^2,
the squared norm of the true gradient (McCandlish et al. 2018, arXiv 1812.06162, appendix A.1, for unequal
groups).

K groups of n_i samples with mean gradients g_i, B samples in all:

    small = sum (n_i / B) |g_i|^2        large = |sum (n_i / B) g_i|^2
    tr(S) = (small - large) B / (K - 1)  |G|^2 = large - tr(S) / B

Both are unbiased for groups of any sizes. Samples come without replacement from N, so |G|^2 estimates
|G_N|^2 - tr(S) / N, with G_N the gradient of the whole training set; `Noise.full` adds it back.
Their ratio (the simple noise scale, in samples) is taken of averages, never averaged.
"""

import math
from dataclasses import dataclass

from adabatch.errors import UserError


@dataclass(frozen=True)
class Noise:
    """One measurement. batch: samples in it. What was not asked for is None."""

    batch: int
    groups: int
    trace: float  # tr(S)
    sq_norm: float  # |G|^2; may be negative
    biased: bool = False  # differenced from two batches: tr(S) inflated by curvature times step
    cosine: float | None = None  # between the mean gradients of the first and second half of the groups
    inner: float | None = None  # variance over samples of <g_i, g>
    per_sample: float | None = None  # mean over samples of |g_i|^2 (groups of one sample)
    diversity: float | None = None  # sum |g_i|^2 / |sum g_i|^2 over an epoch that ended in this step
    parts: tuple = ()  # (tr(S), |G|^2) by group of parameters

    def raw(self, batch: float) -> float:
        """Expected squared norm of the gradient of `batch` samples; at the measured batch it is the measured
        norm."""
        return self.sq_norm + self.trace / batch

    def full(self, samples: int) -> float:
        """|G_N|^2 over the training set of N = `samples` that the batches are drawn from."""
        return self.sq_norm + self.trace / samples


def estimate(small: float, large: float, batch: int, groups: int) -> tuple[float, float]:
    """(tr(S), |G|^2) from the sums over groups that the module's head defines; groups >= 2."""
    if groups < 2:
        raise ValueError(f"the noise of a gradient needs two groups or more, got {groups}")
    trace = (small - large) * batch / (groups - 1)
    return trace, large - trace / batch


def differenced(sq_difference: float, product: float, batch: int) -> Noise:
    """From the gradients of two successive batches of equal size: tr(S) = B |g' - g|^2 / 2, |G|^2 = <g', g>.

    Biased: the weights moved in between, which adds curvature times step to tr(S). As in AdaptDL (Qiao et al.
    2021), only where a batch is a single group.
    """
    return Noise(batch, 1, batch * sq_difference / 2, product, biased=True)


class Average:
    """Exponential averages of tr(S) and |G|^2 over `horizon` samples, and the standard error of |G|^2 by
    batch means: the measurements lie in up to 32 consecutive buckets, whose means scatter as the average
    errs.

    A measurement after `elapsed` samples has weight 1 - exp(-elapsed / horizon), older ones shrink by
    exp(-elapsed / horizon); the averages are divided by the sum of weights (no start-up bias).
    """

    BUCKETS, NEEDED = 32, 4

    def __init__(self, horizon: float):
        if not horizon > 0:
            raise UserError(f"schedule.noise_horizon is a number of samples above 0, got {horizon}")
        self.horizon, self.biased = horizon, False
        self.buckets: list[
            list[float]
        ] = []  # [weight, weighted tr(S), weighted |G|^2, samples, measurements]
        self.span = 1  # measurements in a full bucket
        self.since = 0  # samples since the last unbiased measurement

    def add(self, noise: Noise, elapsed: int) -> None:
        self.since = self.since + elapsed if noise.biased else 0
        kept, weight = math.exp(-elapsed / self.horizon), -math.expm1(-elapsed / self.horizon)
        for bucket in self.buckets:
            bucket[:3] = [value * kept for value in bucket[:3]]
        if noise.biased and self.buckets and not self.biased and self.since < self.horizon / 10:
            return  # an unbiased average is not spoilt by a fallback, unless nothing else comes any more
        if self.biased != noise.biased:  # the two are never mixed
            self.buckets, self.span = [], 1
        self.biased = noise.biased
        new = [weight, weight * noise.trace, weight * noise.sq_norm, float(elapsed), 1.0]
        if self.buckets and self.buckets[-1][4] < self.span:
            self.buckets[-1] = [a + b for a, b in zip(self.buckets[-1], new)]
        else:
            self.buckets.append(new)
        if len(self.buckets) > self.BUCKETS:
            self._merge()

    def _merge(self) -> None:
        """Longer buckets while they are short against the horizon; after that the oldest two become one."""
        b = self.buckets
        if b[-2][3] < self.horizon / 8:
            pairs = [b[i : i + 2] for i in range(0, len(b) - 1, 2)]
            self.buckets = [[x + y for x, y in zip(*pair)] for pair in pairs] + b[2 * len(pairs) :]
            self.span *= 2
        else:
            self.buckets = [[x + y for x, y in zip(b[0], b[1])], *b[2:]]

    def _mean(self, which: int) -> float | None:
        total = sum(bucket[0] for bucket in self.buckets)
        return sum(bucket[which] for bucket in self.buckets) / total if total else None

    @property
    def trace(self) -> float | None:
        return self._mean(1)

    @property
    def sq_norm(self) -> float | None:
        return self._mean(2)

    def error(self) -> float:
        """Standard error of `sq_norm`, m: sqrt(sum w_k^2 (m_k - m)^2 / (1 - sum w_k^2)) over buckets with
        weights w_k that add up to 1; infinite below four of them, or where they amount to fewer than 3.5
        equal ones (1 / sum w_k^2)."""
        total = sum(bucket[0] for bucket in self.buckets)
        shares = sum((bucket[0] / total) ** 2 for bucket in self.buckets) if total else 1.0
        if len(self.buckets) < self.NEEDED or shares * (self.NEEDED - 0.5) > 1:
            return math.inf
        mean = self.sq_norm
        # Weighted deviations, w_k (m_k - m), without dividing by a weight that has faded to 0.
        spread = sum((bucket[2] - bucket[0] * mean) ** 2 for bucket in self.buckets)
        return math.sqrt(spread / (1 - shares)) / total

    @property
    def resolved(self) -> bool:
        """Whether |G|^2 stands out of its own error by a factor of two, and tr(S) is positive."""
        return bool(self.buckets) and self.trace > 0 and self.sq_norm > 2 * self.error()

    @property
    def scale(self) -> float | None:
        """tr(S) / |G|^2 in samples, the simple noise scale; None while unresolved."""
        return self.trace / self.sq_norm if self.resolved else None

    def state_dict(self) -> dict:
        buckets = [list(b) for b in self.buckets]
        return {"buckets": buckets, "span": self.span, "biased": self.biased, "since": self.since}

    def load_state_dict(self, state: dict) -> None:
        self.buckets = [list(b) for b in state["buckets"]]
        self.span, self.biased, self.since = state["span"], state["biased"], state["since"]
