"""adabatch-plan --profile: time, worth and cost of a schedule, against closed forms."""

import json
import re

import pytest
from profile_files import followed, written
from support import resolved

from adabatch import profiles
from adabatch.planning import power
from adabatch.planning.command import command

A, B, C = 1e-3, 1e-5, 2e-3
SIZES = tuple(2**k for k in range(4, 12))
ADA = ("schedule=adabatch", "schedule.base_batch=16", "epochs=10", "hardware=cpu")  # 1,437 digits


COMPARED = ("-m", "experiment=compare", "dataset=digits", "dataset.validation=0", "schedule.base_batch=16",
            "compare.tune_lr=false", *ADA[2:])  # fmt: skip


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    """Room for every line, whatever terminal the suite runs in."""
    monkeypatch.setenv("COLUMNS", "140")


def step(batch: int, passes: int = 1) -> float:
    return passes * (A + B * batch / passes) + C


@pytest.fixture
def source(tmp_path) -> str:
    """A profile of the default network, written by hand."""
    given = followed(lambda m: A + B * m, C, sizes=SIZES, configuration=profiles.configured(resolved(*ADA)))
    given |= {"evaluation_samples_per_second": 7200.0, "setup_seconds": 3.0, "flops_per_sample": 1e9,
              "activation_bytes_per_sample": 1e6, "operations_per_pass": 100, "parameter_bytes": 4e6,
              "dispatch_seconds": 1e-5}  # fmt: skip
    for row in given["points"]:  # each visited twice
        row["rounds"] = [0.99 * row["seconds"], 1.01 * row["seconds"]]
    return written(tmp_path / "profile.json", given)


