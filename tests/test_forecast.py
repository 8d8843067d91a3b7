"""The forecast against closed forms: steps whose time follows a formula, intervals worked out by hand."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from profile_files import entry, followed, point, profile
from scipy import stats

from adabatch import student
from adabatch.forecast import (
    Measuring,
    Stretch,
    between,
    empirical,
    fixed_arm,
    forecast,
    interval,
    speed_up,
    stretches_of,
    upper_bound,
)
from adabatch.pace import Curve, Pace, fixed_part, line
from adabatch.phases import phases
from adabatch.schedules import Constant, Schedule, Steps
from adabatch.schedules.measuring import Measuring as Loop

A, B, C = 2e-3, 1e-5, 5e-3


def straight(m: float) -> float:
    return A + B * m


# ------------------------------------------------------------------------------------------- a step


def test_a_forecast_is_the_exact_sum_where_a_step_is_a_line():
    """Batches of measured sizes, one pass or several, and what each step costs besides."""
    pace = Pace(profile(followed(straight, C)), micro_batch=256)
    run = [Stretch(0, 32, 100), Stretch(3200, 64, 50), Stretch(6400, 1024, 7)]
    expected = 100 * (straight(32) + C) + 50 * (straight(64) + C) + 7 * (4 * straight(256) + C)
    found = forecast(pace, run)
    assert found.seconds == pytest.approx(expected, rel=1e-9)
    assert pace.fixed == pytest.approx(C, rel=1e-9)
    assert found.phases == pytest.approx([100 * (straight(32) + C), 50 * (straight(64) + C),
                                          7 * (4 * straight(256) + C)])  # fmt: skip
    assert found.extrapolated == 0


def test_what_a_step_costs_whatever_its_size_needs_several_passes():
    """Without them c and t(m) cannot be told apart, but their sum still is."""
    pace = Pace(profile(followed(straight, C, counts=())))
    assert pace.fixed == 0 and not pace.identified
    assert pace.step(64).seconds == pytest.approx(straight(64) + C, rel=1e-12)


def test_the_fixed_part_is_the_least_squares_solution():
    """Against numpy's, on points that fit no model."""
    rows = [(32, 1, 1.0), (32, 2, 1.7), (32, 4, 3.3), (64, 1, 1.9), (64, 2, 3.1), (128, 1, 3.0)]
    sizes = sorted({m for m, _, _ in rows})
    design = np.array([[1.0, *(p * (m == size) for size in sizes)] for m, p, _ in rows])
    times = np.array([s for _, _, s in rows])
    solution = np.linalg.lstsq(design / times[:, None], np.ones(len(rows)), rcond=None)[0]
    assert fixed_part(rows) == pytest.approx(solution[0], rel=1e-9)
    pace = Pace(profile(entry([point(m * p, m, s, p) for m, p, s in rows])))
    assert [t for _, t in pace.curve.knots] == pytest.approx(solution[1:], rel=1e-9)


def test_noise_leaves_every_pass_some_time():
    """Two passes that took less than one: c would be more than the whole step."""
    rows = [(32, 1, 1.0), (32, 2, 0.9)]
    pace = Pace(profile(entry([point(32 * p, m, s, p) for m, p, s in rows])))
    assert 0 < pace.fixed < 1 and pace.curve(32) > 0
    assert fixed_part([(32, 1, 1.0), (32, 2, 3.0)]) == 0


def test_between_sizes_time_is_interpolated_in_logarithms():
    """A power law is met exactly, and so is the geometric mean half-way."""
    curve = Curve([(m, 3e-4 * m**0.7) for m in (16, 64, 1024)])
    for m in (16, 20, 32, 64, 333, 1024):
        assert curve(m) == pytest.approx(3e-4 * m**0.7, rel=1e-12)
    per_sample = Curve([(100, 100 * 0.5), (400, 400 * 0.125)])
    assert per_sample(200) / 200 == pytest.approx(math.sqrt(0.5 * 0.125), rel=1e-12)


