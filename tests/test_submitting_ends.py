"""Jobs in the background of this machine, the words of a job that fails, and wait=true: without SLURM."""

import os
import signal
import subprocess
import sys
import time

import pytest
from hydra_plugins.adabatch_launcher import _clusters, _wait
from hydra_plugins.adabatch_launcher._launch import Job
from submissions import ALIVE, job, status, written

from adabatch import owner, places, slurm, submission
from adabatch.errors import UserError

LOCAL = {"timeout_min": 100, "array_parallelism": 1, "signal_delay_s": 1}


def until(arrived, seconds: float = 60):
    end = time.monotonic() + seconds
    while not (found := arrived()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return found


def test_what_setup_starts_is_ended_with_its_job(tmp_path, monkeypatch):
    """The job is one Python that sleeps."""
    one = job(tmp_path / "runs" / "a")
    setup = ["export MINE=7  # remark", f"touch {tmp_path}/began"]
    one.shape = LOCAL | {"setup": setup}
    code = (
        "import os, signal, time; signal.signal(signal.SIGTERM, signal.SIG_DFL)\n"
        "open('ready', 'w').write(f\"{os.getpid()} {os.environ['MINE']}\"); time.sleep(100)"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Job, "work", property(lambda _: exec))
    monkeypatch.setattr(Job, "payload", lambda *_: Payload(code=code))
    (number,) = _clusters.Local().submit([one], ())
    ready = tmp_path / "ready"
    text = until(lambda: ready.exists() and ready.read_text())
    task, value = text.split()
    assert value == "7" and (tmp_path / "began").exists()
    assert submission.alive(status(one.folder)["job"])
    os.kill(int(number), signal.SIGTERM)
    until(lambda: places.started(int(task)) is None, 20)


class Payload(dict):
    """For `exec`: what travels as a dictionary is code here."""

    def __or__(self, other):
        return self["code"]


def test_a_job_that_cannot_be_started_leaves_the_folders_as_before(tmp_path, monkeypatch):
    jobs = [job(tmp_path / "runs" / name) for name in "abc"]
    for one in jobs:
        one.shape = LOCAL | {"setup": []}
    import submitit

    started = []

    def submit(self, *_):
        if started:
            raise OSError("no more processes")
        started.append(1)
        return type("Started", (), {"job_id": str(os.getpid())})

    monkeypatch.setattr(submitit.LocalExecutor, "submit", submit)
    with pytest.raises(UserError, match="no more processes"):
        _clusters.Local().submit(jobs, ())
    assert status(jobs[0].folder)["job"]["id"] == jobs[0].job == str(os.getpid())
    assert not jobs[1].folder.exists() and not jobs[2].folder.exists()


def test_a_local_job_of_which_nobody_knows_when_it_began_is_not_alive():
    import socket

    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    record = {"id": str(gone.pid), "cluster": "local", "host": socket.gethostname()}
    assert submission.alive(record | {"started": None}) is False and submission.alive(record) is False
    assert submission.alive(submission.local_job(os.getpid()) | {"cluster": "local"}) is True


# -- a job that fails before it takes the folder over


MINE = {"host": "elsewhere", "pid": 1, "started": "x", "heartbeat": 5.0, "job": "12", "requeued": 0}


@pytest.mark.parametrize(
    "life, state, record, own, says",
    [
        (0, "submitted", None, {"id": "12"}, True),
        (1, "preempted", MINE, {"id": "12"}, True),
        (1, "preempted", MINE, None, True),  # of the user's own batch script
        (1, "running", MINE, {"id": "12"}, True),
        (2, "running", MINE | {"requeued": 1}, {"id": "12"}, True),
        (1, "preempted", None, {"id": "12", "requeues": 1}, True),
        (0, "preempted", MINE, {"id": "12"}, False),  # it has saved, and waits to be killed
        (0, "preempted", None, {"id": "12", "requeues": 1}, False),
        (0, "running", MINE, {"id": "12"}, False),
        (1, "running", MINE | {"requeued": 1}, {"id": "12"}, False),
        (1, "running", MINE | {"job": "13"}, {"id": "13"}, False),
        (1, "running", MINE | {"job": None}, None, False),
        (1, "preempted", MINE | {"job": "13"}, {"id": "13"}, False),
        (1, "finished", MINE, {"id": "12"}, False),
        (1, "diverged", MINE, {"id": "12"}, False),
        (0, "submitted", None, {"id": "13"}, False),
    ],
)
def test_which_words_of_an_earlier_life_a_failure_replaces(
    tmp_path, monkeypatch, life, state, record, own, says
):
    for name in [name for name in os.environ if name.startswith(("SLURM_", "SUBMITIT_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("SLURM_RESTART_COUNT", str(life))
    before = written(tmp_path, state, owner=record, **({"job": own} if own else {}))
    assert submission.failed_early(tmp_path, "why") is says
    after = before | ({"state": "failed", "error": "why"} if says else {})
    assert status(tmp_path) == after


def test_the_next_life_of_a_job_in_the_background_says_that_it_failed(tmp_path, monkeypatch):
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "local")
    monkeypatch.setenv("SUBMITIT_LOCAL_JOB_ID", "77")
    earlier = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    record = owner.me() | {"pid": earlier.pid, "started": places.started(earlier.pid)}
    written(tmp_path, "preempted", owner=record, job={"id": "77", "cluster": "local"})
    assert not submission.failed_early(tmp_path, "why")
    earlier.communicate(b"\n")
    assert submission.failed_early(tmp_path, "why") and status(tmp_path)["error"] == "why"


@pytest.mark.parametrize("state, says", [("preempted", True), ("running", True), ("finished", False)])
def test_the_last_words_of_a_requeued_job(tmp_path, monkeypatch, state, says):
    from hydra_plugins.adabatch_launcher import _last_words
    from submitit.core.utils import DelayedSubmission, JobPaths

    folder = tmp_path / "run"
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    written(folder, state, owner=MINE, job={"id": "12"})
    files = tmp_path / "files"
    files.mkdir()
    DelayedSubmission(print, {"folder": str(folder)}).dump(JobPaths(files, job_id="12").submitted_pickle)
    (files / "12_0_log.err").write_text("env: it is not there\nsrun: error: node1: task 0: Exited\n\n")
    _last_words.main(str(files), "137")
    assert (status(folder)["state"] == "failed") is says
    if says:
        assert "before the run began (env: it is not there): see" in status(folder)["error"]


def test_a_python_that_is_not_there_leaves_the_last_words_to_the_one_that_submitted(tmp_path):
    """As sh runs them in a batch script."""
    from hydra_plugins.adabatch_launcher import _options
    from submitit.core.utils import DelayedSubmission, JobPaths

    folder, files = tmp_path / "run", tmp_path / "files"
    files.mkdir()
    (tmp_path / "srun").write_text("#!/bin/sh\nexit 127\n")
    (tmp_path / "srun").chmod(0o755)
    written(folder, "submitted", job=ALIVE | {"id": "12"})
    DelayedSubmission(print, {"folder": str(folder)}).dump(JobPaths(files, job_id="12").submitted_pickle)
    lines = _options.setup({"setup": [], "python": "/nope/python"}, files)
    given = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "12",
        "PYTHONPATH": ":".join(sys.path),
    }
    kept = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_")}
    done = subprocess.run(["bash", "-c", "\n".join([*lines, "srun x"])], env=kept | given)
    assert done.returncode == 127 and status(folder)["state"] == "failed"
    assert "exited with code 127" in status(folder)["error"]


# -- wait=true


def test_a_submission_that_never_came_about_is_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(_wait, "POLL", 0.01)
    monkeypatch.setattr(_wait, "ASK", 0.02)
    one = job(tmp_path / "a")
    written(one.folder, "submitted", job=ALIVE | {"submitted": time.time() - submission.FRESH + 0.5})
    (record,) = _wait.wait([one])
    assert record["state"] == "interrupted" and "never submitted" in record["error"]
    assert status(one.folder)["state"] == "interrupted"


def test_a_run_of_no_job_whose_process_is_gone_is_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(_wait, "POLL", 0.01)
    monkeypatch.setattr(_wait, "ASK", 0.02)
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(0.5)"])
    record = owner.me() | {"pid": process.pid, "started": places.started(process.pid), "job": None}
    one = job(tmp_path / "a")
    written(one.folder, "running", owner=record)
    (record,) = _wait.wait([one])
    assert process.wait(0) == 0 and record["state"] == "interrupted"


def test_slurm_is_asked_once_a_round_for_all_jobs(tmp_path, monkeypatch):
    monkeypatch.setattr(_wait, "POLL", 0.01)
    monkeypatch.setattr(_wait, "ASK", 0.0)
    jobs, asked = [job(tmp_path / f"{n}", job=str(n)) for n in range(20)], []
    for one in jobs:
        written(one.folder, "running", job=ALIVE | {"id": one.job})

    def ask(found):
        asked.append(sorted(found, key=int))
        jobs = dict.fromkeys(found, slurm.Job("RUNNING")) if len(asked) == 1 else {}
        return slurm.Answer(jobs, complete=True)

    monkeypatch.setattr(slurm, "ask", ask)
    records = _wait.wait(jobs)
    assert asked == [[str(n) for n in range(20)]] * 3  # running, gone, still gone
    assert {r["state"] for r in records} == {"interrupted"}
    assert "job 7 has ended while the run was running" in records[7]["error"]


@pytest.mark.parametrize(
    "known, began, state, code, words",
    [
        ("CANCELLED", False, "interrupted", 130, "was cancelled before it began"),
        ("CANCELLED", True, "interrupted", 130, "was cancelled before it began"),
        (None, False, "interrupted", 130, "was cancelled before it began"),
        (None, True, "failed", 1, "ended before the run began: see"),
        ("FAILED", True, "failed", 1, "ended before the run began (FAILED): see"),
        ("NODE_FAIL", False, "interrupted", 130, "ended before the run began (NODE_FAIL): see"),
    ],
)
def test_what_became_of_a_job_that_never_said_a_word(tmp_path, monkeypatch, known, began, state, code, words):
    """A job that began has written output, if only that its Python is not there."""
    monkeypatch.setattr(_wait, "POLL", 0.01)
    monkeypatch.setattr(_wait, "ASK", 0.0)
    found = {"7": slurm.Job(known)} if known else {}
    monkeypatch.setattr(slurm, "ask", lambda _: slurm.Answer(found, complete=True))
    logs, one = tmp_path / "7_*_log.*", job(tmp_path / "a", job="7")
    if began:
        (tmp_path / "7_0_log.err").write_text("env: no such file\n")
    written(one.folder, "submitted", job=ALIVE | {"id": "7", "logs": str(logs)})
    (record,) = _wait.wait([one])
    assert (record["state"], record["exit_code"], status(one.folder)["state"]) == (state, code, state)
    assert words in record["error"] and status(one.folder)["error"] == record["error"]
    assert (str(logs) in record["error"]) == ("cancelled" not in words)


@pytest.mark.parametrize("reason", ["JobHeldUser", "DependencyNeverSatisfied"])
def test_a_job_that_waits_for_ever_is_not_waited_for(tmp_path, monkeypatch, reason):
    monkeypatch.setattr(_wait, "POLL", 0.01)
    monkeypatch.setattr(_wait, "ASK", 0.0)
    answer = slurm.Answer({"7": slurm.Job("PENDING", reason)}, complete=True)
    monkeypatch.setattr(slurm, "ask", lambda _: answer)
    one = job(tmp_path / "a", job="7")
    before = written(one.folder, "submitted", job=ALIVE | {"id": "7"})
    (record,) = _wait.wait([one])
    assert record["state"] == "submitted" and record["exit_code"] == 1 and reason in record["error"]
    assert "scancel" in record["error"] and status(one.folder) == before  # the job is still there


def test_who_holds_a_job_himself_waits_for_it(tmp_path, monkeypatch):
    monkeypatch.setattr(_wait, "POLL", 0.01)
    monkeypatch.setattr(_wait, "ASK", 0.0)
    one, asked = job(tmp_path / "a", job="7"), []
    one.shape["additional"] = {"hold": True}

    def ask(_):
        asked.append(1)
        held = {"7": slurm.Job("PENDING", "JobHeldUser")} if len(asked) < 5 else {}
        return slurm.Answer(held, complete=True)

    monkeypatch.setattr(slurm, "ask", ask)
    written(one.folder, "submitted", job=ALIVE | {"id": "7"})
    (record,) = _wait.wait([one])
    assert len(asked) > 5 and "cancelled before it began" in record["error"]


# -- the command that goes on


@pytest.mark.slow
def test_a_job_in_the_background_names_the_command_that_goes_on(tmp_path, monkeypatch):
    """Interrupted, its log and `adabatch-status --failed` say the same words, and they are what was typed."""
    import shlex

    import slurm_runs
    from slurm import ADABATCH

    from adabatch.status import failed

    cwd = slurm_runs.place(tmp_path)
    words = ("-m", "hydra/launcher=local", "hydra.launcher.timeout_min=77", "hydra.sweep.dir=s", "seed=3")
    subprocess.run([*ADABATCH, *words, *slurm_runs.RUN], cwd=cwd, check=True, capture_output=True)
    (folder,) = until(lambda: list(cwd.glob("s/*-????????")))
    try:
        until(lambda: slurm_runs.begun(folder))
        os.kill(status(folder)["owner"]["pid"], signal.SIGINT)
        until(lambda: status(folder)["state"] != "running")
    finally:
        os.kill(int(status(folder)["job"]["id"]), signal.SIGTERM)
    kept = {"hydra.mode=MULTIRUN", *words[1:4]}
    monkeypatch.chdir(cwd)
    again = shlex.split(failed.resume(folder.relative_to(cwd)))
    assert set(again) == {"adabatch", "seed=3", *slurm_runs.RUN, *kept}
    logged = [line for line in (folder / "log.txt").read_text().splitlines() if "adabatch seed=3" in line]
    logged += [line for line in slurm_runs.told(folder).splitlines() if "hydra/launcher=local" in line]
    assert any(set(again) <= set(shlex.split(line)) for line in logged if "adabatch" in line), logged
