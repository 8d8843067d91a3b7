"""The measuring itself on problems whose per-sample gradients can be written down, in float64."""

import math

import pytest
import torch
from threads import together
from torch import nn

from adabatch import layers, optim
from adabatch.flat import Flat
from adabatch.hardware import Hardware
from adabatch.measure import Meter
from adabatch.noise import Average, Noise, differenced, estimate
from adabatch.schedules import Constant, Observation, closed_loop
from adabatch.schedules.rules import NoiseScale
from adabatch.schedules.setting import Setting
from adabatch.step import Step

ALL = frozenset({"trace", "sq_norm", "halves", "inner"})
SIZE, SAMPLES = 6, 400


class Given:
    """A stream of given samples, repeated without end."""

    def __init__(self, x, y):
        self.x, self.y = x, y

    def __len__(self):
        return len(self.x)

    def share(self, first, last, batch):
        pass

    def batch(self, start, stop):
        at = torch.arange(start, stop) % len(self.x)
        return self.x[at], self.y[at]


def half_square(outputs, y):
    return 0.5 * (outputs[:, 0] - y).square()


def linear_data():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(SAMPLES, SIZE, generator=generator, dtype=torch.float64)
    return x, x.sum(1) + torch.randn(SAMPLES, generator=generator, dtype=torch.float64)


def linear():
    model = nn.Linear(SIZE, 1, dtype=torch.float64)
    with torch.no_grad():
        model.weight.copy_(torch.linspace(-0.5, 1.0, SIZE)[None])
        model.bias.fill_(0.25)
    return model


def built(model=None, data=None, group=64, micro_batch=16, loss=half_square, hardware=None, **kwargs):
    """A step over `data` with a meter: (step, meter)."""
    torch.set_num_threads(1)
    model, data = model or linear(), data or linear_data()
    hardware = hardware or Hardware(device="cpu", precision="fp64", threads=1)
    micro = layers.MicroBatch(0)
    layers.bind(model, micro)
    flat = Flat(model, [list(model.named_parameters())])
    optimizer = optim.SGD([{"params": [v]} for v in flat.vectors()], lr=0.0)
    meter = Meter(flat, group, layers.ghost_size(model), **kwargs)
    step = Step(
        model, model, flat, optimizer, loss, Given(*data), hardware, micro, micro_batch, None, None, meter
    )
    return step, meter


def setting(batch, divisor=None):
    return Setting(batch, 0.0, divisor or batch)


def gradients(data, start, batch):
    """Per-sample gradients of the linear model by hand, (w x + b - y) (x, 1): float64 [batch, SIZE + 1]."""
    at = torch.arange(start, start + batch) % SAMPLES
    x, y = data[0][at], data[1][at]
    residual = x @ torch.linspace(-0.5, 1.0, SIZE).double() + 0.25 - y
    return residual[:, None] * torch.cat([x, torch.ones(batch, 1, dtype=torch.float64)], 1)


