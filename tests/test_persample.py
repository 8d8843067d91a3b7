"""Gradients of single samples against a loop of backward passes, and the diversity of an epoch against direct
computation."""

import copy
import math

import numpy as np
import pytest
import torch
from support import SMALL, killed, outcome, run
from test_train import kill_at_step
from torch import nn

from adabatch import layers, runs
from adabatch.errors import UserError
from adabatch.flat import Flat
from adabatch.losses import cross_entropy
from adabatch.persample import Singles, squared_norms
from adabatch.schedules import Setting

NEEDS = frozenset({"per_sample", "epoch_sum"})


def network(seed=0):
    """Float64, every kind of layer that treats a sample otherwise in training."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), layers.GhostBatchNorm(6, ghost=4), nn.ReLU(), layers.Dropout(0.5),
        nn.Conv2d(6, 4, 3), layers.PlainBatchNorm(4), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(144, 5),
    ).double()  # fmt: skip
    for layer in (model[1], model[5]):
        layer.running_mean.normal_()
        layer.running_var.uniform_(0.5, 2.0)
    return model.train()


def batch(n=7):
    g = torch.Generator().manual_seed(1)
    x = torch.randn(n, 2, 8, 8, generator=g, dtype=torch.float64)
    return x, torch.randint(0, 5, (n,), generator=g)


def smoothed(outputs, labels):
    return cross_entropy(outputs, labels, label_smoothing=0.1)


def one_by_one(model, loss, x, y):
    """[(name -> gradient)] by a backward pass per sample."""
    model = copy.deepcopy(model).eval()
    found = []
    for i in range(len(x)):
        model.zero_grad()
        loss(model(x[i : i + 1]), y[i : i + 1]).sum().backward()
        found.append({name: p.grad.clone() for name, p in model.named_parameters()})
    return found


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_norms_and_sums_are_those_of_a_loop_over_samples(chunk):
    model, (x, y) = network(), batch()
    sums = {name: torch.ones_like(p) for name, p in model.named_parameters()}
    norms = squared_norms(model, smoothed, x, y, chunk, sums)
    expected = one_by_one(model, smoothed, x, y)
    assert norms.dtype == torch.float64 and norms.shape == (7,)
    for norm, gradient in zip(norms.tolist(), expected):
        assert norm == pytest.approx(sum(float(g.square().sum()) for g in gradient.values()), rel=1e-10)
    for name, total in sums.items():
        direct = 1 + sum(g[name] for g in expected)
        assert (total - direct).abs().max() <= 1e-10 * direct.abs().max()


def test_nothing_is_left_behind():
    model, (x, y) = network(), batch()
    model[3].eval()  # a layer that its owner has frozen stays so
    for i, p in enumerate(model.parameters()):
        p.grad = torch.full_like(p, float(i))
    before, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    grads, generator = [p.grad.clone() for p in model.parameters()], torch.get_rng_state()
    squared_norms(model, smoothed, x, y, 3)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert [m.training for m in model.modules()] == modes and not model[3].training
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), grads))
    assert torch.equal(torch.get_rng_state(), generator)


class Branching(nn.Linear):
    def forward(self, x):
        return super().forward(x) * (2 if x.sum().item() > 0 else 1)


class Random(nn.Linear):
    def forward(self, x):
        return super().forward(nn.functional.dropout(x, 0.5, training=True))


@pytest.mark.parametrize("kind", [Branching, Random])
def test_a_network_that_cannot_be_taken_sample_by_sample_is_refused(kind):
    model = kind(3, 5).double()
    with pytest.raises(UserError, match=f"{kind.__name__} is none.*schedule=divebatch"):
        squared_norms(model, cross_entropy, torch.randn(4, 3, dtype=torch.float64), torch.zeros(4).long(), 2)
    assert model.training


# -- an epoch --------------------------------------------------------------------------------------


def regression(n):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, 3))
    return x, x @ [1.0, -2.0, 0.5] + 0.3 * rng.normal(size=n)


class Descent:
    """Gradient descent on (w x - y)^2 / 2 in numpy, and Singles on the same weights in torch."""

    def __init__(self, samples):
        self.model = nn.Linear(3, 1, bias=False).double()
        nn.init.ones_(self.model.weight)
        self.flat = Flat(self.model, [list(self.model.named_parameters())])
        self.singles, self.w = Singles(self.flat, samples), np.ones(3)

    def step(self, start, x, y, parts=1):
        """(the measurement, gradients of the samples [n, 3])"""
        self.singles.begin()
        for a, b in zip(np.array_split(x, parts), np.array_split(y, parts)):
            self.singles.add(
                self.model, lambda out, t: (out[:, 0] - t).square() / 2, torch.tensor(a), torch.tensor(b)
            )
        noise = self.singles.finish(start, Setting(len(x), 0.1, len(x)), NEEDS, None)
        gradients = (x @ self.w - y)[:, None] * x
        self.w = self.w - 0.1 * gradients.mean(0)
        with torch.no_grad():
            self.model.weight.copy_(torch.tensor(self.w))
        return noise, gradients


def test_diversity_of_an_epoch_along_moving_weights_is_that_of_direct_computation():
    """Batches of 6 over epochs of 20: the first belongs 0, 6, 12, 18, the second 24, 30, 36."""
    x, y = regression(48)
    run_, taken = Descent(20), {}
    for start in range(0, 48, 6):
        rows = slice(start, start + 6)
        noise, gradients = run_.step(start, x[rows], y[rows], parts=1 + start // 6 % 3)
        taken.setdefault(start // 20, []).append(gradients)
        assert noise.per_sample == pytest.approx((gradients**2).sum(1).mean(), rel=1e-12)
        trace = gradients.var(0, ddof=1).sum()
        assert noise.trace == pytest.approx(trace, rel=1e-10)
        assert noise.sq_norm == pytest.approx((gradients.mean(0) ** 2).sum() - trace / 6, rel=1e-10)
        if start in (18, 36):
            whole = np.concatenate(taken[start // 20])
            expected = (whole**2).sum() / (whole.sum(0) ** 2).sum()
            assert noise.diversity == pytest.approx(expected, rel=1e-10)
        else:
            assert noise.diversity is None


def test_an_epoch_that_ends_short_is_known_with_the_next_ones_first_batch():
    """compat=nvlabs drops the tail: batches of 8 at 0, 8 and, of the next epoch of 20, at 20."""
    x, y = regression(28)
    run_ = Descent(20)
    noises = [run_.step(start, x[start : start + 8], y[start : start + 8]) for start in (0, 8, 20)]
    whole = np.concatenate([gradients for _, gradients in noises[:2]])
    assert [noise.diversity for noise, _ in noises[:2]] == [None, None]
    assert noises[2][0].diversity == pytest.approx((whole**2).sum() / (whole.sum(0) ** 2).sum(), rel=1e-10)


def test_gradients_that_cancel_have_infinite_diversity():
    run_ = Descent(2)
    noise, _ = run_.step(0, np.ones((2, 3)), np.array([2.0, 4.0]))  # residuals 1 and -1
    assert math.isinf(noise.diversity) and noise.per_sample == pytest.approx(3, rel=1e-12)


def test_one_sample_has_no_variance_and_spoils_no_average():
    x, y = regression(3)
    noise, gradients = Descent(20).step(0, x[:1], y[:1])
    assert (noise.trace, noise.biased) == (0.0, True)
    assert noise.sq_norm == pytest.approx((gradients**2).sum(), rel=1e-12)


def test_the_sum_of_an_epoch_goes_round_through_its_state():
    x, y = regression(20)
    whole, cut = Descent(20), Descent(20)
    for start in (0, 5, 10, 15):
        rows = slice(start, start + 5)
        expected, _ = whole.step(start, x[rows], y[rows])
        state = copy.deepcopy(cut.singles.state_dict())
        cut.singles = Singles(cut.flat, 20)
        cut.singles.load_state_dict(state)
        found, _ = cut.step(start, x[rows], y[rows])
        assert found == expected
    assert expected.diversity is not None


# -- runs ------------------------------------------------------------------------------------------

EXACT = (
    *SMALL,
    "epochs=3",
    "schedule=divebatch_exact",
    "schedule.base_batch=16",
    "schedule.growth.resize=1",
    "schedule.growth.delta=0.2",
    "hardware.precision=fp64",
    "model.ghost=8",
    "checkpoint.every_seconds=0",
)


def train_rows(folder):
    return [row for row in runs.read_rows(folder) if row["event"] == "train"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exact") / "whole"
    run(folder, *EXACT)
    return folder


def test_a_run_decides_at_the_end_of_epochs_by_the_definition(whole):
    """int(min(max(delta n Delta, B), B_max)) for Delta as logged, from the batch after the epoch's end."""
    rows, batch = train_rows(whole), 16
    ends = [i for i, row in enumerate(rows) if "diversity" in row]
    crossed = [
        i for i, r in enumerate(rows) if r["position"] // 300 > (r["position"] - r["batch_size"]) // 300
    ]
    assert ends == crossed and len(ends) == 3
    for i in ends[:-1]:
        batch = int(min(max(0.2 * 300 * rows[i]["diversity"], batch), 300))
        assert rows[i + 1].get("divisor", rows[i + 1]["batch_size"]) == batch
    assert batch > 16, "the rule decided nothing: this tests nothing"


