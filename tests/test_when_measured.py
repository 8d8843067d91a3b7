"""Which steps of a closed loop measure the gradient: a function of position and batch, known in advance."""

import statistics

import pytest

from adabatch.schedules import Constant, closed_loop
from adabatch.schedules.measuring import Measuring
from adabatch.schedules.rules import NoiseScale


@pytest.mark.parametrize("every, due", [(0, [0, 10, 20, 30, 40]), (25, [20, 40]), (10, [0, 10, 20, 30, 40])])
def test_a_step_measures_if_it_ends_at_or_passes_a_multiple(every, due):
    schedule = closed_loop(
        samples=100, epochs=1, growth=NoiseScale(), decay=Constant(), base_batch=10, base_lr=1.0,
        measure_every=every,
    )  # fmt: skip
    found = [start for start in range(0, 50, 10) if schedule.measures(start, schedule(start))]
    assert found == due


def measuring(starts: range, horizon: float, batch: int, **more) -> list[int]:
    """The steps, counted from 0, that measure by default."""
    loop = Measuring(None, 32, horizon, False, **more)
    return [k for k, start in enumerate(starts) if loop.due(start, batch)]


def test_by_default_every_step_measures_at_first_and_every_tenth_later():
    """Written out for batches of 32: distances of the largest power of two in position / 32 samples, so one
    step up to 64, two up to 128, four, eight, and ten batches from the 512th step on."""
    found = measuring(range(0, 32 * 2000, 32), 10**6, 32)
    right = [*range(64), *range(65, 128, 2), *range(131, 256, 4), *range(263, 512, 8), *range(519, 2000, 10)]
    assert [k for k in found if k < 512] == [k for k in right if k < 512]
    late = [k for k in found if k >= 512]
    assert {b - a for a, b in zip(late, late[1:])} == {10} and len(found) / 2000 < 0.16


def test_the_distance_of_measurements_follows_the_batch_and_leaves_eight_in_a_horizon():
    for batch, apart in ((64, 10), (400, 10), (800, 5), (4_000, 1), (10_000, 1)):
        found = measuring(range(10**6, 10**6 + 400 * batch, batch), 32_000, batch)
        gaps = [b - a for a, b in zip(found, found[1:])]
        assert max(gaps) * batch <= max(batch, min(10 * batch, 32_000 / 8))
        assert statistics.median(gaps) == apart


@pytest.mark.parametrize("every", (None, 0, 100, 1000))
@pytest.mark.parametrize(
    "start, batch, steps", ((0, 32, 5000), (7_000, 48, 300), (40_000, 512, 1), (3, 7, 0))
)
def test_how_many_steps_measure_is_known_in_advance(every, start, batch, steps):
    """By counting; a count is rounded down once, and distances change once for each doubling."""
    loop = Measuring(every, 8, 32_000, False)
    counted = sum(loop.due(start + k * batch, batch) for k in range(steps))
    assert abs(loop.times(start, batch, steps) - counted) <= (8 if every is None else 1)
