"""One process at a time works in a run folder."""

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from adabatch import owner, runs
from adabatch.errors import UserError
from adabatch.owner import Owner

FORK = multiprocessing.get_context("fork")


def status(folder):
    return json.loads((folder / "status.json").read_text())


def write(folder, age=0.0, **changes):
    """A status.json as another process would have left it, last touched `age` seconds ago."""
    record = {**owner.me(), "heartbeat": time.time() - age, **changes}
    with owner.locked(folder):  # a heartbeat of ours may be writing
        written = {"format": 1, "state": "running", "error": None, "owner": record}
        runs.write_json(folder / "status.json", written)
        os.utime(folder / "status.json", (time.time() - age,) * 2)


@pytest.fixture
def gone():
    """A process id that was in use and no longer is."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def test_claim_and_finish(tmp_path):
    held = Owner.claim(tmp_path / "a" / "b")
    found = status(held.folder)
    assert found["state"] == "running" and found["format"] == 1 and found["error"] is None
    assert {"host", "pid", "started", "job", "heartbeat"} <= set(found["owner"])
    assert found["owner"]["pid"] == os.getpid() and abs(found["owner"]["heartbeat"] - time.time()) < 5
    with pytest.raises(UserError, match="this very process"):
        Owner.claim(tmp_path / "a" / "b")
    held.finish("failed", "because")
    assert (status(held.folder)["state"], status(held.folder)["error"]) == ("failed", "because")
    Owner.claim(held.folder).finish("finished")
    assert status(held.folder)["state"] == "finished"
    assert not [t for t in threading.enumerate() if t.name == "adabatch-heartbeat"]


def test_a_live_owner_on_this_host_is_respected_however_silent(tmp_path):
    pid = os.getppid()
    write(tmp_path, age=10_000, pid=pid, started=owner.started(pid))
    with pytest.raises(UserError, match=rf"process {pid} on .*is training in it.*kill {pid}"):
        Owner.claim(tmp_path)
    assert status(tmp_path)["owner"]["pid"] == pid


def test_a_dead_owner_on_this_host_is_replaced_at_once(tmp_path, gone):
    assert owner.started(gone) is None
    write(tmp_path, pid=gone, started="x")
    Owner.claim(tmp_path).finish("finished")


def test_a_number_that_was_given_to_another_process_does_not_count_as_the_owner(tmp_path):
    write(tmp_path, pid=os.getppid(), started="earlier")
    Owner.claim(tmp_path).finish("finished")


def test_a_zombie_counts_as_gone():
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    deadline = time.time() + 10
    while owner.started(pid) is not None and time.time() < deadline:
        time.sleep(0.01)
    assert owner.started(pid) is None
    os.waitpid(pid, 0)
    assert owner.started(os.getpid()) == owner.started(os.getpid()) != owner.started(1)


@pytest.mark.parametrize("age, taken", [(0, False), (40, False), (50, False), (61, True), (1e6, True)])
def test_an_owner_elsewhere_is_replaced_after_three_silent_heartbeats(tmp_path, monkeypatch, age, taken):
    monkeypatch.setattr(owner.slurm, "alive", lambda jobs: None)  # squeue may take seconds to find no cluster
    write(tmp_path, age=age, host="elsewhere", job="17")
    if taken:
        Owner.claim(tmp_path).finish("finished")
    else:
        with pytest.raises(UserError, match=r"on elsewhere \(job 17\).*repeat the command in \d+ s"):
            Owner.claim(tmp_path)


@pytest.mark.parametrize("wrong", [-300, 300])
def test_a_wrong_clock_elsewhere_does_not_take_a_live_run_away(tmp_path, wrong):
    """The heartbeat is read with the other host's clock, which may be minutes off; the file system's time
    decides."""
    write(tmp_path, age=5, host="elsewhere", heartbeat=time.time() + wrong)
    with pytest.raises(UserError, match="elsewhere"):
        Owner.claim(tmp_path)
    write(tmp_path, age=100, host="elsewhere", heartbeat=time.time() + wrong)
    Owner.claim(tmp_path).finish("finished")


def test_a_requeued_job_replaces_its_own_earlier_life(tmp_path, monkeypatch):
    write(tmp_path, host="elsewhere", job="17", requeued=0)
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    with pytest.raises(UserError, match="elsewhere"):
        Owner.claim(tmp_path)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    Owner.claim(tmp_path).finish("finished")


@pytest.mark.parametrize("state", [s for s in runs.STATES if s != "running"])
def test_a_run_that_has_ended_belongs_to_nobody(tmp_path, state):
    write(tmp_path, host="elsewhere")
    runs.write_json(tmp_path / "status.json", {**status(tmp_path), "state": state})
    Owner.claim(tmp_path).finish("finished")


@pytest.mark.parametrize("text", ["", "{", '{"state": "running", "own', "[]"])
def test_a_torn_status_does_not_lock_a_folder_for_ever(tmp_path, text):
    (tmp_path / "status.json").write_text(text)
    Owner.claim(tmp_path).finish("finished")


def test_a_status_of_a_newer_version_is_left_alone(tmp_path):
    (tmp_path / "status.json").write_text('{"format": 2}')
    with pytest.raises(UserError, match="newer"):
        Owner.claim(tmp_path)
    assert status(tmp_path) == {"format": 2}


def _compete(folder, gate, answers):
    gate.wait()
    try:
        Owner.claim(folder)
        answers.put(os.getpid())
    except UserError as error:
        answers.put(str(error))
    gate.wait()  # the winner lives until all have answered


@pytest.mark.parametrize("stale", [False, True])
def test_of_six_simultaneous_claims_one_wins(tmp_path, gone, stale):
    if stale:
        write(tmp_path, pid=gone, started="x")
    gate, answers = FORK.Barrier(6), FORK.Queue()
    children = [FORK.Process(target=_compete, args=(tmp_path, gate, answers)) for _ in range(6)]
    for child in children:
        child.start()
    found = [answers.get(timeout=30) for _ in children]
    for child in children:
        child.join(30)
    winners = [answer for answer in found if isinstance(answer, int)]
    assert len(winners) == 1 and all("is in use" in a for a in found if a not in winners)
    assert status(tmp_path)["owner"]["pid"] == winners[0]


def _hold(folder, told):
    Owner.claim(folder)
    told.set()
    time.sleep(60)


def test_after_sigkill_the_folder_is_free(tmp_path):
    told = FORK.Event()
    child = FORK.Process(target=_hold, args=(tmp_path, told))
    child.start()
    assert told.wait(30)
    with pytest.raises(UserError, match="is in use"):
        Owner.claim(tmp_path)
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    Owner.claim(tmp_path).finish("finished")


def test_the_heartbeat_beats_and_notices_a_loss(tmp_path, monkeypatch):
    monkeypatch.setattr(owner, "BEAT", 0.05)
    held = Owner.claim(tmp_path)
    first = status(tmp_path)["owner"]["heartbeat"]
    wait_for(lambda: status(tmp_path)["owner"]["heartbeat"] > first)
    assert not held.lost
    write(tmp_path, host="elsewhere", pid=1)
    wait_for(lambda: held.lost)
    held.finish("finished")
    assert (status(tmp_path)["state"], status(tmp_path)["owner"]["host"]) == ("running", "elsewhere")


def wait_for(condition, seconds=20):
    deadline = time.time() + seconds
    while not condition():
        assert time.time() < deadline, "waited in vain"
        time.sleep(0.02)


def test_on_a_full_disk_the_state_is_written_over_the_old_one(tmp_path, monkeypatch):
    held = Owner.claim(tmp_path)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(runs, "write_json", full)
    held.finish("failed", "disk full")
    assert (status(tmp_path)["state"], status(tmp_path)["error"]) == ("failed", "disk full")


def test_a_parent_records_a_child_that_died_without_a_word(tmp_path, gone):
    write(tmp_path, pid=gone, started="x")
    assert owner.mark(tmp_path, gone, "failed", "killed by signal 9")
    assert (status(tmp_path)["state"], status(tmp_path)["error"]) == ("failed", "killed by signal 9")
    assert owner.mark(tmp_path / "never_begun", gone, "failed", "x")
    assert status(tmp_path / "never_begun")["state"] == "failed"
    write(tmp_path, pid=gone + 1)
    assert not owner.mark(tmp_path, gone, "failed", "x"), "somebody else's run is not touched"
    assert status(tmp_path)["state"] == "running"
    assert socket.gethostname() == status(tmp_path)["owner"]["host"]