def test_throughput_that_falls_again_is_kept():
    """What a line a + b m cannot follow: images per second that were measured once, of ResNet-20 on a CPU."""
    rates = {128: 484, 256: 491, 512: 385, 1024: 283, 2048: 263}
    pace = Pace(profile(entry([point(b, b, b / r) for b, r in rates.items()])))
    assert {b: round(pace.throughput(b), 6) for b in rates} == rates
    assert upper_bound(pace, 128, 2048).batch_size == 256


def test_beyond_the_sizes_the_line_is_used_and_said():
    pace = Pace(profile(followed(straight, C, sizes=(64, 128, 256), fits=4096)), micro_batch=4096)
    for batch in (16, 2048):
        assert pace.step(batch).seconds == pytest.approx(straight(batch) + C, rel=1e-6)
        assert pace.step(batch).extrapolated
    found = forecast(pace, [Stretch(0, 128, 10), Stretch(1280, 2048, 10)])
    share = (straight(2048) + C) / (straight(2048) + straight(128) + 2 * C)
    assert found.extrapolated == pytest.approx(share, rel=1e-6)


@pytest.mark.parametrize(
    "knots, fit",
    [
        ([(m, 3.0 + 2.0 * m) for m in (1, 2, 5, 9)], (3.0, 2.0)),
        ([(1, 1.0), (2, 4.0), (4, 16.0)], (0.0, None)),  # through the origin: an intercept would be negative
        ([(1, 9.0), (2, 3.0), (4, 1.0)], (None, 0.0)),  # falling
    ],
)
def test_the_line_never_falls_below_zero(knots, fit):
    for found, wanted in zip(line(knots), fit):
        assert found >= 0 and (wanted is None or found == pytest.approx(wanted, abs=1e-9))


def test_the_last_batch_of_a_run_is_cut():
    pace = Pace(profile(followed(straight, C)))
    found = forecast(pace, fixed_arm(64, 200))
    assert found.seconds == pytest.approx(3 * (straight(64) + C) + pace.step(8).seconds, rel=1e-12)
    assert [s.counted() for s in fixed_arm(64, 128)] == [[(64, 2)]]
    assert fixed_arm(64, 40)[0].counted() == [(40, 1)]


def test_the_rank_with_most_work_sets_the_pace():
    """Five ghost groups of 16 on three ranks: 1, 2, 2 of them."""
    made = followed(straight, C, sizes=(16, 32, 64), world=3, unit=16)
    pace = Pace(profile(made))
    assert pace.cut(80) == (32,)
    assert pace.step(80).seconds == pytest.approx(straight(32) + C, rel=1e-9)
    assert pace.cut(96) == (32,) and pace.cut(16) == (16,)


def test_ordered_passes_are_dealt_out_whole():
    """Eight passes of 16 on three ranks: 2, 3, 3 of them."""
    configuration = {"hardware": {"reduction": "ordered"}}
    made = entry([point(48, 16, 1.0), point(96, 16, 2.0, 2)], unit=16, world=3, configuration=configuration)
    assert Pace(profile(made), micro_batch=16).cut(128) == (16, 16, 16)


def test_first_steps_of_a_size_are_counted_once():
    made = entry([point(32, 32, 1.0, first_step_seconds=4.0), point(64, 64, 2.0, first_step_seconds=2.5)])
    pace = Pace(profile(made))
    assert forecast(pace, [Stretch(0, 32, 3), Stretch(96, 64, 1), Stretch(160, 32, 1)]).seconds == 9.5
    compiled = made | {"configuration": {"hardware": {"compile": True}}}
    assert forecast(Pace(profile(compiled)), [Stretch(0, 32, 3)]).seconds == 3.0


def test_under_load_everything_is_slower_alike():
    given = followed(straight, C) | {"sustained_ratio": 1.25}
    slow, fast = Pace(profile(given)), Pace(profile(given | {"sustained_ratio": 1.0}))
    assert slow.step(64).seconds == pytest.approx(1.25 * fast.step(64).seconds)


def test_causes_add_up():
    rows = [point(b, b, 1.0, data=0.25, communication=0.125) for b in (32, 64)]
    found = forecast(Pace(profile(entry(rows))), [Stretch(0, 32, 4), Stretch(128, 64, 4)])
    assert found.causes == {"compute": 5.0, "data": 2.0, "exposed_communication": 1.0, "measuring": 0.0}
    assert sum(found.causes.values()) == found.seconds


