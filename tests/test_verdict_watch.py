"""adabatch-report --watch: what changes is read again, it ends by itself, and what it leaves is whole."""

import json
import os
import signal
import subprocess
import sys

import pytest
from run_folders import Page
from status_folders import owner_of
from sweep_folders import run
from test_status_terminal import Terminal
from test_verdict_command import report

from adabatch import runs
from adabatch.verdict import readings, watch
from adabatch.verdict.folders import look


def code(quiet: float) -> str:
    """The command, less patient than it is."""
    return (f"import sys; from adabatch.verdict import command, watch; "
            f"watch.Going.__init__.__defaults__ = ({quiet}, *watch.Going.__init__.__defaults__[1:]); "
            f"sys.exit(command.command(sys.argv[1:]))")  # fmt: skip


def state(folder, name, pid=None):
    """The run's status.json, of a process that lives here where a pid is given."""
    owner = owner_of(pid) if pid else None
    runs.write_json(folder / "status.json", {"format": 1, "state": name, "error": None, "owner": owner})


def small(parent, seeds=2):
    return [run(parent, s, b, 0.1, 9.0) for s in range(seeds) for b in ((32,), (32, 64))]


# -- parts ------------------------------------------------------------------------------------------


def test_only_what_changed_is_read_again(tmp_path, monkeypatch):
    folders = small(tmp_path)
    seen, real = [], readings.read
    monkeypatch.setattr(readings, "read", lambda folder, split: seen.append(folder) or real(folder, split))
    reader = watch.Reader()
    first = look([str(tmp_path)], {}, reader)
    assert sorted(seen) == sorted(folders)
    assert look([str(tmp_path)], {}, reader).arms == first.arms and len(seen) == 4
    with open(folders[1] / "metrics.jsonl", "a") as file:
        file.write("{}\n")
    look([str(tmp_path)], {}, reader)
    assert seen[4:] == [folders[1]]
    summary = runs.Run(folders[2]).summary
    runs.write_json(folders[2] / "summary.json", summary | {"final_test_error": 0.25})
    again = look([str(tmp_path)], {}, reader)
    assert seen[5:] == [folders[2]]
    assert 0.25 in [r.error for arm in again.arms for r in arm.runs]


def test_it_waits_between_two_runs_and_ends_when_none_follows(tmp_path):
    """One run may follow another after a pause; without a process that lives nothing goes on."""
    folder, now = small(tmp_path)[0], [0.0]
    going = watch.Going([str(tmp_path)], quiet=30, clock=lambda: now[0])
    assert going(), "within the first 30 s a run may begin"
    now[0] = 29
    assert going()
    state(folder, "running", os.getpid())
    now[0] = 100
    assert going()
    state(folder, "finished")
    now[0] = 101
    assert going()
    now[0] = 130
    assert going()
    now[0] = 131
    assert not going()


def test_a_run_whose_process_is_gone_does_not_go_on(tmp_path):
    folder = small(tmp_path)[0]
    gone = subprocess.Popen(["true"])
    gone.wait()
    state(folder, "running", os.getpid())
    status = runs.Run(folder).status
    runs.write_json(folder / "status.json", status | {"owner": status["owner"] | {"pid": gone.pid}})
    going = watch.Going([str(tmp_path)], quiet=0, clock=lambda: 5.0)
    assert not going()


# -- the command ------------------------------------------------------------------------------------


def start(tmp_path, *arguments, quiet=0.2):
    line = [sys.executable, "-c", code(quiet), *map(str, arguments)]
    return subprocess.Popen(line, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_in_a_pipe_it_says_what_changes_and_ends_saying_that_all_is_over(tmp_path):
    small(tmp_path / "sweep")
    going = start(tmp_path, "sweep", "--watch", "0.1")
    out, err = going.communicate(timeout=60)
    assert going.returncode == 0 and err == ""
    lines = out.splitlines()
    assert "interim, no verdict: n = 2, the first look is at 5 runs" in lines[0]
    assert lines[-1] == "all 4 runs are over"
    assert sum("interim, no verdict" in line for line in lines) == 2, "one line a change, then the whole"
    assert Page((tmp_path / "sweep/report.html").read_text()).open == []


@pytest.mark.slow
def test_it_follows_a_sweep_from_before_its_first_run(tmp_path):
    (tmp_path / "sweep").mkdir()
    going = start(tmp_path, "sweep", "--watch", "0.1", quiet=3.0)
    assert "no run has begun" in going.stdout.readline()
    (folder, *_) = small(tmp_path / "sweep")
    state(folder, "running", os.getpid())
    pages = set()
    for line in iter(going.stdout.readline, ""):
        pages.add((tmp_path / "sweep/report.json").read_bytes())
        json.loads((tmp_path / "sweep/report.json").read_text())
        assert (tmp_path / "sweep/report.html").read_text().endswith("</html>\n")
        if "not finished" in line:
            state(folder, "finished")
    out, err = going.communicate(timeout=60)
    assert going.returncode == 0 and err == "" and len(pages) >= 2


def test_ctrl_c_ends_it_without_a_traceback_and_leaves_the_last_page(tmp_path):
    folder = small(tmp_path / "sweep")[0]
    state(folder, "running", os.getpid())
    going = start(tmp_path, "sweep", "--watch", "0.2")
    assert "interim" in going.stdout.readline()
    going.send_signal(signal.SIGINT)
    out, err = going.communicate(timeout=60)
    assert going.returncode == 130 and err == ""
    assert sorted(p.name for p in (tmp_path / "sweep").iterdir() if p.is_file()) == [
        "report.html",
        "report.json",
    ]
    assert Page((tmp_path / "sweep/report.html").read_text()).open == []


def test_a_terminal_is_redrawn_and_shows_the_sentence_at_the_top(tmp_path):
    folder = small(tmp_path / "sweep")[0]
    state(folder, "running", os.getpid())
    terminal = Terminal(["sweep", "--watch", "0.2"], tmp_path, 100, 14, module="adabatch.verdict")
    shown = terminal.read(lambda text: "fixed 32" in text)
    assert shown[0].startswith("interim, no verdict: 1 of 4 runs not finished")
    assert len([line for line in shown if line.strip()]) <= 13
    terminal.child.send_signal(signal.SIGINT)
    assert terminal.end() == 130


@pytest.mark.parametrize("arguments, said", [
    (["--watch", "0"], "seconds from 0.1 to 86400"), (["--watch", "--json"], "--watch shows text"),
    (["--watch", "--format", "csv"], "--watch shows text"), (["--plot", "a.png"], "ends in .svg"),
    (["--wandb", "a/b/c"], "a project, or entity/project"),
])  # fmt: skip
def test_what_does_not_go_together_is_refused(tmp_path, capsys, arguments, said):
    run(tmp_path, 0, (32,), 0.1, 9.0)
    assert said in report(capsys, tmp_path, *arguments, code=2)


def test_a_folder_that_is_not_there_is_not_waited_for(tmp_path, capsys):
    assert "there is no such folder" in report(capsys, tmp_path / "none", "--watch", code=2)
