"""adabatch-profile: which points, their timing under a clock that the test sets, and the command itself."""

import contextlib
import json
import logging
import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from support import SMALL

from adabatch import cutting, profiles, throughput
from adabatch.pace import Pace
from adabatch.profiling import points, table
from adabatch.profiling.command import command
from adabatch.profiling.timing import Timed, Timer
from adabatch.throughput import knee

QUICK = ("--seconds", "0.05", "--sustained", "0")
NET = (*SMALL, "hardware=cpu", "hardware.threads=1", "trackers.wandb.mode=disabled")


# ------------------------------------------------------------------------------------------- which points


def test_sizes_double_from_the_first():
    assert points.sizes(32, 32, 10**6) == [32, 64, 128, 256, 512, 1024]
    assert points.sizes(32, 4096, 10**6)[-1] == 4096
    assert points.sizes(32, 4096, 300) == [32, 64, 128, 256]
    assert points.sizes(500, 500, 300) == [300]


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("unit", [1, 16, 32])
@pytest.mark.parametrize("fits", [64, 256, 4096])
def test_passes_are_of_equal_size_and_several_counts(world, unit, fits):
    """Else c_step could not be told from a pass."""
    found = points.ways([96 * 2**k for k in range(6)], fits, unit, world)
    assert len({(w.batch_size, w.micro_batch) for w in found}) == len(found)
    counts = {}
    for w in found:
        sizes = [p.stop - p.start for p in cutting.parts(w.batch_size, unit, w.micro_batch, 0, world).passes]
        if len(set(sizes)) == 1:
            counts.setdefault(sizes[0], set()).add(len(sizes))
        assert max(sizes) <= max(fits, unit)
    assert max(map(len, counts.values())) >= 2
    plain = [w.batch_size for w in found if w.plain]
    assert plain == [96 * 2**k for k in range(6)]


def test_a_single_batch_is_repeated_too():
    assert [(w.batch_size, w.micro_batch) for w in points.ways([64], 1024, 1, 1)] == [(64, 64), (128, 64)]


def test_the_knee_is_the_smallest_batch_near_the_best():
    """95 % of the highest throughput; a throughput that still rises has none yet."""
    assert knee({32: 100, 64: 190, 128: 196, 256: 200}) == (64, True)
    assert knee({32: 100, 64: 200, 128: 400}) == (128, False)
    assert knee({32: 500, 64: 400, 128: 300}) == (32, True)


# ------------------------------------------------------------------------------------------- the timing


class Clocked(Timer):
    """Takes as long as the test says: a machine that is slowed down while the points are visited."""

    def __init__(self, seconds_of, slowed):
        hardware = SimpleNamespace(device=torch.device("cpu"))
        step = SimpleNamespace(micro_batch=0, share=lambda batch: (1, batch))
        super().__init__(SimpleNamespace(hardware=hardware, step=step), None, 2.0)
        self.seconds_of, self.slowed, self.visits = seconds_of, slowed, []

    def point(self, way, seconds):
        self.visits.append(way.batch_size)
        took = self.seconds_of(way)
        if took is None:
            return None
        took *= self.slowed(len(self.visits))
        return Timed([took * 0.9, took, took, took * 1.1], 0.25, 0.125, 3 * took, 1000)


def ways(*sizes):
    return [points.Way(b, b, True) for b in sizes]


def test_the_reference_is_timed_between_all_others():
    timer = Clocked(lambda way: 1.0, lambda n: 1.0)
    rows, reference = timer.all(ways(16, 32, 64, 128, 256))
    assert timer.visits[::2] == [64] * 11 and len(reference) == 11
    assert sorted(timer.visits[1::2]) == sorted([16, 32, 64, 128, 256] * 2)
    order = timer.visits[1::2]
    assert order[:5] != sorted(order[:5]) and order[:5] != order[5:]  # drawn anew
    assert [row["batch_size"] for row in rows] == [16, 32, 64, 128, 256]


def test_drift_is_divided_out():
    """A machine that gets slower steadily, by 5 % a visit: no point is off by more than the drift between
    two visits; without the reference the last would be twice the first."""
    timer = Clocked(lambda way: way.batch_size * 1e-3, lambda n: 1.05**n)
    rows, _ = timer.all(ways(16, 32, 64, 128, 256))
    rates = [row["samples_per_second"] for row in rows]
    assert max(rates) / min(rates) < 1.01
    for row in rows:
        assert row["low"] < row["seconds"] < row["high"]
        assert row["data"] == pytest.approx(0.25 * row["seconds"])
        assert row["communication"] == pytest.approx(0.125 * row["seconds"])
        assert len(row["rounds"]) == 2 and row["rounds"][0] == pytest.approx(row["rounds"][1], rel=0.01)


def test_what_runs_out_of_memory_is_a_point_too():
    timer = Clocked(lambda way: None if way.batch_size > 64 else 1.0, lambda n: 1.0)
    rows, _ = timer.all(ways(16, 32, 64, 128, 256))
    assert [row.get("out_of_memory", False) for row in rows] == [False] * 3 + [True] * 2
    timer = Clocked(lambda way: None if way.batch_size > 16 else 1.0, lambda n: 1.0)
    rows, reference = timer.all(ways(16, 32, 64))  # the reference itself does not fit
    assert reference == [] and [row.get("out_of_memory", False) for row in rows] == [False, True, True]


def test_under_load_the_mean_counts():
    """A run's time is a sum: steps that take longer than most are in it; the first third is not."""
    timer = Clocked(lambda way: 1.0, lambda n: 1.0)
    long = Timed([9.0, 9.0, 1.0, 1.0, 1.0, 3.0], 0, 0, 0, None)
    burst = [Timed([s] * 4, 0, 0, 0, None) for s in (0.9, 1.1)]  # the machine drifts meanwhile
    timer.point = lambda way, seconds: long if seconds == 30 else burst.pop()
    assert timer.sustained(ways(32)[0], 30) == pytest.approx(1.5)