def planned(capsys, *arguments) -> dict:
    assert command([*arguments, "--json"]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def said(capsys, *arguments) -> str:
    assert command(list(arguments)) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def test_the_time_of_a_schedule_is_the_sum_of_its_steps(capsys, source):
    """AdaBatch from 16 to 256 over 14,370 digits."""
    found = planned(capsys, *ADA, "--profile", source)
    forecast = found["forecast"]
    expected = [p["steps"] * step(p["batch_size"]) for p in found["phases"]]
    assert [p["batch_size"] for p in found["phases"]] == [16, 32, 64, 128, 256]
    assert [p["forecast_seconds"] for p in forecast["phases"]][:-1] == pytest.approx(expected[:-1])
    assert forecast["seconds"] == pytest.approx(sum(expected), rel=0.01)  # the last batch is cut
    assert forecast["low"] <= 0.95 * forecast["seconds"] and forecast["high"] >= 1.05 * forecast["seconds"]
    assert forecast["kind"] == "measured" and forecast["extrapolated"] == 0
    # 10 evaluations of 360 digits at 7,200 a second, and the start
    assert forecast["wall_seconds"] == pytest.approx(forecast["seconds"] + 3.0 + 0.5)
    assert forecast["device_hours"] == pytest.approx(forecast["seconds"] / 3600)
    assert found["warnings"] and "eur" not in forecast


def test_its_worth_over_each_fixed_batch(capsys, source):
    """Equal samples: fixed 16, 32, ... 256, and the one of as many updates, which takes as long."""
    found = planned(capsys, *ADA, "--profile", source)
    rows = {row["batch_size"]: row for row in found["forecast"]["speed_up_over"]}
    matched = round(found["totals"]["mean_batch"])
    assert sorted(rows) == sorted({16, 32, 64, 128, 256, matched})
    for batch in (16, 64, 256):
        seconds = 14_370 / batch * step(batch)
        assert rows[batch]["seconds"] == pytest.approx(seconds, rel=0.01)
        assert rows[batch]["ratio"] == pytest.approx(seconds / found["forecast"]["seconds"], rel=0.01)
        assert rows[batch]["low"] <= rows[batch]["ratio"] <= rows[batch]["high"]
    assert rows[matched]["ratio"] == pytest.approx(1.0, abs=0.02)


def test_the_bound_comes_first_and_names_the_fixed_batch(capsys, source):
    text = said(capsys, *ADA, "--profile", source, "--price", "2")
    after = text[text.index("at most") :]
    words = r"at most    ([\d.]+)x over batch 16 at equal samples, and the fixed batch ([\d,]+) "
    found = re.match(words, after)
    # All of the digits at once: interpolated, between 1,024 and 2,048.
    assert found[2] == "1,437"
    assert float(found[1]) == pytest.approx((step(16) / 16) / (step(1437) / 1437), rel=0.01)
    assert after.index("forecast") > after.index("attains")
    assert "device-hours" in after and "EUR" in after
    assert "speed-up over it" in after and "not measured" not in after and "(extra" not in after


def test_batches_beyond_the_measured_ones_are_no_part_of_the_bound(capsys, tmp_path):
    """Measured up to 64, planned up to 256."""
    of = profiles.configured(resolved(*ADA))
    given = followed(lambda m: A + B * m, C, sizes=(16, 32, 64), configuration=of, fits=4096)
    source = written(tmp_path / "profile.json", given)
    rows = planned(capsys, *ADA, "--profile", source)["forecast"]
    assert rows["upper_bound"]["measured_to"] == rows["upper_bound"]["batch_size"] == 64
    beyond = {row["batch_size"]: row["extrapolated"] for row in rows["speed_up_over"]}
    assert not beyond[16] and not beyond[64] and beyond[256]
    text = " ".join(said(capsys, *ADA, "--profile", source).split())
    assert "were not measured (adabatch-profile --largest N)" in text and "fixed 256 (extrapolated)" in text


def test_a_closed_loop_is_a_range(capsys, source):
    lines = ("schedule=noise_scale", "schedule.base_batch=16", "schedule.max_batch=256", *ADA[2:])
    forecast = planned(capsys, *lines, "--profile", source)["forecast"]
    assert forecast["seconds"] is None and forecast["phases"] is None
    assert forecast["low"] == pytest.approx(14_370 / 256 * step(256), rel=0.02)
    assert forecast["high"] == pytest.approx(14_370 / 16 * step(16), rel=0.01)
    text = " ".join(said(capsys, *lines, "--profile", source).split())
    assert "by what is measured" in text and "without the cost of measuring gradients" in text


def test_what_measuring_costs_is_in_it_where_it_was_timed(capsys, tmp_path):
    """A step that measures takes 5 ms longer: every step, or one in 10 batches of 16."""
    given = followed(lambda m: A + B * m, C, sizes=SIZES, configuration=profiles.configured(resolved(*ADA)))
    given["measuring"] = {
        "needs": ["sq_norm", "trace"],
        "points": [{"batch_size": b, "seconds": 5e-3} for b in (16, 256)],
    }
    source = written(tmp_path / "profile.json", given)
    lines = ("schedule=noise_scale", "schedule.base_batch=16", "schedule.max_batch=16", *ADA[2:])
    always = planned(capsys, *lines, "schedule.measure_every=0", "--profile", source)["forecast"]
    seldom = planned(capsys, *lines, "schedule.measure_every=160", "--profile", source)["forecast"]
    usual = 14_370 / 16 * step(16)  # the cap is the first batch: nothing is left to be decided
    assert always["measuring_known"] and always["causes"]["measuring"] == pytest.approx(899 * 5e-3)
    assert always["seconds"] == pytest.approx(usual + 899 * 5e-3, rel=1e-3)
    assert seldom["seconds"] == pytest.approx(usual + 89 * 5e-3, rel=1e-3)
    # By default every step of the first 64, 32 for each doubling after that, every 16th from the 512th on
    # (up to one for each stretch of equal distances is counted the other way).
    default = planned(capsys, *lines, "--profile", source)["forecast"]["causes"]["measuring"]
    assert default / 5e-3 == pytest.approx(64 + 3 * 32 + (899 - 512) / 16, abs=3)


def test_a_run_cuts_its_batches_as_it_would(capsys, source):
    """micro_batch as asked for, and of compile the first batch: four passes of 16 for a batch of 64."""
    micro = planned(capsys, *ADA, "hardware.micro_batch=32", "--profile", source)["forecast"]
    assert micro["micro_batch"] == 32
    auto = planned(capsys, *ADA, "--profile", source)["forecast"]
    assert auto["micro_batch"] == 256
    # 256 in 8 passes of 32
    assert micro["phases"][-2]["forecast_seconds"] / auto["phases"][-2]["forecast_seconds"] == pytest.approx(
        step(128, 4) / step(128), rel=1e-6
    )


def test_a_sweep_is_held_against_its_fixed_arms(capsys, source):
    lines = ("-m", "schedule=fixed,adabatch", "schedule.base_batch=16,256", "seed=0,1", *ADA[2:])
    jobs = planned(capsys, *lines, "--profile", source, "--price", "3.6")["jobs"]
    assert len(jobs) == 8
    for job in jobs:
        worth = job["forecast"].get("speed_up_over")
        assert (worth is None) is ("schedule=fixed" in job["overrides"])
        if worth:
            assert [row["batch_size"] for row in worth] == [16, 256]
        assert job["forecast"]["eur"] == pytest.approx(job["forecast"]["seconds"] * 1e-3)
    text = said(capsys, *lines, "--profile", source, "--price", "3.6")
    total = sum(job["forecast"]["eur"] for job in jobs)
    assert f"{total:,.3g} EUR" in text and "all 8 runs" in text
    assert "2 of each arm do not resolve" in " ".join(text.split())
    # What is slower is called so, by a factor above 1 and an interval the right way round.
    rows = [row for job in jobs for row in job["forecast"].get("speed_up_over") or ()]
    expected = {("faster" if row["ratio"] >= 1 else "slower", row["batch_size"]) for row in rows}
    told = re.findall(r" is (faster|slower) than fixed (\d+) by ([\d.]+)x \(([\d.]+) to ([\d.]+)\)", text)
    assert {(what, int(batch)) for what, batch, *_ in told} == expected >= {("slower", 256)}
    assert all(1 <= float(by) and float(low) <= float(by) <= float(high) for _, _, by, low, high in told)


def total(text: str) -> tuple[str, float]:
    """(what is said of the runs, their device-hours) of the last lines."""
    found = re.search(r"(all \d+ runs.*?): ([\d.e-]+) device-hours", " ".join(text.split()))
    return found[1], float(found[2])


@pytest.mark.slow
def test_a_comparison_costs_every_seed_of_every_arm(capsys, source):
    """Also the controls that replay a run: as long as their source, an lr twin as long as its first batch
    (under a scaling that no fixed arm follows, or it would be that arm)."""
    arms = "compare.arms=[fixed,adaptive,mean_matched,lr_twin]"
    lines = (*COMPARED, arms, "compare.looks=[3,6]", "schedule=noise_scale", "schedule.max_batch=256",
             "schedule.scaling=sqrt")  # fmt: skip
    jobs = planned(capsys, *lines, "--profile", source)["jobs"]
    hours = [job["forecast"]["device_hours"] for job in jobs]
    loop = next(j["forecast"]["device_hours"] for j in jobs if j["closed_loop"])
    first = next(j["forecast"]["device_hours"] for j in jobs if "compare.arm='fixed 16'" in j["overrides"])
    text = said(capsys, *lines, "--profile", source)
    named, found = total(text)
    assert len(jobs) == 4 and "mean-matched to noise_scale" in text and "lr twin of noise_scale" in text
    assert named == "all 18 runs (3 of each of 6 arms)"
    assert found == pytest.approx(3 * (sum(hours) + loop + first), rel=0.01)
    again, more = total(said(capsys, *lines, "compare.seeds=6", "--profile", source))
    assert again.startswith("all 36 runs") and more == pytest.approx(2 * found, rel=0.01)


def test_a_comparison_that_tunes_costs_its_search(capsys, source):
    lines = [line for line in COMPARED if not line.startswith(("compare.tune", "dataset.validation"))]
    lines.append("compare.arms=[fixed,adaptive]")
    given = ("dataset.validation=100", "--profile", source)
    text = said(capsys, *lines, "compare.tune_lr=true", *given)
    named, hours = total(text)
    words = r"all (\d+) runs \(5 of each of (\d+) arms\) and (\d+) or more that tune learning rates"
    found = re.fullmatch(words, named)
    runs, arms, searches = map(int, found.groups())
    assert runs == 5 * arms and searches >= 3 * arms
    assert hours > total(said(capsys, *lines, "compare.tune_lr=false", *given))[1] * 1.5


def test_a_comparison_resolves_by_its_own_seeds_margin_and_share_of_alpha(capsys, source):
    """Three looks and two candidates: .05 / 6; of the 360 digits at a margin of 2 points."""
    lines = (*COMPARED, "compare.arms=[fixed,adaptive]", "compare.adaptive=[adabatch,noise_scale]")
    text = " ".join(said(capsys, *lines, "compare.delta=2", "--profile", source).split())
    chance = power.power(power.spread(0.1, 360), 5, 0.02, 0.05 / 6)
    assert 0.05 < chance < power.power(power.spread(0.1, 360), 5, 0.02) - 0.05
    assert f"2 percentage points at an error of 10 % on 360 samples: power {chance:.0%}" in text
    assert "5 of each arm" in text and "resolves nothing" not in text


def test_what_seeds_can_resolve():
    """A6: power by the page's formula, said either way."""
    assert "5 of each arm resolve" in power.resolved(10_000, 5)
    assert "5 of each arm do not resolve" in power.resolved(1_000, 5)
    assert "one run of each arm resolves nothing" in power.resolved(10_000, 1)
    assert "more than 20 would" in power.resolved(100, 5)


def test_another_world_is_an_order_of_magnitude(capsys, source):
    """Bound by memory traffic: 2 MB a sample at 3.35 TB/s; an update reads and writes 20 MB."""
    found = planned(capsys, *ADA, "--profile", source, "--world", "h100", "--price", "2")["forecast"]
    assert found["kind"] == "order of magnitude" and found["low"] is None
    one = max(256 * 1e9 / 67e12, 256 * 2e6 / 3.35e12, 1e-3) + 20e6 / 3.35e12
    assert found["phases"][-1]["forecast_seconds"] == pytest.approx(11 * one, rel=0.1)
    text = said(capsys, *ADA, "--profile", source, "--world", "h100", "--devices", "8")
    assert "order of magnitude" in text and "8 x NVIDIA H100" in text


def test_another_precision_is_asked_of_the_world(capsys, source):
    """The profile was in fp32; a world's bf16 may be asked for, the profile's own may not."""
    bf16 = (*ADA, "hardware.precision=bf16")
    assert planned(capsys, *bf16, "--profile", source, "--world", "a100")["forecast"]["seconds"] > 0
    assert command([*bf16, "--profile", source]) == 2
    assert "hardware.precision: bf16, the profile has fp32" in capsys.readouterr().err
    assert command([*bf16, "--profile", source, "--world", "p100"]) == 2
    assert "no peak for hardware.precision=bf16" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--profile", "none.json"], "there is no such profile"),
        (["--world", "h100"], "--world needs --profile"),
        (["--price", "2"], "--price needs --profile"),
        (["--profile", "P", "--price", "cheap"], "--price is EUR per device and hour"),
        (["--profile", "P", "--price", "-1"], "--price is EUR per device and hour"),
        (["--profile", "P", "--devices", "4"], "--devices goes with --world"),
        (["--profile", "P", "--world", "h100", "--devices", "many"], "whole number"),
        (["--profile", "P", "--world", "h200"], "Did you mean 'h100'"),
        (["--profile", "P", "model=resnet"], "was not measured for this run: model"),
        (["--profile", "P", "hardware.processes=4"], "was not measured on 4 process"),
    ],
)
def test_mistakes(arguments, words, capsys, source):
    arguments = [source if a == "P" else a for a in arguments]
    assert command([*ADA, *arguments]) == 2
    assert words in capsys.readouterr().err


def test_audits_of_finished_runs_narrow_the_interval(capsys, source, tmp_path):
    """Ten runs beside the profile's folder that took 2 % to 4 % more than forecast."""
    folder = tmp_path / "outputs" / "profile-x-1"
    folder.mkdir(parents=True)
    (folder / "profile.json").write_text((tmp_path / "profile.json").read_text())
    for i in range(10):
        run = tmp_path / "outputs" / f"run{i}"
        run.mkdir()
        told = {"device": "A processor", "seconds": 100.0, "measured": 102.0 + 0.2 * i, "same_machine": True}
        (run / "summary.json").write_text(json.dumps({"format": 1, "forecast": told}))
    found = planned(capsys, *ADA, "--profile", str(folder))["forecast"]
    assert found["audits"] == 10
    assert found["low"] / found["seconds"] == pytest.approx(1.0209, abs=2e-4)
    assert found["high"] / found["seconds"] == pytest.approx(1.0371, abs=2e-4)


def test_without_a_profile_nothing_is_forecast(capsys):
    assert planned(capsys, *ADA)["forecast"] is None
    assert "at most" not in said(capsys, *ADA)
