"""The report of one run, made from the folder's files alone, for runs of every state."""

import re
import subprocess
import sys

import pytest
from run_folders import SAMPLES, make_rows, make_run, page_of, png_size

from adabatch import report, runs
from adabatch.errors import UserError
from adabatch.report import facts, series


def test_finished_run(tmp_path):
    folder = make_run(tmp_path / "schedule=adabatch-0123abcd")
    page = page_of(folder, write=True)
    assert png_size(folder / "curves.png") == (1430, 910)
    for said in (
        "ConvNet on digits, seed 0",
        "finished",
        "1.39 %",
        "lowest 1.11 %",
        "AMD EPYC 7B13",
        "9,330",
        "adabatch schedule=adabatch epochs=20",
        "adabatch-evaluate",
        "adabatch -m experiment=compare schedule=adabatch epochs=20",
    ):
        assert said in page.text, said
    assert len(page.of("figure")) == 4 and "base_lr: 0.05" in page.text
    assert not list(folder.glob(".*")), "a temporary file was left"


@pytest.mark.parametrize(
    "worlds, said",
    [
        ([1], None),
        ([4], "Device time 6 min 40 s 4 processes"),
        ([1, 2, 4], "Device time 6 min 40 s 1 to 4 processes; 4 throughout the same time: 13 min 20 s"),
    ],
)
def test_time_of_all_processes(worlds, said, tmp_path):
    rows = make_rows()
    for number, row in enumerate(rows):
        row["world_size"] = worlds[number * len(worlds) // len(rows)]
    folder = make_run(tmp_path / "run", rows, device_seconds=400.0, train_seconds=200.0)
    shown = " ".join(page_of(folder).text.split())
    assert said in shown if said else "Device time" not in shown


def test_page_is_self_contained_and_quiet(tmp_path):
    folder = make_run(tmp_path / "run")
    page = page_of(folder, write=True)
    source = (folder / "report.html").read_text(encoding="utf-8")
    assert not {"script", "link", "img", "iframe", "object", "a", "form"} & {tag for tag, _ in page.elements}
    assert not re.search(r"https?:|//|@import|url\(", source)
    assert "default-src 'none'" in [a.get("content") for a in page.of("meta")][1]
    assert "prefers-color-scheme: dark" in source and "@media print" in source
    for attributes in page.of("svg"):
        assert attributes.get("aria-label") or attributes.get("aria-hidden") == "true"


def test_same_folder_same_bytes(tmp_path):
    folder = make_run(tmp_path / "run")
    report.write_run(folder)
    first = {name: (folder / name).read_bytes() for name in ("report.html", "curves.png")}
    report.write_run(folder)
    assert first == {name: (folder / name).read_bytes() for name in first}


def test_ledger_adds_up(tmp_path):
    page = page_of(make_run(tmp_path / "run"))
    table = page.text[page.text.index("Where the time went") : page.text.index("Resume and compare")]
    seconds = [float(s) for s in re.findall(r"\s(\d+\.\d\d)\s", table)]
    shares = [float(s) for s in re.findall(r"(\d+\.\d)%", table[table.index("seconds") :])]
    assert len(seconds) == 7 and seconds[-1] == pytest.approx(sum(seconds[:-1]), abs=0.02) == 5.0
    assert shares[-1] == 100.0 and sum(shares[:-1]) == pytest.approx(100.0, abs=0.3)
    bars = [float(r["width"]) for r in page.of("rect")]
    assert sum(bars) == pytest.approx(1000, abs=0.5) and bars == sorted(bars, reverse=True)
    assert "No time went into: exposed communication" in page.text


def test_phases_table_adds_up(tmp_path):
    rows = make_rows()
    page = page_of(make_run(tmp_path / "run", rows))
    table = page.text[page.text.index("Phases") : page.text.index("What changed with the batch")]
    lines = re.findall(r"(\d+\.?\d*) \s*([\d,]+) \s*(\d+) \s*(0\.\d+) \s*(\d+) \s*(\d+\.\d\d)", table)
    steps = sum(r["event"] == "train" for r in rows)
    assert [int(line[2]) for line in lines] == [32, 64, 128, 256, 512]
    assert sum(int(line[4]) for line in lines) == steps and f" {steps} " in table
    for line in lines:  # the epoch is the position over the samples of an epoch
        assert float(line[0]) == pytest.approx(int(line[1].replace(",", "")) / SAMPLES, rel=1e-3)


def test_changes_show_before_after_and_factor(tmp_path):
    page = page_of(make_run(tmp_path / "run"))
    table = page.text[page.text.index("What changed with the batch") : page.text.index("Where the time went")]
    squeezed = " ".join(table.split())
    assert "batch size (samples) 32 64 \u00d7 2" in squeezed
    assert "learning rate 0.05 0.0375 \u00d7 0.75" in squeezed
    assert "micro-batches per update 1 1 same" in squeezed
    assert squeezed.count("Rule: growth x2 and decay x0.375 at epoch 4") == 4


@pytest.mark.parametrize("state", [s for s in runs.STATES if s != "finished"])
def test_unfinished_runs_say_so(tmp_path, state):
    rows = [r for r in make_rows() if r["position"] < 6.3 * SAMPLES]
    folder = make_run(tmp_path / "run", rows, state=state, error="because\nof this", summary=False)
    text = page_of(folder).text
    assert state.replace("_", " ") in text and "because\nof this" in text
    assert "of 20 planned" in text and "6.28" in text
    assert ("goes on from the last checkpoint" in text) == (state != "diverged")
    assert "2.68 %" in text  # the newest evaluation stands in for the final one


@pytest.mark.parametrize("rows", [[], make_rows()[:1], make_rows()[:2]], ids=["none", "one", "two"])
def test_hardly_any_rows(tmp_path, rows):
    folder = make_run(tmp_path / "run", rows, state="running", summary=False)
    page = page_of(folder, write=True)
    assert png_size(folder / "curves.png") == (1430, 910)
    assert ("Nothing logged yet." in page.text) == (not rows)


def test_empty_folder_and_missing_folder(tmp_path):
    (tmp_path / "run").mkdir()
    assert "unknown" in page_of(tmp_path / "run", write=True).text
    with pytest.raises(UserError, match="no such run folder"):
        report.write_run(tmp_path / "nowhere")


def test_report_needs_no_pyplot():
    """matplotlib's global state belongs to the user's notebook; importing the report costs nothing."""
    import sys

    code = (
        "import sys, adabatch.report; heavy = {'matplotlib', 'torch', 'numpy'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_png_leaves_pyplot_alone(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # importing it would now fail
    report.write_run(make_run(tmp_path / "run"))
    assert png_size(tmp_path / "run" / "curves.png") == (1430, 910)


def test_validation_split_shows_both_errors(tmp_path):
    rows = [{**r, "split": "validation"} if r["event"] == "eval" else r for r in make_rows()]
    last = rows[-1]
    rows += [{**last, "split": "validation", "weights": "ema"}, {**last, "split": "test", "eval_error": 0.02}]
    folder = make_run(
        tmp_path / "run",
        rows,
        final_test_error=0.02,
        best_test_error=None,
        final_validation_error=0.0125,
        best_validation_error=0.0117,
    )
    text = " ".join(page_of(folder).text.split())
    assert "Test error 2.00 % Validation error 1.25 % lowest 1.17 %" in text
    labels = [line.label for line in series.panels(facts.read(folder))[1].lines]
    assert labels == ["training", "validation", "validation, averaged weights", "test"]
