"""Norm tests, CABS and SimiGrad against their sources: each source's update written out here by hand, on
per-sample gradients made up for the batch that it asks for; and each option in training."""

import copy
import math

import pytest
import torch
from support import SMALL, killed, outcome, resolved, run
from test_train import kill_at_step

from adabatch import plan, runs
from adabatch.errors import UserError
from adabatch.noise import Average, Noise
from adabatch.schedules import Constant, Frame, Observation, Seen, Steps, closed_loop
from adabatch.schedules.rules import CABS, InnerProductTest, NormTest, SimiGrad

FRAME = Frame(samples=100_000, budget=100_000, base_batch=32, cap=4096)


def drawn(step, batch, size=5):
    """Per-sample gradients of a step: float64 [batch, size]; their mean shrinks, so that batches grow."""
    generator = torch.Generator().manual_seed(step)
    mean = torch.linspace(0.5, 1.0, size, dtype=torch.float64) / (1 + 0.2 * step)
    return mean + torch.randn(batch, size, generator=generator, dtype=torch.float64)


def measured(g):
    """The measurement from groups of one sample."""
    mean, trace = g.mean(0), float(g.var(0, correction=1).sum())
    inner, half = float((g @ mean).var(correction=1)), len(g) // 2
    cosine = float(torch.cosine_similarity(g[:half].mean(0), g[half:].mean(0), dim=0))
    return Noise(len(g), len(g), trace, float(mean @ mean) - trace / len(g), cosine=cosine, inner=inner)


def driven(rule, steps, observe, base_batch=16, decay=None, restart=None, **options):
    """Batch sizes of `steps` steps. observe: (step, batch, lr) -> (noise, loss). restart: step before which
    the schedule goes on from its state in a new object."""

    def made():
        return closed_loop(
            samples=10_000_000, epochs=1, growth=copy.deepcopy(rule), decay=decay or Constant(),
            base_batch=base_batch, base_lr=0.1, scaling="none", **options,
        )  # fmt: skip

    schedule, position, sizes = made(), 0, []
    for k in range(steps):
        if k == restart:
            state, schedule = schedule.state_dict(), made()
            schedule.load_state_dict(copy.deepcopy(state))
        setting = schedule(position)
        sizes.append(setting.batch_size)
        noise, loss = observe(k, setting.batch_size, setting.lr)
        schedule.observe(Observation(position, setting, loss, noise))
        position += setting.batch_size
    return sizes


def seen(batch, noise=None, average=None, lr=0.1, loss=None, position=0, frame=FRAME):
    return Seen(position, position + batch, batch, lr, 1, frame, noise, average, loss)


def averaged(trace, sq_norm, horizon=32_000.0):
    average = Average(horizon)
    for _ in range(8):
        average.add(Noise(32, 4, trace, sq_norm), 32)
    return average


# -- norm test ----------------------------------------------------------------------------------------


def adadagrad(cap, steps, wanted):
    """AdAdaGrad's loop: a test after every step, the larger of the old batch and the test's, capped."""
    batch, sizes = 16, []
    for k in range(steps):
        sizes.append(batch)
        g = drawn(k, batch)
        new = wanted(g)
        if new > batch:
            batch = new
        batch = min(math.ceil(batch), cap)
    return sizes


def norm_wanted(eta):
    def wanted(g):
        variance = float(g.var(dim=0, correction=1).abs().sum())
        return variance / (eta**2 * float(torch.linalg.vector_norm(g.mean(0)) ** 2))

    return wanted


def inner_wanted(theta, nu=None):
    def wanted(g):
        mean = g.mean(0)
        norm, products = float(mean @ mean), g @ mean
        found = float(products.var(correction=1)) / (theta**2 * norm**2)
        if nu is None:
            return found
        across = g - torch.outer(products, mean) / norm
        return max(found, float(across.var(dim=0, correction=1).sum()) / (nu**2 * norm))

    return wanted


def only_noise(k, batch, lr):
    return measured(drawn(k, batch)), None


@pytest.mark.parametrize("theta", [0.5, 0.25])
def test_the_norm_test_is_that_of_its_source(theta):
    expected = adadagrad(1500, 30, norm_wanted(theta))
    assert len(set(expected)) >= 4 and expected == sorted(expected)
    assert driven(NormTest(theta), 30, only_noise, max_batch=1500) == expected