def by_hand(g, sizes):
    """The measurement from per-sample gradients, by the textbook: weighted variance between groups."""
    n = torch.tensor(sizes, dtype=torch.float64)
    means, batch = torch.stack([part.mean(0) for part in g.split(sizes)]), len(g)
    mean = g.mean(0)
    trace = (n[:, None] * (means - mean) ** 2).sum() / (len(sizes) - 1)
    first = sum(sizes[: len(sizes) // 2])
    cosine = torch.cosine_similarity(g[:first].sum(0), g[first:].sum(0), dim=0)
    inner = (n * (means @ mean - mean @ mean) ** 2).sum() / (len(sizes) - 1)
    return [float(v) for v in (trace, mean @ mean - trace / batch, cosine, inner)]


def read(noise):
    return [noise.trace, noise.sq_norm, noise.cosine, noise.inner]


CUTS = [
    (256, 64, [64, 64, 64, 64]),
    (199, 64, [64, 64, 71]),  # 7 are less than half a group: they join the last
    (231, 64, [64, 64, 64, 39]),
    (12, 1, [1] * 12),
]


@pytest.mark.parametrize("batch, group, sizes", CUTS)
@pytest.mark.parametrize("start", [0, 300])
def test_a_measurement_equals_the_one_from_per_sample_gradients(batch, group, sizes, start):
    step, _ = built(group=group)
    noise = step(start, setting(batch), ALL).noise
    expected = by_hand(gradients(linear_data(), start, batch), sizes)
    assert (noise.batch, noise.groups, noise.biased) == (batch, len(sizes), False)
    assert read(noise) == pytest.approx(expected, rel=1e-12)


def test_groups_of_one_sample_are_the_sample_variance():
    """tr(S) and Var_i<g_i, g> with divisor n - 1, as the sources of the tests compute them."""
    step, _ = built(group=1)
    noise = step(0, setting(12), ALL).noise
    g = gradients(linear_data(), 0, 12)
    assert noise.trace == pytest.approx(float(g.var(0, correction=1).sum()), rel=1e-12)
    assert noise.inner == pytest.approx(float((g @ g.mean(0)).var(correction=1)), rel=1e-12)


@pytest.mark.parametrize("micro_batch", [4, 16, 64])
def test_the_micro_batch_does_not_matter(micro_batch):
    reference = read(built(micro_batch=1000)[0](0, setting(231), ALL).noise)
    found = read(built(micro_batch=micro_batch)[0](0, setting(231), ALL).noise)
    assert found == pytest.approx(reference, rel=1e-10)


def test_the_divisor_does_not_matter():
    """The last batch of a run keeps the divisor that it would have had."""
    whole = read(built()[0](0, setting(231), ALL).noise)
    assert read(built()[0](0, setting(231, divisor=1000), ALL).noise) == pytest.approx(whole, rel=1e-12)


def ranks(world, work):
    """What `work(hardware)` returns on each of `world` ranks."""

    def rank(own):
        hardware = Hardware(device="cpu", precision="fp64", threads=1)
        hardware.ranks = own
        return work(hardware)

    return together(world, rank)


@pytest.mark.parametrize("world", [2, 3, 7])
def test_ranks_add_up_to_one_process(world):
    """Each rank goes through its own groups, both times; more ranks than groups leave some without any."""

    def work(hardware):
        step, meter = built(hardware=hardware)
        noise = step(0, setting(231), ALL).noise
        return read(noise), step.flat.grads

    whole, gradient = work(None)
    for found, reduced in ranks(world, work):
        assert found == pytest.approx(whole, rel=1e-12)
        assert torch.allclose(reduced, gradient, rtol=1e-12, atol=0)


@pytest.mark.parametrize("world", [2, 3])
def test_decisions_do_not_depend_on_the_number_of_ranks(world):
    """60 steps of training under a rule that measures every one; float64, every rank decides for itself."""

    def work(hardware):
        step, _ = built(hardware=hardware, group=8)
        schedule = closed_loop(
            samples=SAMPLES, epochs=50, growth=NoiseScale(30.0), decay=Constant(), base_batch=16,
            base_lr=0.02, scaling="none", shrink=True, noise_horizon=2000,
        )  # fmt: skip
        position, sizes = 0, []
        for _ in range(60):
            chosen = schedule(position)
            result = step(position, chosen, schedule.measures(position, chosen))
            schedule.observe(Observation(position, chosen, noise=result.noise))
            position += chosen.batch_size
            sizes.append(chosen.batch_size)
        return sizes, step.flat.params.clone()

    whole, weights = work(None)
    assert len(set(whole)) > 5, "the rule decided nothing: this tests nothing"
    for sizes, reached in ranks(world, work):
        assert sizes == whole
        assert torch.allclose(reached, weights, rtol=1e-10, atol=0)


def gradient(needs, **kwargs):
    step, meter = built(**kwargs)
    step(0, setting(231), needs)
    return step.flat.grads.clone()


@pytest.mark.parametrize("needs", [frozenset({"trace", "sq_norm"}), ALL], ids=["norms", "all"])
def test_measuring_does_not_change_the_gradient(needs):
    plain, measured = gradient(frozenset()), gradient(needs)
    assert plain.abs().max() > 0.01
    assert float((measured - plain).abs().max()) <= 1e-12 * float(plain.abs().max())


def test_the_second_pass_leaves_the_gradient_bit_for_bit():
    assert torch.equal(gradient(ALL), gradient(ALL - {"inner"}))


def small_network():
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Linear(SIZE, 8), layers.GhostBatchNorm(8, ghost=8), nn.BatchNorm1d(8), nn.Dropout(0.3),
        layers.Dropout(0.3), nn.Linear(8, 1),
    ).double()  # fmt: skip


def everything(step):
    state = {name: t.clone() for name, t in step.model.state_dict().items()}
    return state | {"generator": torch.get_rng_state(), "pending": step.flat.pending.clone()}


def test_a_probe_changes_nothing():
    """Weights, running statistics, the count of plain batch norm and torch's generator, bit for bit."""
    step, meter = built(small_network(), group=16)
    step(0, setting(64), ALL)
    torch.manual_seed(11)
    before = everything(step)
    noise = step.probe(64, setting(80), ALL, meter)
    after = everything(step)
    assert noise.trace > 0 and noise.inner > 0 and -1 < noise.cosine < 1
    assert [name for name in before if not torch.equal(before[name], after[name])] == []


def test_the_second_pass_of_a_training_step_records_nothing():
    """The step's statistics and the generator are those of one pass."""
    states = []
    for needs in (ALL - {"inner"}, ALL):
        step, _ = built(small_network(), group=16)
        torch.manual_seed(11)
        step(0, setting(80), needs)
        states.append(everything(step))
    one, two = states
    assert [name for name in one if not torch.equal(one[name], two[name])] == []


def test_a_probe_of_a_training_batch_measures_what_the_step_measures():
    step, meter = built(group=64)
    probed = step.probe(0, setting(231), ALL, meter)
    assert read(probed) == read(step(0, setting(231), ALL).noise)


def test_two_batches_of_one_group_are_differenced():
    step, meter = built(group=64)
    assert step(0, setting(40), ALL).noise is None
    noise = step(40, setting(40), ALL).noise
    a, b = (gradients(linear_data(), start, 40).mean(0) for start in (0, 40))
    assert noise.biased and noise.groups == 1 and noise.batch == 40
    assert noise.trace == pytest.approx(40 * float((a - b).square().sum()) / 2, rel=1e-12)
    assert noise.sq_norm == pytest.approx(float(a @ b), rel=1e-12)
    mean = (a + b) / 2  # the two batches as two groups, projected on their mean
    found = torch.stack([a @ mean, b @ mean])
    assert noise.inner == pytest.approx(40 * float(found.var(correction=1)), rel=1e-10)
    assert noise.raw(80) == pytest.approx(float(mean @ mean), rel=1e-12)
    assert step(80, setting(50), ALL).noise is None  # of another size
    assert step(200, setting(50), ALL).noise is None  # not where the last one ended
    assert built(differenced=False)[0](0, setting(40), ALL).noise is None


def test_the_batch_before_survives_a_checkpoint():
    step, meter = built()
    step(0, setting(40), ALL)
    state = meter.state_dict()
    other, restored = built()
    restored.load_state_dict(state)
    assert other(40, setting(40), ALL).noise == step(40, setting(40), ALL).noise


def test_parts_sum_to_the_whole():
    model = linear()
    step, _ = built(model)
    flat = Flat(model, [[("weight", model.weight)], [("bias", model.bias)]])
    step.flat = flat
    step.meter = Meter(flat, 64, 1)
    noise = step(0, setting(231), ALL).noise
    g = gradients(linear_data(), 0, 231)
    for part, columns in zip(noise.parts, (slice(0, SIZE), slice(SIZE, None)), strict=True):
        assert list(part) == pytest.approx(by_hand(g[:, columns], [64, 64, 64, 39])[:2], rel=1e-12)
    total = [sum(part[i] for part in noise.parts) for i in (0, 1)]
    assert total == pytest.approx([noise.trace, noise.sq_norm], rel=1e-12)


def test_the_preconditioned_metric_is_that_of_adam():
    """1 / (sqrt(v_hat) + eps), v_hat kept here by hand from Adam's definition, over three steps."""
    model = linear()
    step, _ = built(model)
    beta, eps = 0.9, 1e-3
    step.optimizer = torch.optim.Adam(model.parameters(), betas=(0.5, beta), eps=eps)
    metric = optim.preconditioner(step.optimizer, step.flat)
    step.meter = Meter(step.flat, 64, 1, metric=metric)
    assert metric() is None and step(0, setting(231), ALL).noise is None  # no second moments yet
    second = (1 - beta) * gradients(linear_data(), 0, 231).mean(0) ** 2
    for updates, start in ((1, 231), (2, 462), (3, 693)):
        scale = 1 / ((second / (1 - beta**updates)).sqrt() + eps)
        noise = step(start, setting(231), ALL).noise
        g = gradients(linear_data(), start, 231)  # lr = 0: the weights stay
        assert read(noise) == pytest.approx(by_hand(g * scale, [64, 64, 64, 39]), rel=1e-10)
        second = beta * second + (1 - beta) * g.mean(0) ** 2


def gaussian(seed, groups, samples, spread, mean):
    """Means of `samples` gradients each of a normal distribution: [groups, d]."""
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randn(groups, len(mean), generator=generator, dtype=torch.float64)
    return mean + draws * spread / torch.tensor(samples, dtype=torch.float64).sqrt()[:, None]


class Sum(nn.Module):
    """Loss x . w: the gradient of a sample is the sample."""

    def __init__(self, size):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(size, dtype=torch.float64))

    def forward(self, x):
        return (x @ self.weight)[:, None]


