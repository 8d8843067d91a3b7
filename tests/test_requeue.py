"""Told by a job's manager to end: who waits, who has the job queued again, what status.json says. No
SLURM."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import slurm_runs

import adabatch.submitted
from adabatch import jobs, outcome, owner, places, requeue, runs, signals, slurm, submission
from adabatch.errors import Interrupted, RankLost, UserError
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
    monkeypatch.setattr(requeue, "PATIENCE", 0.0)
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
    assert step == ["10_2"] and signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
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


@pytest.mark.parametrize("stop, place", [("SIGINT", ALONE), ("SIGUSR2", Place("local", 0, 2, 0, 2, "a", 1))])
def test_ctrl_c_and_processes_with_a_parent_of_ours_just_end(step, tmp_path, stop, place):
    assert requeue.leave(told(stop), place, submitted(tmp_path / "r")) == 130 and step == []


def test_outside_a_job_sigterm_just_ends(tmp_path):
    began = time.monotonic()
    assert requeue.leave(told("SIGTERM"), ALONE, tmp_path) == 130 and time.monotonic() - began < 1
    state, code, _ = outcome.outcome(Interrupted("SIGTERM"), tmp_path, "adabatch")
    assert (state, code) == ("interrupted", 130)


def test_two_requeues_in_a_row_without_training_are_the_last(step, tmp_path, monkeypatch):
    folder = submitted(tmp_path / "r")
    assert queued_again(folder) and status(folder)["job"]["idle"] == 1
    assert requeue.leave(told("SIGUSR2"), ALONE, folder) == 1
    assert status(folder)["state"] == "failed" and "too short" in status(folder)["error"] and len(step) == 1
    # Where a run has trained since this process began, the count begins again.
    found = status(folder)
    runs.write_json(folder / "status.json", found | {"owner": {**owner.me(), "heartbeat": time.time()}})
    assert queued_again(folder) and status(folder)["job"]["idle"] == 0


def test_a_run_keeps_its_job_through_its_states(step, tmp_path):
    folder = submitted(tmp_path / "r", id=None, logs="/l/%j_*_log.*")
    mine = owner.Owner.claim(folder)
    assert status(folder)["state"] == "running" and status(folder)["job"]["id"] == "10_2"
    mine.finish("preempted", "x")
    assert status(folder)["job"]["submitted"] == 1.0


def test_who_is_not_of_the_job_does_not_pass_for_it(tmp_path):
    folder = submitted(tmp_path / "r")
    owner.Owner.claim(folder).finish("finished")
    assert "job" not in status(folder)


def test_a_job_that_cannot_begin_says_so_in_its_folder(step, tmp_path, monkeypatch):
    def refuse(*_):
        raise UserError("no such thing")

    folder = submitted(tmp_path / "r")
    monkeypatch.setattr(jobs, "_placed", refuse)
    assert jobs.run_job({}, folder, [])[1] == 2
    assert status(folder)["state"] == "failed" and status(folder)["error"] == "no such thing"


def test_an_owner_elsewhere_whose_job_slurm_no_longer_knows_is_taken_over_at_once(tmp_path, monkeypatch):
    record = {**owner.me(), "host": "elsewhere", "job": "99"}
    runs.write_json(
        tmp_path / "status.json", {"format": 1, "state": "running", "error": None, "owner": record}
    )
    monkeypatch.setattr(slurm, "states", lambda found: None)  # cannot be asked
    assert owner.in_use(tmp_path)
    monkeypatch.setattr(slurm, "states", lambda found: {"99": "RUNNING"})
    assert owner.in_use(tmp_path)
    monkeypatch.setattr(slurm, "states", lambda found: {"99": "CANCELLED"})
    assert owner.in_use(tmp_path) is None


def test_an_announcement_is_taken_back_unless_the_job_was_faster(tmp_path, step):
    job = {"id": None, "cluster": "slurm", "logs": "/l/%j_*", "submitted": time.time()}
    one = submission.Announced(tmp_path / "new", dict(job))
    assert "is submitting it" in submission.unneeded(tmp_path / "new")
    one.withdraw()
    assert not (tmp_path / "new").exists()
    two = submission.Announced(tmp_path / "new", dict(job))
    owner.Owner.claim(tmp_path / "new").finish("finished")
    two.submitted(id="5")
    two.withdraw()
    assert status(tmp_path / "new")["state"] == "finished" and status(tmp_path / "new")["job"]["id"] == "10_2"


# -- submitit's local executor: real processes in the background


def background(cwd, *overrides):
    # `-m` stands first: Hydra's parser wants its options before the overrides.
    words = [sys.executable, "-m", "adabatch", "-m", *slurm_runs.RUN, "hydra/launcher=local", *overrides]
    return subprocess.run(words, cwd=cwd, capture_output=True, text=True, timeout=120, check=True).stdout


def until(arrived, seconds: float = 90):
    end = time.monotonic() + seconds
    while not (found := arrived()):
        assert time.monotonic() < end
        time.sleep(0.1)
    return found


@pytest.mark.slow
def test_a_job_in_the_background_goes_on_after_usr2_bit_for_bit(tmp_path):
    cwd = slurm_runs.place(tmp_path / "a", slow=3)  # the first job is still at it after a second command
    text = background(cwd, "seed=0,1")
    found = [(job, cwd / folder) for job, folder in slurm_runs.listed(text)]
    assert f"cancel: kill {found[0][0]} {found[1][0]}" in text
    try:
        until(lambda: any(slurm_runs.begun(folder) for _, folder in found))
        # One at a time, whichever came first.
        (job, folder), (_, second) = sorted(found, key=lambda one: not slurm_runs.begun(one[1]))
        assert runs.Run(second).state == "submitted"
        assert background(cwd, "seed=0,1").count("not submitted again") == 2
        (task,) = map(int, subprocess.check_output(["pgrep", "-P", job], text=True).split())
        os.kill(task, signal.SIGUSR2)
        until(lambda: (runs.Run(folder).status.get("job") or {}).get("requeues") == 1)
        (cwd / "slow").unlink()
        for each in (folder, second):
            until(lambda each=each: runs.Run(each).state == "finished")
    finally:
        for job, _ in found:
            subprocess.run(["kill", job], capture_output=True)
    assert "resumed at position" in (folder / "log.txt").read_text()
    alone = slurm_runs.place(tmp_path / "b", slow=0)
    seed = runs.Run(folder).config["seed"]
    words = [sys.executable, "-m", "adabatch", *slurm_runs.RUN, f"seed={seed}"]
    subprocess.run(words, cwd=alone, capture_output=True, check=True, timeout=120)
    (reference,) = alone.glob("outputs/*-????????")
    assert slurm_runs.bits(folder) == slurm_runs.bits(reference)


@pytest.mark.slow
def test_a_job_in_the_background_survives_its_terminal_and_can_be_ended(tmp_path):
    cwd = slurm_runs.place(tmp_path)
    words = [sys.executable, "-m", "adabatch", "-m", *slurm_runs.RUN, "hydra/launcher=local", "wait=true",
             "hardware.processes=2"]  # fmt: skip
    shell = subprocess.Popen(words, cwd=cwd, stdout=subprocess.PIPE, text=True, start_new_session=True)
    folder = until(lambda: next(cwd.glob("outputs/*-????????"), None))
    until(lambda: slurm_runs.begun(folder))
    os.killpg(shell.pid, signal.SIGINT)  # Ctrl-C in its terminal
    assert shell.wait(30) == 130
    time.sleep(2)
    assert runs.Run(folder).state == "running"
    job = runs.Run(folder).status["job"]["id"]
    os.kill(int(job), signal.SIGTERM)
    until(lambda: runs.Run(folder).state == "interrupted")
    until(lambda: places.started(int(job)) is None)


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