@pytest.mark.parametrize("theta, nu", [(0.3, None), (0.1, None), (0.5, 0.6), (0.2, 2.0)])
def test_the_inner_product_test_is_that_of_its_source(theta, nu):
    expected = adadagrad(1500, 30, inner_wanted(theta, nu))
    assert len(set(expected)) >= 3
    assert driven(InnerProductTest(theta, nu), 30, only_noise, max_batch=1500) == expected


def test_the_orthogonality_test_matters():
    assert adadagrad(1500, 30, inner_wanted(0.5, 0.6)) != adadagrad(1500, 30, inner_wanted(0.5))


@pytest.mark.parametrize("theta", [0.3, 0.5, 0.8])
def test_the_raw_norm_test_stops_at_its_fixed_point(theta):
    """Measurements without error, tr(S) = 600, |G|^2 = 2: B_simple (1 - theta^2) / theta^2, rounded up."""
    noise = Noise(16, 16, 600.0, 2.0)
    sizes = driven(NormTest(theta), 200, lambda *_: (noise, None), max_batch=100_000)
    fixed = 300 * (1 - theta**2) / theta**2
    assert sizes[-1] == sizes[-2] == math.ceil(fixed - 1e-9)


def test_the_raw_norm_test_ratchets():
    """Noisy measurements of the same gradient: the batch ends above the fixed point and never falls."""
    expected = 5 / 0.5**2 * (1 - 0.25)  # tr(S) = 5, |G|^2 = 1
    mean = torch.full((5,), math.sqrt(0.2), dtype=torch.float64)

    def observe(k, batch, lr):
        generator = torch.Generator().manual_seed(k)
        return measured(mean + torch.randn(batch, 5, generator=generator, dtype=torch.float64)), None

    sizes = driven(NormTest(0.5), 300, observe)
    assert sizes == sorted(sizes) and sizes[-1] > 1.2 * expected


def test_the_debiased_norm_test_is_the_noise_scale_over_theta_squared():
    rule = NormTest(0.5, debiased=True)
    assert rule.wish(seen(32, Noise(32, 4, 999.0, 999.0), averaged(600.0, 2.0))) == pytest.approx(1200)
    assert NormTest(2.0, debiased=True).wish(seen(32, None, averaged(600.0, 2.0))) == pytest.approx(75)
    assert rule.wish(seen(32, Noise(32, 4, 600.0, 2.0), averaged(600.0, -2.0))) is None


def test_a_norm_test_that_cannot_grow_is_refused():
    for theta in (1, 1.5):
        with pytest.raises(UserError, match=f"below 1 in the raw norm test, got {theta}: .*could not grow"):
            NormTest(theta)
    for make in (NormTest, lambda theta: NormTest(theta, True), InnerProductTest):
        with pytest.raises(UserError, match="theta is positive, got 0"):
            make(0)
    with pytest.raises(UserError, match="nu is positive, got -1"):
        InnerProductTest(0.5, -1)


def test_a_norm_test_of_another_batch_takes_the_norm_expected_there():
    """As a shadow: |g|^2 = |G|^2 + tr(S) / B at its own batch; where that is below 0, no decision."""
    noise = Noise(64, 8, 600.0, 2.0, inner=110.0)
    assert NormTest(0.5).wish(seen(100, noise)) == pytest.approx(max(100, 600 / (0.25 * (2 + 6))))
    along = 110 / (2 + 600 / 64)
    assert InnerProductTest(0.1).wish(seen(100, noise)) == pytest.approx(along / (0.01 * (2 + 6)))
    for rule in (NormTest(0.5), InnerProductTest(0.1)):
        assert rule.wish(seen(100, Noise(64, 8, 600.0, -7.0, inner=110.0))) is None


def test_an_inner_product_of_two_successive_batches():
    """Groups are the two batches, projected on their mean, whose squared norm is |G|^2 + tr(S) / 2B."""
    a, b = drawn(0, 40).mean(0), drawn(1, 40).mean(0)
    mean = (a + b) / 2
    variance = 40 * float(torch.stack([a @ mean, b @ mean]).var(correction=1))
    noise = Noise(40, 1, 40 * float((a - b).square().sum()) / 2, float(a @ b), True, inner=variance)
    norm = float(a @ a + b @ b) / 2
    wish = InnerProductTest(0.001).wish(seen(40, noise))
    assert wish > 40 and wish == pytest.approx(variance / float(mean @ mean) / (1e-6 * norm), rel=1e-9)
    assert InnerProductTest(0.001).wish(seen(40, Noise(40, 1, 1.0, 1.0, True))) is None


