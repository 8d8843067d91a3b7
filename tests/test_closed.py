"""The controller: rounding, cap, dwell, hysteresis, shrinkage; and closed-loop runs: the same decisions
whatever the cut, the same bits after a kill."""

import copy

import pytest
from support import SMALL, killed, outcome, resolved, run
from test_train import kill_at_step

from adabatch import runs
from adabatch.errors import UserError
from adabatch.noise import Noise
from adabatch.schedules import Constant, Controller, Frame, Observation, Rule, Schedule, Steps, closed_loop

FRAME = Frame(samples=1000, budget=10_000, base_batch=32, cap=512, multiple=1)


class Says(Rule):
    """Wishes from a list; a rule without measurement."""

    def __init__(self, *wishes, rounding="nearest", above_cap=False):
        self.wishes, self.rounding, self.above_cap = list(wishes), rounding, above_cap

    def wish(self, seen):
        return self.wishes.pop(0)


def trajectory(rule, steps, frame=FRAME, **options):
    """Batch sizes after each of `steps` observations of 100 samples."""
    controller = Controller(rule, **options).bind(frame)
    sizes = []
    for k in range(steps):
        setting = Schedule(
            samples=1000, epochs=10, growth=Constant(), decay=Constant(), base_batch=100, base_lr=1.0
        )(0)
        controller.observe(Observation(100 * k, setting), None, k + 1)
        sizes.append(controller.batch)
    return sizes


def test_growth_only_cap_and_no_decision():
    assert trajectory(Says(64, 48, None, 5000, 10), 5) == [64, 64, 64, 512, 512]


def test_shrinkage_never_goes_below_the_base():
    assert trajectory(Says(64, 48, None, 5000, 10), 5, shrink=True) == [64, 48, 48, 512, 32]


@pytest.mark.parametrize("rounding, size", [("down", 40), ("nearest", 48), ("up", 48)])
def test_rounding_to_multiples(rounding, size):
    frame = Frame(samples=1000, budget=10_000, base_batch=32, cap=512, multiple=8)
    assert trajectory(
        Says({"down": 47.9, "nearest": 44.1, "up": 40.1}[rounding], rounding=rounding), 1, frame
    ) == [size]
    assert trajectory(Says(40.0, rounding=rounding), 1, frame) == [40]  # exact stays exact


def test_dwell_counts_samples_since_the_last_change():
    # Changes are possible at 100 (the first), then not before 100 + 250 = 350: at 400.
    assert trajectory(Says(64, 128, 128, 128, 256), 5, dwell=250) == [64, 64, 64, 128, 128]


def test_hysteresis_compares_the_ratio_both_ways():
    wishes = (35, 36, 200, 181, 180)
    # 35/32 = 1.09 and 36/32 = 1.125 against 10 %; 200/181 = 1.105, 200/180 = 1.11
    assert trajectory(Says(*wishes), 5, hysteresis=0.1, shrink=True) == [32, 36, 200, 181, 181]


def test_a_wish_that_is_no_number_decides_nothing():
    assert trajectory(Says(float("nan"), float("inf"), 64), 3) == [32, 512, 512]


def test_dampers_go_above_the_cap_and_the_learning_rate_pays():
    schedule = closed_loop(
        samples=1000, epochs=10, growth=Says(1024, above_cap=True), decay=Constant(), base_batch=32,
        base_lr=0.1, max_batch=256, scaling="none",
    )  # fmt: skip
    schedule.observe(Observation(0, schedule(0)))
    setting = schedule(32)
    assert setting.divisor == 256 and setting.lr == pytest.approx(0.1 * 256 / 1024, rel=1e-15)


def test_other_rules_stop_at_the_cap_and_keep_their_learning_rate():
    schedule = closed_loop(
        samples=1000, epochs=10, growth=Says(1024), decay=Constant(), base_batch=32, base_lr=0.1,
        max_batch=256, scaling="none",
    )  # fmt: skip
    schedule.observe(Observation(0, schedule(0)))
    assert (schedule(32).divisor, schedule(32).lr) == (256, 0.1)


def test_an_unknown_need_is_refused():
    rule = Says()
    rule.needs = frozenset({"hessian"})
    with pytest.raises(UserError, match="hessian; there is: trace"):
        Controller(rule)


