"""Shadows: what other rules would choose, without a bit of difference to training."""

import pytest
from support import SMALL, killed, outcome, resolved, run
from test_train import kill_at_step

from adabatch import runs
from adabatch.errors import UserError
from adabatch.step import Step

BASE = (*SMALL, "schedule.base_batch=16", "model.ghost=8", "epochs=4", "checkpoint.every_seconds=0")
MANY = (
    "shadow={noise_scale:{noise_group:8,hysteresis:0.0},norm_test:{noise_group:8},"
    "simigrad:{noise_group:8},cabs:{}}"
)


def trained(folder):
    return [row for row in runs.read_rows(folder) if row["event"] == "train"]


def without_shadows(folder):
    found = outcome(folder)
    for row in found["rows"]:
        for name in [n for n in row if n.startswith("shadow.")]:
            del row[name]
    return found


@pytest.mark.parametrize("norm", ["ghost", "batch"])
@pytest.mark.parametrize("micro", [4096, 8])
def test_training_is_bitwise_that_without_shadows(tmp_path, micro, norm):
    """Also under plain batch norm, whose statistics every forward pass moves."""
    own = (*BASE, "schedule=adabatch", f"hardware.micro_batch={micro}", f"model.norm={norm}")
    run(tmp_path / "alone", *own)
    run(tmp_path / "watched", *own, MANY)
    assert without_shadows(tmp_path / "watched") == outcome(tmp_path / "alone")
    rows = trained(tmp_path / "watched")
    for name in ("noise_scale", "norm_test", "cabs", "simigrad"):
        assert any(f"shadow.{name}.wish" in row for row in rows), name


@pytest.mark.parametrize(
    "option, more",
    [("noise_scale", ()), ("norm_test", ()), ("simigrad", ()), ("cabs", ("schedule.growth.c=200",))],
)
def test_a_shadow_of_the_driving_rule_reproduces_its_decisions(tmp_path, option, more):
    own = (*BASE, f"schedule={option}", "schedule.noise_group=8", "schedule.hysteresis=0.01", *more)
    run(tmp_path / "run", *own, f"shadow=[{option}]")
    rows = trained(tmp_path / "run")
    assert len({row["batch_size"] for row in rows}) > 2, "it decided nothing: this tests nothing"
    for row in rows:
        assert row[f"shadow.{option}.batch_size"] == row.get("divisor", row["batch_size"])
        assert row[f"shadow.{option}.lr"] == row["lr"]
        assert row.get(f"shadow.{option}.wish") == row.get("wish")


def test_an_open_loop_shadow_says_what_it_would_do(tmp_path):
    run(tmp_path / "run", *BASE, "schedule=fixed", "shadow=[adabatch]")
    found = [row["shadow.adabatch.batch_size"] for row in trained(tmp_path / "run")]
    assert found[0] == 16 and found[-1] == 16 * 2**4 and found == sorted(found)


@pytest.mark.slow
def test_killed_and_repeated_with_shadows_is_bitwise_equal(tmp_path):
    own = (*BASE, "schedule=adabatch", MANY)
    run(tmp_path / "whole", *own)
    for number in (7, 25):
        killed(tmp_path / str(number), *own, arrange=kill_at_step(number))
        run(tmp_path / str(number), *own)
        assert outcome(tmp_path / str(number)) == outcome(tmp_path / "whole")


def test_the_time_of_its_passes_is_booked(tmp_path):
    summary = run(tmp_path / "run", *BASE, "schedule=adabatch", "shadow=[noise_scale]")
    assert summary["ledger"]["measuring"] > 0


@pytest.mark.parametrize(
    "asked, words",
    [
        ("shadow=[noise_sclae]", "Did you mean 'noise_scale'"),
        ("shadow=cabs", "a list of options"),
        ("shadow={noise_scale:{growth:{facto:2}}}", "Did you mean 'schedule.growth.factor'"),
    ],
)
def test_a_wrong_shadow_is_refused(asked, words):
    with pytest.raises(UserError, match=words):
        resolved(*BASE, asked)


def test_shadows_do_not_change_the_identity():
    a, b = resolved(*BASE), resolved(*BASE, MANY)
    assert runs.identity(a) == runs.identity(b)


def test_a_shadow_with_a_shorter_average_measures_when_the_driver_does(tmp_path, monkeypatch):
    """cabs averages over 640 samples, an eighth of which is 80; the driver measures every 128 from
    position 4,096 on. Each step that the shadow hears of is one that the driver measured, without passes of
    its own."""
    passes = []
    probe = Step.probe
    monkeypatch.setattr(Step, "probe", lambda self, *given: (passes.append(given), probe(self, *given))[1])
    own = (*SMALL, "schedule.base_batch=16", "schedule.noise_group=8", "model.ghost=8", "epochs=25")
    run(
        tmp_path / "run",
        *own,
        "evaluate.every=25",
        "schedule=noise_scale",
        "schedule.max_batch=16",
        "shadow=[cabs]",
    )
    rows = trained(tmp_path / "run")
    assert rows[-1]["position"] > 5_500 and not passes
    heard = [row["position"] for row in rows if "shadow.cabs.wish" in row]
    assert heard == [row["position"] for row in rows if "trace" in row]
    late = {b - a for a, b in zip(heard, heard[1:]) if a > 4_300}
    assert late == {128}