# -- CABS ---------------------------------------------------------------------------------------------


def tf_cabs(steps, lr, c=1.0, eps=0.0):
    """The source's update: averages by 0.95 from 0 and 1, tf.round (half to even), clipped to 16..2,048."""
    batch, xi_avg, loss_avg, sizes = 16, 0.0, 1.0, []
    for k in range(steps):
        sizes.append(batch)
        g = drawn(k, batch)
        xi = float((g.square().mean(0) - g.mean(0).square()).sum())
        loss_avg = 0.95 * loss_avg + (1 - 0.95) * loss_of(k)
        xi_avg = 0.95 * xi_avg + (1 - 0.95) * xi
        raw = c * lr(k) * xi_avg / (loss_avg + eps)
        batch = min(max(round(raw), 16), 2048)
    return sizes


def loss_of(k):
    return 2.0 * 0.93**k


def with_loss(k, batch, lr):
    return measured(drawn(k, batch)), loss_of(k)


@pytest.mark.parametrize("c, eps", [(50.0, 0.0), (200.0, 0.02)])
def test_cabs_is_its_source(c, eps):
    expected = tf_cabs(80, lambda k: 0.1, c, eps)
    assert len(set(expected)) > 20
    found = driven(CABS(c, eps, compat="source"), 80, with_loss, shrink=True, max_batch=2048)
    assert found == expected


def test_cabs_follows_the_learning_rate():
    """lr falls by 10 at 2,000 samples: so does the wish, at once."""
    rates = []

    def observe(k, batch, lr):
        rates.append(lr)
        return with_loss(k, batch, lr)

    found = driven(CABS(200.0, compat="source"), 80, observe, shrink=True, max_batch=2048,
                   decay=Steps(0.1, milestones=[0.0002]))  # fmt: skip
    assert sorted(set(rates)) == pytest.approx([0.01, 0.1])
    assert found == tf_cabs(80, lambda k: rates[k], 200.0)


def test_cabs_averages_in_samples():
    """c lr xi / L with L = sum w_k L_k / sum w_k, w_k = (1 - exp(-n_k / H)) exp(-(samples since) / H), and
    xi = tr(S) (m - 1) / m of the schedule's average."""
    horizon, batches, losses = 500.0, [32, 50, 50, 7, 300], [2.0, 1.5, 1.7, 0.9, 0.4]
    rule, average, position = CABS(c=3.0, eps=0.1), averaged(600.0, -1.0, horizon), 0
    for batch, loss in zip(batches, losses):
        wish = rule.wish(seen(batch, Noise(batch, 2, 1.0, 1.0), average, 0.2, loss, position))
        position += batch
    weights = [
        (1 - math.exp(-n / horizon)) * math.exp(-sum(batches[k + 1 :]) / horizon)
        for k, n in enumerate(batches)
    ]
    loss = sum(w * x for w, x in zip(weights, losses)) / sum(weights)
    assert wish == pytest.approx(3.0 * 0.2 * 600 * 299 / 300 / (loss + 0.1), rel=1e-12)


def test_cabs_does_not_depend_on_how_often_it_is_asked():
    """One loss over 400 samples weighs as four equal ones over 100."""
    often, seldom, average = CABS(), CABS(), averaged(600.0, 1.0, 500.0)
    noise = Noise(100, 2, 1.0, 1.0)
    for k in range(8):
        often_wish = often.wish(seen(100, noise, average, loss=2.0 if k < 4 else 1.0, position=100 * k))
        if k % 4 == 3:
            last = 2.0 if k < 4 else 1.0
            seldom_wish = seldom.wish(seen(100, noise, average, loss=last, position=100 * k))
    assert often_wish == pytest.approx(seldom_wish, rel=1e-12)