def test_a_rule_that_measures_nothing_is_still_a_closed_loop():
    schedule = closed_loop(
        samples=1000, epochs=10, growth=Says(48), decay=Constant(), base_batch=32, base_lr=0.1
    )
    assert not schedule.needs and schedule.warnings() == []


@pytest.mark.parametrize(
    "line, words",
    [
        ("schedule.base_batch=null", "schedule.base_batch is a number, got null"),
        ("schedule.dwell=null", "schedule.dwell is a number, got null"),
        ("schedule.growth=null", "schedule.growth is a node with keys"),
        ("schedule.hysteresis=nan", "0 or more, got 0 and nan"),
        ("schedule.base_batch=-1", "base_batch is positive, got -1"),
        ("schedule.noise_group=8.5", "a whole number of samples, got 'auto' and 8.5"),
        ("schedule.noise_exponent=-2", "noise_exponent is positive"),
        ("shadow={cabs:5}", "shadow.cabs is a node"),
        ("schedule.noise_group=48", "not a multiple of the ghost group of 32 samples: take 32"),
        ("shadow={cabs:{noise_group:33}}", "not a multiple of the ghost group"),
        ("schedule.preconditioned=true", "adabatch.optim.SGD has no second moments"),
        ("schedule.hold=[momentun]", "Did you mean 'momentum'"),
    ],
)
def test_values_that_no_closed_loop_can_have(line, words):
    with pytest.raises(UserError, match=words):
        resolved("schedule=noise_scale", line)


def test_a_measuring_schedule_needs_closed_loop():
    rule = Says()
    rule.needs = frozenset({"trace"})
    with pytest.raises(UserError, match="closed_loop"):
        Schedule(samples=10, epochs=1, growth=Controller(rule), decay=Constant(), base_batch=2, base_lr=1.0)


def test_a_base_above_the_cap_stays_planned_and_paid_for():
    """512 wanted, 200 there: the learning rate is lowered by 200/512, also after the rule has spoken."""
    schedule = closed_loop(
        samples=1000, epochs=10, growth=Says(100, 600), decay=Constant(), base_batch=512, base_lr=0.1,
        max_batch=200, scaling="none",
    )  # fmt: skip
    for position in (0, 200):
        setting = schedule(position)
        assert (setting.divisor, setting.lr) == (200, pytest.approx(0.1 * 200 / 512))
        schedule.observe(Observation(position, setting))
    assert schedule(400).lr == pytest.approx(0.1 * 200 / 512)


def test_a_twin_does_not_feed_its_learning_rate_back():
    """A rule sees the rate of the schedule whose growth it is, not what the twin made of it."""

    class Reads(Rule):
        def wish(self, seen):
            rates.append(seen.lr)
            return 64

    found = {}
    for twin in (None, "lr"):
        rates = []
        schedule = closed_loop(
            samples=1000, epochs=10, growth=Reads(), decay=Constant(), base_batch=32, base_lr=0.1, twin=twin
        )
        for position in (0, 32, 64):
            schedule.observe(Observation(position, schedule(position)))
        found[twin] = rates
    assert found["lr"] == found[None] == pytest.approx([0.1, 0.2, 0.2])


def test_stretch_stretches_dwell():
    common = dict(samples=1000, epochs=10, decay=Constant(), base_batch=100, base_lr=1.0, dwell=150)
    sizes = []
    schedule = closed_loop(growth=Says(*range(110, 200, 10)), stretch=2, **common)
    position = 0
    for _ in range(4):  # batches of 100, 110, 110, 110: at 100, then not before 100 + 300
        setting = schedule(position)
        sizes.append(setting.divisor)
        schedule.observe(Observation(position, setting))
        position += setting.batch_size
    assert sizes == [100, 110, 110, 110] and schedule(position).divisor == 140


def test_a_rule_on_the_loss_alone_is_asked_where_the_loss_was_read():
    class OnLoss(Rule):
        needs = frozenset({"loss"})

        def wish(self, seen):
            return 32 + seen.loss

    schedule = closed_loop(
        samples=1000,
        epochs=1,
        growth=OnLoss(),
        decay=Constant(),
        base_batch=32,
        base_lr=1.0,
        measure_every=64,
    )
    schedule.observe(Observation(0, schedule(0)))
    assert schedule(32).divisor == 32
    schedule.observe(Observation(32, schedule(32), loss=2.0))
    assert schedule(64).divisor == 34


