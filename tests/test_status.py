"""adabatch-status: what is shown of folders made by hand, in which order, and with which exit code."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from run_folders import make_rows, make_run
from status_folders import BASE, elsewhere, half, make, owner_of, submitted, told

from adabatch import runs
from adabatch.status import command, failed, words


@pytest.fixture(autouse=True)
def no_slurm(monkeypatch, tmp_path):
    """Whether a SLURM is installed here must not matter."""
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.chdir(tmp_path)


def test_a_finished_run_is_told_from_its_summary(tmp_path, capsys):
    make_run(tmp_path / "outputs/a-01234567")
    one = told(capsys)["a-01234567"]
    assert one["state"] == one["recorded"] == "finished" and one["going"] is False
    assert (one["epoch"], one["epochs"], one["progress"]) == (20, 20, 1)
    assert (one["split"], one["eval_error"], one["samples_per_second"]) == ("test", 0.0139, 9331.2)
    assert one["seconds_left"] is None and one["error"] is None


def test_a_running_run_is_told_from_its_newest_rows(tmp_path, capsys):
    """Position 14370 of 28740 at 500 samples a second: 28.74 s are left. A torn line and an early row change
    nothing, the newest evaluation counts, and of two splits its own."""
    rows = [
        {"event": "train", "position": 1000 * k, "epoch": k / 1.437, "seconds": 2.0 * k} for k in range(1, 15)
    ]
    rows += [
        {"event": "eval", "split": "validation", "weights": "raw", "eval_error": 0.5, "eval_loss": 2.0},
        {"event": "train", "position": 14370, "epoch": 10.0, "seconds": 28.74},
        {"event": "eval", "split": "validation", "weights": "raw", "eval_error": 0.25, "eval_loss": 1.0},
    ]
    folder = make(tmp_path / "run", "running", owner=owner_of(os.getpid()), rows=rows)
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"event": "train", "position": 99999, "ep')
    one = told(capsys, folder)["run"]
    assert (one["epoch"], one["epochs"], one["progress"], one["position"]) == (10, 20, 0.5, 14370)
    assert one["samples_per_second"] == pytest.approx(500) and one["seconds_left"] == pytest.approx(28.74)
    assert (one["split"], one["eval_error"]) == ("validation", 0.25)
    assert (one["host"], one["pid"], one["state"]) == (os.uname().nodename, os.getpid(), "running")


def test_an_evaluation_far_from_the_end_is_found(tmp_path, capsys):
    """A thousand rows (200 kB) since the last one."""
    rows = make_rows(epochs=1)
    train = [{**rows[0], "step": k, "position": 32 * k, "epoch": k / 45} for k in range(1, 1001)]
    evaluated = {"event": "eval", "split": "test", "weights": "raw", "eval_loss": 0.75, "eval_error": None}
    make(tmp_path / "run", "running", owner=owner_of(os.getpid()), rows=[evaluated, *train])
    assert (tmp_path / "run/metrics.jsonl").stat().st_size > 2 * 64 << 10
    one = told(capsys, "run")["run"]
    assert (one["eval_loss"], one["eval_error"], one["position"]) == (0.75, None, 32_000)


def test_disk_is_what_du_says(tmp_path, capsys):
    folder = make(tmp_path / "run", "failed", rows=half())
    (folder / "wandb/deep").mkdir(parents=True)
    (folder / "wandb/deep/big").write_bytes(os.urandom(300_000))
    (tmp_path / "outside").write_bytes(os.urandom(900_000))
    (folder / "link").symlink_to(tmp_path / "outside")
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    sizes = subprocess.run(["/usr/bin/du", "-B1", "-c", *files], capture_output=True, text=True, check=True)
    expected = int(sizes.stdout.splitlines()[-1].split()[0])
    assert told(capsys, folder)["run"]["disk_bytes"] == expected >= 300_000


# -- the command line ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kinds, code",
    [
        (["finished", "finished"], 0),
        (["finished", "running"], 3),
        (["submitted"], 3),
        (["finished", "running", "failed"], 1),
        (["diverged"], 1),
        (["out_of_memory"], 1),
        (["interrupted"], 1),
        (["preempted"], 1),
        (["lost", "running"], 1),
        (["unknown"], 1),
    ],
)
def test_exit_codes(tmp_path, capsys, kinds, code):
    for number, kind in enumerate(kinds):
        owner = {"running": owner_of(os.getpid()), "lost": elsewhere(500)}.get(kind)
        state = {"lost": "running", "unknown": "paused"}.get(kind, kind)
        job = submitted("5") if kind == "submitted" else None
        make(tmp_path / "all" / str(number), state, owner=owner, job=job)
    assert command.command(["all", "--exit-code"]) == code
    assert command.command(["all"]) == 0


def test_totals_and_order(tmp_path, capsys):
    """What needs attention stands last; seed=2 before seed=10; in a pipe names are whole."""
    kinds = {
        "seed=10": "finished",
        "seed=2": "finished",
        "seed=1": "failed",
        "b": "running",
        "c": "interrupted",
    }
    for name, kind in kinds.items():
        make(
            tmp_path / "all" / f"x={'y' * 90}-{name}-01234567", kind, owner=owner_of(os.getpid()), rows=half()
        )
    command.command(["all/"])
    lines = capsys.readouterr().out.splitlines()
    names = [re.search(r"all/x=y{90}-(\S+)-01234567", line)[1] for line in lines[1:-1]]
    assert names == ["seed=2", "seed=10", "c", "b", "seed=1"]
    disk = sum(one["disk_bytes"] for one in told(capsys, "all").values())
    assert lines[-1] == (
        f"5 runs: 2 finished, 1 interrupted, 1 running, 1 failed; {disk / 1000:.0f} kB"
    )  # fmt: skip


def test_trees_links_and_runs_that_were_put_aside(tmp_path, capsys):
    make(tmp_path / "all/sweep/deep/er/a", "finished")
    make(tmp_path / "all/b", "failed")
    make(tmp_path / "all/b.old1", "failed")
    make(tmp_path / "all/b/wandb/c", "failed")  # inside a run
    make(tmp_path / "scratch/d", "finished")
    (tmp_path / "all/elsewhere").symlink_to(tmp_path / "scratch")
    (tmp_path / "all/circle").symlink_to(tmp_path / "all")
    assert sorted(told(capsys, "all", "all/sweep")) == ["a", "b", "d"]
    assert command.command(["all", "all/sweep"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("3 runs: ")  # each once
    assert command.command(["all"]) == 0
    assert "1 put aside" in capsys.readouterr().err
    assert list(told(capsys, "all/b.old1")) == ["b.old1"]  # asked for by name


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["nowhere"], "nowhere: there is no such folder"),
        ([], "outputs: there is no such folder"),
        (["empty"], "empty: no run in it"),
        (["a-file"], "a-file: it is a file. Name"),
        (["run", "empty"], "empty: no run in it"),
        (["run", "--fialed"], "Did you mean '--failed'?"),
        (["run", "--watch=0"], "--watch takes seconds from 0.1"),
        (["run", "--watch=nan"], "--watch takes seconds from 0.1"),
        (["run", "--watch", "--failed"], "do not go together"),
    ],
)
def test_mistakes_are_told_in_a_line(tmp_path, capsys, arguments, said):
    make(tmp_path / "run", "finished")
    (tmp_path / "empty").mkdir()
    (tmp_path / "a-file").write_text("")
    assert command.command(arguments) == 2
    told = capsys.readouterr()
    assert told.out == "" and said in told.err and len(told.err.splitlines()) == 1


def test_failed_shows_errors_logs_and_the_command_that_resumes(tmp_path, capsys):
    """The command, read by a shell and by Hydra, names the overrides and the folder."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    name = "sub (1)/it's=a,b-01234567"
    folder = make(tmp_path / name, "failed", error="failed: ValueError: one\n  two\nthree", rows=half(),
                  overrides=["model=vgg", "+x='a b'"])  # fmt: skip
    (folder / "log.txt").write_text("".join(f"line {k}\n" for k in range(5000)))
    make(tmp_path / "outputs/fine", "finished")
    make(tmp_path / "outputs/stopped", "interrupted", error="stopped")
    assert command.command([".", "--failed"]) == 0
    text = capsys.readouterr().out
    assert "ValueError: one" in text and "two" in text and "three" in text and "fine" not in text
    assert "| line 4999" in text and "| line 4985" in text and "| line 4984" not in text
    again = next(line for line in text.splitlines() if "model=vgg" in line)
    program, *overrides = shlex.split(again)
    assert program == "adabatch" and overrides[:2] == ["model=vgg", "+x='a b'"]
    place = OverridesParser.create().parse_override(overrides[2])
    assert (place.key_or_group, place.value()) == ("hydra.run.dir", name)
    assert failed.resume(Path("outputs/stopped")) == "adabatch seed=0"  # where the command puts it by itself


