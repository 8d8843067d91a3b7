"""`log.distance`: how far the weights have gone from their first ones, against a sum in float64."""

import json
import logging
import math

import pytest
import torch
from run_folders import make_rows, make_run, page_of
from support import SMALL, outcome, resolved, run
from sweep_folders import run as run_folder

from adabatch import build, claim, draws, runs
from adabatch.distance import Distance
from adabatch.errors import Interrupted
from adabatch.report import facts, series, svg

PLAIN = (*SMALL, "epochs=2", "model.width=4", "schedule=adabatch", "schedule.growth.every=1")
BASE = (*PLAIN, "log.distance=true")


def first_weights(*overrides) -> dict:
    """{name: float64} of a run's network before its first step, built by the parts' own way."""
    config = resolved(*overrides)
    hardware = build.make(config["hardware"], "hardware")
    hardware.set_up(None)
    network = build.network(
        config["model"], build.data(config["dataset"]), config["seed"], hardware, config["dataset"]
    )
    return {name: p.detach().double().clone() for name, p in network.named_parameters()}


def travelled(folder, first: dict) -> float:
    """Of the weights that a finished run left."""
    last = torch.load(folder / "weights.pt", weights_only=True)
    return math.sqrt(sum(float(((last[name].double() - w) ** 2).sum()) for name, w in first.items()))


def distances(folder) -> list:
    return [row["distance"] for row in runs.read_rows(folder) if row["event"] == "train"]


def test_the_last_row_has_the_distance_of_the_last_weights_from_the_first(tmp_path):
    """From the seed's weights, or from those that the run started with."""
    run(tmp_path / "seeded", *BASE)
    first = first_weights(*BASE)
    found = distances(tmp_path / "seeded")
    assert found[-1] == pytest.approx(travelled(tmp_path / "seeded", first)) and min(found) > 0
    start = tmp_path / "seeded" / "weights.pt"
    given = {name: t.double() for name, t in torch.load(start, weights_only=True).items()}
    run(tmp_path / "tuned", *BASE, "epochs=1", f"model.init_from={start}")
    found = travelled(tmp_path / "tuned", {name: given[name] for name in first})
    assert distances(tmp_path / "tuned")[-1] == pytest.approx(found)


def test_a_frozen_parameter_counts_for_nothing_and_the_figure_stays_on_the_device():
    """3, 4 and 12 in three trainable elements: 13. Nothing is read before the rows are."""
    from adabatch.flat import Flat

    network = torch.nn.Sequential(torch.nn.Linear(2, 1), torch.nn.Linear(1, 1))
    network[1].requires_grad_(False)
    flat = Flat(network, [[("w", network[0].weight), ("b", network[0].bias)]])
    measured = Distance(flat, asked=True)
    with torch.no_grad():
        network[0].weight += torch.tensor([[3.0, -4.0]])
        network[0].bias -= 12
        network[1].weight += 100
    found = measured()["distance"]
    assert isinstance(found, torch.Tensor) and float(found) == pytest.approx(13, rel=1e-6)
    assert Distance(flat, asked=False)() == {}


def test_a_resumed_run_measures_from_the_same_first_weights(tmp_path):
    run(tmp_path / "whole", *BASE)
    at = len(distances(tmp_path / "whole")) // 2
    asked = iter(range(10**6))
    with pytest.raises(Interrupted):
        run(tmp_path / "stopped", *BASE, stop=lambda: "stop" if next(asked) == at else None)
    run(tmp_path / "stopped", *BASE)
    assert outcome(tmp_path / "stopped") == outcome(tmp_path / "whole")


def test_it_changes_no_run_and_no_identity(tmp_path):
    assert runs.identity(resolved(*BASE)) == runs.identity(resolved(*PLAIN))
    found = [run(tmp_path / str(i), *lines)["weights_sha256"] for i, lines in enumerate((BASE, PLAIN))]
    assert found[0] == found[1] and "distance" not in runs.read_rows(tmp_path / "1")[0]


def test_rows_that_lack_it_are_named(tmp_path, caplog):
    """Of a finished run, which then says that restart=true is needed; and of one that goes on."""
    asked = iter(range(10**6))
    with pytest.raises(Interrupted):
        run(tmp_path / "run", *PLAIN, stop=lambda: "stop" if next(asked) == 5 else None)
    with caplog.at_level(logging.WARNING, logger="adabatch"):
        run(tmp_path / "run", *BASE)
    assert "log.distance begins only here, at position 192" in caplog.text
    run(tmp_path / "plain", *PLAIN)
    assert claim.lacking(resolved(*BASE), tmp_path / "plain") == ["log.distance"]
    assert claim.lacking(resolved(*PLAIN), tmp_path / "run") == []
    assert claim.lacking(resolved(*BASE), tmp_path / "run") == []


def logged(slope=0.7):
    """Rows of a run whose weights go slope * ln(t) + 1 in t updates."""
    rows = make_rows()
    for row in rows:
        if row["event"] == "train":
            row["distance"] = 1 + slope * math.log(row["step"])
    return rows


def test_a_runs_page_draws_it_against_the_logarithm_of_the_updates(tmp_path):
    """A distance that grows with log t is a straight line there."""
    folder = make_run(tmp_path / "run", logged())
    panel = series.panels(facts.read(folder))[4]
    xs, ys = zip(*panel.lines[0].points)
    assert [y - 1 for y in ys] == pytest.approx([0.7 * math.log(10) * x for x in xs])
    last = max(row["step"] for row in logged())
    assert xs[0] == 0 and panel.end == pytest.approx(math.log10(last)) and len(xs) < 80
    page = page_of(folder)
    assert len(page.of("figure")) == 5 and "Weight distance" in page.text
    assert "1 after update 1, " in page.text and f"after update {last:,}" in page.text
    assert svg.along(panel) == [(0.0, "1"), (1.0, "10"), (2.0, "100")]


def test_a_run_without_it_has_four_plots(tmp_path):
    folder = make_run(tmp_path / "run", make_rows())
    assert len(series.panels(facts.read(folder))) == len(page_of(folder).of("figure")) == 4


def test_a_comparisons_page_has_a_line_for_each_arm(tmp_path):
    """The mean over the seeds, which is arithmetic: 1 and 3 make 2."""
    from adabatch.verdict import decide, folders, page
    from adabatch.verdict.page import bands

    for seed in (0, 1):
        for batches in ((32,), (512,)):
            made = run_folder(tmp_path, seed, batches, 0.1, 10.0)
            rows = [json.loads(line) for line in (made / "metrics.jsonl").read_text().splitlines()]
            train = [{"event": "train", "position": 32 * t, "epoch": t / 100, "step": t, "batch_size": 32,
                      "distance": (1 + 2 * seed) * (1 + math.log10(t))} for t in (1, 10, 100)]  # fmt: skip
            text = "".join(json.dumps(row) + "\n" for row in train + rows)
            (made / "metrics.jsonl").write_text(text)
    found = folders.look([str(tmp_path)], {})
    points = bands.stretches(found.arms[0], "distance")
    assert [p.x for p in points] == [0, 1, 2] and [p.y for p in points] == pytest.approx([2, 4, 6])
    html = page.render(decide.decide(found.arms, found.plan), found).decode()
    assert "Weight distance" in html and "updates (logarithmic)" in html


def test_seeds_draw_other_first_weights():
    """What the tests above rest on: w_0 is a function of the seed, by the key of initialisation."""
    a, b = first_weights(*BASE), first_weights(*BASE, "seed=1")
    assert any(not torch.equal(a[name], b[name]) for name in a)
    assert draws.key(0, draws.INIT) != draws.key(1, draws.INIT)
