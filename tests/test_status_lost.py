"""Which runs adabatch-status calls lost: real dead and living processes, silent hosts, and a SLURM whose
answers are written out."""

import os
import re
import time

import pytest
from status_folders import dead_process, elsewhere, fake_slurm, make, owner_of, states, submitted, told

from adabatch import places, slurm
from adabatch.status import command, verdict


@pytest.fixture(autouse=True)
def no_slurm(monkeypatch, tmp_path):
    """Whether a SLURM is installed here must not matter."""
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.chdir(tmp_path)


def test_a_process_that_has_died_is_lost_and_one_that_lives_is_not(tmp_path, capsys):
    """The dead one beat a moment ago; the living one has not for an hour, but its process is there; a third
    has the number of a process that lives, and began at another time."""
    make(tmp_path / "dead", "running", owner=dead_process())
    make(tmp_path / "slow", "running", owner=owner_of(os.getpid(), beat=3600))
    make(tmp_path / "other", "running", owner=owner_of(os.getpid()) | {"started": "0badc0de-77"})
    found = told(capsys, tmp_path)
    assert {n: (one["state"], one["going"]) for n, one in found.items()} == {
        "dead": ("lost", False), "slow": ("running", True), "other": ("lost", False)}  # fmt: skip
    assert re.search(r"process \d+ on \S+ is gone", found["dead"]["error"])
    assert found["slow"]["seen_seconds_ago"] == pytest.approx(3600, abs=60)


@pytest.mark.parametrize("beat, state", [(0, "running"), (55, "running"), (65, "lost"), (-3600, "running")])
def test_another_host_is_lost_after_three_heartbeats_of_silence(tmp_path, capsys, beat, state):
    """-3600: its clock is an hour ahead."""
    make(tmp_path / "run", "running", owner=elsewhere(beat))
    assert states(capsys, tmp_path) == {"run": state}


def test_the_younger_sign_of_life_counts(tmp_path, capsys):
    """A host whose clock is an hour behind, and whose file was written just now; and one whose clock is an
    hour ahead, and whose file is old: a beat from the future proves nothing."""
    folder = make(tmp_path / "behind", "running", owner=elsewhere(3600))
    os.utime(folder / "status.json")
    folder = make(tmp_path / "ahead", "running", owner=elsewhere(-3600))
    os.utime(folder / "status.json", (time.time() - 500,) * 2)
    assert states(capsys, tmp_path) == {"behind": "running", "ahead": "lost"}


def test_a_folder_that_changes_hands_is_read_again(tmp_path, capsys, monkeypatch):
    """It finished between our reading that it runs and our asking after its process."""
    folder = make(tmp_path / "run", "running", owner=dead_process())
    judge = command.judge

    def late(run, answer):
        verdict = judge(run, answer)
        make(folder, "finished")
        return verdict

    monkeypatch.setattr(command, "judge", late)
    assert states(capsys, folder) == {"run": "finished"}


SQUEUE = """\
103_0|104|RUNNING|None
103_1|103|PENDING|Resources
103_2|103|PENDING|JobArrayTaskLimit
110|110|CANCELLED|None
111|111|PENDING|BeginTime
112|112|RUNNING|None
113|113|COMPLETING|None
"""
SACCT = """\
120|120|TIMEOUT
121|121|CANCELLED by 1000
"""


@pytest.mark.parametrize(
    "reason, ago, words",
    [
        ("Resources", 9999, None),
        ("Dependency", 9999, None),
        ("JobHeldUser", 5, "scontrol release 12"),
        ("JobHeldUser", 9999, "scontrol release 12"),
        ("JobHeldAdmin", 9999, "scontrol release 12"),
        ("launch failed requeued held", 9999, "scontrol release 12"),
        ("DependencyNeverSatisfied", 5, "scancel 12"),
    ],
)
def test_a_job_that_no_time_lets_begin_is_told_with_the_way_out(
    tmp_path, capsys, monkeypatch, reason, ago, words
):
    row = f"12|12|PENDING|{reason}\n"
    monkeypatch.setenv("PATH", str(fake_slurm(tmp_path / "bin", row)) + ":/usr/bin:/bin")
    make(tmp_path / "run", "submitted", job=submitted("12", ago=ago))
    found = told(capsys, tmp_path / "run")["run"]
    assert found["state"] == "submitted" and found["going"] is (words is None)
    assert found["detail"] == f"PENDING: {reason}" and (words or "") in (found["error"] or "")
    assert command.command([str(tmp_path / "run"), "--exit-code"]) == (1 if words else 3)