def test_steps_that_measure_take_longer():
    """Every step, or those that hold a multiple of 100 samples; what was not timed is left out."""
    more = {"needs": ["trace", "sq_norm"], "points": [{"batch_size": b, "seconds": 0.5} for b in (16, 64)]}
    pace = Pace(profile(followed(straight, C, measuring=more, sustained_ratio=2.0)))
    run, usual = [Stretch(0, 32, 50)], forecast(pace, [Stretch(0, 32, 50)]).seconds
    for every, steps in ((0, 50), (100, 16), (8, 50)):
        loop = Loop(every, 8, 1000.0, False)
        found = forecast(pace, run, measuring=Measuring(frozenset({"trace"}), loop.times))
        assert found.causes["measuring"] == pytest.approx(steps * 0.5 * 2.0)
        assert found.seconds == pytest.approx(usual + steps * 1.0)
        assert found.phases == pytest.approx([usual + steps * 1.0])
    assert forecast(pace, run, measuring=Measuring(frozenset({"inner"}))).seconds == usual


def scheduled(batch: int, growth=None, epochs: int = 5, samples: int = 1000) -> Schedule:
    return Schedule(
        base_batch=batch, base_lr=0.1, growth=growth or Constant(), decay=Constant(), samples=samples,
        epochs=epochs,
    )  # fmt: skip


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 300), st.integers(200, 3000), st.floats(0.3, 4))
def test_a_schedules_steps_are_those_that_it_takes(batch, samples, epochs):
    """Against walking through it step by step."""
    schedule = scheduled(batch, Steps(factor=2, every=1), epochs=epochs, samples=samples)
    pace = Pace(profile(followed(straight, C, sizes=tuple(2**k for k in range(13)))))
    position, seconds = 0, 0.0
    while position < schedule.budget:
        setting = schedule(position)
        seconds += pace.step(setting.batch_size).seconds
        position += setting.batch_size
    assert forecast(pace, stretches_of(phases(schedule))).seconds == pytest.approx(seconds, rel=1e-9)


# ------------------------------------------------------------------------------------------ intervals


def noisy(out=0.1, rep=0.0, drift=()) -> dict:
    """Five sizes on a power law but for the middle ones; visits that differ; a reference that drifts."""
    sizes, off = (16, 32, 64, 128, 256), (0, out, 0, out, 0)
    rows = []
    for m, e in zip(sizes, off):
        s = 1e-3 * m * math.exp(e)
        rows.append(point(m, m, s, rounds=[s * math.exp(rep), s * math.exp(-rep)]))
    return entry(rows, reference=[math.exp(d) for d in drift])


@pytest.mark.parametrize(
    "stretches, half",
    [
        # s_rep^2 = 0.0009 with 5 degrees of freedom, s_drift^2 = 0.0016 with 2: 0.0025 with
        # 0.0025^2 / (0.0009^2 / 5 + 0.0016^2 / 2) = 4.33, so t(0.975, 4).
        ([Stretch(0, 64, 10)], 2.776445 * math.sqrt(0.0025)),
        # Between two sizes also s_out^2 = 0.01 with 3: 0.0125 with 4.49.
        ([Stretch(0, 48, 10)], 2.776445 * math.sqrt(0.0125)),
        # Half of the time there: 0.0025 + 0.01 / 4 = 0.005 with 7.09, so t(0.975, 7).
        ([Stretch(0, 64, 100), Stretch(6400, 48, 0)], 2.364624 * math.sqrt(0.005)),
    ],
)  # fmt: skip
def test_the_interval_is_worked_out_by_hand(stretches, half):
    """E4: left-out errors -0.1, +0.1, -0.1 (each by its neighbours), visits' standard error 0.03, a drift of
    standard deviation 0.04."""
    pace = Pace(profile(noisy(0.1, rep=0.03, drift=(-0.04, 0.0, 0.04))))
    out, rep, drift = pace.errors
    assert out == pytest.approx([-0.1, 0.1, -0.1]) and rep == pytest.approx(0.03)
    assert drift == pytest.approx(0.04)
    if len(stretches) == 2:  # as many steps of 48 as take as long as 100 of 64
        count = round(100 * pace.step(64).seconds / pace.step(48).seconds)
        stretches[1] = Stretch(6400, 48, count)
    found = forecast(pace, stretches)
    assert math.log(found.high / found.seconds) == pytest.approx(half, rel=5e-3)
    assert math.log(found.low / found.seconds) == pytest.approx(-half, rel=5e-3)


