"""Open-loop schedules: each option against a trajectory written out from its source or a closed form, each
curve against an independent reference, and properties of any of them."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adabatch import plan
from adabatch.errors import UserError
from adabatch.schedules import (
    Constant,
    Cosine,
    CosineSteps,
    Frame,
    LinearRamp,
    OneCycle,
    PadaDamp,
    PiecewiseLinear,
    Schedule,
    Steps,
    walk,
)
from adabatch.schedules.coupled import rule
from tests.support import resolved

OPTIONS = (
    "fixed", "adabatch", "dont_decay", "linear_ramp", "geodamp", "padadamp", "seesaw", "exponential",
    "large_batch", "linear_scaling", "legw", "cosine", "one_cycle", "piecewise",
)  # fmt: skip
CIFAR = 50_000


def built(*overrides, samples=1437):
    """The schedule of an option, from its YAML."""
    return plan.schedule(resolved(*overrides), samples)


def schedule(growth=None, decay=None, **kwargs):
    common = dict(samples=1000, epochs=10, base_batch=10, base_lr=1.0, scaling="none")
    return Schedule(growth=growth or Constant(), decay=decay or Constant(), **(common | kwargs))


def frame(samples=1000, epochs=10, base_batch=10, cap=1000, multiple=1):
    return Frame(samples, samples * epochs, base_batch, cap, multiple)


def table(found):
    """[(epoch to a tenth, batch, lr)] where batch or learning rate change."""
    rows = []
    for start, _, setting in walk(found):
        if not rows or rows[-1][1:] != (setting.divisor, setting.lr):
            rows.append((round(start / found.samples, 1), setting.divisor, setting.lr))
    return rows


def same(rows, expected):
    """Batches and epochs exactly, learning rates within rounding."""
    assert [(epoch, batch) for epoch, batch, _ in rows] == [(epoch, batch) for epoch, batch, _ in expected]
    assert [lr for _, _, lr in rows] == pytest.approx([lr for _, _, lr in expected], rel=1e-12)


# -- Steps ---------------------------------------------------------------------------------------------


def test_a_list_of_batches_a_growth_list_and_values_say_the_same():
    lists = (
        dict(batches=[64, 256, 1024], milestones=[2, 3, 7]),
        dict(factor=[2, 4, 4], milestones=[2, 3, 7]),
        dict(values=[2, 8, 32], milestones=[2, 3, 7]),
        dict(batches=[64, 256, 1024], milestones_samples=[20_000, 30_000, 70_000]),
        dict(factor=[2, 4, 4], milestones_samples=[20_000, 30_000, 70_000]),
    )
    for arguments in lists:
        found = schedule(Steps(**arguments), base_batch=32, samples=10_000)
        at = (0, 19_999, 20_000, 29_999, 30_000, 69_999, 70_000, 99_999)
        assert [found(p).divisor for p in at] == [32, 32, 64, 64, 256, 256, 1024, 1024], arguments
        assert found.growth.milestones() == [20_000, 30_000, 70_000]


def test_a_list_of_batches_that_no_factor_gives_is_met_exactly():
    """100 / 30 is no float: the batch must not come out as 99."""
    found = schedule(Steps(batches=[100, 7, 61], milestones=[1, 2, 3]), base_batch=30)
    assert [found(p).divisor for p in (0, 1000, 2000, 3000)] == [30, 100, 7, 61]


def test_lists_of_the_learning_rate():
    found = schedule(decay=Steps(factor=[0.5, 0.1], milestones=[4, 8]), base_lr=2.0)
    assert [found(p).lr for p in (0, 3999, 4000, 7999, 8000)] == pytest.approx([2, 2, 1, 1, 0.1])
    found = schedule(decay=Steps(values=[0.5, 0.1], milestones=[4, 8]), base_lr=2.0)
    assert [found(p).lr for p in (0, 4000, 8000)] == pytest.approx([2, 1, 0.2])


def test_a_milestone_after_the_end_keeps_the_others_in_their_places():
    found = schedule(Steps(batches=[20, 40, 80], milestones=[2, 5, 12]))
    assert [found(p).divisor for p in (1999, 2000, 5000, 9999)] == [10, 20, 40, 40]


@pytest.mark.parametrize("rounding, batches", [("down", [15, 22, 33]), ("nearest", [15, 22, 34]),
                                               ("up", [15, 23, 34])])  # fmt: skip
def test_rounding_of_steps(rounding, batches):
    """10 * 1.5^k = 15, 22.5, 33.75; 22.5 is halved to even."""
    found = schedule(Steps(1.5, every=2, rounding=rounding))
    assert [found(p).divisor for p in (2000, 4000, 6000)] == batches


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(), "said by one of factor, values and batches, got none"),
        (dict(factor=2, values=[2], milestones=[1]), "got factor and values"),
        (dict(factor=2, milestones=[1], milestones_samples=[5]), "got milestones and milestones_samples"),
        (dict(factor=[2, 4], every=5), "a list of as many milestones"),
        (dict(batches=[20, 40], milestones=[1]), "as many milestones .* batches=.20, 40."),
        (dict(batches=[20.5], milestones=[1]), "whole number of samples, got 20.5"),
        (dict(values=[0], milestones=[1]), "each of values is positive, got 0"),
        (dict(factor=[2, 2], milestones=[5, 1]), "rising order, got .5, 1."),
        (dict(factor=0), "a step factor is positive, got 0"),
        (dict(factor=float("nan")), "a step factor is positive, got nan"),
        (dict(factor=2, milestones=5), "a list of numbers, got 5"),
        (dict(factor=2, every=[5]), "every is positive, got .5."),
        (dict(factor=2, rounding="ceil"), "rounding is one of down, nearest, up, got 'ceil'"),
    ],
)
def test_steps_refuse(arguments, message):
    with pytest.raises(UserError, match=message):
        Steps(**arguments)


def test_growth_beyond_the_range_of_floats_is_still_a_schedule():
    found = schedule(Steps(2, every_samples=1), epochs=3)
    setting = found(2999)
    assert setting.divisor == 1000 and 0 <= setting.lr < 1e-200


# -- learning rates ------------------------------------------------------------------------------------


def test_cosine_is_torchs():
    import torch

    sgd = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, T_max=1000, eta_min=0.2)
    found = schedule(decay=Cosine(end=0.1), base_lr=2.0)
    for start, _, setting in walk(found):
        assert setting.lr == pytest.approx(reference.get_last_lr()[0], rel=1e-9), start
        sgd.step()
        reference.step()
    assert found.decay(10_000) == pytest.approx(0.1) and Cosine().bind(frame())(10_000) == 0.0


@pytest.mark.parametrize("rise, div, final", [(0.3, 25.0, 1e4), (0.25, 10.0, 50.0)])
def test_one_cycle_is_torchs(rise, div, final):
    """torch's N steps have the peak at step pct * N - 1 and the end at step N - 1, ours at rise * N and N: so
    its N is ours + 1 and its pct is (rise * N + 1) / (N + 1)."""
    import torch

    steps = 1000
    sgd = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    reference = torch.optim.lr_scheduler.OneCycleLR(
        sgd, max_lr=2.0, total_steps=steps + 1, pct_start=(rise * steps + 1) / (steps + 1),
        div_factor=div, final_div_factor=final,
    )  # fmt: skip
    found = schedule(decay=OneCycle(rise, 1 / div, 1 / div / final), base_lr=2.0)
    for start, _, setting in walk(found):
        assert setting.lr == pytest.approx(reference.get_last_lr()[0], rel=1e-9, abs=1e-15), start
        sgd.step()
        reference.step()
    assert found.decay(round(rise * 10_000)) == pytest.approx(1.0, abs=1e-15)
    assert found.decay(10_000) == pytest.approx(1 / div / final)
    assert [found(p).stage[2] for p in (0, round(rise * 10_000) - 1, round(rise * 10_000))] == [0, 0, 1]


def test_piecewise_linear_is_numpys_interpolation():
    found = PiecewiseLinear(values=[0, 0.4, 0.1, 0], epochs=[0.5, 2, 6.5, 9]).bind(frame())
    positions = np.arange(10_000)
    expected = np.interp(positions / 1000, [0.5, 2, 6.5, 9], [0, 0.4, 0.1, 0])
    assert [found(int(p)) for p in positions] == pytest.approx(expected, abs=1e-15)
    in_samples = PiecewiseLinear(values=[0, 0.4, 0.1, 0], samples=[500, 2000, 6500, 9000]).bind(frame())
    assert [in_samples(p) for p in (0, 1250, 2000, 8999)] == [found(p) for p in (0, 1250, 2000, 8999)]


def test_the_piecewise_option_is_the_triangle_of_the_94_percent_recipe():
    """1,000 steps: 0.2 at the start, 1 at step 230, 0.07 at the end, straight between."""
    found = built("schedule=piecewise", "epochs=20", "schedule.base_lr=1", samples=1600)
    rates = [setting.lr for _, _, setting in walk(found)]
    assert len(rates) == 1000
    steps = {0: 0.2, 115: 0.6, 230: 1.0, 615: 0.535, 999: 1 - 0.93 * 769 / 770}
    assert {step: rates[step] for step in steps} == pytest.approx(steps, rel=1e-12)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Cosine(end=1.5), "end of a cosine is from 0 to 1, got 1.5"),
        (lambda: OneCycle(rise=1), "rise of one cycle is a share of the run between 0 and 1, got 1"),
        (lambda: OneCycle(end=-1), "end of one cycle is from 0 to 1"),
        (lambda: PiecewiseLinear(values=[1, 0]), "knots lie is said by one of epochs, samples and fractions"),
        (lambda: PiecewiseLinear(values=[1], epochs=[0, 1]), "as many different knots"),
        (lambda: PiecewiseLinear(values=[1, 0], epochs=[1, 1]), "as many different knots"),
        (lambda: PiecewiseLinear(values=[1, 0], epochs=[2, 1]), "rising order"),
        (lambda: PiecewiseLinear(values=[1, -1], epochs=[0, 1]), "values is 0 or more, got -1"),
        (lambda: PiecewiseLinear(values=[0, 0], epochs=[0, 1]), "above 0"),
        (lambda: PiecewiseLinear(values=None, epochs=[0, 1]), "values is a list of numbers, got None"),
        (lambda: CosineSteps(1), "away from 1, got 1"),
        (lambda: CosineSteps(2, cosine="third"), "half or quarter, got 'third'"),
        (lambda: CosineSteps(2, end=1), "from 0 to below 1"),
        (lambda: LinearRamp(to=0), "to of a ramp is a positive whole number"),
        (lambda: LinearRamp(to=None), "to of a ramp is a positive whole number of samples, got None"),
        (lambda: LinearRamp(to=20, increment=0), "increment of a ramp is a positive whole number"),
        (lambda: LinearRamp(to=20, over=1, over_samples=5), "got over and over_samples"),
        (lambda: LinearRamp(to=20, over=0), "over of a ramp is positive, got 0"),
        (lambda: LinearRamp(to=9).bind(frame()), "its end to=9 is below base_batch=10"),
        (lambda: PadaDamp(rate=0), "rate of PadaDamp is positive, got 0"),
        (lambda: PadaDamp(dwell=0), "dwell of PadaDamp is a whole number from 1, got 0"),
        (lambda: PadaDamp(wait=1.5), "wait of PadaDamp is a whole number from 0, got 1.5"),
    ],
)
def test_curves_refuse(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_a_change_of_batch_at_a_learning_rate_of_zero_can_be_told():
    found = schedule(Steps(2, every=5), PiecewiseLinear(values=[1, 0, 0, 1], epochs=[0, 4, 6, 10]))
    assert found(4990).lr == found(5000).lr == 0
    assert rule(found(4990), found(5000), "none").startswith("batch x2, lr 0 -> 0: ")
    assert ", lr 0 -> 0.25: " in rule(found(4990), found(7000), "none")


# -- batches -------------------------------------------------------------------------------------------


def test_a_linear_ramp_is_megatrons():
    """Megatron-LM's arithmetic: start + increment * int(consumed / (ramp / n)), n = (to - start) / increment,
    re-derived here in fractions."""
    found = LinearRamp(to=1920, over_samples=12_000, increment=32).bind(frame(base_batch=32, samples=2000))
    count = (1920 - 32) // 32
    for position in range(20_000):
        expected = 1920 if position >= 12_000 else 32 + 32 * int(Fraction(position * count, 12_000))
        assert found(position) * 32 == expected, position
    assert len(found.milestones()) == count == 59
    assert all(found(at) > found(at - 1) for at in found.milestones())


def test_a_linear_ramp_by_single_samples_and_by_a_last_piece():
    found = schedule(LinearRamp(to=20, over=5))
    assert [found(p).divisor for p in (0, 499, 500, 999, 1000, 4999, 5000, 9999)] == [
        10, 10, 11, 11, 12, 19, 20, 20,
    ]  # fmt: skip
    found = LinearRamp(to=31, over=4, increment=8).bind(frame())  # 10, 18, 26, 31
    assert {found(p) * 10 for p in range(0, 10_000, 7)} == {10, 18, 26, 31}
    assert found.milestones() == [1524, 3048, 4000] and found.stage(4000) == 3
    assert schedule(LinearRamp(to=20), epochs=5)(999).divisor == 19  # null: a fifth of the run


def test_a_ramp_beyond_the_cap_lowers_the_learning_rate_instead():
    found = schedule(LinearRamp(to=40, over=10), max_batch=20)
    assert found(9999).divisor == 20
    assert found(9999).lr == pytest.approx(20 / 39) and found(4000).lr == pytest.approx(20 / 22)


def adadamp_padadamp(rate, dwell, wait, initial, largest, budget):
    """The source's loop, update by update: [(position, batch, lr)]."""
    rows, seen, updates = [], 0, 0
    while seen < budget:
        if updates == 0 or (updates >= wait and updates % dwell == 0):
            damping = math.ceil(initial + rate * updates)
        lr = float(Fraction(largest, damping)) if damping >= largest else 1.0
        rows.append((seen, min(damping, largest), lr))
        seen, updates = seen + rows[-1][1], updates + 1
    return rows