def test_options_of_cabs():
    def wish(rule, loss=2.0):
        return rule.wish(seen(100, Noise(100, 2, 1.0, 1.0), averaged(600.0, 1.0), loss=loss))

    plain = wish(CABS())
    assert plain == pytest.approx(0.1 * 600 * 0.99 / 2.0)
    assert wish(CABS(momentum=0.9)) == pytest.approx(10 * plain)  # lr / (1 - m)
    assert wish(CABS(momentum=0.0)) == pytest.approx(plain)
    assert wish(CABS(loss_floor=1.5)) == pytest.approx(4 * plain)
    assert wish(CABS(loss_floor=2.5)) is None  # nothing is known below the floor
    for options, words in (
        (dict(c=0), "c is positive and schedule.growth.eps 0 or more, got 0 and 0"),
        (dict(eps=-1), "got 1.0 and -1"),
        (dict(momentum=1), "from 0 to below 1, got 1"),
        (dict(compat="sorce"), "null or source, got 'sorce'. Did you mean 'source'"),
    ):
        with pytest.raises(UserError, match=words):
            CABS(**options)


@pytest.mark.parametrize("compat", [None, "source"])
def test_cabs_goes_on_from_its_state(compat):
    rule, options = CABS(100.0, compat=compat), dict(shrink=True, noise_horizon=640)
    whole = driven(rule, 60, with_loss, **options)
    assert len(set(whole)) > 10
    assert driven(rule, 60, with_loss, restart=23, **options) == whole


# -- SimiGrad -----------------------------------------------------------------------------------------


def test_simigrad_takes_its_sources_steps():
    """int(1.1 B) and int(0.9 B), one sample at least: worked out by hand. Target 0.2, cap 256, from 128."""
    signs = [-1] * 8 + [1] * 6 + [0] + [-1] * 2
    expected = [128, 140, 154, 169, 185, 203, 223, 245, 256, 230, 207, 186, 167, 150, 135, 135, 148]

    def observe(k, batch, lr):
        return Noise(batch, 4, 1.0, 1.0, cosine=0.2 + 0.1 * signs[k]), None

    found = driven(SimiGrad(0.2), len(signs), observe, base_batch=128, max_batch=256, shrink=True)
    assert found == expected


@pytest.mark.parametrize(
    "batch, grown, shrunk", [(1, 2, 1), (5, 6, 4), (9, 10, 8), (10, 11, 9), (19, 20, 17), (30, 33, 27)]
)
def test_simigrad_moves_by_one_sample_at_least(batch, grown, shrunk):
    rule = SimiGrad(0.2)
    rule.bind(FRAME)
    assert rule.wish(seen(batch, Noise(batch, 4, 1.0, 1.0, cosine=0.1))) == grown
    assert rule.wish(seen(batch, Noise(batch, 4, 1.0, 1.0, cosine=0.3))) == shrunk
    assert rule.wish(seen(batch, Noise(batch, 4, 1.0, 1.0, cosine=0.2))) is None
    assert rule.wish(seen(batch, Noise(batch, 4, 1.0, 1.0, cosine=math.nan))) is None


def test_simigrad_moves_by_one_multiple_at_least():
    """Otherwise a batch of 64 in multiples of 32 could never change."""

    def observe(k, batch, lr):
        return Noise(batch, 4, 1.0, 1.0, cosine=0.1 if k < 4 else 0.3), None

    options = dict(base_batch=64, multiple=32, shrink=True)
    assert driven(SimiGrad(0.2), 8, observe, **options) == [64, 96, 128, 160, 192, 160, 128, 96]


def test_simigrad_elsewhere_takes_the_cosine_expected_there():
    """|G|^2 / (|G|^2 + 2 tr(S) / B), of averages: for tr(S) = 600 and |G|^2 = 2 it is 0.25 at 200 samples."""
    noise, average = Noise(64, 2, 1.0, 1.0, cosine=0.99), averaged(600.0, 2.0)
    assert SimiGrad.cosine(seen(200, noise, average)) == pytest.approx(0.25)
    assert SimiGrad(0.24).wish(seen(200, noise, average)) == 180
    assert SimiGrad(0.26).wish(seen(200, noise, average)) == 220
    assert SimiGrad(0.26).wish(seen(200, noise, averaged(600.0, -2.0))) is None
    assert SimiGrad.cosine(seen(64, noise, average)) == 0.99