@pytest.mark.parametrize("rep, drift", [(0.05, 0.0), (0.03, 0.04), (0.0, 0.1)])
def test_the_interval_of_measured_sizes_covers(rep, drift):
    """A machine whose visits spread by `rep` and whose speed, at other times, by `drift`."""
    rng, inside, count = np.random.default_rng(0), 0, 600
    sizes, truth = (32, 64, 128, 256), np.array([straight(m) for m in (32, 64, 128, 256)])
    for _ in range(count):
        visits = np.exp(np.log(truth) + rng.normal(0, rep, (2, 4)))
        rows = [point(m, m, float(np.median(v)), rounds=[*map(float, v)]) for m, v in zip(sizes, visits.T)]
        reference = np.exp(rng.normal(0, drift, 12)) if drift else np.ones(12)
        pace = Pace(profile(entry(rows, reference=[*map(float, reference)])))
        found = forecast(pace, [Stretch(0, 64, 1000)])
        inside += found.low <= 1000 * straight(64) * math.exp(rng.normal(0, drift)) <= found.high
    assert 0.95 - 3 * math.sqrt(0.95 * 0.05 / count) <= inside / count < 0.995, (
        "neither too narrow nor too wide"
    )


def test_the_interval_between_measured_sizes_covers():
    """A throughput that rises, bends and falls again; half-way between two sizes."""
    rng, inside, count = np.random.default_rng(1), 0, 400
    sizes = (32, 64, 128, 256, 512)

    def truth(m):
        return 1e-3 + 1e-5 * m * (1 + 0.15 * math.log2(m / 128) ** 2)

    for _ in range(count):
        visits = [[truth(m) * math.exp(rng.normal(0, 0.02)) for _ in range(2)] for m in sizes]
        rows = [point(m, m, sum(v) / 2, rounds=v) for m, v in zip(sizes, visits)]
        found = forecast(
            Pace(profile(entry(rows))), [Stretch(0, m := int(rng.choice([45, 90, 181, 362])), 100)]
        )
        inside += found.low <= 100 * truth(m) <= found.high
    assert inside / count >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / count)


def test_numbers_of_passes_that_were_not_timed_are_as_doubtful_as_the_line_through_the_others():
    """16 passes of 256 by points with 1, 2 and 4 passes that lie 10 % off T = p t + c."""
    off = iter([0.1, -0.1, 0.1, -0.1, 0.1, -0.1, 0.1, -0.1, 0.1])
    rows = [
        point(m * p, m, s, p, rounds=[s, s])
        for m in (64, 128, 256) for p in (1, 2, 4)
        for s in [(p * straight(m) + C) * math.exp(next(off))]
    ]  # fmt: skip
    pace = Pace(profile(entry(rows)), micro_batch=256)
    residuals = [
        math.log(r["seconds"] / (r["accumulation"] * pace.curve(r["micro_batch"]) + pace.fixed)) for r in rows
    ]
    spread = math.sqrt(sum(e * e for e in residuals) / (9 - 3 - 1))  # three t(m) and one c
    assert spread > 0.08
    assert pace.doubt([(4096, 10)]) == pytest.approx(stats.t.ppf(0.975, 5) * spread, rel=1e-6)
    assert pace.doubt([(1024, 10)]) == 0.0, "four passes of 256 were timed"
    half = [(1024, 160 * pace.step(4096).seconds / pace.step(1024).seconds), (4096, 160)]
    assert pace.doubt(half) == pytest.approx(stats.t.ppf(0.975, 5) * spread / 2, rel=1e-6)


@pytest.mark.timeout(60)
def test_a_file_that_claims_any_number_of_steps_takes_no_longer():
    rows = [point(m, m, 1e-3 * m, low=9e-4 * m, high=1.1e-3 * m, steps=10**8) for m in range(1, 400)]
    assert Pace(profile(entry(rows))).doubt([(64, 10)]) > 0