def padadamp(rate, dwell, wait, **kwargs):
    """[(position, divisor, lr)] of ours."""
    found = schedule(PadaDamp(float(rate), dwell, wait), **kwargs)
    return [(start, setting.divisor, setting.lr) for start, _, setting in walk(found)]


def test_padadamp_written_out():
    """From 10 by 1 per update, looked at every 4 updates from the 6th on: 8 updates at 10, then 18, 22."""
    rows = padadamp(1, 4, 6, epochs=1, samples=300)
    batches = [10] * 8 + [18] * 4 + [22] * 4 + [26] * 3
    starts = np.cumsum([0, *batches])
    assert [(position, batch) for position, batch, _ in rows] == list(zip(starts.tolist(), batches))


@given(
    st.fractions(Fraction(1, 64), 3, max_denominator=64).map(lambda f: Fraction(round(f * 64), 64)),
    st.integers(1, 40), st.integers(0, 60), st.integers(1, 30), st.integers(30, 90), st.integers(1, 9000),
)  # fmt: skip
@settings(max_examples=100, deadline=None)
def test_padadamp_is_the_sources_loop(rate, dwell, wait, initial, largest, budget):
    """Rates in 64ths, so that float and exact arithmetic round alike."""
    expected = adadamp_padadamp(rate, dwell, wait, initial, largest, budget)
    found = padadamp(rate, dwell, wait, base_batch=initial, max_batch=largest, samples=budget, epochs=1)
    if budget < largest:  # our cap is also the dataset
        expected = adadamp_padadamp(rate, dwell, wait, initial, budget, budget)
    assert [row[:2] for row in found] == [row[:2] for row in expected]
    assert [row[2] for row in found] == pytest.approx([row[2] for row in expected], rel=1e-12)