def test_simigrad_of_two_successive_batches():
    """A batch of one group has no halves: the cosine that the half of two such batches would have."""
    a, b = drawn(0, 40).mean(0), drawn(1, 40).mean(0)
    noise = Noise(40, 1, 40 * float((a - b).square().sum()) / 2, float(a @ b), True)
    expected = float(a @ b) / float(a @ b + (a - b).square().sum())
    assert SimiGrad.cosine(seen(40, noise, averaged(1.0, 1.0))) == pytest.approx(expected)


def test_the_expected_cosine_is_that_of_random_halves():
    """10,000 batches of 40 Gaussian gradients in 400 dimensions: the mean cosine within 2 %."""
    generator = torch.Generator().manual_seed(3)
    mean = torch.full((400,), 0.05, dtype=torch.float64)  # |G|^2 = 1, tr(S) = 400
    halves = mean + torch.randn(2, 10_000, 400, generator=generator, dtype=torch.float64) / math.sqrt(20)
    cosine = float(torch.cosine_similarity(halves[0], halves[1], dim=1).mean())
    assert SimiGrad.cosine(seen(40, Noise(40, 1, 400.0, 1.0, True))) == pytest.approx(cosine, rel=0.02)


def test_a_target_is_a_cosine():
    with pytest.raises(UserError, match="a cosine between -1 and 1, got 20"):
        SimiGrad(20)


# -- the options --------------------------------------------------------------------------------------

OPTIONS = {
    "norm_test": ("schedule.growth.theta=0.8",),
    "norm_test_debiased": ("schedule.growth.theta=1.5", "schedule.noise_horizon=400", "epochs=4"),
    "inner_product_test": ("schedule.growth.theta=0.3", "schedule.growth.nu=2"),
    "cabs": ("schedule.growth.c=400",),
    "simigrad": (),
}
TINY = (*SMALL, "epochs=2", "schedule.base_batch=16", "schedule.noise_group=8", "model.ghost=8",
        "checkpoint.every_seconds=0")  # fmt: skip


@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_is_its_rule_with_the_sources_defaults(option):
    config = resolved(f"schedule={option}")
    schedule = plan.schedule(config, 1437)
    rule = schedule.growth.rule
    expected = {
        "norm_test": (NormTest, dict(theta=0.5, debiased=False), False, 0),
        "norm_test_debiased": (NormTest, dict(theta=0.5, debiased=True), True, 0.1),
        "inner_product_test": (InnerProductTest, dict(theta=0.5, nu=None), False, 0),
        "cabs": (CABS, dict(c=1, eps=0, factor=1, floor=0, compat=None), True, 0),
        "simigrad": (SimiGrad, dict(target=0.2), True, 0),
    }[option]
    assert type(rule) is expected[0]
    assert {name: getattr(rule, name) for name in expected[1]} == expected[1]
    assert (schedule.growth.shrink, schedule.growth.hysteresis) == expected[2:]
    assert schedule.needs >= rule.needs


def sizes(folder):
    return [row["batch_size"] for row in runs.read_rows(folder) if row["event"] == "train"]


@pytest.mark.parametrize("option", OPTIONS)
def test_killed_after_a_decision_and_repeated_is_bitwise_equal(tmp_path, option):
    overrides = (*TINY, f"schedule={option}", *OPTIONS[option])
    run(tmp_path / "whole", *overrides)
    found = sizes(tmp_path / "whole")
    changes = [k for k in range(1, len(found) - 1) if found[k] != found[k - 1]]
    assert changes, "the rule decided nothing: this tests nothing"
    killed(tmp_path / "killed", *overrides, arrange=kill_at_step(changes[-1] + 1))
    run(tmp_path / "killed", *overrides)
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "whole")


@pytest.mark.parametrize("option", ["inner_product_test", "simigrad"])
def test_decisions_do_not_depend_on_the_micro_batch(tmp_path, option):
    """Float64; what a second pass and halves of groups say, too."""
    found = []
    for micro in (8, 4096):
        more = ("hardware.precision=fp64", f"hardware.micro_batch={micro}")
        run(tmp_path / str(micro), *TINY, f"schedule={option}", *OPTIONS[option], *more)
        found.append(sizes(tmp_path / str(micro)))
    assert len(set(found[0])) > 2 and found[0] == found[1]
