"""Told by a job's manager to end: who waits, who has the job queued again, what status.json says. No
SLURM."""

import json
import os
import signal
import sys
import time
from types import SimpleNamespace

import pytest

import adabatch.submitted
from adabatch import jobs, outcome, owner, places, requeue, runs, signals, slurm, watch
from adabatch.errors import Interrupted, RankLost
from adabatch.places import Place

ALONE = Place("single", 0, 1, 0, 1, "a", 0)
STEP = {"SLURM_JOB_ID": "12", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "1"}
ARRAY = STEP | {"SLURM_ARRAY_JOB_ID": "10", "SLURM_ARRAY_TASK_ID": "2"}


@pytest.fixture
def step(monkeypatch):
    for name, value in ARRAY.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "stdin", None)  # no terminal: nobody sits at this job
    asked = []
    monkeypatch.setattr(slurm, "states", lambda found: dict.fromkeys(found, "RUNNING"))
    monkeypatch.setattr(slurm, "requeue", lambda job: asked.append(job))
    monkeypatch.setattr(slurm, "ending", lambda job: False)
    for name in ("PATIENCE", "UNKNOWN", "ASK"):
        monkeypatch.setattr(requeue, name, 0.0)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR2)}
    yield asked
    for number, handler in before.items():
        signal.signal(number, handler)


def told(reason: str, more: str | None = None) -> signals.Stop:
    stop = signals.Stop()
    stop.told, stop.reason = reason, more or reason
    return stop


def submitted(folder, **job):
    folder.mkdir(exist_ok=True)
    record = {"id": "10_2", "cluster": "slurm", "logs": "x", "submitted": 1.0} | job
    runs.write_json(folder / "status.json", {"format": 1, "state": "submitted", "error": None, "owner": None,
                                             "job": record})  # fmt: skip
    return folder


def test_a_folder_of_submission_that_the_node_does_not_have(step, tmp_path, monkeypatch, capsys):
    folder = submitted(tmp_path / "run")
    monkeypatch.setattr(sys, "argv", ["adabatch"])
    gone = str(tmp_path / "gone")
    with pytest.raises(SystemExit) as end:
        adabatch.submitted.run({"argv": ["adabatch"], "cwd": gone, "folder": str(folder)})
    found = status(folder)
    assert end.value.code == 2 and found["state"] == "failed"
    assert gone in found["error"] and "a folder that all nodes share" in found["error"]


def queued_again(folder) -> bool:
    """Whether rank 0 leaves by an exit, which leaves no result of this life behind."""
    with pytest.raises(SystemExit) as end:
        requeue.leave(told("SIGUSR2"), ALONE, folder)
    return end.value.code == 130


def status(folder):
    return json.loads((folder / "status.json").read_text())


