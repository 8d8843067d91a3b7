"""adabatch-profile --sweep: settings in a drawn order, their figures under times that the test gives, the
picture's bars, and the command on pictures in folders."""

import json
import re
import statistics
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support import SMALL, resolved

from adabatch.errors import UserError
from adabatch.profiling import bars, sweep, visit
from adabatch.profiling.command import command

NET = (*SMALL, "hardware=cpu", "hardware.threads=1", "trackers.wandb.mode=disabled")
MACHINE = {"device": "A processor <1>", "threads": 2, "processes": 1, "adabatch": "0", "torch": "0"}


def answer(steps, data=0.25, **more):
    return {"batch_size": 32, "micro_batch": 16, "machine": MACHINE, "steps": steps, "data": data,
            "first_step_seconds": 1.0, "peak_memory_bytes": 1000, **more}  # fmt: skip


@pytest.fixture
def timed(monkeypatch):
    """Visits whose steps the test gives by the number of workers. -> what was visited, in order."""
    seconds, seen = {"1": 0.4, "4": 0.2, "16": 0.3}, []

    def visited(setting, batch, spent):
        seen.append((setting.lines, batch, spent, setting.tree["dataset"].get("workers")))
        took = seconds[setting.lines[0].partition("=")[2]]
        return answer([0.9 * took, took, took, 1.1 * took])

    monkeypatch.setattr(sweep, "visited", visited)
    return seen


FOLDERS = ("dataset=imagenet", "dataset.samples=9", "dataset.classes=3", "hardware=cpu")


