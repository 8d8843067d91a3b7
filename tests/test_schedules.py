"""Schedules against the golden tables of NVlabs/AdaBatch and the paper's arithmetic, and properties of any
schedule."""

import copy
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adabatch.errors import UserError
from adabatch.schedules import Constant, Observation, Schedule, Steps, walk
from adabatch.schedules.coupled import coupled, differences, rule

CIFAR = 50_000


def nvlabs(base_batch, base_lr, growth, gamma, epochs=100, **kwargs):
    """NVlabs' flags (gamma at each resize) as ours: our decay is gamma / growth, linear scaling restores the
    rest."""
    grown = Steps(growth, every=20) if growth != 1 else Constant()
    return Schedule(
        samples=CIFAR,
        epochs=epochs,
        growth=grown,
        decay=Steps(gamma / growth, every=20),
        scaling="linear",
        base_batch=base_batch,
        base_lr=base_lr,
        compat="nvlabs",
        **kwargs,
    )


def table(schedule):
    """[(batch, lr, steps per epoch)] for each stretch of equal settings, epochs 0, 20, 40, ..."""
    per_epoch = {}
    for start, _, setting in walk(schedule):
        per_epoch.setdefault(start // CIFAR, []).append(setting)
    return [
        (per_epoch[e][0].batch_size, per_epoch[e][0].lr, len(per_epoch[e]))
        for e in range(0, len(per_epoch), 20)
    ]


GOLDEN = {
    "ada 128-2048": (
        nvlabs(128, 0.01, 2, 0.75),
        [
            (128, 0.01, 390),
            (256, 0.0075, 195),
            (512, 0.005625, 97),
            (1024, 0.00421875, 48),
            (2048, 0.0031640625, 24),
        ],
        15_080,
    ),
    "fixed 128": (
        nvlabs(128, 0.01, 1, 0.375),
        [
            (128, 0.01, 390),
            (128, 0.00375, 390),
            (128, 0.00140625, 390),
            (128, 0.00052734375, 390),
            (128, 0.00019775390625, 390),
        ],
        39_000,
    ),
    "ada 256-4096": (
        nvlabs(256, 0.01, 2, 0.75),
        [
            (256, 0.01, 195),
            (512, 0.0075, 97),
            (1024, 0.005625, 48),
            (2048, 0.00421875, 24),
            (4096, 0.0031640625, 12),
        ],
        7_520,
    ),
    "cap": (
        nvlabs(8192, 0.1, 2, 0.5, multiple=4096),
        [(8192, 0.1, 6), (16384, 0.05, 3), (32768, 0.025, 1), (49152, 0.009375, 1), (49152, 0.00234375, 1)],
        240,
    ),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_tables_of_nvlabs(name):
    schedule, expected, updates = GOLDEN[name]
    rows = table(schedule)
    assert [(b, s) for b, _, s in rows] == [(b, s) for b, _, s in expected]
    assert [lr for _, lr, _ in rows] == pytest.approx([lr for _, lr, _ in expected], rel=1e-14)
    assert sum(1 for _ in walk(schedule)) == updates


@pytest.mark.parametrize("batch, updates", [(256, 19_500), (2048, 2_400), (4096, 1_200)])
def test_updates_of_fixed_batches(batch, updates):
    assert sum(1 for _ in walk(nvlabs(batch, 0.01, 1, 0.375))) == updates


def test_golden_warm_up_of_nvlabs():
    schedule = nvlabs(1024, 0.1, 2, 0.5, lr_batch=128, warmup_epochs=5)
    per_epoch = {start // CIFAR: setting for start, _, setting in walk(schedule)}
    assert [per_epoch[e].lr for e in range(6)] == pytest.approx(
        [0.1, 0.275, 0.45, 0.625, 0.8, 0.8], rel=1e-14
    )
    assert [(per_epoch[e].batch_size, per_epoch[e].lr) for e in (20, 40, 60, 80)] == [
        (2048, pytest.approx(0.4)),
        (4096, pytest.approx(0.2)),
        (8192, pytest.approx(0.1)),
        (16384, pytest.approx(0.05)),
    ]
    assert sum(1 for _ in walk(schedule)) == 1_860


def test_per_step_warm_up_rises_from_base_lr_to_the_scaled_one():
    schedule = Schedule(
        samples=1000,
        epochs=10,
        growth=Constant(),
        decay=Constant(),
        base_batch=80,
        lr_batch=10,
        base_lr=0.1,
        scaling="linear",
        warmup_epochs=2,
    )
    assert schedule(0).lr == pytest.approx(0.1)
    assert schedule(1000).lr == pytest.approx(0.1 * (1 + 7 / 2))
    assert schedule(2000).lr == schedule(9999).lr == pytest.approx(0.8)
    from_zero = Schedule(
        samples=1000,
        epochs=10,
        growth=Constant(),
        decay=Constant(),
        base_batch=80,
        lr_batch=10,
        base_lr=0.1,
        scaling="linear",
        warmup_epochs=2,
        warmup_from=0,
    )
    assert [from_zero(p).lr for p in (0, 500, 2000)] == pytest.approx([0, 0.2, 0.8])


def test_adabatch_keeps_the_baselines_lr_per_sample():
    common = dict(samples=1000, epochs=10, base_batch=10, base_lr=0.1, decay=Steps(0.375, every=2))
    fixed, ada = Schedule(growth=Constant(), **common), Schedule(growth=Steps(2, every=2), **common)
    for position in (0, 1999, 2000, 5000, 9990):
        assert ada(position).lr / ada(position).divisor == pytest.approx(fixed(position).lr / 10, rel=1e-14)


def test_cap_becomes_decay_of_equal_noise():
    """With p = 1/2 the learning rate falls by the square root of the growth that was forbidden."""
    common = dict(
        samples=1000, epochs=10, base_batch=100, base_lr=0.1, decay=Constant(), growth=Steps(4, every=5)
    )
    sgd = Schedule(max_batch=200, scaling="none", **common)
    adam = Schedule(max_batch=200, scaling="none", noise_exponent=0.5, **common)
    assert sgd(5000).batch_size == adam(5000).batch_size == 200
    assert sgd(5000).lr == pytest.approx(0.1 * 0.5)
    assert adam(5000).lr == pytest.approx(0.1 * math.sqrt(0.5))


@pytest.mark.parametrize(
    "scaling, expected", [("none", 1), ("linear", 4), ("sqrt", 2), ("auto", 4), (0.25, math.sqrt(2))]
)
def test_scaling_rules(scaling, expected):
    s = Schedule(
        samples=1000,
        epochs=1,
        growth=Constant(),
        decay=Constant(),
        base_batch=40,
        lr_batch=10,
        base_lr=1.0,
        scaling=scaling,
    )
    assert s(0).lr == pytest.approx(expected)


def test_stretch_moves_everything():
    common = dict(
        samples=100,
        epochs=10,
        growth=Steps(2, every=5),
        decay=Steps(0.1, every=5),
        base_batch=10,
        base_lr=1.0,
    )
    once, twice = Schedule(**common), Schedule(stretch=2, **common)
    assert twice.budget == 2 * once.budget == 2000
    for position in (0, 499, 500, 999):
        assert once(position).lr == twice(2 * position).lr


def test_last_batch_is_cut_and_keeps_its_divisor():
    schedule = Schedule(
        samples=100, epochs=1, growth=Constant(), decay=Constant(), base_batch=32, base_lr=1.0
    )
    assert [(s.batch_size, s.divisor) for _, _, s in walk(schedule)] == [(32, 32)] * 3 + [(4, 32)]


def test_empty_every_is_a_fifth_of_the_run():
    schedule = Schedule(
        samples=100, epochs=10, growth=Steps(2), decay=Constant(), base_batch=1, base_lr=1.0, scaling="none"
    )
    assert [schedule(p).divisor for p in (0, 199, 200, 400, 600, 800, 999)] == [1, 1, 2, 4, 8, 16, 16]


factors = st.one_of(
    st.just(Constant()),
    st.builds(Steps, st.floats(0.1, 5), every=st.floats(0.05, 3)),
    st.builds(Steps, st.floats(0.1, 5), milestones=st.lists(st.floats(0.01, 4), max_size=4)),
)
schedules = st.builds(
    Schedule,
    samples=st.integers(1, 400),
    epochs=st.floats(0.01, 3),
    growth=factors,
    decay=factors,
    base_batch=st.integers(1, 500),
    base_lr=st.floats(1e-4, 10),
    max_batch=st.one_of(st.none(), st.integers(1, 500)),
    scaling=st.sampled_from(["none", "linear", "sqrt"]),
    stretch=st.floats(0.5, 3),
    compat=st.sampled_from([None, "nvlabs"]),
    noise_exponent=st.sampled_from([0.5, 1.0]),
)


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_any_schedule_covers_the_run_once_within_bounds(data):
    try:
        schedule = data.draw(schedules)
    except UserError:  # e.g. less than one sample in the run: refused, not repaired
        return
    position = 0
    for start, skipped, setting in walk(schedule):
        assert start == position + skipped and skipped >= 0
        assert skipped == 0 or (schedule.compat and start % schedule.samples == 0)
        assert 1 <= setting.batch_size <= setting.divisor <= schedule.cap <= schedule.samples
        assert setting.lr > 0 and math.isfinite(setting.lr)
        assert setting == schedule(start)  # reading a schedule does not move it
        position = start + setting.batch_size
    assert schedule.done(position) and (schedule.compat or position == schedule.budget)


@pytest.mark.parametrize(
    "kwargs, message",
    [
        (dict(base_batch=0), "base_batch is positive, got 0"),
        (dict(scaling="liner"), "Did you mean 'linear'"),
        (dict(compat="nvlab"), "Did you mean 'nvlabs'"),
        (dict(warmup_epochs=10), "less than epochs"),
        (dict(multiple=200), "larger than the largest batch"),
        (dict(epochs=0.001), "at least one sample"),
    ],
)
def test_refusals_name_rule_and_value(kwargs, message):
    defaults = dict(samples=100, epochs=10, growth=Constant(), decay=Constant(), base_batch=10, base_lr=1.0)
    with pytest.raises(UserError, match=message):
        Schedule(**(defaults | kwargs))


def test_steps_refuse_two_clocks():
    with pytest.raises(UserError, match="every and milestones"):
        Steps(2, every=1, milestones=[1])


def test_a_schedule_that_cannot_change_says_so():
    common = dict(samples=100, decay=Constant(), base_batch=10, base_lr=1.0)
    assert "stays 10" in Schedule(epochs=5, growth=Steps(2, every=5), **common).warnings()[0]
    assert "cap 10" in Schedule(epochs=5, growth=Steps(2), max_batch=10, **common).warnings()[0]
    assert Schedule(epochs=5, growth=Steps(2), **common).warnings() == []
    assert Schedule(epochs=5, growth=Constant(), **common).warnings() == []


def test_coupled_quantities_at_a_change():
    schedule = Schedule(
        samples=1000,
        epochs=10,
        growth=Steps(2, every=5),
        decay=Steps(0.5, every=5),
        base_batch=10,
        base_lr=0.1,
    )
    a, b = schedule(0), schedule(5000)
    common = dict(
        samples=1000, momentum=0.9, weight_decay=5e-4, decoupled=False, ema=None, horizon=1215.0, world=1
    )
    before = coupled(a, lr=a.lr, **common, micro_batch=10, accumulation=1)
    changed = differences(before, coupled(b, lr=b.lr, **common, micro_batch=16, accumulation=2))
    assert changed["batch_size"] == [10, 20] and changed["steps_per_epoch"] == [100, 50]
    assert changed["momentum_horizon_samples"] == pytest.approx([100, 200])
    assert changed["weight_decay_per_sample"] == pytest.approx([0.1 * 5e-4 / 1, 0.1 * 5e-4 / 2])
    assert changed["micro_batch"] == [10, 16] and changed["accumulation"] == [1, 2]
    assert "ema_half_life_samples" not in changed
    words = rule(a, b, "linear scaling")
    assert words == "batch x2, lr x1: x2 by linear scaling; x0.5 by the rest"


def test_a_decay_that_never_steps_says_so():
    common = dict(samples=100, epochs=10, growth=Constant(), base_batch=10, base_lr=1.0)
    assert "never steps" in Schedule(decay=Steps(0.1, every=30), **common).warnings()[0]
    assert Schedule(decay=Steps(0.1, every=3), **common).warnings() == []


@given(st.data(), st.integers(0, 30))
@settings(max_examples=50, deadline=None)
def test_a_schedules_state_goes_round(data, steps):
    """What a checkpoint stores is plain, and restores the same decisions and counts."""
    import json

    try:
        schedule = data.draw(schedules)
    except UserError:
        return
    positions = [start for start, _, _ in walk(schedule)][: steps + 1]
    for position in positions:
        schedule.observe(Observation(position, schedule(position), loss=1.0))
    state = json.loads(json.dumps(schedule.state_dict()))
    again = copy.deepcopy(schedule)
    again.updates = -1
    again.load_state_dict(state)
    assert again.updates == schedule.updates == len(positions)
    assert [again(p) for p in positions] == [schedule(p) for p in positions]
