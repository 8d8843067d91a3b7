"""Replay: a recorded run again, bit for bit; and the controls made of a trajectory."""

import pytest
from support import SMALL, outcome, resolved, run

from adabatch import runs
from adabatch.errors import UserError
from adabatch.schedules import replay, walk

# (start, samples, divisor, lr, fields): two epochs of 50 samples, noise as a linear schedule would have it.
FIELDS = {"group": 5, "growth": 4.0, "lr_growth": 2.0}
RECORD = [(0, 10, 10, 0.1, {}), (10, 10, 10, 0.1, {}), (20, 40, 40, 0.4, FIELDS), (60, 40, 40, 0.2, FIELDS)]
COMMON = dict(samples=50, epochs=2, trajectory=RECORD)


def followed(**options):
    return [(start, s.batch_size, s.divisor, s.lr) for start, _, s in walk(replay(**COMMON, **options))]


def test_the_trajectory_itself():
    assert followed() == [row[:4] for row in RECORD]
    found = [(s.group, s.growth, s.lr_growth) for _, _, s in walk(replay(**COMMON))]
    assert found == [(0, 1.0, 1.0)] * 2 + [(5, 4.0, 2.0)] * 2


def test_a_control_holds_from_where_the_recorded_run_did():
    """At 40 the first batch of 10 instead of 40: growth 4 * 10/40, lr_growth 2 * (10/40)^p; no group."""
    for exponent in (1.0, 0.5):
        setting = replay(**COMMON, control="lr_twin", noise_exponent=exponent)(40)
        assert (setting.group, setting.growth) == (0, 1.0)
        assert setting.lr_growth == pytest.approx(2.0 * 0.25**exponent)


@pytest.mark.parametrize("control", ["lr_twin", "mean_matched", "reversed"])
def test_no_control_pays_for_measurements_of_the_recorded_run(control):
    """Not even where its batch is the recorded one: a rule that measured throughout and stayed there."""
    record = [(start, 25, 25, 0.1, {"group": 5}) for start in range(0, 100, 25)]
    found = walk(replay(samples=50, epochs=2, trajectory=record, control=control))
    assert [(s.batch_size, s.group) for _, _, s in found] == [(25, 0)] * 4


def test_a_cut_last_batch_keeps_its_divisor():
    cut = [*RECORD[:3], (60, 30, 40, 0.2, {})]
    schedule = replay(samples=45, epochs=2, trajectory=cut)
    assert [(s.batch_size, s.divisor) for _, _, s in walk(schedule)][-1] == (30, 40)


def test_mean_matched_has_as_many_updates_and_equal_noise():
    """100 samples in 4 updates: 25. lr: 0.1 * 25/10 at 0, the recorded 0.4 * 25/40 at 25, 0.4 * 25/40, 0.2 *
    25/40."""
    assert followed(control="mean_matched") == [
        (0, 25, 25, pytest.approx(0.25)),
        (25, 25, 25, pytest.approx(0.25)),
        (50, 25, 25, pytest.approx(0.25)),
        (75, 25, 25, pytest.approx(0.125)),
    ]


def test_reversed_has_the_same_batches_in_the_opposite_order():
    """At 0 and 40 the batch is 40, recorded were 10 (lr 0.1) and 40 (lr 0.4); at 80 and 90 it is 10, recorded
    40 (0.2)."""
    assert followed(control="reversed") == [
        (0, 40, 40, pytest.approx(0.4)),
        (40, 40, 40, pytest.approx(0.4)),
        (80, 10, 10, pytest.approx(0.05)),
        (90, 10, 10, pytest.approx(0.05)),
    ]


def test_lr_twin_keeps_the_first_batch():
    found = followed(control="lr_twin")
    assert [row[1] for row in found] == [10] * 10
    assert [row[3] for row in found] == pytest.approx([0.1] * 6 + [0.05] * 4)


def test_batch_twin_keeps_the_highest_rate():
    """lr 0.4 throughout: 10 * 4 = 40 at 0, 40 at 40 (0.4), then 40 * 2 = 80 cut to what is left."""
    found = followed(control="batch_twin", max_batch=50)
    assert [row[1] for row in found] == [40, 40, 20] and [row[2] for row in found] == [40, 40, 50]
    assert [row[3] for row in found] == pytest.approx([0.4, 0.4, 0.2 * 50 / 40])  # the cap: decay


def test_square_root_noise_for_adam():
    found = followed(control="lr_twin", noise_exponent=0.5)
    assert found[2][3] == pytest.approx(0.4 * (10 / 40) ** 0.5)