def test_padadamp_costs_one_step_per_change():
    """A run of 10^12 samples is bound at once: 1,000 growths, not 10^9 updates."""
    bound = PadaDamp(1e-6, dwell=1, wait=0).bind(Frame(10**9, 10**12, 1000, 2000))
    assert 400 < len(bound.milestones()) < 1200


@pytest.mark.parametrize(
    "cosine, end, expected",
    [
        ("half", 0.0, [5000, 6667, 7700, 8392, 8869]),  # acos(2^(1 - k) - 1) / pi
        ("quarter", 0.0, [6667, 8392, 9203, 9602, 9802]),  # 2 acos(2^-k) / pi
        ("half", 0.2, [5805, 8392]),  # acos(-1/4) / pi, acos(-7/8) / pi; 1/8 is below the end
    ],
)
def test_positions_of_cosine_steps(cosine, end, expected):
    bound = CosineSteps(2, cosine=cosine, end=end).bind(frame())
    assert bound.milestones()[:5] == expected
    assert [bound(at) for at in expected] == [2.0**k for k in range(1, len(expected) + 1)]
    fallen = CosineSteps(0.5, cosine=cosine, end=end).bind(frame())
    again = CosineSteps(2, cosine=cosine, end=end, falls=True).bind(frame())
    for at in expected:
        assert fallen(at) == again(at) == 1 / bound(at)