@pytest.mark.parametrize("batch", [32, 28], ids=["8,8,8,8", "8,8,12"])
def test_measurements_are_unbiased(batch):
    """Gaussian gradients, covariance diag(s^2), 800 batches, within 4 standard errors of E tr(S) = sum s^2,
    E |G|^2 = |mean|^2, and E Var<g_i, g> = sum s^2 mean^2 + sum s^4 / B (g is drawn too)."""
    spread = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    mean = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64)
    repeats = 800
    generator = torch.Generator().manual_seed(5)
    x = mean + spread * torch.randn(repeats * batch, 3, generator=generator, dtype=torch.float64)
    step, _ = built(
        Sum(3), (x, torch.zeros(len(x))), group=8, micro_batch=1000, loss=lambda outputs, y: outputs[:, 0]
    )
    found = [step(i * batch, setting(batch), ALL).noise for i in range(repeats)]
    table = torch.tensor([[n.trace, n.sq_norm, n.inner] for n in found], dtype=torch.float64)
    variance = spread**2
    expected = torch.stack(
        [variance.sum(), mean @ mean, (variance * mean**2).sum() + (variance**2).sum() / batch]
    )
    errors = table.std(0) / math.sqrt(repeats)
    assert (errors < 0.1 * torch.stack([expected[0], expected[0], expected[2]])).all()  # it can tell
    assert ((table.mean(0) - expected).abs() < 4 * errors).all(), (table.mean(0), expected, errors)