def test_a_cut_last_batch_needs_no_third_size():
    rows = [point(m, m, 1e-3 * m, rounds=[1e-3 * m] * 2) for m in (32, 64)]
    assert forecast(Pace(profile(entry(rows))), fixed_arm(32, 32 * 200 + 7)).low is not None


def test_the_interval_is_never_narrower_than_five_percent():
    found = forecast(Pace(profile(noisy(0.0))), [Stretch(0, 64, 10)])
    assert (found.low, found.high) == pytest.approx((0.95 * 0.64, 1.05 * 0.64))
    assert interval(10.0, 0.5) == pytest.approx((10 * math.exp(-0.5), 10 * math.exp(0.5)))


def test_two_sizes_tell_no_interval():
    rows = [point(32, 32, 1.0), point(64, 64, 2.0)]
    found = forecast(Pace(profile(entry(rows))), [Stretch(0, 32, 1)])
    assert (found.low, found.high) == (None, None), "each was visited once"
    pace = Pace(profile(entry([row | {"rounds": [row["seconds"]] * 2} for row in rows])))
    assert forecast(pace, [Stretch(0, 32, 1)]).low == pytest.approx(0.95)
    assert forecast(pace, [Stretch(0, 48, 1)]).low is None, "nobody knows what lies between them"


def test_quartiles_tell_the_error_where_there_was_one_visit():
    """Of a median: 1.2533 sigma / sqrt(n), sigma = quartile range / 1.349."""
    rows = [point(b, b, 1.0, low=0.9, high=1.1, steps=25) for b in (16, 32, 64)]
    assert Pace(profile(entry(rows))).errors[1] == pytest.approx(1.2533 * 0.2 / 1.349 / 5)


def test_an_arm_against_itself_is_exactly_as_fast():
    pace = Pace(profile(noisy(0.1, 0.05, (-0.1, 0.1))))
    assert speed_up((pace, fixed_arm(32, 6400)), (pace, fixed_arm(32, 6400))) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    "rep, sizes, half", [(0.03, (16, 64), 2.570582 * 0.03), (0.0, (24, 96), 3.182446 * 0.1)]
)
def test_a_speed_up_is_drawn_jointly(rep, sizes, half):
    """Two arms of one size each, measured ones or ones in between: the log ratio's error has sqrt(2) times
    the spread of one size; the drift, which both arms have, is not in it."""
    pace = Pace(profile(noisy(0.1, rep, drift=(-0.5, 0.5))))
    arms = [fixed_arm(size, 9_600) for size in sizes]
    ratio, low, high = speed_up(*((pace, arm) for arm in arms))
    assert math.log(high / ratio) == pytest.approx(math.sqrt(2) * half, rel=0.08)
    assert math.log(low / ratio) == pytest.approx(-math.sqrt(2) * half, rel=0.08)
    assert high < forecast(pace, arms[0]).high / forecast(pace, arms[1]).low


def test_arms_that_share_their_sizes_differ_with_less_doubt():
    pace = Pace(profile(noisy(0.1, 0.03)))
    mixed = [Stretch(0, 16, 320), Stretch(5120, 64, 80)]
    _, low, high = speed_up((pace, fixed_arm(16, 10_240)), (pace, mixed))
    _, lower, higher = speed_up((pace, fixed_arm(16, 10_240)), (pace, fixed_arm(64, 10_240)))
    assert math.log(high / low) < 0.6 * math.log(higher / lower)


