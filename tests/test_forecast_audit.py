"""A run's forecast: how it comes by one, and how it is held against what the run took."""

import json
import math
from pathlib import Path

import pytest
from profile_files import followed, written
from support import QUIET, SMALL, resolved, run

from adabatch import audit, config, files, profiles, report, runs
from adabatch.errors import Interrupted, UserError

GROWING = (*SMALL, "schedule=adabatch", "schedule.base_batch=16", "epochs=5", "evaluate.every=5")


@pytest.fixture
def machine(tmp_path):
    """What a profile of this machine says of it, from a run that has none."""
    seen = {}

    def noted(run):
        seen.update(audit.machine_of(run))

    before, audit.begin = audit.begin, noted
    try:
        run(tmp_path / "first", *SMALL, "epochs=1", "schedule.base_batch=100", "evaluate.every=9")
    finally:
        audit.begin = before
    return seen


def beside(folder: Path, machine: dict, *overrides, t=lambda m: 1e-3 + 1e-4 * m, **more) -> dict:
    """A profile in outputs/ next to a run's folder; as it stands in the file."""
    given = followed(t, 2e-3, sizes=(8, 16, 32, 64, 128, 256), **more)
    given |= {"machine": machine, "configuration": profiles.configured(resolved(*overrides))}
    place = folder.parent / "profile-x-00000000"
    place.mkdir(parents=True, exist_ok=True)
    written(place / "profile.json", given)
    return given


def test_a_run_with_a_profile_beside_it_reports_forecast_against_measured(tmp_path, machine):
    given = beside(tmp_path / "run", machine, *GROWING)
    found = run(tmp_path / "run", *GROWING)
    told = found["forecast"]
    (profile,) = profiles.parsed({"format": 1, "profiles": [given]}, "")
    assert told["profile"] == profiles.digest(profile) and told["same_machine"]
    assert told["measured"] == found["train_seconds"]
    assert told["low"] <= told["seconds"] <= told["high"]
    # Batches of 16, 32, 64, 128, 256 in one pass each, but for the last batch of the run.
    expected = [p["steps"] * (1e-3 + 1e-4 * p["batch_size"] + 2e-3) for p in found["phases"]]
    last = found["samples"] - sum(p["steps"] * p["batch_size"] for p in found["phases"][:-1])
    last -= (found["phases"][-1]["steps"] - 1) * found["phases"][-1]["batch_size"]
    expected[-1] += 1e-4 * (last - found["phases"][-1]["batch_size"])
    assert [p["forecast_seconds"] for p in told["phases"]] == pytest.approx(expected, rel=0.02)
    assert [p["forecast_seconds"] for p in told["phases"][:-1]] == pytest.approx(expected[:-1], rel=1e-9)
    assert math.fsum(p["forecast_seconds"] for p in told["phases"]) == pytest.approx(told["seconds"])
    for ours, theirs in zip(told["phases"], found["phases"]):
        for key in ("start_position", "batch_size", "steps", "seconds"):
            assert ours[key] == theirs[key]
    assert {c: v["measured"] for c, v in told["causes"].items()} == {
        c: found["ledger"][c] for c in audit.CAUSES
    }
    assert sum(v["forecast"] for v in told["causes"].values()) == pytest.approx(told["seconds"])


def test_the_forecast_was_made_before_the_run(tmp_path, machine):
    """What forecast.json says, and what the end says, are the same figures."""
    beside(tmp_path / "run", machine, *GROWING)
    found = run(tmp_path / "run", *GROWING)
    before = files.read_json(tmp_path / "run" / audit.FILE)
    assert before["seconds"] == pytest.approx(found["forecast"]["seconds"])
    assert [p["forecast_seconds"] for p in before["phases"]] == pytest.approx(
        [p["forecast_seconds"] for p in found["forecast"]["phases"]]
    )


def test_a_resumed_run_is_audited_as_a_whole_by_its_first_forecast(tmp_path, machine):
    """The profile is gone when the run goes on: the forecast was kept with it."""
    beside(tmp_path / "run", machine, *GROWING)
    steps = [0]

    def stop():
        steps[0] += 1
        return "SIGTERM" if steps[0] == 25 else None

    with pytest.raises(Interrupted):
        run(tmp_path / "run", *GROWING, stop=stop)
    first = files.read_json(tmp_path / "run" / audit.FILE)
    (tmp_path / "profile-x-00000000" / "profile.json").unlink()
    found = run(tmp_path / "run", *GROWING)
    assert found["forecast"]["seconds"] == pytest.approx(first["seconds"])
    assert found["forecast"]["profile"] == first["profile"]
    assert found["forecast"]["measured"] == found["train_seconds"]
    assert sum(p["seconds"] for p in found["forecast"]["phases"]) == pytest.approx(
        found["train_seconds"], rel=0.01, abs=0.1
    )


def test_a_closed_loop_is_held_against_what_it_chose(tmp_path, machine):
    closed = (*SMALL, "schedule=noise_scale", "schedule.base_batch=16", "schedule.max_batch=64", "epochs=4")
    beside(tmp_path / "run", machine, *closed)
    found = run(tmp_path / "run", *closed)
    before = files.read_json(tmp_path / "run" / audit.FILE)
    assert found["forecast"]["closed_loop"] and before["closed_loop"]
    assert before["range"][0] <= found["forecast"]["seconds"] <= before["range"][1]
    assert [p["steps"] for p in found["forecast"]["phases"]] == [p["steps"] for p in found["phases"]]
    assert found["forecast"]["causes"]["measuring"]["measured"] > 0


