"""What a report draws: thinning, scales, ticks, phases. Properties, and tables written out."""

import math
import random

import pytest
from run_folders import SAMPLES, make_phases, make_rows, make_run, page_of

from adabatch import files
from adabatch.report import facts, series, svg, words


def test_phases_of_a_run_without_summary_follow_the_rows(tmp_path):
    rows = [r for r in make_rows() if r["position"] <= 17 * SAMPLES]
    found = facts.phases(facts.read(make_run(tmp_path / "run", rows, summary=False)))
    expected = make_phases(rows)
    assert [p["start_position"] for p in found] == [p["start_position"] for p in expected]
    assert [p["batch_size"] for p in found] == [32, 64, 128, 256, 512]
    assert [p["steps"] for p in found] == [p["steps"] for p in expected]
    assert math.fsum(p["seconds"] for p in found) == pytest.approx(rows[-1]["seconds"])


def test_many_rows_are_averaged_and_it_is_said(tmp_path):
    """40,000 rows: a bounded page, an honest note, averages between the extremes, a band that loses none."""
    rows = make_rows(epochs=2200, every=440)
    train = [r for r in rows if r["event"] == "train"]
    assert len(train) > 35_000
    for row in train[::100]:
        row["train_loss"] = None
    folder = make_run(tmp_path / "run", rows)
    page = page_of(folder)
    assert page.size < 200_000
    assert (
        f"{math.ceil(len(train) / 100):,} of {len(train):,} training rows have no finite loss"
        in page.text.lower()
    )
    assert "averages weighted by batch size" in page.text
    loss = series.panels(facts.read(folder))[0].lines[0]
    values = [r["train_loss"] for r in train if r["train_loss"] is not None]
    assert len(loss.points) <= series.BINS
    assert min(low for _, low, _ in loss.band) == min(values) and max(
        high for _, _, high in loss.band
    ) == max(values)
    assert all(low <= mean <= high for (_, mean), (_, low, high) in zip(loss.points, loss.band, strict=True))


def test_average_is_weighted_by_batch_size():
    """Two batches in one stretch: the mean over their samples, written out: (10 * 1 + 30 * 2) / 40 = 1.75."""
    means, band = series.average([(1.0, 1.0, 10.0), (1.001, 2.0, 30.0)], 10.0)
    assert means == [(pytest.approx(1.00075), pytest.approx(1.75))] and band == [(means[0][0], 1.0, 2.0)]


def test_batch_size_changes_where_the_event_says(tmp_path):
    """Rows every few thousand samples; the change lies between two and is drawn at its own position."""
    rows = [
        {"event": "train", "position": 3000, "epoch": 3.0, "step": 30, "batch_size": 100, "lr": 0.1},
        {
            "event": "change",
            "position": 3500,
            "epoch": 3.5,
            "step": 35,
            "changes": {"batch_size": [100, 200]},
        },
        {"event": "train", "position": 5500, "epoch": 5.5, "step": 45, "batch_size": 200, "lr": 0.1},
        {"event": "train", "position": 5600, "epoch": 5.6, "step": 46, "batch_size": 100, "lr": 0.1},
    ]
    panel = series.panels(facts.read(make_run(tmp_path / "run", rows)))[2]
    held = [
        (e, v)
        for i, (e, v) in enumerate(panel.lines[0].points)
        if i == 0 or v != panel.lines[0].points[i - 1][1]
    ]
    assert held == [(0.0, 100), (3.5, 200)]  # and the cut last batch is no change of the rule
    assert panel.marks == [3.5] and panel.scale == "log2"


def test_a_cut_last_batch_counts_as_what_it_would_have_been(tmp_path):
    """Also right after a change, where its size alone cannot tell."""
    rows = [{"event": "train", "position": p, "epoch": p / 100, "batch_size": b, "lr": 0.1}
            for p, b in ((100, 100), (200, 100), (400, 200))]  # fmt: skip
    rows.append(
        {"event": "train", "position": 437, "epoch": 4.37, "batch_size": 37, "divisor": 200, "lr": 0.1}
    )
    rows.insert(2, {"event": "change", "epoch": 4.3, "changes": {"batch_size": [100, 200]}})
    run = facts.read(make_run(tmp_path / "r", rows=rows, summary=False))
    assert [value for _, value in series.timeline(run, "batch_size")][-1] == 200
    assert 37 not in [value for _, value in series.timeline(run, "batch_size")]


def test_thin_steps_keeps_changes_and_extremes():
    steady = [(float(i), 32.0 if i < 5000 else 64.0) for i in range(10_000)]
    assert series.thin_steps(steady) == ([(0.0, 32.0), (4999.0, 32.0), (5000.0, 64.0), (9999.0, 64.0)], False)
    draw = random.Random(1)
    wild = [(float(i), draw.uniform(1, 2)) for i in range(20_000)]
    kept, thinned = series.thin_steps(wild)
    assert thinned and len(kept) <= series.STEPS + 4 and set(kept) <= set(wild) and kept == sorted(kept)
    assert {min(wild, key=lambda p: p[1]), max(wild, key=lambda p: p[1]), wild[0], wild[-1]} <= set(kept)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([3.0, 0.2], "log"),
        ([3.0, 2.0], "linear"),
        ([3.0, 0.0], "linear"),
        ([], "linear"),
        ([-1.0, 5.0], "linear"),
    ],
)
def test_log_scale_only_where_it_is_right(values, expected):
    assert series.scale(values, 10) == expected


@pytest.mark.parametrize(
    ("low", "high", "scale", "expected"),
    [
        (0.0, 1.05, "linear", [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0.0, 0.0525, "linear", [0.0, 0.01, 0.02, 0.03, 0.04, 0.05]),
        (25.6, 640.0, "log2", [32.0, 64.0, 128.0, 256.0, 512.0]),
        (0.04, 3.0, "log", [0.05, 0.1, 0.2, 0.5, 1.0, 2.0]),
        (0.00009, 1.1, "log", [1e-4, 1e-3, 1e-2, 1e-1, 1.0]),
    ],
)
def test_ticks(low, high, scale, expected):
    assert svg.ticks(low, high, scale) == pytest.approx(expected)


def test_ticks_are_few_and_inside_whatever_the_range():
    draw = random.Random(0)
    for _ in range(3000):
        low = 10 ** draw.uniform(-12, 12)
        high = low * (1 + 10 ** draw.uniform(-3, 6))
        for scale in ("linear", "log", "log2"):
            found = svg.ticks(low, high, scale)
            assert 1 <= len(found) <= 13, (low, high, scale, found)
            assert all(low * (1 - 1e-9) <= t <= high * (1 + 1e-9) for t in found)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, "0"),
        (2048, "2,048"),
        (0.05, "0.05"),
        (1.5e-5, "1.5e-5"),
        (2.5e7, "2.5e7"),
        (12.0, "12"),
    ],
)
def test_tick_labels(value, expected):
    assert svg.tick_label(value) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (None, "\u2013"),
        (3.0812, "3.08 s"),
        (83.44, "83.4 s"),
        (725.2, "12 min 05 s"),
        (11220, "3 h 07 min"),
        (7199.9, "2 h 00 min"),
    ],
)
def test_durations(seconds, expected):
    assert words.duration(seconds) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [(3, 3.0), (0.5, 0.5), (True, None), (None, None), ("3", None), (10**400, None), (1e31, None)]
    + [(math.nan, None), (math.inf, None), ([1], None)],
)
def test_number(value, expected):
    assert files.number(value) == expected