@pytest.mark.slow
@pytest.mark.parametrize(
    "slow, sizes", [(32, (32, 64, 128, 256, 512)), (512, (32, 64, 128, 256, 512)), (32, (32, 96, 256, 512))]
)
def test_the_interval_of_a_speed_up_covers(slow, sizes):
    """AdaBatch from 32 to 512 over a fixed batch on a machine whose visits spread by 4 %; all sizes measured,
    or 64 and 128 between others."""
    rng, inside, count = np.random.default_rng(2), 0, 300

    def truth(m):
        return 1e-3 + 1e-5 * m * (1 + 0.03 * math.log2(m / 128) ** 2)

    growing = [Stretch(10_240 * i, batch, 10_240 // batch) for i, batch in enumerate((32, 64, 128, 256, 512))]
    fixed = fixed_arm(slow, 5 * 10_240)
    exact = [sum(s.steps * truth(s.batch_size) for s in arm) for arm in (fixed, growing)]
    for _ in range(count):
        visits = [[truth(m) * math.exp(rng.normal(0, 0.04)) for _ in range(3)] for m in sizes]
        rows = [point(m, m, float(np.median(v)), rounds=v) for m, v in zip(sizes, visits)]
        pace = Pace(profile(entry(rows)))
        _, low, high = speed_up((pace, fixed), (pace, growing))
        inside += low <= exact[0] / exact[1] <= high
    assert inside / count >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / count)


def test_the_upper_bound_is_attained_by_a_fixed_batch():
    """max throughput(B) / throughput(B0), by the closed form."""
    pace = Pace(profile(followed(straight, C)), micro_batch=512)
    bound = upper_bound(pace, 32, 512)
    assert bound.batch_size == 512
    assert bound.ratio == pytest.approx((straight(32) + C) / 32 / ((straight(512) + C) / 512))
    slow, fast = (forecast(pace, fixed_arm(b, 51_200)).seconds for b in (32, 512))
    assert slow / fast == pytest.approx(bound.ratio)
    schedule = [Stretch(0, 32, 400), Stretch(12_800, 512, 75)]
    assert slow / forecast(pace, schedule).seconds < bound.ratio


def test_each_fixed_batch_chooses_its_own_micro_batch():
    """A schedule up to 64 takes passes of 64; a fixed 512 would not, unless the user asked for them."""
    made = profile(followed(straight, C, fits=1024))
    assert upper_bound(Pace(made, 64), 32, 512).ratio == upper_bound(Pace(made, 512), 32, 512).ratio
    asked = upper_bound(Pace(made, 64, asked=True), 32, 512)
    assert asked.ratio == pytest.approx((straight(32) + C) / 32 / ((8 * straight(64) + C) / 512))


def test_no_bound_is_claimed_beyond_the_measured_sizes():
    assert upper_bound(Pace(profile(followed(straight, C))), 32, 50_000).batch_size <= 512


def test_a_closed_loop_lies_between_its_batches():
    """Throughput falls again: the fastest run is neither that of the smallest nor of the largest batch."""
    rates = {128: 484, 256: 491, 512: 385}
    pace = Pace(profile(entry([point(b, b, b / r) for b, r in rates.items()])))
    assert between(pace, 128, 512, 51_200) == pytest.approx((51_200 / 491, 51_200 / 385))


def test_ten_audits_tell_the_interval():
    """The 5 and 95 % quantiles as numpy has them; nine tell nothing."""
    audits = [0.9, 0.95, 1.0, 1.01, 1.02, 1.04, 1.1, 1.11, 1.2, 1.3]
    assert empirical(audits) == pytest.approx(tuple(np.quantile(audits, [0.05, 0.95])))
    assert empirical(audits[1:]) is None
    pace = Pace(profile(noisy(0.1)))
    found = forecast(pace, fixed_arm(64, 640), audits)
    assert found.low == pytest.approx(np.quantile(audits, 0.05) * found.seconds)
    assert found.high == pytest.approx(np.quantile(audits, 0.95) * found.seconds)


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 8, 18, 38, 101])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.8, 0.95, 0.975, 0.9995])
def test_students_quantile_is_scipys(freedom, share):
    assert student.quantile(share, freedom) == pytest.approx(stats.t.ppf(share, freedom), abs=1e-9, rel=1e-9)


def test_coverage_where_the_errors_are_as_assumed():
    """Steps on a power law, measured with errors of 5 %: 95 % intervals contain the truth at least so often
    (they are wider: leaving a size out doubles the distance)."""
    generator, sizes, inside = np.random.default_rng(0), (16, 32, 64, 128, 256, 512), 0
    for _ in range(300):
        rows = [
            point(m, m, 1e-4 * m**0.8 * math.exp(e))
            for m, e in zip(sizes, 0.05 * generator.standard_normal(6))
        ]
        found = forecast(Pace(profile(entry(rows))), fixed_arm(100, 10_000))
        inside += found.low <= 100 * 1e-4 * 100**0.8 <= found.high
    assert inside / 300 >= 0.95