@pytest.mark.parametrize("where", ["inside the first epoch", "inside the second", "at its change"])
def test_killed_in_the_middle_of_an_epoch_and_repeated_is_bitwise_equal(whole, tmp_path, where):
    rows = train_rows(whole)
    end = next(i for i, row in enumerate(rows) if "diversity" in row)
    number = {"inside the first epoch": end // 2, "inside the second": end + 4, "at its change": end + 2}[
        where
    ]
    killed(tmp_path, *EXACT, arrange=kill_at_step(number))  # steps are counted from 1
    run(tmp_path, *EXACT)
    assert outcome(tmp_path) == outcome(whole)


def test_measuring_single_samples_does_not_touch_training(whole, tmp_path):
    """The first epoch's losses are those of a fixed batch, bit for bit."""
    run(tmp_path, *(o for o in EXACT if "schedule" not in o), "schedule=fixed", "schedule.base_batch=16",
        "epochs=1", "hardware.precision=fp64")  # fmt: skip
    fixed = [row["train_loss"] for row in train_rows(tmp_path) if row["position"] <= 60]
    assert fixed == [row["train_loss"] for row in train_rows(whole)[: len(fixed)]] and len(fixed) > 2


def test_the_micro_batch_changes_no_decision(whole, tmp_path):
    run(tmp_path, *EXACT, "hardware.micro_batch=8")
    a, b = train_rows(whole), train_rows(tmp_path)
    assert a[0]["micro_batch"] == 16 and b[0]["micro_batch"] == 8
    assert [r["batch_size"] for r in a] == [r["batch_size"] for r in b]
    assert len({r["batch_size"] for r in a}) > 2
    for one, other in zip(a, b):
        assert ("diversity" in one) == ("diversity" in other)
        for name in {"per_sample", "diversity"} & set(one):
            assert one[name] == pytest.approx(other[name], rel=1e-9)