# ------------------------------------------------------------------------------------------- the command


def made(capsys, *arguments) -> dict:
    assert command([*NET, *QUICK, *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_command_writes_what_forecast_and_goodput_read(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = made(capsys, "--batches", "16,32,64")
    (folder,) = Path("outputs").iterdir()
    assert folder.name.startswith("profile-model=convnet-dataset=synthetic") and folder.name.endswith(
        found["key"]
    )
    assert found["file"] == str(folder / "profile.json")
    (profile,) = profiles.read(folder)
    assert [p.batch_size for p in profile.plain()] == [16, 32, 64]
    assert {p.accumulation for p in profile.points} >= {1, 2}
    assert profile.machine["processes"] == 1 and profile.machine["threads"] == 1
    assert Pace(profile).step(32).seconds > 0
    assert len(throughput.profile(str(folder))) == 3
    picture = (folder / "profile.svg").read_text()
    assert picture.count("<circle") == len(profile.points)
    for p in found["points"]:
        assert 0 < p["low"] <= p["seconds"] <= p["high"]
        assert 0 <= p["data"] + p["communication"] <= p["seconds"]
        assert p["samples_per_second"] == pytest.approx(p["batch_size"] / p["seconds"])
        assert p["steps"] >= 6
    assert found["flops_per_sample"] > 0 and found["operations_per_pass"] > 10
    assert found["parameter_bytes"] % 4 == 0


def test_the_table_says_where_throughput_saturates(tmp_path, capsys):
    out = tmp_path / "p.json"
    arguments = ["--batches", "16,32", "--out", str(out), "--plot", str(tmp_path / "p.png")]
    assert command([*NET, *QUICK, *arguments]) == 0
    text = capsys.readouterr().out
    assert "samples/s" in text and "a fixed batch of" in text and "saturates" in text
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


def test_a_busy_machine_is_told():
    """The reference's times differ by a standard deviation of 20 %, of 2 %."""
    from profile_files import followed, profile

    for moved, told in ((0.2, True), (0.02, False)):
        given = followed(lambda m: 1e-3 * m, reference=[math.exp(-moved), 1.0, math.exp(moved)])
        assert ("the machine had other work" in table.text(profile(given))) is told


def test_a_point_without_enough_memory_is_recorded(tmp_path, capsys, monkeypatch):
    """Passes of more than 32 samples run out of memory: the command goes on, and says what fits."""
    from adabatch.step import Step

    real = Step._accumulate

    def short(self, start, part, *rest, **more):
        if part.stop - part.start > 32:
            raise torch.OutOfMemoryError("out of memory: planted")
        return real(self, start, part, *rest, **more)

    monkeypatch.setattr(Step, "_accumulate", short)
    with silent():
        found = made(capsys, "--batches", "16,32,64", "--out", str(tmp_path / "p.json"))
    failed = [p["batch_size"] for p in found["points"] if p.get("out_of_memory")]
    assert failed == [64] * len(failed) and failed
    assert found["fits"] == 32
    (profile,) = profiles.read(tmp_path / "p.json")
    assert [p.batch_size for p in profile.failed] == failed


@contextlib.contextmanager
def silent():
    logger = logging.getLogger("adabatch")
    before = logger.level
    yield
    assert logger.level == before


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--batches", "16,x"], "--batches lists whole numbers"),
        (["--batches", "100000"], "at most the 300 training samples"),
        (["--seconds", "never"], "--seconds is a number"),
        (["--seconds", "0"], "from 0.05"),
        (["--out", "profile.txt"], "names a .json file"),
        (["--plot", "profile.gif"], "--plot names a .svg or .png"),
        (["--batch", "16"], "Did you mean '--batches'"),
        (["--accumulation", "1"], "from 2"),
        (["model=resnte"], "Did you mean 'resnet'"),
    ],
)
def test_mistakes(arguments, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert command([*NET, *QUICK, *arguments]) == 2
    assert words in capsys.readouterr().err
    assert not Path("outputs").exists()


def test_merging_times_nothing(tmp_path, capsys):
    from profile_files import followed, written

    a = written(tmp_path / "a.json", followed(lambda m: m))
    b = written(tmp_path / "b.json", followed(lambda m: m, world=2))
    out = tmp_path / "all.json"
    assert command(["--merge", a, b, "--out", str(out)]) == 0
    assert [p.world for p in profiles.read(out)] == [1, 2]
    said = capsys.readouterr().out
    assert "2 x A processor" in said and said.count("5 points, batches") == 2
    assert command(["--merge", a, b]) == 2
    assert command(["--merge", a, b, "--out", str(out), "model=vgg"]) == 2
    assert command(["--merge", a, str(tmp_path / "none.json"), "--out", str(out)]) == 2


@pytest.mark.slow
def test_several_processes_profile_together(tmp_path):
    """Two ranks: a batch is shared, and what they wait for each other is told."""
    out = tmp_path / "p.json"
    done = subprocess.run(
        [sys.executable, "-m", "adabatch.profiling", *NET, *QUICK, "hardware.processes=2", "--batches",
         "32,64", "--out", str(out)],
        capture_output=True, text=True, timeout=120, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (profile,) = profiles.read(out)
    assert profile.world == 2
    assert [(p.batch_size, p.micro_batch) for p in profile.plain()][:2] == [(32, 32), (64, 32)]
    assert all(p.communication > 0 for p in profile.points)
    assert "2 x " in done.stdout
