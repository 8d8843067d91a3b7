"""adabatch-status before folders of strangers: damaged, huge, hostile, many, or gone while they are read."""

import json
import os
import shlex
import shutil
from pathlib import Path

import pytest
from status_folders import alone, elsewhere, half, make, states

from adabatch import files
from adabatch.status import facts, failed


@pytest.fixture(autouse=True)
def no_slurm(monkeypatch, tmp_path):
    """Whether a SLURM is installed here must not matter."""
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.chdir(tmp_path)


NASTY = "\x1b]0;owned\x07\x1b[31m\u202e\u0000evil\nname"


def nasty_folders(top: Path) -> None:
    rows = [
        {"event": "train", "position": 10**400, "epoch": "x", "seconds": True},
        {"event": "eval", "split": NASTY},
    ]
    make(top / "text", "failed", error=NASTY * 3, overrides=[NASTY, "$(reboot)", "'; reboot"])
    make(
        top / "types",
        "running",
        owner={"host": ["x"], "pid": "4", "started": {}, "heartbeat": NASTY},
        rows=rows,
    )
    make(top / "owner", "running", owner=elsewhere(5) | {"host": NASTY, "pid": 10**30})
    make(top / "job", "submitted", job={"id": "--help; reboot", "cluster": "slurm", "logs": NASTY})
    make(
        top / "job2", "submitted", job={"id": {}, "cluster": "local", "submitted": "yesterday", "host": NASTY}
    )
    (make(top / "log", "failed") / "log.txt").write_bytes(NASTY.encode() + b"\xff\xfe" + b"x" * 10**6)
    for name, content in {
        "torn": b'{"state": "runn', "list": b"[1, 2]", "deep": b"[" * 100_000,
        "huge": b'{"a": "' + b"x" * (17 << 20),
        "newer": b'{"format": 99, "state": "finished"}', "binary": bytes(range(256)), "empty": b"",
        "number": b'{"state": 1' + b"0" * 5000 + b"}", "null": b"null", "state": b'{"state": ["running"]}',
    }.items():  # fmt: skip
        (top / name).mkdir(parents=True)
        (top / name / "status.json").write_bytes(content)
    (top / "pipe").mkdir()
    os.mkfifo(top / "pipe/status.json")
    (top / "pipe2").mkdir()
    (top / "pipe2/status.json").write_text('{"state": "running"}')
    os.mkfifo(top / "pipe2/metrics.jsonl")
    os.mkfifo(top / "pipe2/config.yaml")
    (top / "folder/status.json").mkdir(parents=True)
    os.mkdir(os.fsencode(top / "bytes") + b"\xff\x1b[31m")
    (Path(os.fsdecode(os.fsencode(top / "bytes") + b"\xff\x1b[31m")) / "status.json").write_text("{}")
    (top / NASTY.replace("\x00", "").replace("/", "")).mkdir()
    (top / NASTY.replace("\x00", "").replace("/", "") / "metrics.jsonl").write_text("x" * 3_000_000)


@pytest.mark.parametrize("options", [[], ["--failed"], ["--json"], ["--failed", "--json"], ["--exit-code"]])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_hostile_folders_neither_break_nor_write_to_the_terminal(tmp_path, options, encoding):
    nasty_folders(tmp_path / "all")
    make(tmp_path / "all/good", "finished")
    done = alone(["all", *options], tmp_path, {"PYTHONIOENCODING": encoding}, errors="surrogateescape")
    assert done.returncode == (1 if "--exit-code" in options else 0), done.stderr
    assert "Traceback" not in done.stderr
    allowed = set("\n")
    odd = {c for c in done.stdout + done.stderr if not c.isprintable() and c not in allowed}
    assert not odd, f"{odd} reached the terminal"
    if "--json" in options:
        assert all(isinstance(json.loads(line), dict) for line in done.stdout.splitlines())
    else:
        assert "1 finished" in done.stdout.splitlines()[-1] and " lost" in done.stdout.splitlines()[-1]


def test_a_command_that_cannot_be_shown_is_not_shown_at_all(tmp_path):
    """What would be pasted is either exactly what was typed, or nothing."""
    make(tmp_path / "text", "failed", overrides=["a=\x1b[31m"])
    make(tmp_path / "shell", "failed", overrides=["a=$(reboot)'; reboot"])
    make(tmp_path / "${oc.env:HOME}", "failed")
    assert failed.resume(Path("text")) is None and failed.resume(Path("${oc.env:HOME}")) is None
    assert shlex.split(failed.resume(Path("shell")))[:2] == ["adabatch", "a=$(reboot)'; reboot"]


def test_a_folder_that_vanishes_while_it_is_read(tmp_path, capsys, monkeypatch):
    for name in "abc":
        make(tmp_path / "all" / name, "finished", rows=half())
    read = files.read_text

    def late(path, limit):
        if Path(path).parent.name == "b":
            shutil.rmtree(Path(path).parent)
        return read(path, limit)

    monkeypatch.setattr(files, "read_text", late)
    assert states(capsys, "all") == {"a": "finished", "c": "finished"}
    assert facts.read(Path("all/b")) is None


def test_a_thousand_runs(tmp_path):
    """Bounded, not timed: a minute on a loaded machine, about a second on an idle one."""
    for number in range(1000):
        folder = tmp_path / "all" / f"sweep{number % 7}" / f"seed={number}-{number:08x}"
        folder.mkdir(parents=True)
        status = {"format": 1, "state": ("finished", "failed")[number % 2], "owner": None, "error": "x"}
        (folder / "status.json").write_text(json.dumps(status))
    done = alone(["all"], tmp_path)
    assert done.stdout.splitlines()[-1].startswith("1,000 runs: 500 finished, 500 failed; "), done.stderr
    assert len(done.stdout.splitlines()) == 1002
