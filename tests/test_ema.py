"""The average of the weights against its closed form."""

from types import SimpleNamespace

import pytest
import torch

from adabatch.ema import Average
from adabatch.errors import UserError


def flat(dtype=torch.float64, n=50):
    generator = torch.Generator().manual_seed(0)
    return SimpleNamespace(
        params=torch.randn(n, generator=generator, dtype=dtype),
        running=torch.rand(7, generator=generator, dtype=dtype),
    )


def test_constant_weights_are_approached_by_halves_whatever_the_batches():
    """mean = target + (start - target) 0.5^(samples / half-life), for any cut of the samples into batches."""
    for sizes in ([1000], [1] * 1000, [128, 300, 572]):
        weights = flat()
        start = [weights.params.clone(), weights.running.clone()]
        average = Average(weights, 1000)
        weights.params.fill_(3.0)
        weights.running.fill_(-2.0)
        for size in sizes:
            average.update(size)
        for mean, first, target in zip(average.mean, start, (3.0, -2.0), strict=True):
            assert (mean - (first + target) / 2).abs().max() < 1e-12  # one half-life: half way


def test_moving_weights():
    """After k updates the mean is the sum of (1 - d) d^(k - i) w_i, and d^k of the start."""
    weights, d = flat(), 0.5 ** (64 / 500)
    average = Average(weights, 500)
    history = [weights.params.clone()]
    for i in range(30):
        weights.params += torch.sin(torch.arange(50) * 0.7 + i)
        history.append(weights.params.clone())
        average.update(64)
    expected = d**30 * history[0] + sum((1 - d) * d ** (30 - i) * w for i, w in enumerate(history) if i)
    assert (average.mean[0] - expected).abs().max() < 1e-12


def test_weights_are_not_touched_by_an_update():
    weights = flat()
    before = weights.params.clone()
    average = Average(weights, 10)
    average.mean[0].zero_()
    average.update(5)
    assert torch.equal(weights.params, before)


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_in_place_and_back_bitwise(fails, dtype):
    weights = flat(dtype)
    view = weights.params[3:9]  # as a network's parameter is
    average = Average(weights, 100)
    weights.params.mul_(1.7)
    weights.running.add_(0.3)
    average.update(50)
    before, mean = [weights.params.clone(), weights.running.clone()], [t.clone() for t in average.mean]
    try:
        with average.in_place():
            assert torch.equal(weights.params, mean[0]) and torch.equal(weights.running, mean[1])
            assert torch.equal(view, mean[0][3:9])
            if fails:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        assert fails
    assert torch.equal(weights.params, before[0]) and torch.equal(weights.running, before[1])
    assert all(torch.equal(a, b) for a, b in zip(average.mean, mean, strict=True))


def test_state_round_trip():
    weights = flat()
    average = Average(weights, 100)
    weights.params.mul_(2)
    average.update(30)
    state = {"mean": [t.clone() for t in average.state_dict()["mean"]]}
    other = Average(weights, 100)
    other.load_state_dict(state)
    for each in (average, other):
        each.update(64)
    assert all(torch.equal(a, b) for a, b in zip(average.mean, other.mean, strict=True))


@pytest.mark.parametrize("half_life", [0, -5, float("nan")])
def test_a_half_life_is_positive(half_life):
    with pytest.raises(UserError, match="above 0"):
        Average(flat(), half_life)
