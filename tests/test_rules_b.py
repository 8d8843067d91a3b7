"""Diversity, dampers, plateau and goodput: trajectories from their sources or in closed form, written out."""

import json
import math
import random
import subprocess
import sys

import pytest
import torch
from support import SMALL, killed, outcome, resolved, run
from test_train import kill_at_step

from adabatch import runs, throughput
from adabatch.errors import UserError
from adabatch.noise import Noise
from adabatch.schedules import Constant, Observation, Schedule, closed_loop
from adabatch.schedules.rules import AdaDamp, Diversity, Goodput, Plateau, PlateauDecay, RadaDamp


def schedule(growth, **more):
    """1,000 samples, batch 32, at most 512, unless said otherwise; the learning rate 0.1 throughout."""
    common = dict(samples=1000, epochs=10, base_batch=32, max_batch=512, base_lr=0.1, scaling="none")
    return closed_loop(**common | dict(growth=growth, decay=Constant()) | more)


def step(planned, position, **seen):
    setting = planned(position)
    planned.observe(Observation(position, setting, **seen))
    return setting


def noise(trace, sq_norm, batch=32, **more):
    return Noise(batch, 2, trace, sq_norm, **more)


def settled(growth, trace, sq_norm, **more):
    """A schedule that has measured the same four times at the start: |G|^2 is resolved."""
    planned = schedule(growth, **more)
    for position in (0, 32, 64, 96):
        step(planned, position, noise=noise(trace, sq_norm))
    return planned


# -- gradient diversity ----------------------------------------------------------------------------


def test_diversity_from_moments_every_two_epochs():
    """phi = 250, n = 1,000: n Delta = 251 / 1.25 = 200.8; delta 0.5 wishes 100.4, cut to 100, from the batch
    after the one that holds sample 2,000."""
    planned = settled(Diversity(0.5, resize=2), 250.0, 1.0)
    sizes = {}
    for position in range(200, 7000, 100):
        sizes[position] = step(planned, position, noise=noise(250.0, 1.0)).divisor
        if position == 4900:  # from here on phi falls: the batch does not
            planned.measuring.average.load_state_dict(
                settled(Diversity(1), 1.0, 1.0).measuring.average.state_dict()
            )
    changes = [p for p in sizes if p > 200 and sizes[p] != sizes[p - 100]]
    assert changes == [2100] and set(sizes.values()) == {32, 100}


@pytest.mark.parametrize("phi", [3.0, 100.0, 1e3, 1e7])
def test_diversity_from_moments_is_that_of_a_fixed_point(phi):
    """At fixed weights n Delta = (S + |G|^2) / (|G|^2 + S / n), one for no noise and n for nothing else."""
    n, sq_norm = 1000, 0.3
    planned = settled(Diversity(1.0, resize=1), phi * sq_norm, sq_norm, max_batch=None)
    for position in range(128, 1000, 32):
        step(planned, position, noise=noise(phi * sq_norm, sq_norm))
    expected = (phi * sq_norm + sq_norm) / (sq_norm + phi * sq_norm / n)
    assert planned.figures()["wish"] == pytest.approx(expected, rel=1e-12) and expected < n
    assert planned(1024).divisor == max(32, int(expected))


def test_diversity_waits_until_the_noise_is_resolved():
    planned = schedule(Diversity(1.0, resize=1))
    sizes = [step(planned, 900 + 100 * k, noise=noise(250.0, 1.0)).divisor for k in range(6)]
    assert sizes == [32, 32, 32, 32, 200, 200]  # due at 1,000, resolved with the fourth measurement