def test_a_late_start_does_not_favour_the_first_measurement():
    """200 measurements of tr(S), the first 5000, the others 100: at most its share of the horizon."""
    from adabatch.schedules.rules import NoiseScale

    schedule = closed_loop(
        samples=10**6, epochs=1, growth=NoiseScale(), decay=Constant(), base_batch=32, base_lr=1.0
    )
    for k in range(200):
        noise = Noise(32, 2, 5000.0 if k == 0 else 100.0, -1.0)
        position = 100_000 + 32 * k
        schedule.observe(Observation(position, schedule(position), noise=noise))
    assert schedule.figures()["trace_average"] == pytest.approx(100 + 4900 / 200, rel=0.02)


def test_a_rule_on_validation_logs_its_wish_with_the_next_step(tmp_path):
    own = (
        *SMALL, "dataset.validation=60", "epochs=3", "schedule=adadamp", "schedule.base_batch=16",
        "schedule.dwell=0", "shadow={adadamp:{},plateau:{growth:{patience:0,threshold:0.9}}}",
    )  # fmt: skip
    run(tmp_path, *own)
    rows = [row for row in runs.read_rows(tmp_path) if row["event"] == "train"]
    wished = [row["wish"] for row in rows if "wish" in row]
    assert len(wished) == 3, "an evaluation before the first step and after each epoch but the last"
    for row in rows:
        assert row["shadow.adadamp.batch_size"] == row.get("divisor", row["batch_size"])
        assert row.get("shadow.adadamp.wish") == row.get("wish")
    assert rows[-1]["shadow.plateau.batch_size"] > 16


def test_a_batch_that_outgrows_the_epoch_after_an_evaluation_ends_the_run(tmp_path):
    """compat drops the tail; the plateau that makes the batch larger than what is left is told just
    before."""
    run(
        tmp_path,
        *SMALL,
        "epochs=2",
        "dataset.validation=60",
        "schedule=plateau",
        "schedule.base_batch=16",
        "schedule.compat=nvlabs",
        "schedule.growth.patience=1",
        "schedule.growth.threshold=0.9",
        "schedule.growth.factor=8",
        "evaluate.every=0.5",
    )
    assert all(row["batch_size"] > 0 for row in runs.read_rows(tmp_path) if row["event"] == "train")


def test_decisions_wait_for_a_resolved_scale():
    """The scale of tr(S) = 64, |G|^2 = 1 is followed after four measurements, not before."""
    from adabatch.schedules.rules import NoiseScale

    schedule = closed_loop(
        samples=10_000, epochs=1, growth=NoiseScale(), decay=Constant(), base_batch=32, base_lr=1.0
    )
    sizes = []
    for k in range(6):
        setting = schedule(32 * k)
        sizes.append(setting.divisor)
        wobble = 0.01 * (-1) ** k
        schedule.observe(Observation(32 * k, setting, noise=Noise(32, 2, 64.0, 1.0 + wobble)))
    assert sizes == [32, 32, 32, 32, 64, 64]
    silent = copy.deepcopy(schedule)
    for k in range(6, 60):  # |G|^2 vanishes in its noise: nothing is decided any more
        silent.observe(Observation(32 * k, silent(32 * k), noise=Noise(32, 2, 64.0, 300.0 * (-1) ** k)))
    assert silent(2000).divisor == 64 and silent.figures()["noise_scale"] is None


# -- twins -----------------------------------------------------------------------------------------


def build(twin, **more):
    common = dict(samples=1000, epochs=10, base_batch=32, base_lr=0.1, scaling="linear")
    common |= dict(growth=Steps(2, every=2), decay=Steps(0.375, every=2)) | more
    return Schedule(**common, twin=twin)


def test_the_learning_rate_twin_of_adabatch_is_its_fixed_baseline():
    twin, fixed = build("lr"), build(None, growth=Constant())
    for position in range(0, 10_000, 500):
        a, b = twin(position), fixed(position)
        assert a.divisor == b.divisor == 32 and a.lr == pytest.approx(b.lr, rel=1e-12)