@pytest.mark.parametrize("change", ["machine", "network", "asked"])
def test_a_profile_of_something_else_makes_no_forecast(tmp_path, machine, change):
    other = machine | ({"threads": 7} if change == "machine" else {})
    beside(tmp_path / "run", other, *SMALL, *(["model.norm=group"] if change == "network" else []))
    lines = ["forecast=null"] if change == "asked" else []
    found = run(tmp_path / "run", *SMALL, "epochs=1", "schedule.base_batch=100", "evaluate.every=9", *lines)
    assert "forecast" not in found and not (tmp_path / "run" / audit.FILE).exists()


def test_a_named_profile_of_another_machine_is_said_and_the_run_goes_on(tmp_path, machine, caplog):
    given = beside(tmp_path / "x" / "run", machine | {"device": "Another"}, *SMALL)
    source = written(tmp_path / "p.json", given)
    short = (*SMALL, "epochs=1", "schedule.base_batch=100", "evaluate.every=9")
    found = run(tmp_path / "run", *short, f"forecast={source}")
    assert "forecast" not in found
    assert "measured on another machine (device:" in caplog.text
    assert runs.identity(resolved(*short, f"forecast={source}")) == runs.identity(resolved(*short))


@pytest.mark.parametrize("value", ["nowhere.json", "7", "[1]"])
def test_a_forecast_of_nothing_is_refused(value):
    with config.composer(), pytest.raises(UserError, match="forecast|no such profile"):
        config.checked(config.load([*QUIET, f"forecast={value}"]))


def test_a_damaged_profile_ends_no_run(tmp_path, machine):
    place = tmp_path / "profile-x-00000000"
    place.mkdir()
    (place / "profile.json").write_text('{"format": 1, "profiles": [{"points": "?"}]}')
    found = run(tmp_path / "run", *SMALL, "epochs=1", "schedule.base_batch=100", "evaluate.every=9")
    assert "forecast" not in found


def summary(folder: Path, device: str, expected, measured, **more) -> None:
    folder.mkdir(parents=True)
    told = {"device": device, "seconds": expected, "measured": measured, "same_machine": True}
    (folder / "summary.json").write_text(json.dumps({"format": 1, "forecast": told, **more}))


def test_finished_runs_tell_how_good_forecasts_are(tmp_path):
    for i in range(9):
        summary(tmp_path / f"r{i}", "X", 10.0, 10.0 + i)
    summary(tmp_path / "other", "Y", 10.0, 99.0)
    summary(tmp_path / "shared", "X", 10.0, 99.0, shared=True)
    summary(tmp_path / "hostile", "X", "ten", math.pi)
    summary(tmp_path / "zero", "X", 0.0, 1.0)
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "summary.json").write_text("{")
    assert sorted(audit.past(tmp_path, "X")) == pytest.approx([1.0 + i / 10 for i in range(9)])
    assert audit.past(tmp_path / "nowhere", "X") == []


def test_runs_of_comparisons_tell_it_too(tmp_path):
    """They lie a level deeper, and beside each other as seen from within; no deeper than that."""
    for i, place in enumerate(("run", "compare-x/run", "compare-y/run", "compare-x/tuning/run")):
        summary(tmp_path / place, "X", 10.0, 11.0 + i)
    assert sorted(audit.past(tmp_path, "X")) == pytest.approx([1.1, 1.2, 1.3])
    assert sorted(audit.past(tmp_path / "compare-x", "X")) == pytest.approx([1.2, 1.4])


def test_the_report_shows_it(tmp_path, machine):
    beside(tmp_path / "run", machine, *GROWING)
    figures = run(tmp_path / "run", *GROWING)
    report.write_run(tmp_path / "run")
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Forecast and measured" in page and "expected s" in page
    share = figures["forecast"]["measured"] / figures["forecast"]["seconds"] - 1
    assert f"{abs(share):.1%} {'more' if share >= 0 else 'less'}" in page


@pytest.mark.parametrize(
    "told",
    [
        7,
        [],
        {},
        {"seconds": "x"},
        {"seconds": -1, "measured": 1},
        {"seconds": 1, "measured": 1, "phases": 7, "causes": []},
        {"seconds": 1, "measured": 2, "low": None, "phases": [1, {}, {"batch_size": "<b>"}]},
        {"seconds": 1, "measured": 2, "causes": {"<i>": 1}},
        {"seconds": 1, "measured": 1, "causes": {"<i>": {"forecast": 1, "measured": 1}}},
        {"seconds": 1, "measured": 1, "key": "<script>", "device": "<img>" * 999},
    ],
)
def test_a_strangers_forecast_breaks_no_report(tmp_path, told):
    (tmp_path / "summary.json").write_text(json.dumps({"format": 1, "forecast": told}))
    report.write_run(tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert not any(tag in page for tag in ("<b>", "<i>", "<script>", "<img>"))