def test_exact_diversity_is_the_source_rule():
    """int(min(max(delta n Delta, B), B_max)) at every second epoch; not finite: B_max."""
    planned = schedule(Diversity(0.1, resize=2, exact=True))
    # Delta of epochs 1 to 8: those of 2, 4, 6, 8 count.
    deltas = [9.0, 0.5678, 9.0, 0.9999, 9.0, 0.3, 9.0, math.nan]
    sizes = []
    for epoch, delta in enumerate(deltas):
        step(planned, 1000 * epoch + 500, noise=noise(1.0, 1.0, per_sample=2.0))
        step(planned, 1000 * epoch + 980, noise=noise(1.0, 1.0, diversity=delta))
        sizes.append(planned(1000 * epoch + 1012).divisor)
    assert sizes == [32, 56, 56, 99, 99, 99, 99, 512]
    assert planned.needs == {"per_sample", "epoch_sum"}
    assert int(100 * 0.5678) == 56 and int(100 * 0.9999) == 99


@pytest.mark.parametrize("epochs, exact, expected", [(10, True, 2), (3, True, 1), (3, False, 0.6)])
def test_an_empty_resize_is_a_fifth_of_the_run(epochs, exact, expected):
    rule = Diversity(1.0, exact=exact)
    schedule(rule, epochs=epochs)
    assert rule.interval == pytest.approx(expected * 1000)


def test_an_epochs_sum_needs_every_step_and_plain_gradients():
    for more in ({"measure_every": 100}, {"preconditioned": True}):
        with pytest.raises(UserError, match="sees every step and plain gradients.*got"):
            schedule(Diversity(1.0, exact=True), **more)


# -- dampers ---------------------------------------------------------------------------------------


def test_adadamp_follows_the_validation_loss():
    """ceil(32 * 2.2 / (F - 0.1)); above 512 the learning rate pays, 0.1 * 512 / wish."""
    planned = schedule(AdaDamp(best=0.1), shrink=True)
    table = [
        (0, 2.3, 32, 0.1),
        (1000, 1.2, 64, 0.1),  # 32 * 2.2 / 1.1 exactly
        (2000, 0.8, 101, 0.1),  # 100.57
        (3000, 3.0, 32, 0.1),  # 24.3: never below base_batch
        (4000, math.nan, 32, 0.1),  # no decision
        (5000, 0.2, 512, 0.1 * 512 / 704),
        (7000, 0.05, 512, 0.1 * 512 / 704),  # at or below F* the formula has no value: as before
    ]
    for position, loss, size, lr in table:
        planned.evaluated(position, loss, None)
        setting = planned(position)
        assert (setting.divisor, setting.lr) == (size, pytest.approx(lr, rel=1e-12)), position
    assert not planned.measures(0, planned(0)), "evaluations bring what it needs"


def test_adadamp_refuses_a_best_loss_that_is_none():
    planned = schedule(AdaDamp(best=3.0))
    with pytest.raises(UserError, match="growth.best is below every loss.*got 3.0.*2.3"):
        planned.evaluated(0, 2.3, None)


def test_radadamp_by_hand():
    """Batch 10, decisions every 20 samples from 20 on. L_0 = min(2, 4) = 2, N_0 = 8. At 40 the smallest since
    the start: 1 and 4, smoothed 0.2 * 2 + 0.8 * 1 = 1.2 and 4.8, damping (0.6 + 0.6) / 2:
    ceil(10 / 0.6) = 17.
    """
    planned = schedule(RadaDamp(rho=0.2, wait=20, window=20), base_batch=10, shrink=True)
    sizes = []
    for k, (loss, norm) in enumerate([(2, 9), (4, 8), (1, 4), (3, 5)]):
        sizes.append(step(planned, 10 * k, loss=loss, noise=noise(5.0, norm - 0.5, 10)).divisor)
    assert [*sizes, planned(40).divisor] == [10, 10, 10, 10, 17]


def radadamp(losses, norms, base, rho=0.2, wait=100, dwell=20):
    """Batch sizes by update, as the published class works them out: full histories, reduction by min."""
    seen, sizes, size, first, mean = [], [], base, None, None
    for k, now in enumerate(zip(losses, norms)):
        if k >= wait and k % dwell == 0:
            low = [min(column) for column in zip(*seen)]
            if k <= max(dwell, wait):
                first = mean = low
            else:
                mean = [rho * m + (1 - rho) * value for m, value in zip(mean, low)]
                seen = []
                damping = 0.5 * (mean[0] / first[0] + mean[1] / first[1])
                size = math.ceil(max(base / damping, base))
        sizes.append(size)
        seen.append(now)
    return sizes