def test_unequal_groups_need_the_weights():
    """Groups 64, 64, 64, 7: the formula for equal groups of B / K samples would be far off (4 standard
    errors of 4,000 draws)."""
    sizes = [64, 64, 64, 7]
    mean, spread = torch.zeros(50, dtype=torch.float64), torch.ones(50, dtype=torch.float64)
    n, batch = torch.tensor(sizes, dtype=torch.float64), sum(sizes)
    right, wrong = [], []
    for seed in range(4000):
        g = gaussian(seed, 4, sizes, spread, mean)
        small, large = float((n / batch) @ g.square().sum(1)), float(((n / batch) @ g).square().sum())
        right.append(estimate(small, large, batch, 4)[0])
        equal = float(g.square().sum(1).mean()), float(g.mean(0).square().sum())
        wrong.append(estimate(*equal, batch, 4)[0])
    right, wrong = torch.tensor(right), torch.tensor(wrong)
    assert abs(float(right.mean()) - 50) < 4 * float(right.std()) / math.sqrt(4000)
    assert float(wrong.mean()) == pytest.approx(50 * (3 / 64 + 1 / 7) * 3 / 16 * batch / 3, rel=0.02)  # 118


def test_an_estimate_needs_two_groups():
    with pytest.raises(ValueError, match="two groups or more, got 1"):
        estimate(1.0, 1.0, 32, 1)


# -- averages -----------------------------------------------------------------------------------------


