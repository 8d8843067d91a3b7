"""Whose a run folder is when jobs come, hand over, and come back. No SLURM."""

import json
import os
import signal
import sys
import time

import filelock
import pytest

import adabatch.submitted
from adabatch import jobs, owner, runs, signals, slurm, submission
from adabatch.errors import HandOver, UserError

LEG = {"samples": 4, "most": 4, "node": 4, "closed": False}
CHAIN = [
    {"id": name, "logs": f"/l/{name}", "processes": 1 << n} for n, name in enumerate(["10_2", "11_2", "12_2"])
]


@pytest.fixture
def step(monkeypatch):
    """This process is the first job of the chain."""
    belongs(monkeypatch, "10")
    monkeypatch.setattr(slurm, "states", lambda found: dict.fromkeys(found, "PENDING"))


def belongs(monkeypatch, array: str):
    known = {"SLURM_JOB_ID": f"{array}0", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "1",
             "SLURM_ARRAY_JOB_ID": array, "SLURM_ARRAY_TASK_ID": "2"}  # fmt: skip
    for name, value in known.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "stdin", None)  # no terminal: nobody sits at this job


def submitted(folder, state="submitted", **job):
    folder.mkdir(exist_ok=True)
    record = {"id": "10_2", "cluster": "slurm", "logs": "x", "submitted": 1.0} | job
    runs.write_json(
        folder / "status.json", {"format": 1, "state": state, "error": None, "owner": None, "job": record}
    )
    return folder


def status(folder):
    return json.loads((folder / "status.json").read_text())


def test_a_run_keeps_its_job_through_its_states(step, tmp_path):
    folder = submitted(tmp_path / "r", id=None, logs="/l/%j_*_log.*")
    mine = owner.Owner.claim(folder)
    assert status(folder)["state"] == "running" and status(folder)["job"]["id"] == "10_2"
    mine.finish("preempted", "x")
    assert status(folder)["job"]["submitted"] == 1.0


def test_who_is_not_of_the_job_does_not_pass_for_it(tmp_path, monkeypatch):
    monkeypatch.setattr(slurm, "states", lambda found: {})  # it has left the queue
    folder = submitted(tmp_path / "r")
    owner.Owner.claim(folder).finish("finished")
    assert "job" not in status(folder)


@pytest.mark.parametrize("state", ["submitted", "preempted", "interrupted"])
def test_a_job_that_is_still_to_come_is_not_forgotten_by_who_runs_in_its_folder(
    tmp_path, monkeypatch, caplog, state
):
    """Interrupted there, the run needs no second job."""
    monkeypatch.setattr(slurm, "states", lambda found: dict.fromkeys(found, "PENDING"))
    folder = submitted(tmp_path / "r", state)
    held = owner.Owner.claim(folder)
    assert "job 10_2 of this run is still to come" in caplog.text and "scancel 10_2" in caplog.text
    held.finish("interrupted")
    assert status(folder)["job"]["logs"] == "x" and "job 10_2 has it" in submission.unneeded(folder)
    assert submission.queued(folder) == "10_2"
    monkeypatch.setattr(slurm, "states", lambda found: {})
    assert submission.unneeded(folder) is None
    monkeypatch.setattr(slurm, "states", lambda found: None)
    assert submission.unneeded(folder) is None  # it has said that it ended, and nobody says otherwise


def test_slurm_is_not_asked_under_the_lock(tmp_path, monkeypatch):
    """It takes seconds to answer, and others wait for the lock no longer than 30."""
    asked = []

    def states(found):
        with owner.locked(folder):
            asked.extend(found)
        return dict.fromkeys(found, "RUNNING")

    folder = submitted(tmp_path / "r")
    monkeypatch.setattr(owner, "LOCK_TIMEOUT", 0.3)
    monkeypatch.setattr(slurm, "states", states)
    owner.Owner.claim(folder).finish("interrupted")
    record = {**owner.me(), "host": "elsewhere", "job": "99"}
    runs.write_json(folder / "status.json", status(folder) | {"state": "running", "owner": record})
    assert owner.in_use(folder)
    with pytest.raises(UserError, match="elsewhere"):
        owner.Owner.claim(folder)
    assert asked.count("10_2") >= 2 and asked.count("99") == 2


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


# -- chains


def hands_over(monkeypatch, folder, meanwhile=lambda: None):
    """The exit code of a job of a chain that comes to a batch which suits more processes."""

    def trained(*_):
        meanwhile()
        raise HandOver(2)

    monkeypatch.setattr(jobs, "_trained", trained)
    return jobs.run_job({"rehearsal": True}, folder, [], leg=LEG)[1]