@pytest.mark.parametrize(
    "typed, named, again",
    [
        (["hardware=slurm", "seed=1"], None, ""),  # its status.json says nothing of a job any more
        (["hardware=ours"], ["hydra.launcher.partition=gpu"], "hydra.launcher.partition=gpu"),
        (["seed=1"], ["hydra/launcher=local", "hydra.mode=MULTIRUN"], None),
        (["seed=1"], ["hydra.launcher.setup=[a b]", "hydra.sweep.dir=x", "--config-dir", "c"],
         "'hydra.launcher.setup=[a b]' --config-dir c"),
        (["seed=1"], ["hydra/launcher=local", 5], ""),  # a stranger's folder
    ],
)  # fmt: skip
def test_a_submitted_run_is_resumed_by_who_submitted_it_and_as_it_was(tmp_path, typed, named, again):
    again = " ".join(named) if again is None else again
    job = None if named is None else submitted("12") | {"named": named}
    folder = make(tmp_path / "far" / "run-01234567", "failed", overrides=typed, job=job)
    words = [shlex.join(["adabatch", *typed]), *([again] if again else []), "hydra.sweep.dir=far"]
    assert failed.resume(folder.relative_to(tmp_path)) == " ".join(words)


@pytest.mark.parametrize(
    "argv, more",
    [
        (["adabatch", "-cd", "my conf", "seed=1"], " --config-dir 'my conf'"),
        (["adabatch", "seed=1", "--config-dir=own"], " --config-dir own"),
        (["adabatch", "seed=1"], ""),
        ("adabatch -cd x", ""),  # a stranger's folder
        ([["-cd"], 5, None, "-cd"], ""),
    ],
)
def test_the_users_own_options_are_part_of_the_command_that_resumes(tmp_path, argv, more):
    folder = make(tmp_path / "outputs" / "run-01234567", "failed", overrides=["seed=1"])
    runs.write_json(folder / "environment.json", {"format": 1, "argv": argv})
    assert failed.resume(folder.relative_to(tmp_path)) == f"adabatch seed=1{more}"