def noisy(trace, sq_norm, biased=False):
    return Noise(32, 4, trace, sq_norm, biased)


def test_an_average_is_the_weighted_sum():
    """Weights (1 - exp(-n_k / H)) exp(-(samples since) / H), divided by their sum: written out."""
    generator = torch.Generator().manual_seed(2)
    elapsed = torch.randint(1, 400, (300,), generator=generator).tolist()
    values = torch.randn(300, 2, generator=generator, dtype=torch.float64)
    average, horizon = Average(2000.0), 2000.0
    for (trace, sq_norm), n in zip(values.tolist(), elapsed):
        average.add(noisy(trace, sq_norm), n)
    since = [sum(elapsed[k + 1 :]) for k in range(300)]
    weights = torch.tensor(
        [(1 - math.exp(-n / horizon)) * math.exp(-after / horizon) for n, after in zip(elapsed, since)],
        dtype=torch.float64,
    )
    expected = (weights[:, None] * values).sum(0) / weights.sum()
    assert [average.trace, average.sq_norm] == pytest.approx(expected.tolist(), rel=1e-9)


@pytest.mark.parametrize("count", [20, 100, 500])
def test_the_standard_error_is_roughly_the_spread_of_averages(count):
    """Independent measurements: the root mean square of the error over 200 runs within 25 % of the standard
    deviation of the 200 averages (its own error is 1 / sqrt(400) = 5 %; batch means lose a little)."""
    generator = torch.Generator().manual_seed(4)
    values = torch.randn(200, count, generator=generator, dtype=torch.float64).tolist()
    ends, errors = [], []
    for run in values:
        average = Average(100 * 32)
        for value in run:
            average.add(noisy(1.0, value), 32)
        ends.append(average.sq_norm)
        errors.append(average.error())
    spread = float(torch.tensor(ends).std())
    assert math.sqrt(sum(e * e for e in errors) / 200) == pytest.approx(spread, rel=0.25)


def test_no_signal_stays_unresolved():
    """|G|^2 = 0: over 400 runs, at most 8 % may be called resolved by chance (2.3 % for a known normal
    error, more for one estimated from few buckets); a signal of 10 errors is always resolved."""
    generator = torch.Generator().manual_seed(6)
    values = torch.randn(400, 120, generator=generator, dtype=torch.float64)
    false, true = 0, 0
    for run in values.tolist():
        none, some = Average(100 * 32), Average(100 * 32)
        for value in run:
            none.add(noisy(1.0, value), 32)
            some.add(noisy(1.0, value + 1.0), 32)
        false, true = false + none.resolved, true + some.resolved
        assert (none.scale is None) == (not none.resolved)
    assert false <= 0.08 * 400 and true == 400


def test_too_few_measurements_are_unresolved():
    average = Average(1000.0)
    for _ in range(3):
        average.add(noisy(2.0, 1.0), 32)
        assert average.error() == math.inf and average.scale is None
    average.add(noisy(2.0, 1.0), 32)
    assert average.scale == pytest.approx(2.0)


def test_unbiased_measurements_drive_biased_ones_out():
    average = Average(1000.0)
    assert average.trace is None and average.scale is None
    for _ in range(5):
        average.add(differenced(4.0, 3.0, 32), 32)
    assert average.trace == pytest.approx(64) and average.biased
    average.add(noisy(2.0, 1.0), 32)
    assert average.trace == pytest.approx(2.0) and not average.biased
    average.add(differenced(4.0, 3.0, 32), 32)
    assert average.trace == pytest.approx(2.0)


def test_an_average_goes_on_from_its_state():
    generator = torch.Generator().manual_seed(7)
    values = torch.randn(500, generator=generator, dtype=torch.float64).tolist()
    whole, first = Average(3000.0), Average(3000.0)
    for value in values[:211]:
        whole.add(noisy(1.0, value), 32)
        first.add(noisy(1.0, value), 32)
    second = Average(3000.0)
    second.load_state_dict(first.state_dict())
    for value in values[211:]:
        whole.add(noisy(1.0, value), 32)
        second.add(noisy(1.0, value), 32)
    assert second.state_dict() == whole.state_dict() and second.error() == whole.error()
