"""Which steps of a closed loop measure the gradient: a function of position and batch, known in advance."""

import pytest
from support import resolved

from adabatch.errors import UserError
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


def measuring(starts, horizon: float, batch: int, **more) -> list[int]:
    """The steps, counted from 0, that measure by "auto"."""
    loop = Measuring("auto", 32, horizon, **{"differenced": False} | more)
    return [k for k, start in enumerate(starts) if loop.due(start, batch)]


def test_every_step_measures_at_first_and_every_16th_later():
    """Written out for batches of 32 and their positions: the largest power of two in position / 32 samples,
    so every step up to the 64th, every second up to the 128th, and so on; 16 batches from the 512th on."""
    found = measuring(range(0, 32 * 2000, 32), 10**6, 32)
    right = [*range(64), *range(65, 128, 2), *range(131, 256, 4), *range(263, 512, 8), *range(527, 2000, 16)]
    assert found == right


def test_where_a_batch_is_one_group_two_in_a_row_measure():
    found = measuring(range(0, 32 * 600, 32), 10**6, 32, differenced=True)
    # The second of two begins where the first ends, at the multiple; 255 and 256 are the last two of every
    # fourth.
    assert [k for k in found if k >= 256] == sorted(
        [256, *range(263, 512, 8), *range(264, 513, 8), *range(527, 600, 16), *range(528, 600, 16)]
    )


def test_the_distance_of_measurements_follows_the_batch_and_leaves_eight_in_a_horizon():
    """In samples: between 8 and 16 batches, but no more than 2,048 (the power of two in 32,000 / 8)."""
    for batch, apart in ((48, 512), (64, 1024), (100, 1024), (127, 1024), (128, 2048), (500, 2048)):
        found = measuring(range(2**20, 2**20 + 400 * batch, batch), 32_000, batch)
        gaps = [(b - a) * batch for a, b in zip(found, found[1:])]
        assert apart - batch < min(gaps) and max(gaps) < apart + batch
    for batch in (2_048, 10_000):
        assert len(measuring(range(2**20, 2**20 + 400 * batch, batch), 32_000, batch)) == 400


def test_a_batch_that_grows_at_every_step_is_measured_all_along():
    """Batches of position / 100: the distance of two measurements stays below 16 of them and one more."""
    loop, position, last = Measuring("auto", 32, 10**9, False), 10_000, 10_000
    while position < 10**6:
        batch = position // 100
        if loop.due(position, batch):
            last = position + batch
        position += batch
        assert position - last <= 17 * batch


def test_dropped_tails_of_epochs_do_not_hide_all_measurements():
    """4,000 samples of which 3,584 pass, in batches of 512: multiples of 4,000 would lie in the tails."""
    starts = [4_000 * epoch + 512 * k for epoch in range(100) for k in range(7)]
    found = [starts[k] for k in measuring(starts, 32_000, 512)]
    assert max(b - a for a, b in zip(found, found[1:])) <= 3 * 4_096


@pytest.mark.parametrize("every", ("auto", 0, 100, 1000))
@pytest.mark.parametrize("start, batch, steps", ((0, 32, 5000), (7_000, 48, 300), (3, 7, 0), (0, 5_000, 40)))
def test_how_many_steps_measure_is_known_in_advance(every, start, batch, steps):
    """By counting: rounded down once, and once more where the distance changes, at each doubling."""
    loop = Measuring(every, 8, 32_000, False)
    counted = sum(loop.due(start + k * batch, batch) for k in range(steps))
    assert abs(loop.times(start, batch, steps) - counted) <= (8 if every == "auto" and steps > 40 else 1)


RULES = (
    "noise_scale",
    "norm_test",
    "norm_test_debiased",
    "inner_product_test",
    "cabs",
    "divebatch",
    "simigrad",
)


@pytest.mark.parametrize("rule", (*RULES, "adascale"))
def test_every_rule_on_moments_takes_a_number_or_auto(rule):
    for every in ("auto", "0", "64", "2.5"):
        tree = resolved(f"schedule={rule}", f"schedule.measure_every={every}")
        assert str(tree["schedule"]["measure_every"]) == every
    for every in ("often", "null", "true", "-1", "[64]"):
        with pytest.raises(UserError, match="measure_every"):
            resolved(f"schedule={rule}", f"schedule.measure_every={every}")


def test_a_sum_over_an_epoch_measures_every_step_whoever_drives():
    tree = resolved("schedule=noise_scale", "shadow=[divebatch_exact,norm_test]")
    assert tree["shadow"]["divebatch_exact"]["measure_every"] == 0
    assert tree["shadow"]["norm_test"]["measure_every"] == "auto"