@given(st.floats(1.1, 10), st.sampled_from(["half", "quarter"]), st.floats(0, 0.9))
@settings(max_examples=100, deadline=None)
def test_cosine_steps_stand_where_the_cosine_crosses(factor, cosine, end):
    run = frame(samples=100_000)
    bound = CosineSteps(factor, cosine=cosine, end=end).bind(run)

    def reference(position):
        x = position / run.budget
        fallen = (1 + math.cos(math.pi * x)) / 2 if cosine == "half" else math.cos(math.pi * x / 2)
        return end + (1 - end) * fallen

    for k, at in enumerate(bound.milestones(), 1):
        assert reference(at - 1) > factor**-k - 1e-12 and reference(at) <= factor**-k + 1e-12
    assert factor ** -(len(bound.milestones()) + 1) <= max(end, reference(run.budget - 1)) + 1e-12


@pytest.mark.parametrize("cosine, share", [("half", 1 / 2), ("quarter", 2 / math.pi)])
def test_updates_that_fine_cosine_steps_need(cosine, share):
    """Without a cap the updates are the integral of 1 / batch, that is of the cosine."""
    found = schedule(CosineSteps(1.002, cosine=cosine), samples=10**6, epochs=1, base_batch=100)
    assert sum(1 for _ in walk(found)) / 10_000 == pytest.approx(share, rel=0.01)