def test_a_job_hands_the_folder_over_to_the_next_at_once(step, tmp_path, monkeypatch):
    """Nobody ever sees it submitted and still owned, or owned by nobody and of the job before."""
    seen, write = [], owner.write_status
    monkeypatch.setattr(owner, "write_status", lambda *a: seen.append(a[1]) or write(*a))
    folder = submitted(tmp_path / "r", chain=CHAIN)
    assert hands_over(monkeypatch, folder) == 0
    found = status(folder)
    assert (found["state"], found["owner"]) == ("submitted", None)
    assert found["job"]["id"] == "11_2" and found["job"]["processes"] == 2
    assert [(s["state"], s["job"]["id"]) for s in seen] == [("running", "10_2"), ("submitted", "11_2")]


@pytest.mark.parametrize("state", ["submitted", "running", "preempted"])
def test_a_job_that_comes_back_after_it_has_handed_over_leaves_the_run_to_the_next(
    step, tmp_path, monkeypatch, state
):
    """Its node was lost, or an operator queued it again: it would take the folder, and submit another."""
    folder = submitted(tmp_path / "r", state, chain=CHAIN, id="11_2")
    before = (folder / "status.json").read_bytes()
    monkeypatch.setattr(jobs, "_owned", lambda *_: pytest.fail("it took the folder"))
    assert jobs.run_job({}, folder, [], leg=LEG) == (None, 0)
    assert (folder / "status.json").read_bytes() == before
    closed = submitted(tmp_path / "closed", state, id="77")  # submitted by the job itself: it has no chain
    assert jobs.run_job({}, closed, [], leg=LEG | {"closed": True}) == (None, 0)


def test_a_job_whose_successor_was_cancelled_goes_on(step, tmp_path, monkeypatch):
    monkeypatch.setattr(slurm, "states", lambda found: {})
    folder, gone_on = submitted(tmp_path / "r", chain=CHAIN, id="11_2"), []
    monkeypatch.setattr(jobs, "_owned", lambda *a: gone_on.append(a[3].release()) or (None, 0))
    jobs.run_job({}, folder, [], leg=LEG)
    assert gone_on == [None]


def test_who_has_lost_the_folder_hands_nothing_over(step, tmp_path):
    folder = submitted(tmp_path / "r", chain=CHAIN)
    held = owner.Owner.claim(folder)
    other = status(folder) | {"owner": {**owner.me(), "host": "elsewhere"}, "state": "running"}
    runs.write_json(folder / "status.json", other)
    submission.handed_over(held, 2)
    assert held.lost and status(folder) == other


def test_a_hand_over_that_cannot_be_written_fails_neither_the_job_nor_its_chain(step, tmp_path, monkeypatch):
    folder = submitted(tmp_path / "r", chain=CHAIN)
    lock = filelock.FileLock(str(folder / ".lock"))

    def meanwhile():
        monkeypatch.setattr(owner, "LOCK_TIMEOUT", 0.2)
        lock.acquire()

    assert hands_over(monkeypatch, folder, meanwhile) == 0
    lock.release()
    assert "locked for" in (folder / "log.txt").read_text()
    # The next job finds its place in the chain all the same, and so does the one after it.
    record = status(folder)["owner"] | {"host": "elsewhere", "job": "100"}
    runs.write_json(folder / "status.json", status(folder) | {"owner": record})
    belongs(monkeypatch, "11")
    monkeypatch.setattr(slurm, "states", lambda found: {})
    assert hands_over(monkeypatch, folder) == 0
    assert status(folder)["job"]["id"] == "12_2"


@pytest.mark.parametrize("reaches", ["after the run", "during the run"])
def test_usr2_queues_no_job_again_whose_run_is_over(step, tmp_path, monkeypatch, reaches):
    """submitit's own handler would, and is what this process had before."""
    came, before = [], signal.getsignal(signal.SIGUSR2)
    signal.signal(signal.SIGUSR2, lambda *_: came.append(1))

    def run_job(*_, stop, **__):
        with stop:
            if "during" in reaches:
                os.kill(os.getpid(), signal.SIGUSR2)
        told.append(stop.reason)
        return None, 0

    told = []
    monkeypatch.setattr(jobs, "run_job", run_job)
    monkeypatch.setattr(sys, "argv", sys.argv)
    job = {"argv": ["adabatch"], "cwd": str(tmp_path), "folder": str(tmp_path / "r"), "config": {},
           "overrides": [], "notes": [], "named": [], "leg": LEG}  # fmt: skip
    try:
        monkeypatch.chdir(tmp_path)
        assert adabatch.submitted.run(job) is None
        os.kill(os.getpid(), signal.SIGUSR2)
        time.sleep(0.05)
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert came == [] and told == ["SIGUSR2" if "during" in reaches else None]
    assert signals.numbers()[-1] == signal.SIGUSR2