@pytest.mark.parametrize("control", ["none", "mean_matched", "reversed", "lr_twin", "batch_twin"])
def test_every_control_ends_at_the_recorded_budget(control):
    *_, last = followed(control=control)
    assert last[0] + last[1] == 100


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(epochs=3), "saw 100 samples, epochs=3 of 50 are 150: set epochs=2"),
        (dict(max_batch=30), "batches of 40 samples"),
        (dict(control="backwards"), "none, mean_matched"),
        (dict(compat="nvlabs", control="reversed"), "dropped no tails"),
    ],
)
def test_refusals(options, words):
    with pytest.raises(UserError, match=words):
        replay(**COMMON | options)


# -- runs ------------------------------------------------------------------------------------------

RUNS = {
    "open": ("schedule=adabatch", "schedule.base_batch=16", "epochs=2.3"),
    "closed": (
        "schedule=noise_scale",
        "schedule.base_batch=16",
        "schedule.noise_group=8",
        "model.ghost=8",
        "epochs=4",
        "schedule.hysteresis=0",
        "schedule.noise_horizon=500",
    ),
    "held": (
        "schedule=adabatch",
        "schedule.base_batch=20",
        "schedule.multiple=8",
        "epochs=3",
        "schedule.hold=[momentum,weight_decay]",
        "schedule.scaling=sqrt",
    ),
    "adam": (
        "schedule=adabatch",
        "schedule.base_batch=16",
        "epochs=2",
        "optimizer=adamw",
        "schedule.hold=[momentum]",
    ),
    "twin": (
        "schedule=adabatch",
        "schedule.base_batch=16",
        "epochs=3",
        "schedule.twin=batch",
        "schedule.stretch=1",
    ),
    "nvlabs": ("schedule=adabatch", "schedule.base_batch=16", "epochs=3", "schedule.compat=nvlabs"),
}


@pytest.mark.parametrize("kind", RUNS)
def test_a_replay_with_the_same_seed_is_the_recorded_run(tmp_path, kind):
    recorded = tmp_path / "recorded"
    run(recorded, *SMALL, *RUNS[kind])
    others = [o for o in RUNS[kind] if not o.startswith("schedule")]
    run(tmp_path / "replayed", *SMALL, *others, "schedule=replay", f"schedule.run='{recorded}'")
    a, b = outcome(recorded), outcome(tmp_path / "replayed")
    assert a["weights"] == b["weights"]
    trained = [
        [
            {k: r.get(k) for k in ("position", "batch_size", "divisor", "lr", "train_loss", "skipped")}
            for r in rows
        ]
        for rows in ([r for r in x["rows"] if r["event"] == "train"] for x in (a, b))
    ]
    assert trained[0] == trained[1]


def test_a_replay_is_identified_by_what_it_replays(tmp_path):
    for name in ("a", "b"):
        run(tmp_path / name, *SMALL, "epochs=1", "schedule=fixed")
    run(tmp_path / "c", *SMALL, "epochs=1", "schedule=fixed", "schedule.base_batch=64")
    replays = [
        resolved(*SMALL, "epochs=1", "schedule=replay", f"schedule.run='{tmp_path / name}'") for name in "abc"
    ]
    a, b, c = (runs.identity(config, runs.contents(config)) for config in replays)
    assert a == b != c


def test_a_row_that_is_missing_is_noticed(tmp_path):
    run(tmp_path, *SMALL, "epochs=1", "schedule=fixed")
    path = tmp_path / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    (gone, *_) = [i for i, line in enumerate(lines) if '"step": 5' in line and '"train"' in line]
    path.write_text("".join(lines[:gone] + lines[gone + 1 :]))
    with pytest.raises(UserError, match="no whole trajectory"):
        runs.trajectory(tmp_path)


def test_what_cannot_be_replayed_is_refused(tmp_path):
    with pytest.raises(UserError, match="schedule.run=outputs/NAME"):
        resolved(*SMALL, "schedule=replay")
    run(tmp_path / "run", *SMALL, "epochs=1", "schedule=fixed")
    with pytest.raises(UserError, match="holds what the recorded run held"):
        given = f"schedule.run='{tmp_path / 'run'}'"
        resolved(*SMALL, "epochs=1", "schedule=replay", given, "+schedule.hold=[momentum]")
    with pytest.raises(UserError, match="no finished run"):
        resolved(*SMALL, "schedule=replay", f"schedule.run='{tmp_path}'")