def test_a_run_whose_folder_was_named_is_resumed_in_it(tmp_path):
    job = submitted("12") | {"named": ["hydra/launcher=local", "hydra.sweep.dir=x", "hydra.sweep.subdir=y"]}
    make(tmp_path / "x/y", "failed", job=job)
    words = "adabatch seed=0 hydra/launcher=local hydra.sweep.dir=x hydra.sweep.subdir=y"
    assert failed.resume(Path("x/y")) == words


def test_watch_in_a_pipe_prints_changes_and_ends_with_the_last_run(tmp_path):
    """A real process that trains, finishes one run, and dies in another."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    for name in ("a", "b"):
        make(tmp_path / "all" / name, "running", owner=owner_of(child.pid), rows=half())
    line = [sys.executable, "-m", "adabatch.status", "--watch", "0.2", "all", "--exit-code"]
    watching = subprocess.Popen(
        line, cwd=tmp_path, env=BASE | {"PATH": ""}, stdout=subprocess.PIPE, text=True
    )
    first = [watching.stdout.readline() for _ in range(2)]
    assert all(re.search(r" all/[ab]: running  4.05/20  20%", one) for one in first), first
    make(tmp_path / "all/a", "finished")
    assert " all/a: running -> finished" in watching.stdout.readline()
    child.communicate()
    assert re.search(r" all/b: running -> lost .*is gone", watching.stdout.readline())
    assert watching.stdout.read().startswith("2 runs: 1 finished, 1 lost") and watching.wait(30) == 1
    watching.stdout.close()


def test_nothing_is_written_and_nothing_heavy_loaded(tmp_path):
    """Also not in a folder that may be read only; a start takes well below a second here."""
    make(tmp_path / "all/a", "running", owner=elsewhere(500), rows=half())
    make(tmp_path / "all/b", "failed", error="x")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    code = (
        "import sys, adabatch.status.command as c\n"
        "for line in (['all'], ['all', '--failed'], ['all', '--json'], ['--watch', 'all']): c.command(line)\n"
        "print(sorted({'torch', 'hydra', 'omegaconf', 'submitit', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=BASE | {"PATH": ""}, text=True,
                          capture_output=True, timeout=60)  # fmt: skip
    assert done.stdout.splitlines()[-1] == "[]", done.stdout + done.stderr
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


# -- words -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value, text",
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (40_000_000, "40 MB"), (1_640_000_000, "1.6 GB"),
     (999_600, "1.0 MB"), (5e15, "5000 TB")],
)  # fmt: skip
def test_sizes(value, text):
    assert words.size(value) == text


@pytest.mark.parametrize(
    "value, text",
    [(0, "0 s"), (12.4, "12 s"), (99, "99 s"), (100, "2 min"), (5940, "99 min"), (7200, "2 h"),
     (47 * 3600, "47 h"), (3 * 86400, "3 d")],
)  # fmt: skip
def test_ages(value, text):
    assert words.age(value) == text
