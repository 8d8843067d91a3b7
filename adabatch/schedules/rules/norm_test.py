"""Tests of a gradient's variance: the norm test (Byrd, Chin, Nocedal, Wu 2012) as AdAdaGrad runs it (Lau,
Liu, Kolar 2024, arXiv 2402.11215, github.com/timlautk/AdAdaGrad), and the inner-product test (Bollapragada,
Byrd, Nocedal 2018, arXiv 1710.11258).

    norm          wish = max(B, tr(S) / (theta^2 |g|^2))                             g = gradient of the batch
    debiased      wish = tr(S) / (theta^2 |G|^2)                                     G = true gradient
    inner product wish = max(B, Var_i<g_i, g> / (theta^2 |g|^4))
    orthogonality wish = max(..., (tr(S) - Var_i<g_i, g> / |g|^2) / (nu^2 |g|^2))

|g|^2 holds the noise of its own batch, |G|^2 + tr(S) / B in expectation. So the norm test has the fixed point
B_simple (1 - theta^2) / theta^2, with B_simple = tr(S) / |G|^2, and the debiased form B_simple / theta^2.
"""

from adabatch.errors import UserError
from adabatch.schedules.closed import Rule, Seen


def _positive(**given) -> None:
    for name, value in given.items():
        if value is not None and not value > 0:
            raise UserError(f"schedule.growth.{name} is positive, got {value}")


class NormTest(Rule):
    """theta: tolerance of the relative error of a gradient. debiased: divide averages of tr(S) by averages of
    |G|^2 in place of the source's single measurement.

    The raw form takes the larger of B and one noisy measurement, step after step: a ratchet, which keeps the
    largest fluctuation so far (most of all with few groups). It cannot grow for theta >= 1, as |g|^2 is at
    least its own noise, tr(S) / B, in expectation: refused.
    """

    needs = frozenset({"trace", "sq_norm"})
    rounding = "up"

    def __init__(self, theta: float, debiased: bool = False):
        _positive(theta=theta)
        if theta >= 1 and not debiased:
            raise UserError(
                f"schedule.growth.theta is below 1 in the raw norm test, got {theta}: the squared norm of a "
                "batch's gradient holds its own noise, tr(S) / batch, so the batch could not grow; take a "
                "smaller theta or schedule=norm_test_debiased"
            )
        self.theta, self.debiased = theta, debiased

    def wish(self, seen: Seen) -> float | None:
        if self.debiased:
            return None if seen.scale is None else seen.scale / self.theta**2
        norm = seen.noise.raw(seen.batch)
        # Below 0 only for a batch other than the measured one: nothing is known of it then.
        return max(seen.batch, seen.noise.trace / (self.theta**2 * norm)) if norm > 0 else None


class InnerProductTest(Rule):
    """theta: tolerance of the component along the gradient; nu: of the one across it, None = not tested.

    Like the raw norm test a ratchet, on one measurement. Where the batch's gradient is mostly noise, |g|^2 is
    about tr(S) / B and the test passes: the wish is B tr(S^2) / (theta^2 tr(S)^2), below B in many
    dimensions. The source code adds up a variance per layer; here it is the paper's, of the whole network.
    """

    needs = frozenset({"trace", "sq_norm", "inner"})
    memory = "two gradients in double precision, on measuring steps"
    rounding = "up"

    def __init__(self, theta: float, nu: float | None = None):
        _positive(theta=theta, nu=nu)
        self.theta, self.nu = theta, nu

    def wish(self, seen: Seen) -> float | None:
        noise = seen.noise
        if noise.inner is None:
            return None
        # Two batches of one group each are projected on the mean of both.
        measured = noise.raw(2 * noise.batch if noise.biased else noise.batch)
        norm = noise.raw(seen.batch)
        if measured <= 0 or norm <= 0:
            return None
        along = noise.inner / measured  # variance of the component along g; exact at the measured batch
        wish = max(seen.batch, along / (self.theta**2 * norm))
        if self.nu is None:
            return wish
        return max(wish, (noise.trace - along) / (self.nu**2 * norm))