@pytest.mark.parametrize(
    "env, manager, job",
    [
        ({}, None, None),
        (STEP, "slurm", "12"),
        (ARRAY, "slurm", "10_2"),
        ({"SLURM_JOB_ID": "12"}, None, "12"),  # a batch script, or a shell in an allocation
        (STEP | {"RANK": "0", "WORLD_SIZE": "1"}, None, "12"),  # torchrun in a step
        (STEP | {"RANK": "0", "ADABATCH_LOCAL": "1"}, "slurm", "12"),  # started by us in a step
        ({"SUBMITIT_EXECUTOR": "local", "SUBMITIT_LOCAL_JOB_ID": "77"}, "local", "77"),
    ],
)
def test_who_manages_the_job(env, manager, job, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    assert places.manager(env) == manager and places.job_id(env) == job


def test_a_shell_in_a_step_has_a_user_in_front_of_it(monkeypatch):
    reader, writer = os.openpty()
    with os.fdopen(reader), os.fdopen(writer) as terminal:
        monkeypatch.setattr(sys, "stdin", terminal)
        assert places.manager(STEP) is None


@pytest.mark.parametrize(
    "came, counts",
    [
        (["SIGUSR2"], "SIGUSR2"),
        (
            ["SIGUSR2", "SIGTERM"],
            "SIGTERM",
        ),  # cancelled, or at the end of its grace: never queued again by us
        (["SIGTERM", "SIGUSR2"], "SIGTERM"),
        (["SIGTERM", "SIGINT"], "SIGINT"),
        (["SIGINT", "SIGUSR2"], "SIGINT"),
    ],
)
def test_the_stronger_reason_counts_in_one_process_and_over_ranks(came, counts):
    reason = None
    for one in came:
        reason = signals.stronger(reason, one)
    assert reason == counts
    votes = [sum(column) for column in zip(*map(signals.votes, [*came, None]))]
    agreed = signals.agreed(votes, came[-1])
    assert agreed == counts or (counts == "SIGINT" and agreed == "another rank was told to stop")


def test_usr2_is_a_reason_only_where_somebody_manages_the_job(monkeypatch):
    assert signals.numbers() == (signal.SIGINT, signal.SIGTERM)
    for name, value in STEP.items():
        monkeypatch.setenv(name, value)
    with signals.Stop(quiet=True) as stop:
        os.kill(os.getpid(), signal.SIGUSR2)
        assert stop.reason == "SIGUSR2"
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.reason == "SIGTERM"
    assert signal.getsignal(signal.SIGUSR2) == signal.SIG_DFL


def test_rank_0_queues_this_task_of_the_array_again(step, tmp_path):
    folder = submitted(tmp_path / "r")
    assert queued_again(folder)
    assert step == ["10_2"]
    assert status(folder)["job"]["requeues"] == 1


def test_other_ranks_wait_and_are_ended_by_the_requeue(step, tmp_path):
    rank = Place("slurm", 1, 2, 0, 1, "a", 1)
    assert requeue.leave(told("SIGUSR2"), rank, submitted(tmp_path / "r")) == 130
    assert step == [] and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_sigterm_waits_to_be_killed_and_never_queues_again(step, tmp_path, monkeypatch):
    monkeypatch.setattr(requeue, "PATIENCE", 1.5)
    began = time.monotonic()
    assert requeue.leave(told("SIGTERM"), ALONE, submitted(tmp_path / "r")) == 130
    assert (
        time.monotonic() - began > 1.4 and step == [] and signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
    )


@pytest.mark.parametrize("how", ["SIGTERM came too", "COMPLETING", "CANCELLED"])
def test_a_job_that_is_being_ended_is_not_queued_again(step, tmp_path, monkeypatch, how):
    monkeypatch.setattr(slurm, "states", lambda found: {} if "came" in how else dict.fromkeys(found, how))
    stop = told("SIGUSR2", "SIGTERM" if "came" in how else None)
    assert requeue.leave(stop, ALONE, submitted(tmp_path / "r")) == 130 and step == []


def test_where_slurm_refuses_the_run_says_how_to_go_on(step, tmp_path, monkeypatch):
    monkeypatch.setattr(slurm, "requeue", lambda job: "Requested operation is presently disabled")
    folder = submitted(tmp_path / "r")
    assert requeue.leave(told("SIGUSR2"), ALONE, folder) == 130
    found = status(folder)
    assert found["state"] == "interrupted" and "presently disabled" in found["error"]


def test_sigterm_between_the_question_and_the_requeue_keeps_the_job_away(step, tmp_path, monkeypatch):
    """It was cancelled just after SLURM had said that it runs."""

    def states(found):
        os.kill(os.getpid(), signal.SIGTERM)
        return dict.fromkeys(found, "RUNNING")

    monkeypatch.setattr(slurm, "states", states)
    with signals.Stop() as stop:
        stop.told = stop.reason = "SIGUSR2"
        assert requeue.leave(stop, ALONE, submitted(tmp_path / "r")) == 130
    assert step == []


def test_slurm_is_asked_until_it_answers(step, tmp_path, monkeypatch):
    """Who ended meanwhile would not come back: a preempted job does only if it is killed."""
    answers = [None, None, None, {"10_2": "RUNNING"}]
    monkeypatch.setattr(slurm, "states", lambda found: answers.pop(0))
    monkeypatch.setattr(requeue, "UNKNOWN", 60.0)
    assert queued_again(submitted(tmp_path / "r")) and step == ["10_2"]
    monkeypatch.setattr(slurm, "states", lambda found: None)
    monkeypatch.setattr(requeue, "UNKNOWN", 0.5)
    folder, began = submitted(tmp_path / "s"), time.monotonic()
    assert requeue.leave(told("SIGUSR2"), ALONE, folder) == 130 and time.monotonic() - began > 0.4
    assert step == ["10_2"] and "SLURM does not say" in status(folder)["error"]


@pytest.mark.parametrize("ending, unknown", [(True, 60.0), (None, 1.0), (False, 60.0)])
def test_who_waits_to_be_killed_waits_as_long_as_slurm_means_to(step, tmp_path, monkeypatch, ending, unknown):
    """A site's time to save may be any; where SLURM has nothing of the kind in mind, a while is enough."""
    asked = []
    monkeypatch.setattr(slurm, "ending", lambda job: asked.append(job) or (ending and len(asked) < 9))
    monkeypatch.setattr(requeue, "PATIENCE", 0.3)
    monkeypatch.setattr(requeue, "UNKNOWN", unknown)
    began = time.monotonic()
    assert requeue.leave(told("SIGTERM"), ALONE, submitted(tmp_path / "r")) == 130
    took = time.monotonic() - began
    assert set(asked) == {"10_2"} and {True: 2.4, None: 0.9, False: 0.2}[ending] < took < 30


def test_a_job_without_slurms_commands_is_told_what_that_means(step, tmp_path, monkeypatch):
    monkeypatch.setattr(requeue.shutil, "which", lambda name: None if name == "sbatch" else name)
    assert requeue.lacking(ALONE, False) is None
    assert "sbatch cannot be found" in requeue.lacking(ALONE, True)
    monkeypatch.setattr(requeue.shutil, "which", lambda name: None)
    assert "squeue, scontrol cannot" in requeue.lacking(ALONE, False)
    monkeypatch.setattr(jobs, "_owned", lambda *a: (a[3].release(), 0))
    jobs.run_job({}, tmp_path / "r", [])
    assert "squeue, scontrol cannot be found" in (tmp_path / "r" / "log.txt").read_text()
    monkeypatch.delenv("SLURM_STEP_ID")
    assert requeue.lacking(ALONE, True) is None


@pytest.mark.parametrize("stop, place", [("SIGINT", ALONE), ("SIGUSR2", Place("local", 0, 2, 0, 2, "a", 1))])
def test_ctrl_c_and_processes_with_a_parent_of_ours_just_end(step, tmp_path, stop, place):
    assert requeue.leave(told(stop), place, submitted(tmp_path / "r")) == 130 and step == []


def test_outside_a_job_sigterm_just_ends(tmp_path):
    began = time.monotonic()
    assert requeue.leave(told("SIGTERM"), ALONE, tmp_path) == 130 and time.monotonic() - began < 60
    state, code, _ = outcome.outcome(Interrupted("SIGTERM"), tmp_path, "adabatch")
    assert (state, code) == ("interrupted", 130)


def test_two_requeues_in_a_row_without_training_are_the_last(step, tmp_path, monkeypatch):
    folder = submitted(tmp_path / "r")
    assert queued_again(folder) and status(folder)["job"]["idle"] == 1
    assert requeue.leave(told("SIGUSR2"), ALONE, folder) == 1
    assert status(folder)["state"] == "failed" and "too short" in status(folder)["error"] and len(step) == 1
    # Where it has trained further, the count begins again; what an earlier life had trained counts once.
    submitted(folder, idle=1)
    (folder / "metrics.jsonl").write_text('{"event": "train", "position": 640, "epoch": 1.0}\n')
    assert queued_again(folder) and status(folder)["job"]["idle"] == 0
    assert queued_again(folder) and status(folder)["job"]["idle"] == 1


def test_a_host_that_is_lost_again_and_again_is_no_reason_to_go_round_for_ever(step, tmp_path):
    """Although each life took the folder over: a rank that is held up looks as if its host were down."""
    folder = submitted(tmp_path / "r")
    for life in range(requeue.IDLE):
        owner.Owner.claim(folder).finish("preempted")
        stop = signals.Stop()
        stop.told = signals.AGAIN  # nobody sent a signal
        if life < requeue.IDLE - 1:
            with pytest.raises(SystemExit):
                requeue.leave(stop, ALONE, folder)
    assert requeue.leave(stop, ALONE, folder) == 1 and len(step) == requeue.IDLE - 1
    assert status(folder)["state"] == "failed" and "lost a host 2 times" in status(folder)["error"]


def test_a_job_that_lost_a_host_is_queued_again_and_other_lost_ranks_are_failures(
    step, monkeypatch, tmp_path
):
    away, gone = RankLost("rank 1 is silent", 1, away=True), RankLost("rank 1 is gone", 1)
    assert outcome.reason(away) == signals.AGAIN and outcome.reason(gone) is None
    state, code, message = outcome.outcome(away, tmp_path, "adabatch")
    assert (state, code) == ("preempted", 130) and message.startswith("rank 1 is silent")
    assert outcome.outcome(gone, tmp_path, "adabatch")[:2] == ("failed", 1)
    for name in STEP:
        monkeypatch.delenv(name)
    assert outcome.reason(away) is None and outcome.outcome(away, tmp_path, "adabatch")[0] == "failed"


@pytest.mark.parametrize("away", [True, False])
def test_a_job_that_lost_a_host_has_the_time_to_queue_itself_again(monkeypatch, away):
    """SLURM may take a minute to answer; the last words of other ends are bounded."""
    done, ended = [], []
    monkeypatch.setattr(watch, "LAST", 0.1)
    monkeypatch.setattr(watch, "GRACE", 0.05)
    monkeypatch.setattr(watch.os, "_exit", lambda code: ended.append(list(done)))
    one = watch.Watch.__new__(watch.Watch)
    one.lost = {"rank": 1, "message": "rank 1 is silent", "away": away}
    one.meeting = SimpleNamespace(on_lost=lambda error: done.append(time.sleep(0.6)))
    one._end()
    assert ended == [[None] if away else []]