# -- options -------------------------------------------------------------------------------------------


def test_dont_decay_written_out():
    """Smith et al.: factor 5 at epochs 60, 120, 160 of 200, B 128 to 16,000. Updates: samples / batch in
    each phase, rounded up where it ends within a batch."""
    at = "[60,120,160]"
    keys = (f"schedule.growth.milestones={at}", f"schedule.decay.milestones={at}", "schedule.base_lr=0.1")
    found = built("schedule=dont_decay", "epochs=200", "schedule.base_batch=128", *keys, samples=CIFAR)
    same(table(found), [(0, 128, 0.1), (60, 640, 0.1), (120, 3200, 0.1), (160, 16000, 0.1)])
    # 3,000,000 / 128 = 23,437.5; then 640s up to 6,000,000, 3,200s up to 8,000,000, 16,000s to 10,000,000
    assert sum(1 for _ in walk(found)) == 23_438 + 4_688 + 625 + 125
    capped = built("schedule=dont_decay", "epochs=200", "schedule.base_batch=128", *keys,
                   "schedule.max_batch=3200", samples=CIFAR)  # fmt: skip
    same(table(capped), [(0, 128, 0.1), (60, 640, 0.1), (120, 3200, 0.1), (160, 3200, 0.02)])


def test_dont_decay_and_its_baseline_have_equal_noise_for_sgd_and_adam():
    for optimizer, p in (("sgd", 1), ("adamw", 0.5)):
        ours = built("schedule=dont_decay", f"optimizer={optimizer}")
        baseline = built("schedule=fixed", f"optimizer={optimizer}", "schedule.decay.factor=0.2")
        for position in range(0, ours.budget, 997):
            a, b = ours(position), baseline(position)
            assert a.lr / a.divisor**p == pytest.approx(b.lr / b.divisor**p, rel=2e-3)  # whole batches


