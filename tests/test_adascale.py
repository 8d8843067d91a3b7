"""AdaScale (Johnson et al. 2020): its gain in closed form, its clock, and how a run ends."""

import math

import pytest
from support import SMALL, killed, outcome, run
from test_train import kill_at_step

from adabatch import runs
from adabatch.errors import UserError
from adabatch.noise import Average, Noise
from adabatch.schedules import Constant, Observation, Steps, closed_loop
from adabatch.schedules.rules import Goodput
from adabatch.schedules.scaling import Gain


def measured(trace, sq_norm):
    """Averages that are resolved: every measurement the same."""
    average = Average(1e6)
    for _ in range(Average.NEEDED):
        average.add(Noise(128, 2, trace, sq_norm), 128)
    assert average.resolved
    return average


def gain(trace, sq_norm, lr_batch=32, exponent=1.0, budget=10**6):
    scaling = Gain(exponent, lr_batch, budget)
    setting = schedule()(0)
    scaling.observe(setting, measured(trace, sq_norm))
    return scaling


def schedule(**more):
    common = dict(samples=1280, epochs=10, base_batch=128, lr_batch=32, base_lr=0.1, scaling="gain")
    return closed_loop(**common | dict(growth=Constant(), decay=Constant()) | more)


# r by hand: s2 = tr(S) / 32, r = (s2 + g2) / (s2 / S + g2).
TABLE = [
    (64.0, 2.0, 128, 4 / 2.5),  # s2 = 2, S = 4: (2 + 2) / (0.5 + 2)
    (64.0, 1.0, 128, 3 / 1.5),
    (64.0, 1.0, 32, 1.0),  # the original batch
    (96.0, 1.0, 320, 4 / 1.3),  # s2 = 3, S = 10
]


@pytest.mark.parametrize("trace, sq_norm, batch, expected", TABLE)
def test_gain_in_figures(trace, sq_norm, batch, expected):
    assert gain(trace, sq_norm).gain(batch) == pytest.approx(expected, rel=1e-14)
    assert gain(trace, sq_norm)(batch, batch) == (pytest.approx(expected), 1.0)


def test_without_noise_the_gain_is_one_and_under_noise_alone_it_is_the_ratio():
    for ratio in (2, 4, 40):
        assert gain(1e-9, 1.0).gain(32 * ratio) == pytest.approx(1, abs=1e-9)
        assert gain(1e12, 1.0).gain(32 * ratio) == pytest.approx(ratio, rel=1e-8)
        assert 1 < gain(64.0, 1.0).gain(32 * ratio) < ratio


def test_the_gain_grows_with_the_batch_and_with_the_noise():
    gains = [gain(64.0, 1.0).gain(batch) for batch in range(32, 2048, 32)]
    assert gains == sorted(gains) and gains[-1] < 3 == 1 + 64 / 32  # its limit: 1 + s2 / g2
    noisy = [gain(trace, 1.0).gain(256) for trace in (1, 10, 100, 1000)]
    assert noisy == sorted(noisy)


@pytest.mark.parametrize("phi", [1.0, 50.0, 4000.0])
@pytest.mark.parametrize("batch", [32, 100, 1024])
def test_gain_over_ratio_is_the_efficiency_of_pollux(phi, batch):
    """EFF(B) = (phi + B0) / (phi + B) = r / S."""
    rule = Goodput([(32, 1.0), (64, 1.0)])
    rule.bind(schedule(base_batch=32).frame)
    expected = gain(phi * 0.7, 0.7).gain(batch) / (batch / 32)
    assert rule.efficiency(phi, batch) == pytest.approx(expected, rel=1e-12)


def test_adam_type_optimizers_take_the_root_of_the_gain():
    assert gain(64.0, 2.0, exponent=0.5)(128, 128)[0] == pytest.approx(math.sqrt(1.6), rel=1e-14)


# -- the clock -------------------------------------------------------------------------------------


def walked(planned, trace, sq_norm, steps=10**6):
    """[(position, setting, gained before it)] of a schedule that always measures the same."""
    position, found = 0, []
    while not planned.done(position) and len(found) < steps:
        setting = planned(position)
        found.append((position, setting, planned.scaling.gained))
        noise = Noise(setting.batch_size, 2, trace, sq_norm)
        planned.observe(Observation(position, setting, noise=noise))
        position += setting.batch_size
    return found, position