def test_every_setting_is_visited_there_and_back_and_written_down(timed, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = ["--sweep", "dataset.workers=1,4,16", "--batches", "8", "--seconds", "3", *FOLDERS]
    assert command(line) == 0
    said = capsys.readouterr().out
    first, second = timed[:3], timed[3:]
    assert [lines[0][-2:] for lines, *_ in first] != ["=1", "=4", "16"]
    assert second == first[::-1] and len({lines for lines, *_ in first}) == 3
    assert {(batch, spent) for _, batch, spent, _ in timed} == {(8, 1.5)}
    assert sorted({workers for *_, workers in timed}) == [1, 4, 16]
    (file,) = tmp_path.glob("outputs/sweep-*/sweep.json")
    found = json.loads(file.read_text())
    assert [row["label"] for row in found["settings"]] == ["workers=1", "workers=4", "workers=16"]
    for row, seconds in zip(found["settings"], (0.4, 0.2, 0.3)):
        steps = [0.9 * seconds, seconds, seconds, 1.1 * seconds] * 2
        low, median, high = statistics.quantiles(steps, n=4)
        assert (row["low"], row["seconds"], row["high"]) == (low, median, high)
        assert row["data"] == pytest.approx(seconds / 4) and row["rounds"] == [seconds] * 2
    assert "least      workers=4: 0.2 s a batch" in said and "near" not in said and "warning" not in said
    assert file.with_suffix(".svg").is_file()


def rows(**seconds):
    return [
        {"label": label, "seconds": s, "low": 0.9 * s, "high": 1.2 * s, "data": s / 4, "rounds": [s, 1.3 * s]}
        for label, s in seconds.items()
    ]


def test_settings_whose_quartiles_overlap_are_not_told_apart_and_a_busy_machine_is_told():
    text = "\n".join(sweep.said(rows(a=1.0, b=1.3, c=1.4)))
    assert "least      a: 1 s a batch" in text and "those of b: not told apart" in text
    assert "differ by up to 30%" in text


def test_the_bars_are_as_high_as_the_seconds_and_split_as_they_were_spent():
    found = {"batch_size": 32, "machine": MACHINE, "settings": rows(a=1.0, b=2.0),
             "configuration": {"model": {"_target_": "my.Net"}}}  # fmt: skip
    picture = bars.svg(found)
    heights = {}
    for height, colour in re.findall(r'height="([\d.]+)" fill="(#\w+)"/>', picture)[1:]:  # the first is paper
        if float(height) != 11:  # of the legend
            heights.setdefault(colour, []).append(float(height))
    pixels = (bars.HEIGHT - bars.TOP - bars.BOTTOM - bars.LINE) / (1.08 * 2.4)  # of a second
    assert heights[bars.BLUE] == pytest.approx([0.75 * pixels, 1.5 * pixels], abs=0.11)
    assert heights[bars.ORANGE] == pytest.approx([0.25 * pixels, 0.5 * pixels], abs=0.11)
    whiskers = re.findall(r'y1="([\d.]+)" y2="([\d.]+)" stroke="#111"', picture)
    lengths = [float(a) - float(b) for a, b in whiskers]
    assert lengths == pytest.approx([0.3 * pixels, 0.6 * pixels], abs=0.11)
    wide = bars.svg(found | {"settings": rows(**{"x" * 40: 1.0, "y" * 40: 1.0, "z" * 40: 1.0})})
    assert 'width="760"' in picture and int(re.search(r'width="(\d+)"', wide)[1]) > 3 * 40 * 7
    assert "A processor &lt;1&gt;" in picture and "Net, batch 32" in picture
    four = bars.svg(found | {"settings": rows(**{"a=1 b=2 c=3 d=4": 1.0, "a=1 b=2 c=3 d=5": 1.0})})
    assert four.count(">d=4<") == four.count(">d=5<") == 1, "each key has a line"


def test_settings_with_batches_of_their_own_are_refused_and_what_differs_is_in_no_head():
    chosen = [sweep.Setting((f"schedule.base_batch={n}",), {}) for n in (16, 64)]
    with pytest.raises(UserError, match="16 under base_batch=16, 64 under base_batch=64: name it with"):
        sweep.same_batch(chosen, {0: [{"batch_size": 16}], 1: [{"batch_size": 64}]})
    sweep.same_batch(chosen, {0: [{"batch_size": 16}], 1: []})
    nodes = [{"threads": n, "device": "cpu", "model": {"name": "a", "width": n}} for n in (1, 2)]
    assert sweep.common(nodes) == {"device": "cpu", "model": {"name": "a"}}
    found = {"batch_size": 32, "machine": sweep.common(nodes), "settings": rows(a=1.0), "configuration": {}}
    assert "on         cpu, batch 32" in sweep.text(found)
    assert ">batch 32: seconds per batch. cpu<" in bars.svg(found)


def test_switches_are_combined_and_named_by_their_last_key():
    from adabatch import config

    with config.composer():
        found = sweep.settings([*NET], ["hardware.deterministic=false,true", "model.dropout=0.5,0"])
    assert [s.label() for s in found] == [
        "deterministic=false dropout=0.5", "deterministic=false dropout=0",
        "deterministic=true dropout=0.5", "deterministic=true dropout=0",
    ]  # fmt: skip
    assert [s.tree["model"]["dropout"] for s in found] == [0.5, 0, 0.5, 0]


@pytest.mark.parametrize(
    "line, said",
    [
        (["--sweep", "dataset.workers"], "lists values of a key, as dataset.workers=1,4,8"),
        (["--sweep", "dataset.workers=4"], "lists values of a key"),
        (["--sweep", "dataset.side=(8,16"], "lists values of a key, as dataset.workers=1,4,8, got"),
        (["--sweep", "dataset.workers=1,4"], "dataset.workers"),  # data in memory has no such key
        (["--sweep", "dataset.sied=8,16"], "dataset.sied=8: unknown key 'dataset.sied'. Did you mean"),
        (["--sweep", "seed=1,1"], "each value once"),
        (["--sweep", "seed=1,2", "--sweep", "seed=3,4"], "names a key once"),
        (["--sweep", f"seed={','.join(map(str, range(33)))}"], "at most 32 settings, got 33"),
        (["--sweep", "hardware.benchmark=true,false"], "on a CPU there is none"),
        (["--sweep", "seed=1,2", "hardware.processes=2"], "one process, got hardware.processes=2"),
        (["--sweep", "seed=1,2", "--batches", "8,16"], "times one batch, got --batches 8,16"),
        (["--sweep", "seed=1,2", "--sustained", "0"], "--sustained is for a profile"),
        (["--sweep", "seed=1,2", "--plot", "a.png"], "names a .svg file"),
    ],
)
def test_mistakes_are_told_before_anything_is_timed(line, said, timed, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert command([*NET, *line]) == 2
    assert said in capsys.readouterr().err and not timed and not Path("outputs").exists()


def folders(root):
    for part, count in (("train", 8), ("val", 1)):
        for name in ("ant", "bee", "cat"):
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = np.random.default_rng(i).integers(0, 256, (60, 80, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{i}.jpg")
    return ("dataset=imagenet", f"dataset.root={root}", "dataset.samples=24", "dataset.classes=3",
            "dataset.crop=32", "dataset.resize=36", "dataset.size=32", "model=convnet",
            *NET[-3:])  # fmt: skip


def test_a_visit_times_the_runs_own_step_on_pictures_in_folders(tmp_path):
    found = visit.visited(resolved(*folders(tmp_path), "dataset.workers=2"), 8, 0.1)
    assert found["batch_size"] == 8 and len(found["steps"]) >= 3 and min(found["steps"]) > 0
    assert 0 < found["data"] < 1 and found["machine"]["threads"] == 1
    with pytest.raises(UserError, match="at most the 24 training samples, got 25"):
        visit.visited(resolved(*folders(tmp_path / "more")), 25, 0.1)


@pytest.mark.slow
def test_the_command_times_workers_each_in_a_process_of_its_own(tmp_path, capfd):
    out = tmp_path / "s.json"
    line = ["--sweep", "dataset.workers=1,4", "--batches", "8", "--seconds", "0.2", "--out", str(out)]
    assert command([*folders(tmp_path / "data"), *line]) == 0
    found = json.loads(out.read_text())
    assert [row["setting"] for row in found["settings"]] == [["dataset.workers=1"], ["dataset.workers=4"]]
    assert all(0 < row["data"] < row["seconds"] and row["steps"] >= 6 for row in found["settings"])
    said = capfd.readouterr()
    assert "4 of 4" in said.err and "workers=4" in said.out and out.with_suffix(".svg").is_file()
    tree = resolved(*folders(tmp_path / "broken"))
    (tmp_path / "broken/train/ant/0.jpg").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"--sweep seed=0: .*0\.jpg cannot be decoded"):
        sweep.visited(sweep.Setting(("seed=0",), tree), 8, 0.1)