def test_linear_ramp_written_out():
    """64 to 256 by 32 over 2 of 10 epochs of 3,000: six increments, each of 1,000 samples."""
    keys = ("schedule.base_batch=64", "schedule.base_lr=1", "epochs=10")
    found = built("schedule=linear_ramp", *keys, samples=3000)
    assert [found(p).divisor for p in (0, 999, 1000, 2000, 5000, 5999, 6000, 29_999)] == [
        64, 64, 96, 128, 224, 224, 256, 256,
    ]  # fmt: skip
    assert [found(p).lr for p in (0, 15_000)] == pytest.approx([1.0, 0.55])  # the cosine's own middle


def test_geodamp_written_out():
    """factor 2 every 5 epochs from 128; beyond max_batch the learning rate falls: lr0 * max / batch."""
    keys = ("schedule.base_batch=128", "schedule.growth.every=5", "schedule.max_batch=512", "epochs=25")
    found = built("schedule=geodamp", *keys, "schedule.base_lr=0.1", samples=128 * 8 * 5)
    same(table(found), [(0, 128, 0.1), (5, 256, 0.1), (10, 512, 0.1), (15, 512, 0.05), (20, 512, 0.025)])


def test_padadamp_option_is_the_sources_loop():
    keys = ("schedule.growth.rate=0.125", "schedule.base_lr=1", "schedule.max_batch=96")
    found = built("schedule=padadamp", *keys)
    expected = adadamp_padadamp(Fraction(1, 8), 20, 100, 32, 96, 20 * 1437)
    assert [(start, s.divisor) for start, _, s in walk(found)] == [row[:2] for row in expected]
    assert [s.lr for _, _, s in walk(found)] == pytest.approx([row[2] for row in expected], rel=1e-12)


@pytest.mark.parametrize(
    "optimizer, rates",
    [("adamw", [1, 2**-0.5, 0.5, 2**-1.5, 0.25]), ("sgd", [1, 1, 1, 1, 1])],
)
def test_seesaw_written_out(optimizer, rates):
    """alpha 2, half cosine of 10 epochs of 1,000: at 5,000, 6,667, 7,700, 8,392 the batch doubles and the
    learning rate falls by the square root of 2 (Adam-type) or stays (SGD: equal noise)."""
    keys = ("schedule.base_batch=10", "schedule.base_lr=1", "epochs=10", f"optimizer={optimizer}")
    found = built("schedule=seesaw", *keys, samples=1000)
    at = [0, 5000, 6667, 7700, 8392]
    assert [found(p).divisor for p in at] == [10, 20, 40, 80, 160]
    assert [found(p).lr for p in at] == pytest.approx(rates, rel=1e-12)
    assert [found(p - 1).divisor for p in at[1:]] == [10, 20, 40, 80]
    # the cap: from there on the reference's own decay, lr / 2 at each step, for Adam-type; for SGD as well
    capped = built("schedule=seesaw", *keys, "schedule.max_batch=20", samples=1000)
    assert [capped(p).divisor for p in at] == [10, 20, 20, 20, 20]
    expected = [r / (1 if k < 2 else 2 ** ((k - 1) * (0.5 if optimizer == "adamw" else 1)))
                for k, r in enumerate(rates)]  # fmt: skip
    assert [capped(p).lr for p in at] == pytest.approx(expected, rel=1e-12)


def test_seesaw_follows_its_alpha_in_one_place():
    found = built("schedule=seesaw", "schedule.growth.factor=1.1", "optimizer=adamw", "schedule.base_lr=1",
                  "schedule.growth.cosine=quarter", "schedule.base_batch=1000", samples=10**6)  # fmt: skip
    assert found.decay.milestones() == found.growth.milestones()
    at = found.growth.milestones()[9]
    assert found(at).lr == pytest.approx(1.1**-5, rel=1e-3)  # 10 steps of the square root


def test_exponential_written_out():
    """Kamo and Iiduka's cifar100 configuration: from 8 by 4 every 40 of 200 epochs, lr 0.1."""
    keys = ("schedule.base_batch=8", "schedule.base_lr=0.1", "epochs=200")
    found = built("schedule=exponential", *keys, samples=3200)
    same(table(found), [(0, 8, 0.1), (40, 32, 0.1), (80, 128, 0.1), (120, 512, 0.1), (160, 2048, 0.1)])
    odd = built("schedule=exponential", *keys, "schedule.growth.factor=1.7", samples=3200)
    assert [odd(k * 40 * 3200).divisor for k in range(5)] == [8, 14, 24, 40, 67]  # ceil(8 * 1.7^k)