def test_the_batch_twin_of_a_decay_by_two_doubles_the_batch_at_constant_rate():
    twin = build("batch", growth=Constant(), decay=Steps(0.5, every=2), max_batch=256)
    found = [(twin(p).divisor, twin(p).lr) for p in range(0, 10_000, 2000)]
    sizes, rates = zip(*found)
    assert sizes == (32, 64, 128, 256, 256)
    assert rates == pytest.approx((0.1, 0.1, 0.1, 0.1, 0.05), rel=1e-12)  # the cap: decay again


@pytest.mark.parametrize("twin", ["lr", "batch"])
@pytest.mark.parametrize("exponent", [1.0, 0.5])
def test_a_twin_has_the_noise_of_its_schedule_everywhere(twin, exponent):
    plain, other = (build(t, noise_exponent=exponent, scaling="auto") for t in (None, twin))
    for position in range(0, 10_000, 250):
        a, b = plain(position), other(position)
        assert a.lr / a.divisor**exponent == pytest.approx(b.lr / b.divisor**exponent, rel=1e-12)


# -- runs ------------------------------------------------------------------------------------------

CLOSED = (
    *SMALL,
    "epochs=6",
    "schedule=noise_scale",
    "schedule.base_batch=16",
    "schedule.noise_group=8",
    "schedule.hysteresis=0.02",
    "model.ghost=8",
    "checkpoint.every_seconds=0",
)


def sizes(folder):
    return [row["batch_size"] for row in runs.read_rows(folder) if row["event"] == "train"]


@pytest.mark.slow
def test_decisions_do_not_depend_on_the_micro_batch_in_float64(tmp_path):
    """Micro-batches of 8, 24 and 4,096 samples: every batch size equal, every measured figure to 1e-9."""
    rows = {}
    for micro in (8, 24, 4096):
        run(tmp_path / str(micro), *CLOSED, "hardware.precision=fp64", f"hardware.micro_batch={micro}")
        rows[micro] = [r for r in runs.read_rows(tmp_path / str(micro)) if r["event"] == "train"]
    assert len(set(sizes(tmp_path / "8"))) > 3, "the rule decided nothing: this tests nothing"
    for other in (24, 4096):
        assert sizes(tmp_path / "8") == sizes(tmp_path / str(other))
        for a, b in zip(rows[8], rows[other]):
            for name in ("trace", "sq_norm", "trace_average", "sq_norm_average"):
                assert a[name] == pytest.approx(b[name], rel=1e-9, abs=1e-12)


@pytest.mark.slow
def test_killed_around_its_own_decisions_and_repeated_is_bitwise_equal(tmp_path):
    run(tmp_path / "whole", *CLOSED)
    found = sizes(tmp_path / "whole")
    changes = [k for k in range(1, len(found)) if found[k] != found[k - 1]]
    for number in (changes[0], changes[0] + 1, changes[-1] + 1):  # steps are counted from 1
        folder = tmp_path / f"killed{number}"
        killed(folder, *CLOSED, arrange=kill_at_step(number))
        run(folder, *CLOSED)
        assert outcome(folder) == outcome(tmp_path / "whole")


def test_the_differenced_fallback_is_labelled_and_resumes(tmp_path):
    """A batch of one group: two successive batches are compared; the kept gradient is in the checkpoint."""
    one = (*CLOSED, "schedule.noise_group=16", "schedule.max_batch=16", "epochs=2")
    run(tmp_path / "whole", *one)
    rows = [row for row in runs.read_rows(tmp_path / "whole") if row["event"] == "train"]
    assert "trace" not in rows[0] and all(row["biased"] for row in rows[1:-1])
    killed(tmp_path / "killed", *one, arrange=kill_at_step(9))
    run(tmp_path / "killed", *one)
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "whole")
    run(tmp_path / "none", *one, "schedule.differenced=false")
    assert not any("trace" in row for row in runs.read_rows(tmp_path / "none"))


def test_rare_measurements_of_single_groups_come_in_pairs(tmp_path):
    """Every 64 samples, batches of one group of 16: the step that holds the multiple is kept, the next one is
    compared with it."""
    one = (
        *CLOSED,
        "schedule.noise_group=16",
        "schedule.max_batch=16",
        "epochs=1",
        "schedule.measure_every=64",
    )
    run(tmp_path, *one)
    rows = [row for row in runs.read_rows(tmp_path) if row["event"] == "train"]
    measured = [row["position"] for row in rows if "trace" in row]
    assert measured == [80, 144, 208, 272]