def test_the_gained_clock_indexes_decay_and_the_learning_rate_follows_the_gain():
    """r = 1 for the four measurements that resolve |G|^2 (32 gained each), then 1.6 (51.2 gained each)."""
    planned = schedule(decay=Steps(0.5, every_samples=1280))
    found, _ = walked(planned, 64.0, 2.0, 40)
    for k, (position, setting, gained) in enumerate(found):
        r = 1.0 if k < 4 else 1.6
        assert position == 128 * k
        assert gained == pytest.approx(32 * min(k, 4) + 51.2 * max(0, k - 4), rel=1e-12)
        assert setting.lr == pytest.approx(0.1 * r * 0.5 ** (gained // 1280), rel=1e-12)
    assert found[-1][2] > 1280, "the decay was never reached: this tests nothing"
    # By samples the first decay would come at step 10, by updates at step 40: by tau at step 27.
    assert [k for k in range(1, 40) if found[k][1].lr < found[k - 1][1].lr] == [27]


def test_warm_up_runs_on_the_gained_clock():
    planned = schedule(warmup_epochs=1, warmup_from=0.0)
    found, _ = walked(planned, 64.0, 2.0, 30)
    for k, (_, setting, gained) in enumerate(found):
        assert setting.lr == pytest.approx(0.1 * (1.0 if k < 4 else 1.6) * min(1, gained / 1280), abs=1e-15)


def test_a_run_ends_at_its_samples_or_when_its_schedule_is_through():
    _, by_samples = walked(schedule(stop="samples"), 64.0, 2.0)
    assert by_samples == 12_800
    planned = schedule(stop="gained")
    found, position = walked(planned, 64.0, 2.0)
    # 4 * 32 + 51.2 k >= 12,800: k = 247.5, so 248 more steps of 128.
    assert len(found) == 252 and position == 252 * 128
    assert planned.scaling.gained >= 12_800 > found[-1][2]
    # Noise alone: S times as fast, as many samples. No noise: as many updates as the original schedule had.
    assert walked(schedule(stop="gained"), 1e20, 1.0)[1] == 12_800 + 3 * 128  # r = 1 for four steps
    assert walked(schedule(stop="gained"), 1e-9, 1.0)[1] == 12_800 // 32 * 128


def test_a_cut_last_batch_gains_its_share():
    planned = schedule(samples=1000, epochs=1)  # 7 batches of 128 and one of 104
    found, position = walked(planned, 1e12, 1.0)
    assert position == 1000 and found[-1][1].batch_size == 104
    assert planned.scaling.gained == pytest.approx(4 * 32 + 3 * 128 + 104, rel=1e-8)


def test_unresolved_noise_keeps_the_last_gain():
    planned = schedule()
    walked(planned, 64.0, 2.0, 10)
    for k in range(10, 40):
        noise = Noise(128, 2, 64.0, 500.0 * (-1) ** k)
        planned.observe(Observation(128 * k, planned(128 * k), noise=noise))
    assert planned.figures()["noise_scale"] is None
    assert planned.scaling.gain(128) == pytest.approx(1.6, rel=1e-9)


def test_its_state_goes_round():
    planned, fresh = schedule(), schedule()
    walked(planned, 64.0, 2.0, 10)
    fresh.load_state_dict(planned.state_dict())
    assert fresh(1280) == planned(1280) and fresh.state_dict() == planned.state_dict()
    assert fresh.scaling.gained == pytest.approx(4 * 32 + 6 * 51.2)


def test_below_the_batch_of_the_learning_rate_the_gain_is_the_ratio_until_it_is_known():
    """batch 16, lr_batch 32: r <= S = 1/2. Before a measurement lr is halved and a step counts 16 samples."""
    gain = Gain(1.0, 32, 1000)
    assert gain.gain(16) == 0.5 and gain.gain(64) == 1.0
    schedule = closed_loop(
        samples=1000, epochs=1, growth=Constant(), decay=Constant(), base_batch=16, lr_batch=32, base_lr=0.1,
        scaling="gain",
    )  # fmt: skip
    assert schedule(0).lr == pytest.approx(0.05)
    schedule.observe(Observation(0, schedule(0)))
    assert schedule.scaling.gained == 16


@pytest.mark.parametrize("more, message", [
    ({"stop": "gaind"}, "stop is one of samples, gained.*Did you mean 'gained'"),
    ({"stretch": 2}, "clock of its own"),
])  # fmt: skip
def test_refusals(more, message):
    with pytest.raises(UserError, match=message):
        schedule(**more)


# -- runs ------------------------------------------------------------------------------------------

SCALED = (
    *SMALL,
    "epochs=4",
    "schedule=adascale",
    "schedule.base_batch=64",
    "schedule.lr_batch=16",
    "schedule.noise_group=8",
    "model.ghost=8",
    "checkpoint.every_seconds=0",
)


@pytest.mark.slow
def test_a_run_ends_as_stated_in_both_modes_and_resumes(tmp_path):
    rows = {}
    for stop in ("samples", "gained"):
        summary = run(tmp_path / stop, *SCALED, f"schedule.stop={stop}")
        assert summary["final_train_loss"] > 0
        rows[stop] = [r for r in runs.read_rows(tmp_path / stop) if r["event"] == "train"]
    assert rows["samples"][-1]["position"] == 1200 and rows["samples"][-1]["gained"] < 1200
    *_, before, last = rows["gained"]
    assert before["gained"] < 1200 <= last["gained"] and last["position"] > 1200
    lrs = {round(r["lr"] / 0.05 / 0.375 ** (g // 240), 9) for r, g in with_clock(rows["gained"])}
    assert min(lrs) == 1 < max(lrs) <= 4, "1 <= r <= S, on the decay that tau indexes"
    last_epoch = [r for r in rows["gained"] if r["gained"] > 900]
    expected = sum(r["train_loss"] * r["batch_size"] for r in last_epoch) / sum(
        r["batch_size"] for r in last_epoch
    )
    assert runs.Run(tmp_path / "gained").summary["final_train_loss"] == pytest.approx(expected, rel=1e-12)
    killed(
        tmp_path / "killed", *SCALED, "schedule.stop=gained", arrange=kill_at_step(len(rows["gained"]) - 2)
    )
    run(tmp_path / "killed", *SCALED, "schedule.stop=gained")
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "gained")


def with_clock(rows):
    """(row, gained before its step)"""
    return zip(rows, [0.0, *(row["gained"] for row in rows)])
