"""What a comparison's pictures are drawn from: bands, marks, staircases, thinning, axes and labels."""

import itertools
import json
import math
import random
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from page_folders import full, rows_of
from scipy import stats

from adabatch import runs
from adabatch.report import facts
from adabatch.verdict import traces
from adabatch.verdict.arms import Arm, Plan, Run
from adabatch.verdict.folders import look
from adabatch.verdict.page import bands, charts, decisive, pens, seconds
from adabatch.verdict.page.charts import Axis, Chart, Dot
from adabatch.verdict.page.figures import Sheet
from adabatch.verdict.traces import Evaluated, Traces

ARMS = {(32,): (0.1, 90), (128,): (0.12, 70), (32, 64, 128): (0.1, 60)}


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    folders = full(folder, ARMS, seeds=4)
    arms = look([str(folder)], {}).arms
    return folders, dict(zip(ARMS, arms))


def rows(folder, event):
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in found if row["event"] == event]


def made(*evaluations: tuple, state="finished", seed=0, **given) -> Run:
    """A run with evaluations (mark, error), whose epochs are its marks."""
    seen = tuple(Evaluated(m, m, 10 * m, 2 * m, error) for m, error in evaluations)
    return Run(seed, state, traces=Traces(evaluations=seen, **given))


# -- bands ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clock, key", [("epochs", "epoch"), ("updates", "step"), ("seconds", "seconds")])
@pytest.mark.parametrize("batches", ARMS)
def test_a_band_is_scipys_t_interval_of_the_seeds(swept, batches, clock, key):
    folders, arms = swept
    per_seed = [rows(folders[batches, seed], "eval") for seed in range(4)]
    drawn = bands.errors(arms[batches], clock)
    assert len(drawn) == len(per_seed[0]) >= 9
    for point, at in zip(drawn, zip(*per_seed)):
        errors = [row["eval_error"] for row in at]
        low, high = stats.t.interval(0.95, 3, np.mean(errors), stats.sem(errors))
        assert (point.y, point.low, point.high) == pytest.approx((np.mean(errors), low, high), rel=1e-9)
        assert point.x == pytest.approx(np.mean([row[key] for row in at])) and point.n == 4


def test_one_seed_has_no_band():
    (point,) = bands.errors(Arm("a", False, (made((1, 0.3)),)), "epochs")
    assert (point.y, point.low, point.high, point.n) == (0.3, None, None, 1)


def test_a_band_is_drawn_of_three_seeds_at_least():
    pen = pens.Pen("p", "f0", None, 1.8, False)
    for n in range(1, 6):
        runs_of = tuple(made((1, 0.3 + 0.01 * s), (2, 0.2 + 0.01 * s), seed=s) for s in range(n))
        points = bands.errors(Arm("a", False, runs_of), "epochs")
        drawn = charts.curve(pen, points, 100)
        assert len(drawn.points) == 2 and len(drawn.band) == (2 if n >= 3 else 0)
        for (_, low, high), point in zip(drawn.band, points):
            assert (low, high) == (pytest.approx(100 * point.low), pytest.approx(100 * point.high))


def test_seeds_meet_at_marks_and_late_ones_do_not_bend_the_mean():
    """A mark that fewer than half have reached is left out; a run that diverged is in no mean."""
    whole = [made((1, 0.4), (2, 0.2), (3, 0.1), seed=s) for s in range(2)]
    half = made((1, 0.6), (2, 0.4), state="running", seed=2)
    late = made((1, 0.8), state="running", seed=3)
    bad = made((1, 0.99), state="diverged", seed=4)
    found = bands.errors(Arm("a", False, (*whole, half, late, bad)), "epochs")
    assert [(p.x, round(p.y, 6), p.n) for p in found] == [
        (1, 0.55, 4),
        (2, round(0.8 / 3, 6), 3),
        (3, 0.1, 2),
    ]
    found = bands.errors(Arm("a", False, (*whole[:1], half, late, bad)), "epochs")
    assert [(p.x, p.n) for p in found] == [(1, 3), (2, 2)]