def test_large_batch_written_out():
    """Hoffer: 4,096 against 128, 32 times as many epochs, lr x 32^(1/2), decays stretched as well."""
    keys = ("schedule.base_batch=4096", "schedule.lr_batch=128", "schedule.base_lr=0.1", "epochs=5")
    found = built("schedule=large_batch", *keys, samples=4096 * 10)
    lr = 0.1 * math.sqrt(32)
    same(table(found), [(32 * k, 4096, lr * 0.375**k) for k in range(5)])
    small = built("schedule=fixed", "schedule.base_batch=128", "epochs=5", samples=4096 * 10)
    assert sum(1 for _ in walk(found)) == sum(1 for _ in walk(small)) == 5 * 10 * 32


def test_linear_scaling_written_out():
    """Goyal: 8,192 against 256, lr 0.1 to 3.2 over 5 epochs, then x0.1 at 30, 60, 80 of 90."""
    keys = ("schedule.base_batch=8192", "schedule.lr_batch=256", "schedule.base_lr=0.1", "epochs=90",
            "schedule.decay.factor=0.1", "schedule.decay.milestones=[30,60,80]")  # fmt: skip
    found = built("schedule=linear_scaling", *keys, samples=81_920)
    rates = {0: 0.1, 1: 0.72, 2.5: 1.65, 5: 3.2, 29.9: 3.2, 30: 0.32, 60: 0.032, 80: 0.0032}
    assert {e: found(round(e * 81_920)).lr for e in rates} == pytest.approx(rates, rel=1e-12)


def test_legw_written_out():
    """k = 8: lr x 8^(1/2), warm-up from 0 over 8 * 0.25 = 2 epochs; AdaptDL's LEGWScale says the same."""
    keys = ("schedule.base_batch=256", "schedule.warmup_epochs=0.25", "schedule.base_lr=1")
    found = built("schedule=legw", *keys, "epochs=20", samples=2560)
    top = math.sqrt(8)
    rates = {0: 0.0, 0.5: top / 4, 1: top / 2, 2: top, 3.9: top, 4: top * 0.375}
    assert {e: found(round(e * 2560)).lr for e in rates} == pytest.approx(rates, rel=1e-12)
    assert {setting.divisor for _, _, setting in walk(found)} == {256}


def test_cosine_and_one_cycle_options():
    cosine = built("schedule=cosine", "schedule.base_lr=2", samples=1000)
    assert [cosine(p).lr for p in (0, 5000, 10_000, 15_000)] == pytest.approx(
        [2, 1 + 2**-0.5, 1, 1 - 2**-0.5]
    )
    cycle = built("schedule=one_cycle", "schedule.base_lr=2", samples=1000)
    assert [cycle(p).lr for p in (0, 3000, 6000, 13_000)] == pytest.approx([0.08, 1.04, 2, 1.000004])


def test_any_growth_takes_any_curve_of_the_learning_rate():
    swapped = built("schedule=adabatch", "schedule.decay._target_=adabatch.schedules.Cosine",
                    "+schedule.decay.end=0.1", "schedule.base_lr=1", samples=1000)  # fmt: skip
    assert [swapped(p).divisor for p in (0, 4000, 16_000)] == [32, 64, 512]
    assert swapped(10_000).lr == pytest.approx(0.55 * 4)  # linear scaling, doubled twice
    lists = built("schedule=adabatch", "schedule.growth.factor=[2,4]", "schedule.growth.milestones=[5,10]")
    assert [lists(round(e * 1437)).divisor for e in (0, 5, 10)] == [32, 64, 256]
    batches = built("schedule=adabatch", "schedule.growth.factor=null", "schedule.growth.batches=[100,300]",
                    "schedule.growth.milestones_samples=[2000,9000]")  # fmt: skip
    assert [batches(p).divisor for p in (1999, 2000, 9000)] == [32, 100, 300]
    with pytest.raises(UserError, match="got factor and batches"):
        resolved("schedule=adabatch", "schedule.growth.batches=[64]", "schedule.growth.milestones=[5]")
    with pytest.raises(UserError, match="schedule.growth.every is a|every is positive"):
        resolved("schedule=adabatch", "schedule.growth.every=[2]")