def test_radadamp_is_the_source_rule_where_updates_are_of_one_size():
    """max_batch = base_batch: every update is 32 samples, and lr = lr0 * max_batch / size, as there."""
    draw = random.Random(0)
    falls = [k if k < 200 else 400 - k for k in range(300)]  # and rises again: the window forgets
    losses = [2.3 * 0.99**k * draw.uniform(0.7, 1.4) for k in falls]
    norms = [9.0 * 0.985**k * draw.uniform(0.5, 2.0) for k in falls]
    planned = schedule(RadaDamp(), max_batch=32, shrink=True)
    expected = radadamp(losses, norms, 32)
    assert len(set(expected)) > 5 and 64 < max(expected) > expected[-1]
    for k in range(300):
        trace = draw.uniform(0.0, 50.0)
        measured = noise(trace, norms[k] - trace / 32)  # |g|^2 of 32 samples is norms[k]
        setting = step(planned, 32 * k, loss=losses[k], noise=measured)
        assert setting.divisor == 32
        assert 0.1 * 32 / setting.lr == pytest.approx(expected[k], rel=1e-12), k


# -- plateau ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "patience, threshold, cooldown", [(0, 0.0, 0), (2, 1e-2, 0), (1, 0.05, 2), (3, 0.0, 5)]
)
def test_plateaus_are_those_of_torch(patience, threshold, cooldown):
    """batch = 32 / (torch's lr / its first), factor 1/2 there; the decay is that ratio itself."""
    from torch.optim import SGD
    from torch.optim.lr_scheduler import ReduceLROnPlateau

    draw = random.Random(patience)
    losses = [
        2 * math.exp(-k / 20) * draw.uniform(0.9, 1.1) if k < 40 else draw.uniform(0.3, 0.4)
        for k in range(80)
    ]
    theirs = SGD([torch.zeros(1)], lr=1.0)
    watch = ReduceLROnPlateau(theirs, factor=0.5, patience=patience, threshold=threshold, cooldown=cooldown)
    kinds = dict(patience=patience, threshold=threshold, cooldown=cooldown)
    grows = schedule(Plateau(2, **kinds), samples=10**9, max_batch=None)
    decays = Schedule(samples=1000, epochs=10, growth=Constant(), decay=PlateauDecay(0.5, **kinds),
                      base_batch=32, base_lr=1.0)  # fmt: skip
    for planned in (grows, decays):
        planned.evaluated(0, 0.0, None)  # before training: counts nowhere
    for k, loss in enumerate(losses, 1):
        watch.step(loss)
        ratio = min(1.0, theirs.param_groups[0]["lr"])
        for planned in (grows, decays):
            planned.evaluated(1000 * k, loss, None)
        if 32 / ratio <= grows.cap and ratio > 1e-7:  # torch stops at differences below 1e-8
            assert grows(1000 * k).divisor == 32 / ratio, k
            assert decays(0).lr == ratio and decays(0).divisor == 32
    assert ratio < 0.3, "no plateau: this tests nothing"


def test_a_plateau_ends_at_the_cap():
    planned = schedule(Plateau(10, patience=0))
    for k in range(1, 400):
        planned.evaluated(1000 * k, 1.0, None)
    assert planned(0).divisor == 512


# -- goodput ---------------------------------------------------------------------------------------


def machine(constant, per_sample, sizes):
    """Samples per second where a step takes constant + per_sample * batch."""
    return [(b, b / (constant + per_sample * b)) for b in sizes]


