"""adabatch-status in a pseudo-terminal: nothing wraps, every run has a line, --watch redraws in place."""

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time

import pytest
from status_folders import BASE, elsewhere, fake_slurm, half, make, owner_of, submitted
from terminal import screen


class Terminal:
    """The command in a pseudo-terminal of width x height; `text` is all that it has written so far."""

    def __init__(self, arguments, cwd, width: int, height: int = 40, path="/nowhere",
                 module="adabatch.status", **env):  # fmt: skip
        self.width, self.text = width, ""
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
        line = [sys.executable, "-m", module, *arguments]
        env = BASE | {"TERM": "xterm-256color", "PATH": str(path), "LC_ALL": "C.UTF-8"} | env
        self.child = subprocess.Popen(
            line, cwd=cwd, env=env, stdin=slave, stdout=slave, stderr=slave,
            preexec_fn=lambda: os.login_tty(slave),
        )  # fmt: skip
        os.close(slave)

    def read(self, until=lambda text: False, seconds: float = 30) -> list[str]:
        """The screen once until(text) holds, or at the end."""
        end = time.monotonic() + seconds
        while not until(self.text) and time.monotonic() < end:
            if not select.select([self.master], [], [], 0.1)[0]:
                continue
            try:
                data = os.read(self.master, 65536)
            except OSError:  # the other side has closed
                break
            if not data:
                break
            self.text += data.decode()
        return screen(self.text, self.width)

    def end(self) -> int:
        self.read(seconds=20)
        code = self.child.wait(timeout=20)
        os.close(self.master)
        return code


def sweep(top, number=8):
    """A sweep as it is: names that share most of what they say, and every kind of state."""
    kinds = [("finished", {}), ("running", {"owner": owner_of(os.getpid())}),
             ("running", {"owner": elsewhere(900)}),
             ("failed", {"error": "failed: RuntimeError: " + "a long story " * 20}),
             ("submitted", {"job": submitted("103_7")})]  # fmt: skip
    names = []
    for seed in range(number):
        kind, more = kinds[seed % len(kinds)]
        name = f"model=vgg-schedule=adabatch-epochs=20-seed={seed}-dataset.limit=640-{seed:08x}"
        names.append(name)
        make(top / name, kind, rows=half(), **more)
    return names


@pytest.mark.parametrize("width", [40, 80, 140, 220])
@pytest.mark.parametrize("slurm", [False, True])
def test_no_line_wraps_and_every_run_has_one(tmp_path, width, slurm):
    sweep(tmp_path / "all")
    path = fake_slurm(tmp_path / "bin", "103_7|103|PENDING|Resources\n")
    shown = Terminal(["all"], tmp_path, width, path=f"{path}:/usr/bin:/bin" if slurm else "/nowhere")
    assert shown.end() == 0
    lines = re.sub(r"\x1b\[[?0-9;]*[A-Za-z]", "", shown.text).replace("\r", "").split("\n")
    table = lines[: next(i for i, line in enumerate(lines) if line.startswith("8 runs: "))]
    assert max(map(len, table)) < width, "a line may wrap"
    for seed in range(8):
        end = f"{seed:04x}" if width < 80 else f"seed={seed}-{seed:08x}"  # names are cut in their middle
        rows = [line for line in table if re.match(rf"\w.*  \S*{end}( |$)", line)]
        assert len(rows) == 1, (seed, table)
    assert "8 runs: 2 finished, 1 submitted, 2 running, 1 failed, 2 lost" in " ".join(" ".join(lines).split())
    text = "\n".join(table)
    assert ("submitted (PENDING: Resources)" in text) == (slurm and width >= 140)
    assert ("(Resources)" in text) == (slurm and width < 140)
    if width >= 80:
        assert "4.05/20  20%" in text and "test 1.39%" in text  # progress and error of a run
    if width >= 140:
        assert "schedule=adabatch" not in text.split("\n", 1)[1] and "seed=3-00000003" in text
        assert " left " in text and " seen " in text and f":{os.getpid()}" in text
    assert "failed: RuntimeError:" in text and "no heartbeat for 15 m" in text


def test_runs_of_a_comparison_are_told_apart_in_a_narrow_window(tmp_path):
    """By arm and seed, a search's by its learning rate: of their folders' names only the ends differ."""
    names = [("adabatch", 0), ("adabatch", 1), ("mean-matched 80", 0), ("mean-matched 80", 1)]
    common = ["experiment=compare", "dataset=digits", "schedule.base_lr=0.2"]
    for number, (arm, seed) in enumerate(names):
        typed = [*common, f"compare.arm='{arm}'", "compare.stage=verdict", f"seed={seed}"]
        folder = f"dataset=digits-seed={seed}-epochs=2-dataset.validation=200-experiment=-{number:08x}"
        make(tmp_path / "all" / folder, "finished", overrides=typed)
    typed = [*common, "compare.arm='adabatch'", "compare.stage=tuning", "seed=1000"]
    make(tmp_path / "all/tuning/dataset=digits-seed=1000-00000009", "finished", overrides=typed)
    shown = Terminal(["all"], tmp_path, 80)
    assert shown.end() == 0
    lines = [re.split(" {2,}", line)[1] for line in screen(shown.text, 80) if line.startswith("finished")]
    assert lines == [*(f"{arm} seed={seed}" for arm, seed in names), "adabatch lr=0.2 tuning"]


def test_watch_redraws_in_place_until_all_have_ended(tmp_path):
    folder = make(tmp_path / "all/seed=0-00000000", "running", owner=owner_of(os.getpid()), rows=half())
    shown = Terminal(["--watch", "0.2", "all", "--exit-code"], tmp_path, 80)
    assert any("running" in line for line in shown.read(lambda text: "1 run: 1 running" in text))
    make(folder, "finished")
    assert shown.end() == 0
    lines = screen(shown.text, 80)
    assert [line.split()[0] for line in lines] == ["all", "state", "finished", "1"], lines


def test_watch_shows_what_needs_attention_in_a_low_window(tmp_path):
    """Forty runs in twelve lines: the lost one is there, the finished ones are counted; Ctrl-C ends it."""
    for seed in range(38):
        make(tmp_path / f"all/seed={seed}-{seed:08x}", "finished")
    make(tmp_path / "all/seed=98-00000098", "running", owner=owner_of(os.getpid()))
    make(tmp_path / "all/seed=99-00000099", "running", owner=elsewhere(900))
    shown = Terminal(["--watch", "0.2", "all"], tmp_path, 80, 12)
    lines = shown.read(lambda text: text.count("40 runs: ") > 3)
    os.write(shown.master, b"\x03")
    assert shown.end() == 130
    assert len(lines) <= 12 and not any("\u2026" == line.strip() for line in lines), lines
    text = "\n".join(lines)
    assert "lost" in text and "seed=98-00000098" in text and re.search(r"above: \d+ finished", text)
    assert screen(shown.text, 80)[-1].startswith(("40 runs", "^C")) or "Traceback" not in shown.text


def test_no_colour_where_none_is_wanted(tmp_path):
    make(tmp_path / "all/a", "failed", error="x")
    coloured = Terminal(["all"], tmp_path, 80)
    assert coloured.end() == 0 and "\x1b[1;31m" in coloured.text
    for env in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
        plain = Terminal(["all"], tmp_path, 80, **env)
        assert plain.end() == 0 and "\x1b[1;31m" not in plain.text and "failed" in plain.text
