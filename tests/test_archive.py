"""Runs packed by benchmarks/archive.py and unpacked elsewhere: same verdict, and nothing trained again."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACK = [sys.executable, str(ROOT / "benchmarks" / "archive.py")]
COMMAND = (
    "-m experiment=compare compare.arms=[fixed,adaptive] compare.ladder=4 compare.seeds=1 "
    "dataset=digits epochs=1 hardware=cpu hardware.threads=1 trackers.wandb.mode=disabled"
).split()


def adabatch(folder: Path, *arguments: str, module="adabatch") -> str:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return done.stdout


def pack(*arguments) -> subprocess.CompletedProcess:
    return subprocess.run(
        [*PACK, *map(str, arguments)],
        text=True,
        capture_output=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def compared(tmp_path_factory) -> Path:
    """The folder of a comparison of four runs on digits."""
    here = tmp_path_factory.mktemp("archive")
    adabatch(here, *COMMAND)
    (folder,) = (here / "outputs").glob("compare-*")
    return folder


@pytest.mark.slow
def test_unpacked_elsewhere_nothing_is_trained_again_and_the_verdict_is_the_same(compared, tmp_path):
    done = pack(tmp_path / "runs.tar.xz", compared)
    assert done.returncode == 0 and done.stdout.startswith("4 runs, "), done
    (tmp_path / "outputs").mkdir()
    subprocess.run(["tar", "-xJf", "runs.tar.xz", "-C", "outputs"], cwd=tmp_path, check=True)

    before = adabatch(compared.parents[1], f"outputs/{compared.name}", module="adabatch.verdict")
    assert adabatch(tmp_path, f"outputs/{compared.name}", module="adabatch.verdict") == before
    assert "4 finished already" in adabatch(tmp_path, *COMMAND)
    for run in compared.glob("*/"):
        kept, all_of_it = rows(tmp_path / "outputs" / compared.name / run.name), rows(run)
        assert [r for r in kept if r["event"] != "train"] == [r for r in all_of_it if r["event"] != "train"]
        batches = [r["batch_size"] for r in all_of_it if r["event"] == "train"]
        assert {r["batch_size"] for r in kept if r["event"] == "train"} == set(batches)
        text = "".join(p.read_text() for p in (tmp_path / "outputs" / compared.name / run.name).iterdir())
        assert str(ROOT) not in text and str(compared.parents[1]) not in text


@pytest.mark.slow
def test_a_path_of_the_machine_is_refused(compared, tmp_path):
    environment = next(compared.glob("*/environment.json"))
    before = environment.read_text()
    try:
        environment.write_text(json.dumps(json.loads(before) | {"cpu": "/home/me/cpu"}))
        done = pack(tmp_path / "runs.tar.xz", compared)
    finally:
        environment.write_text(before)
    assert done.returncode == 1 and "/home/me/cpu" in done.stderr and not (tmp_path / "runs.tar.xz").exists()


def test_thousands_of_rows_are_thinned(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from archive import ROWS, thinned

    made = [{"event": "train", "step": i, "batch_size": 32 if i < 7_777 else 64} for i in range(20_000)]
    made.insert(5_001, {"event": "evaluation"})
    kept = thinned(made)
    steps = [row["step"] for row in kept if row["event"] == "train"]
    assert (
        {0, 7_777, 19_999} <= set(steps)
        and ROWS <= len(steps) <= ROWS + 3
        and {"event": "evaluation"} in kept
    )
    assert steps == sorted(steps)