@pytest.mark.parametrize(
    "record, ago, told",
    [
        ({}, 5, True),
        ({"legs": 3}, 200, False),
        ({"legs": 3}, 400, True),  # whoever was submitting it has gone
        ({"legs": 3, "chain": [{}]}, 5, False),
        ({"legs": 3, "chain": [{}]}, 60, True),
    ],
)
def test_a_held_job_is_told_at_once_unless_its_chain_is_being_submitted(record, ago, told):
    found = verdict.stuck(
        "12", slurm.Job("PENDING", "JobHeldUser"), record | {"submitted": time.time() - ago}
    )
    assert (found is not None) is told


def test_what_slurm_says_of_every_kind_of_job(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PATH", str(fake_slurm(tmp_path / "bin", SQUEUE, SACCT)) + ":/usr/bin:/bin")
    again = "PENDING: BeginTime, requeued"
    table = {  # name: (recorded, owner, submitted job) -> state, going, detail
        "starting": ("submitted", None, "103_0", "submitted", True, "RUNNING"),
        "pending": ("submitted", None, "103_1", "submitted", True, "PENDING: Resources"),
        "limited": ("submitted", None, "103_2", "submitted", True, "PENDING: JobArrayTaskLimit"),
        "cancelled": ("submitted", None, "110", "lost", False, None),
        "cancelled-task": ("submitted", None, "103_9", "lost", False, None),
        "over": ("submitted", None, "120", "lost", False, None),
        "runs": ("running", elsewhere(5, "104"), "103_0", "running", True, None),
        "killed": ("running", elsewhere(5, "110"), "110", "lost", False, None),
        "timeout": ("running", elsewhere(5, "120"), "120", "lost", False, None),
        "requeued": ("running", elsewhere(300, "111"), "111", "submitted", True, again),
        "restarts": ("running", elsewhere(300, "112"), "112", "running", True, "silent, job RUNNING"),
        "allocation": ("running", elsewhere(300, "112"), None, "lost", False, None),
        "comes-back": ("preempted", elsewhere(30, "111"), "111", "preempted", True, "PENDING: BeginTime"),
        "saved": ("preempted", elsewhere(30, "121"), "121", "preempted", False, "CANCELLED"),
        "vanished": ("preempted", elsewhere(30, "130"), "130", "preempted", False, "its job is gone"),
        "long-done": ("finished", elsewhere(300, "110"), "110", "finished", False, None),
        "by-hand": ("running", elsewhere(5), "110", "running", True, None),  # the job ended, then by hand
    }  # fmt: skip
    for name, (state, owner, job, *_) in table.items():
        make(tmp_path / "all" / name, state, owner=owner, job=submitted(job) if job else None)
    found = told(capsys, tmp_path / "all")
    seen = {name: (one["state"], one["going"], one["detail"]) for name, one in found.items()}
    assert seen == {name: tuple(row[3:]) for name, row in table.items()}
    assert "CANCELLED" in found["cancelled"]["error"] and "TIMEOUT" in found["timeout"]["error"]
    assert "left the queue" in found["cancelled-task"]["error"]
    asked = (tmp_path / "bin/asked").read_text().splitlines()
    assert [line.split()[0] for line in asked] == ["squeue", "sacct"]  # once for all
    assert asked[1].split()[-1] == "103_9,120,121,130"  # those that the queue does not have


def test_the_last_task_of_an_array_has_the_array_s_number(tmp_path, capsys, monkeypatch):
    """SLURM_JOB_ID of that task is 103, and so is what waiting tasks show as theirs."""
    answers = "103_2|103|RUNNING|None\n103_1|103|PENDING|Resources\n"
    monkeypatch.setenv("PATH", str(fake_slurm(tmp_path / "bin", answers)) + ":/usr/bin:/bin")
    make(tmp_path / "all/two", "running", owner=elsewhere(5, "103"), job=submitted("103_2"))
    make(tmp_path / "all/one", "submitted", job=submitted("103_1"))
    assert states(capsys, tmp_path / "all") == {"two": "running", "one": "submitted"}


def test_one_job_that_slurm_has_forgotten(tmp_path, capsys, monkeypatch):
    """squeue fails then; it answers all the same. sacct is not there."""
    path = fake_slurm(tmp_path / "bin", "", None, 1, "slurm_load_jobs error: Invalid job id specified")
    monkeypatch.setenv("PATH", f"{path}:/usr/bin:/bin")
    make(tmp_path / "run", "submitted", job=submitted("99"))
    assert states(capsys, tmp_path / "run") == {"run": "lost"}


@pytest.mark.parametrize("how", ["fails", "hangs", "absent", "not asked"])
def test_without_an_answer_nothing_is_lost(tmp_path, capsys, monkeypatch, how):
    """And a squeue that hangs, its children too, holds nobody up."""
    monkeypatch.setattr(slurm, "BOUND", 3.0)
    child = tmp_path / "child"
    fails = dict(code=1, errors="Unable to contact slurm controller")
    given = {"fails": fails, "hangs": dict(first=f'sleep 60 & echo $! > "{child}"; wait')}.get(how, {})
    path = fake_slurm(tmp_path / "bin", "", **given)
    monkeypatch.setenv("PATH", "/nowhere" if how == "absent" else f"{path}:/usr/bin:/bin")
    if how == "not asked":  # nothing depends on a job
        make(tmp_path / "all/a", "finished", job=submitted("99"))
        make(tmp_path / "all/b", "running", owner=owner_of(os.getpid()))
    else:
        make(tmp_path / "all/a", "submitted", job=submitted("99"))
        make(tmp_path / "all/b", "preempted", owner=elsewhere(5, "99"), job=submitted("99"))
    began = time.monotonic()
    code = command.command([str(tmp_path / "all"), "--exit-code"])
    assert time.monotonic() - began < 20 and code == 3
    said = capsys.readouterr()
    assert " lost" not in said.out
    assert ("SLURM" in said.err) == (how in ("fails", "hangs"))
    assert (tmp_path / "bin/asked").exists() == (how in ("fails", "hangs"))
    if how == "hangs":
        time.sleep(0.2)
        assert places.started(int(child.read_text())) is None, "what squeue had started goes on"


def test_a_job_of_the_local_executor(tmp_path, capsys):
    ended = dead_process()
    here, gone = owner_of(os.getpid()), {key: ended[key] for key in ("host", "started")}
    lives = {"host": here["host"], "started": here["started"]}
    job = lambda pid, more, ago: submitted(str(pid), "local", ago) | more  # noqa: E731
    make(tmp_path / "lives", "submitted", job=job(os.getpid(), lives, 4000))
    make(tmp_path / "gone", "submitted", job=job(ended["pid"], gone, 4))
    make(tmp_path / "late", "submitted", job=job(4711, {"host": "node7", "started": "x"}, 4000))
    make(tmp_path / "fresh", "submitted", job=job(4711, {"host": "node7", "started": "x"}, 40))
    make(tmp_path / "never", "submitted", job=submitted(None, "slurm", 4000))
    make(tmp_path / "now", "submitted", job=submitted(None, "slurm", 4))
    make(tmp_path / "again", "preempted", job=job(os.getpid(), lives, 4000))
    expected = {"lives": "submitted", "gone": "lost", "late": "lost", "fresh": "submitted", "never": "lost",
                "now": "submitted", "again": "preempted"}  # fmt: skip
    found = told(capsys, tmp_path)
    assert {name: one["state"] for name, one in found.items()} == expected
    assert found["again"]["going"] is True


def test_while_watching_slurm_is_asked_again_only_when_a_run_says_something_new(tmp_path, monkeypatch):
    """The answer that a job waits is a moment old when its run begins: it must not count against the run."""
    path = fake_slurm(tmp_path / "bin", "103|103|PENDING|Resources\n")
    monkeypatch.setenv("PATH", f"{path}:/usr/bin:/bin")
    folder = make(tmp_path / "run", "submitted", job=submitted("103"))
    look = command.Look([str(folder)])

    def state():
        return look()[1][0].verdict.state, len((path / "asked").read_text().splitlines())

    assert [state(), state()] == [("submitted", 1), ("submitted", 1)]
    (path / "squeue.txt").write_text("103|103|RUNNING|None\n")
    make(folder, "running", owner=elsewhere(1, "103"), job=submitted("103"))
    assert [state(), state()] == [("running", 2), ("running", 2)]
    make(folder, "finished", owner=elsewhere(1, "103"), job=submitted("103"))
    assert state() == ("finished", 2)