CHANGES = ("adabatch", "dont_decay", "linear_ramp", "geodamp", "padadamp", "seesaw", "exponential")


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_resolves_and_covers_its_run(option, optimizer):
    found = built(f"schedule={option}", f"optimizer={optimizer}")
    assert found.noise_exponent == (1 if optimizer == "sgd" else 0.5)
    position, sizes = 0, set()
    for start, skipped, setting in walk(found):
        assert start == position and not skipped
        assert 1 <= setting.batch_size <= setting.divisor <= 1437
        assert setting.lr > 0 or (option == "legw" and start == 0)
        position = start + setting.batch_size
        sizes.add(setting.divisor)
    assert position == found.budget == 20 * 1437 * (8 if option == "large_batch" else 1)
    assert (len(sizes) > 1) == (option in CHANGES)
    assert found.warnings() == []


# -- properties of any curve ---------------------------------------------------------------------------

shares = st.floats(0.001, 0.999)
sizes = st.integers(1, 300)
decays = st.one_of(
    st.builds(Cosine, st.floats(0, 1)),
    st.builds(OneCycle, shares, shares, shares),
    st.builds(CosineSteps, st.floats(0.1, 0.9), st.sampled_from(["half", "quarter"]), st.floats(0, 0.9)),
    st.lists(shares, min_size=1, max_size=5, unique=True).map(
        lambda knots: PiecewiseLinear(values=[k * 3 for k in knots], fractions=sorted(knots))
    ),
)
growths = st.one_of(
    st.builds(LinearRamp, st.integers(300, 900), st.floats(0.01, 4), increment=st.none() | sizes),
    st.builds(PadaDamp, st.floats(1e-3, 9), st.integers(1, 30), st.integers(0, 60)),
    st.builds(CosineSteps, st.floats(1.1, 9), st.sampled_from(["half", "quarter"]), st.floats(0, 0.9)),
    st.lists(sizes, max_size=4).map(lambda b: Steps(batches=b, milestones_samples=[*range(50, 50 + len(b))])),
)
runs = st.fixed_dictionaries(
    dict(
        samples=st.integers(1, 400), epochs=st.floats(0.01, 3), base_batch=sizes, multiple=st.integers(1, 9),
        max_batch=st.none() | sizes, scaling=st.sampled_from(["none", "linear", "sqrt"]),
        stretch=st.floats(0.5, 3), compat=st.sampled_from([None, "nvlabs"]),
        noise_exponent=st.sampled_from([0.5, 1.0]), twin=st.sampled_from([None, "lr", "batch"]),
    )
)  # fmt: skip


@given(growths, decays, runs)
@settings(max_examples=200, deadline=None)
def test_any_curve_covers_any_run_once_within_bounds(growth, decay, run):
    try:
        found = Schedule(growth=growth, decay=decay, base_lr=0.1, **run)
    except UserError as error:  # less than a sample in the run, or than `multiple` in the dataset
        assert "at least one sample" in str(error) or "multiple" in str(error)
        return
    position = 0
    for start, skipped, setting in walk(found):
        assert start == position + skipped
        assert 1 <= setting.batch_size <= setting.divisor <= found.cap <= found.samples
        assert 0 <= setting.lr < math.inf
        assert setting == found(start)
        position = start + setting.batch_size
    assert found.compat or position == found.budget


@given(growths, st.integers(1, 400), st.floats(0.05, 3), sizes)
@settings(max_examples=200, deadline=None)
def test_growth_never_falls_and_steps_at_its_milestones(growth, samples, epochs, base_batch):
    bound = growth.bind(Frame(samples, max(1, round(samples * epochs)), base_batch, samples))
    budget = max(1, round(samples * epochs))
    at = bound.milestones()
    assert at == sorted(at) and all(0 < m < budget for m in at)
    stages = [bound.stage(p) for p in range(budget)]
    assert stages == sorted(stages)
    changed = [p for p in range(1, budget) if bound(p) != bound(p - 1)]
    assert set(changed) <= set(at)
    if not isinstance(growth, Steps):
        values = [bound(p) for p in range(budget)]
        assert values == sorted(values) and changed == sorted(set(at))