@pytest.mark.parametrize("phi, overhead, best", [(400.0, 100.0, 200), (100.0, 64.0, 80), (1e6, 100.0, 1024)])
def test_goodput_finds_the_batch_of_the_closed_form(phi, overhead, best):
    """With a step of c + a B seconds goodput is largest at sqrt(phi c / a), or at the cap."""
    profile = machine(
        0.1 * overhead, 0.1, [2**k for k in range(5, 12)] + [round(2 ** (k + 0.5)) for k in range(5, 11)]
    )
    planned = settled(Goodput(profile), phi, 1.0, max_batch=1024, samples=5000)
    spacing = 32 ** (1 / 49)  # of the 50 candidates between 32 and 1,024
    assert best / spacing**1.5 <= planned(0).divisor <= best * spacing**1.5


def test_goodput_in_figures():
    """Between points linear in the logarithms, beyond them constant; worth = gain in goodput."""
    rule = Goodput([(128, 3000.0), (32, 1000.0)])
    rule.bind(schedule(Constant()).frame)
    assert rule.throughput(64) == pytest.approx(math.sqrt(1000 * 3000), rel=1e-12)
    assert [rule.throughput(b) for b in (8, 32, 128, 500)] == pytest.approx([1000, 1000, 3000, 3000])
    assert rule.efficiency(96, 32) == 1 and rule.efficiency(96, 160) == 0.5
    assert rule.goodput(96, 160) == pytest.approx(1500)
    assert rule.sizes[0] == 32 and rule.sizes[-1] == 512 and len(rule.sizes) == 50
    assert rule.sizes[1] == math.ceil(32 * 16 ** (1 / 49))


def test_a_change_must_promise_its_share_of_goodput():
    """phi = 96: 128 samples against 32 are worth 3 * 128 / 224 = 1.714 times the goodput."""
    for hysteresis, grown in ((0.70, True), (0.73, False)):
        profile = [(32, 1000.0), (127, 1001.0), (128, 3000.0)]  # a jump, so that 128 is the best
        planned = settled(Goodput(profile), 96.0, 1.0, hysteresis=hysteresis, max_batch=128)
        assert planned(0).divisor == (128 if grown else 32)


def test_goodput_shrinks_when_the_noise_falls():
    profile = machine(10.0, 0.1, [32, 64, 128, 256, 512])
    planned = settled(Goodput(profile), 2500.0, 1.0, noise_horizon=320, shrink=True)
    assert planned(0).divisor > 400  # sqrt(2500 * 100) = 500
    for k in range(4, 204):
        step(planned, 32 * k, noise=noise(36.0, 1.0))
    assert 54 <= planned(6528).divisor <= 67  # sqrt(36 * 100) = 60


# -- the profile -----------------------------------------------------------------------------------

POINTS = [{"batch_size": 64, "samples_per_second": 1800}, {"batch_size": 16, "samples_per_second": 600.0}]


def written(path, value):
    path.write_text(json.dumps(value))
    return str(path)


def test_a_profile_is_read_from_a_file_or_a_run(tmp_path):
    source = written(tmp_path / "p.json", {"format": 1, "points": POINTS})
    assert throughput.profile(source) == [(16, 600.0), (64, 1800.0)]
    phases = [(16, 0.1, 10, 1.0), (32, 0.1, 10, 0.5), (16, 0.05, 30, 1.5), (64, 0.1, 1, 0.0)]
    keys = ("batch_size", "lr", "steps", "seconds")
    (tmp_path / "run").mkdir()
    written(tmp_path / "run" / "summary.json", {"format": 1, "phases": [dict(zip(keys, p)) for p in phases]})
    # 16: 40 steps in 2.5 s together; 64 took no time that was measured.
    assert throughput.profile(str(tmp_path / "run")) == [(16, 256.0), (32, 640.0)]


@pytest.mark.parametrize("value, message", [
    ({"format": 1}, "no profile of throughput"),
    ({"points": POINTS}, '"format": 1'),
    ({"format": 1, "points": POINTS[:1]}, "1 batch size"),
    ({"format": 1, "points": POINTS + POINTS[:1]}, "each once, got 64"),
    ({"format": 1, "points": [{"batch_size": 0, "samples_per_second": 1}]}, "above 0, each once, got 0"),
    ({"format": 1, "points": [{"batch_size": 8, "samples_per_second": -1}]}, "above 0, got -1"),
    ({"format": 1, "points": [{"batch_size": 8, "samples_per_second": "x"}]}, "no profile"),
    ({"format": 1, "points": 3}, "no profile"),
])  # fmt: skip
def test_a_file_that_is_no_profile_is_refused(tmp_path, value, message):
    with pytest.raises(UserError, match=message):
        throughput.profile(written(tmp_path / "p.json", value))