def facts_of(tmp_path, evaluations, every=1.0, epochs=4):
    (tmp_path / "run").mkdir()
    runs.write_yaml(tmp_path / "run/config.yaml", {"epochs": epochs, "evaluate": {"every": every}})
    lines = [{"event": "eval", "split": "test", "epoch": e, "eval_error": v, "step": 1, "seconds": 1.0}
             for e, v in evaluations]  # fmt: skip
    (tmp_path / "run/metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    return facts.read(tmp_path / "run")


def test_marks_are_those_of_the_grid_whatever_the_batch(tmp_path):
    """An evaluation comes at the first step at or after its mark; a large batch passes over marks; the last
    one, between two marks, is a mark of its own."""
    run = facts_of(tmp_path, [(1.3, 0.5), (2.0, 0.4), (2.5, 0.3)])
    assert [e.mark for e in traces.evaluations(run, "test")] == [1, 2, 2.5]
    run = facts_of((tmp_path / "b") if (tmp_path / "b").mkdir() is None else None, [(3.01, 0.5), (4.0, 0.4)])
    assert [e.mark for e in traces.evaluations(run, "test")] == [3, 4]
    run = facts_of((tmp_path / "c") if (tmp_path / "c").mkdir() is None else None,
                   [(k / 10, 0.5) for k in range(1, 31)], every=0.1)  # fmt: skip
    assert [e.mark for e in traces.evaluations(run, "test")] == list(range(1, 31)), "0.3 / 0.1 < 3"


def test_throughput_is_samples_over_seconds_of_each_stretch(swept):
    folders, arms = swept
    trained = rows(folders[(32,), 1], "train")
    (run,) = [r for r in arms[(32,)].runs if r.seed == 1]
    edges = np.array([row["epoch"] for row in trained])
    at, before = [], (0, 0.0)
    for k in range(traces.BINS):
        inside = [r for r, e in zip(trained, edges) if k * 10 / 40 < e <= (k + 1) * 10 / 40]
        if inside:
            last = (inside[-1]["position"], inside[-1]["seconds"])
            at.append((last[0] - before[0]) / (last[1] - before[1]))
            before = last
    assert [rate for _, _, rate in run.traces.rate] == pytest.approx(at)


def test_the_noise_scale_is_a_geometric_mean(swept):
    folders, arms = swept
    arm, first = arms[(32, 64, 128)], []
    for seed in range(4):
        found = [(r["epoch"], r["noise_scale"]) for r in rows(folders[(32, 64, 128), seed], "train")
                 if "noise_scale" in r]  # fmt: skip
        first.append(stats.gmean([v for e, v in found if e <= 0.25]))
    point = bands.stretches(arm, "noise")[0]
    assert point.y == pytest.approx(stats.gmean(first))
    low, high = stats.t.interval(0.95, 3, np.mean(np.log(first)), stats.sem(np.log(first)))
    assert (point.low, point.high) == pytest.approx((math.exp(low), math.exp(high)))
    assert bands.stretches(arms[(32,)], "noise") == []


def test_the_staircase_counts_the_runs_that_have_reached_the_target():
    times = (3.0, math.inf, 1.0, 2.0)
    arm = Arm("a", False, tuple(Run(s, target=t) for s, t in enumerate(times)))
    assert bands.reached(arm) == [(0.0, 0.0), (1.0, 0.25), (2.0, 0.5), (3.0, 0.75)]
    assert bands.reached(Arm("a", False, (Run(0), Run(1)))) == []


def test_equal_courses_are_one_line_and_different_ones_are_counted():
    steps = ((0.0, 32.0), (1.0, 32.0), (1.0, 64.0), (2.0, 64.0))
    same = Arm("a", True, tuple(Run(s, traces=Traces(batch=steps)) for s in range(3)))
    part = Run(3, "running", traces=Traces(batch=((0.0, 32.0), (0.4, 32.0))))
    assert bands.trajectories(same, "batch") == ([list(steps)], 1)
    assert bands.trajectories(Arm("a", True, (*same.runs, part)), "batch") == ([list(steps)], 1)
    slow = Run(4, traces=Traces(batch=((0.0, 32.0), (1.5, 32.0))))  # it had not grown where the others had
    assert bands.trajectories(Arm("a", True, (*same.runs, slow)), "batch")[1] == 2
    other = [Run(s, traces=Traces(batch=((0.0, 32.0), (2.0, 32.0 + s)))) for s in range(9)]
    lines, different = bands.trajectories(Arm("a", True, tuple(other)), "batch")
    assert (len(lines), different) == (4, 9)


def test_the_ledger_is_a_mean_over_finished_runs():
    ledgers = ((("compute", 3.0), ("data", 1.0)), (("compute", 5.0),), (("compute", 900.0),))
    states = ("finished", "finished", "running")
    made_runs = [Run(s, states[s], 0.1, traces=Traces(ledger=each)) for s, each in enumerate(ledgers)]
    arm = Arm("a", False, tuple(made_runs))
    assert seconds.means(arm) == {"compute": 4.0, "data": 0.5}


@pytest.mark.parametrize("given, found", [
    ({"seconds": 10, "low": 8, "high": 12, "measured": 11}, (10, 8, 12, 11)),
    ({"seconds": 10, "low": None, "high": None, "measured": 11}, (10, None, None, 11)),
    ({"seconds": 10, "low": 11, "high": 12, "measured": 11}, (10, None, None, 11)),
    ({"seconds": 10}, (10, None, None, 9)), ({"seconds": 0, "measured": 9}, None), ({"measured": 9}, None),
    ("ten", None), (None, None),
])  # fmt: skip
def test_a_forecast_has_seconds_and_perhaps_an_interval(given, found):
    assert traces.forecast({"forecast": given, "train_seconds": 9.0}) == found


def test_the_caption_counts_the_forecasts_that_held():
    told = [(10.0, 8.0, 12.0, 11.0), (10.0, 9.0, 11.0, 20.0), (10.0, None, None, 10.5)]
    runs_of = tuple(Run(s, "finished", 0.1, traces=Traces(forecast=each)) for s, each in enumerate(told))
    arms = [Arm("a", False, runs_of)]
    shown = seconds.forecast(Sheet(arms, Plan(), pens.dealt(arms), None))
    assert "Off by 10 % in the median run; 1 of 2 lie inside" in shown  # of 10, 100 and 5 %


# -- thinning ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [5, 119, 120, 121, 1000, 12_345])
def test_thinning_keeps_first_last_lowest_and_highest(n):
    draw = random.Random(n)
    points = [(float(i), draw.random()) for i in range(n)]
    kept = traces.thinned(points, 120)
    assert len(kept) <= 120 + 4 and set(kept) <= set(points) and kept == sorted(kept)
    values = {v for _, v in kept}
    assert kept[0] == points[0] and kept[-1] == points[-1]
    assert {min(v for _, v in points), max(v for _, v in points)} <= values
    assert len(points) > 120 or kept == points


def test_thinned_evaluations_of_two_seeds_still_meet(tmp_path):
    """5,000 marks each: thinned alone by mark, the means over both seeds keep more than a hundred."""
    draw, made_runs = random.Random(0), []
    for seed in range(2):
        (tmp_path / str(seed)).mkdir()
        told = [(i / 100, draw.random()) for i in range(1, 5001)]
        run = facts_of(tmp_path / str(seed), told, every=0.01, epochs=50)
        found = traces.evaluations(run, "test")
        assert len(found) <= traces.EVALUATIONS + 4
        errors = [error for _, error in told]
        assert {min(errors), max(errors), errors[0], errors[-1]} <= {e.error for e in found}
        made_runs.append(Run(seed, traces=Traces(evaluations=tuple(found))))
    both = bands.errors(Arm("a", False, tuple(made_runs)), "epochs")
    assert sum(p.n == 2 for p in both) > 60 and len(both) <= bands.POINTS + 4


# -- axes and labels --------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", ["linear", "log", "log2"])
@pytest.mark.parametrize("values", [[1.0, 1.0], [3.0, 5.0], [1e-5, 2e3], [0.07, 0.09, 0.08], [20, 313]])
def test_an_axis_holds_its_values_and_has_numbers(scale, values):
    axis = charts.axis("a", values, scale)
    assert all(0 < axis.share(v) < 1 for v in values)
    ticks = axis.ticks(5)
    assert 1 <= len(ticks) <= 14 and all(axis.low <= t <= axis.high * (1 + 1e-9) for t in ticks)
    shares = [axis.share(v) for v in sorted(values)]
    assert shares == sorted(shares)
    assert axis.share(axis.low) == 0 and axis.share(axis.high) == 1
    assert axis.share(axis.low - 1) == 0 and axis.share(axis.high + 1) == 1


def test_names_cover_neither_dots_nor_each_other():
    """Twelve dots close together, in both sizes: every pair of boxes that were taken is apart."""
    draw = random.Random(5)
    pen = pens.Pen("p", "f0", None, 1.8, False)
    for size, n in itertools.product((charts.WIDE, charts.NARROW), (2, 6, 12)):
        dots = [Dot(pen, bands.Point(draw.uniform(10, 40), y := draw.uniform(5, 15), y - 0.5, y + 0.5, 3), "",
                    label=f"fixed {i}000") for i in range(n)]  # fmt: skip
        chart = Chart(Axis("x", 8, 45, "log"), Axis("y", 4, 16), dots, "")

        def x(v, chart=chart, size=size):
            return charts.LEFT + (size[0] - charts.LEFT - charts.RIGHT) * chart.x.share(v)

        def y(v, chart=chart, size=size):
            return size[1] - charts.BOTTOM - (size[1] - charts.TOP - charts.BOTTOM) * chart.y.share(v)

        shown = [ET.fromstring(text) for text in charts.labels(dots, x, y, size)]
        assert len(shown) >= min(n, 4)
        boxes = []
        for text in shown:
            wide = 6.2 * len(text.text)  # of a letter of 13 px as browsers draw it
            left = float(text.get("x"))
            left -= {"start": 0, "end": wide, "middle": wide / 2}[text.get("text-anchor")]
            base = float(text.get("y"))
            boxes.append((left, base - 9, left + wide, base + 2))
        boxes += [(x(d.at.x) - 5, y(d.at.y) - 5, x(d.at.x) + 5, y(d.at.y) + 5) for d in dots]
        names = len(shown)
        for i, j in itertools.combinations(range(len(boxes)), 2):
            a, b = boxes[i], boxes[j]
            apart = a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
            assert apart or i >= names, f"{shown[i].text} is covered"


@pytest.mark.parametrize("size", [charts.WIDE, charts.NARROW])
def test_the_rival_at_equal_updates_is_named_however_narrow_the_picture(size):
    """Its dot lies under the diamond, between bars that reach across the picture: it comes before others."""
    ended = {"fixed 32": (78, 0.1833, 0.1111), "mean-matched 80": (31, 0.15, 0.1639),
             "fixed 128": (20, 0.2167, 0.35), "fixed 512": (5, 0.6167, 0.7056),
             "adabatch": (31, 0.15, 0.1917)}  # fmt: skip
    arms = [
        Arm(name, name == "adabatch", tuple(Run(s, error=e, updates=updates) for s, e in enumerate(errors)))
        for name, (updates, *errors) in ended.items()
    ]
    chart = decisive.chart(decisive.places(arms, "updates"), pens.dealt(arms), Plan(), "updates")
    drawn = ET.fromstring(str(charts.draw(chart, size)))
    named = [text.text for text in drawn.iter("text") if text.get("class") == "label"]
    assert named[:2] == ["adabatch", "mean-matched 80"]


def test_no_bar_leaves_the_range_of_an_error():
    """A t interval of two seeds, 12.7 standard errors either way, does."""
    runs = tuple(Run(s, error=error, updates=70) for s, error in enumerate((0.05, 0.3)))
    found = decisive.places([Arm("fixed 32", False, runs)], "updates")
    assert (found[0].y.low, found[0].y.high) == (0.0, 1.0)


# -- the decisive picture ---------------------------------------------------------------------------


def arm(name, updates, error, adaptive=False, n=3):
    return Arm(
        name, adaptive, tuple(Run(s, "finished", error, seconds=9.0, updates=updates) for s in range(n))
    )


def test_the_line_goes_through_the_fixed_arms_and_takes_the_better_of_two_at_one_place():
    arms = [arm("a", 100, 0.3), arm("b", 100.5, 0.2), arm("c", 400, 0.1), arm("w", 200, 0.01, True)]
    found = decisive.places(arms, "updates")
    through = decisive.line(found)
    assert through == [(100.5, pytest.approx(0.2)), (400, pytest.approx(0.1))]
    half = math.sqrt(100.5 * 400)
    assert decisive.at_line(half, through, "linear") == pytest.approx(0.15)
    assert decisive.at_line(half, through, "log") == pytest.approx(math.sqrt(0.02))
    assert (
        decisive.at_line(99, through, "linear") is None and decisive.at_line(500, through, "linear") is None
    )


def test_what_is_in_neither_class_is_a_point_of_its_own():
    """Reversed batches at the updates of the adaptive arm, and more accurate: the line knows nothing of them,
    and no caption holds anybody against them."""
    arms = [arm("a", 100, 0.2), arm("c", 400, 0.1), arm("w", 200, 0.14, True), arm("r", 200, 0.1, None)]
    found = decisive.places(arms, "updates")
    assert decisive.line(found) == [(100, pytest.approx(0.2)), (400, pytest.approx(0.1))]
    assert decisive.seen(found, "updates") == ["w lies 1.00 pp below the line at 200 updates."]
    alone = decisive.places([arms[2], arms[3]], "updates")
    assert decisive.seen(alone, "updates") == [], "it is no rival"
    dealt = pens.dealt(arms)
    layers = decisive.chart(found, dealt, Plan(), "updates").layers
    dots = [layer for layer in layers if hasattr(layer, "pen")]
    assert {layer.pen.name for layer in dots if layer.pen} == {"a", "c", "w", "r"}
    assert len({pen.colour for pen in dealt.values()}) == 4 and f".{dealt['r'].colour}{{" in pens.css()
    square = pens.marker(dealt["r"], 10, 20, 5)
    assert 'points="5.5,15.5 14.5,15.5 14.5,24.5 5.5,24.5"' in str(square), "0.9 of a disc's radius"
    assert pens.dealt(arms[:3]) == {k: v for k, v in dealt.items() if k != "r"}, "others keep their pens"


@pytest.mark.parametrize("error, updates, said", [
    (0.14, 200, "w lies 1.00 pp below the line at 200 updates."),
    (0.16, 200, "w lies 1.00 pp above the line at 200 updates."),
    (0.15, 200, "w lies on the line at 200 updates."),
    (0.15, 900, "w has more updates than any fixed arm: it has no rival at equal updates."),
    (0.15, 50, "w has fewer updates than any fixed arm: it has no rival at equal updates."),
])  # fmt: skip
def test_what_the_caption_says(error, updates, said):
    arms = [arm("a", 100, 0.2), arm("c", 400, 0.1), arm("w", updates, error, True)]
    assert decisive.seen(decisive.places(arms, "updates"), "updates") == [said]


def test_the_only_rival_at_equal_updates_is_the_line():
    arms = [arm("mean-matched", 200, 0.2), arm("w", 201, 0.1, True)]
    assert decisive.seen(decisive.places(arms, "updates"), "updates") == [
        "w lies 10.00 pp below the line at 201 updates."
    ]


def test_arms_that_take_no_part_are_in_no_picture():
    out = Arm("o", False, (Run(0, "finished", 0.1, updates=5), Run(1, "out_of_memory")))
    left = Arm("l", False, arm("l", 5, 0.1).runs, outside="another budget")
    assert decisive.places([out, left, Arm("n", False, (Run(0, "running"),))], "updates") == []
    assert pens.drawn([out, left]) == []


def test_of_many_arms_the_smallest_and_the_largest_batch_are_drawn():
    fixed = [arm(f"f{i}", 100 - i, 0.1) for i in range(30)]
    adaptive = [arm(f"a{i}", 50, 0.1, True) for i in range(3)]
    kept = [each.name for each in pens.drawn(fixed + adaptive)]
    assert len(kept) == pens.DRAWN and {"f0", "f29", "a0", "a1", "a2"} <= set(kept)
    assert len({(p.colour, p.dash) for p in pens.dealt(fixed).values()}) == 30


def test_the_margin_is_shaded_from_the_line_upwards():
    arms = [arm("a", 100, 0.2), arm("c", 400, 0.1), arm("w", 200, 0.11, True)]
    found = decisive.places(arms, "updates")
    drawn = decisive.chart(found, pens.dealt(arms), Plan(delta=0.02), "updates")
    ribbon = drawn.layers[0]
    assert [(low, high) for _, low, high in ribbon.points] == [
        (pytest.approx(20), pytest.approx(22)), (pytest.approx(10), pytest.approx(12))
    ]  # fmt: skip


def test_the_generator_of_these_sweeps_ends_where_it_says():
    """(of page_folders: position at the budget, seconds as asked)"""
    made_rows = rows_of((32, 64), 0.1, 50.0, random.Random(0))
    last = [row for row in made_rows if row["event"] == "train"][-1]
    assert last["position"] == 10_000 and last["seconds"] == pytest.approx(50.0, rel=0.01)
