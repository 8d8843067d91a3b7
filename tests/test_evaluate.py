"""adabatch-evaluate counts the kept weights anew, and runs no stranger's code unasked."""

import json

import pytest
from support import SMALL, run

from adabatch import evaluate, runs


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluate") / "run"
    run(folder, *SMALL, "epochs=2", "dataset.validation=50", "model.norm=group")
    return folder


def found(capsys, *arguments) -> list[dict]:
    assert evaluate.command(["--json", *map(str, arguments)]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_the_figures_are_those_of_the_run(finished, capsys):
    summary = runs.read_json(finished / "summary.json")
    test, validation = found(capsys, finished) + found(capsys, finished, "--split", "validation")
    assert test["error"] == summary["final_test_error"] and test["samples"] == 60
    assert validation["error"] == summary["final_validation_error"] and validation["samples"] == 50


def test_several_runs_and_other_weights(finished, capsys):
    assert len(found(capsys, finished, finished)) == 2
    (other,) = found(capsys, finished, "--weights", finished / "checkpoint.pt")
    assert other["weights"].endswith("checkpoint.pt")


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda c: c["model"].update(_target_="os.system"), "names code outside adabatch: os.system"),
        (
            lambda c: c["dataset"].update(_target_="adabatch.data.cache.os.system"),
            "adabatch.data.cache.os.system",
        ),
        (lambda c: c["loss"].update(_target_="torch.hub.load"), "torch.hub.load"),
        (lambda c: c["loss"].update(_target_="mine.loss"), "--trust"),
        (lambda c: c["model"].update(width=8), "does not fit this network"),
    ],
)
def test_what_is_refused(finished, tmp_path, capsys, change, message):
    config = runs.read_yaml(finished / "config.yaml")
    change(config)
    runs.write_yaml(tmp_path / "config.yaml", config)
    (tmp_path / "weights.pt").write_bytes((finished / "weights.pt").read_bytes())
    assert evaluate.command([str(tmp_path)]) == 2
    assert message in capsys.readouterr().err


def test_a_folder_that_is_no_run(tmp_path, capsys):
    assert evaluate.command([str(tmp_path)]) == 2
    assert "config.yaml" in capsys.readouterr().err