def test_a_profile_enters_the_identity_by_content(tmp_path):
    def identity(value, name):
        config = resolved("schedule=goodput", f"schedule.profile={written(tmp_path / name, value)}")
        return runs.identity(config, runs.contents(config))

    other = [POINTS[0], POINTS[1] | {"samples_per_second": 601.0}]
    same = [
        identity({"format": 1, "points": p}, n) for p, n in ((POINTS, "a.json"), (POINTS[::-1], "b.json"))
    ]
    assert same[0] == same[1] != identity({"format": 1, "points": other}, "a.json")


@pytest.mark.parametrize("overrides, message", [
    (("schedule=goodput",), "needs a recorded profile: schedule.profile=FILE.json"),
    (("schedule=goodput", "schedule.profile=nowhere"), "schedule.profile=nowhere: there is no such file"),
    (("schedule=adadamp",), "set dataset.validation .*got 0"),
    (("schedule=plateau",), "set dataset.validation"),
    (("schedule.decay._target_=adabatch.schedules.rules.PlateauDecay",), "set dataset.validation"),
    (("schedule=divebatch_exact", "schedule.measure_every=64"), "schedule.measure_every=0"),
])  # fmt: skip
def test_what_a_rule_lacks_is_said_before_the_run(overrides, message):
    with pytest.raises(UserError, match=message):
        resolved(*overrides)


def test_what_a_rule_lacks_is_said_before_torch_is_imported():
    code = (
        "import sys\nfrom adabatch import config\nfrom adabatch.errors import UserError\n"
        "for name in ('goodput', 'adadamp'):\n"
        "    with config.composer():\n"
        "        try: config.checked(config.load([f'schedule={name}']))\n"
        "        except UserError: print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["False", "False"], done.stderr


# -- runs ------------------------------------------------------------------------------------------

RUNS = {
    "divebatch": ("schedule.growth.resize=1",),
    "adadamp": ("dataset.validation=60", "schedule.dwell=0", "evaluate.every=0.5"),
    "radadamp": ("schedule.growth.wait=64", "schedule.growth.window=32"),
    "plateau": ("dataset.validation=60", "schedule.growth.patience=0", "evaluate.every=0.25"),
    "goodput": (),
}


@pytest.mark.parametrize("name", RUNS)
def test_each_rule_trains_changes_its_batch_and_resumes_bitwise(tmp_path, name):
    options = (
        *SMALL, "epochs=3", f"schedule={name}", "schedule.base_batch=16", "schedule.noise_group=8",
        "schedule.base_lr=0.2", "model.ghost=8", "checkpoint.every_seconds=0", *RUNS[name],
    )  # fmt: skip
    if name == "goodput":
        points = [{"batch_size": b, "samples_per_second": float(b)} for b in (16, 256)]
        source = written(tmp_path / "p.json", {"format": 1, "points": points})
        options += (f"schedule.profile={source}",)
    run(tmp_path / "whole", *options)
    rows = [row for row in runs.read_rows(tmp_path / "whole") if row["event"] == "train"]
    sizes = [row.get("divisor", row["batch_size"]) for row in rows]
    changes = [k for k in range(1, len(sizes)) if sizes[k] != sizes[k - 1]]
    assert changes, "the rule decided nothing: this tests nothing"
    killed(tmp_path / "killed", *options, arrange=kill_at_step(changes[0] + 1))  # the first of the new size
    run(tmp_path / "killed", *options)
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "whole")
    if name == "goodput":
        assert throughput.profile(str(tmp_path / "whole" / "profile.json")) == [(16, 16.0), (256, 256.0)]
