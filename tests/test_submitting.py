"""Submitting without SLURM: what becomes of folders and options, and the words of a job that fails."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hydra_plugins.adabatch_launcher import _clusters, _launch, _legs, _options, _shell, _wait
from hydra_plugins.adabatch_launcher._launch import Job
from omegaconf import OmegaConf

from adabatch import owner, places, runs, slurm, submission
from adabatch.errors import UserError

OPTIONS = {
    "name": "adabatch", "timeout_min": 60, "partition": None, "account": None, "qos": None,
    "gpus_per_node": None, "cpus_per_task": None, "mem_gb": None, "array_parallelism": 256,
    "signal_delay_s": 120, "setup": [], "srun_args": [], "python": None, "additional": {},
}  # fmt: skip
ALIVE = {"id": None, "cluster": "slurm", "logs": "/l/%j_*", "submitted": 1.0}


@pytest.fixture
def sbatch(tmp_path, monkeypatch):
    """Stand-ins for sbatch and srun on the path; gives what the next sbatch does, as lines of shell."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("sbatch", "srun"):
        (folder / name).write_text("#!/bin/sh\necho Submitted batch job 77\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def does(lines: str):
        (folder / "sbatch").write_text(f"#!/bin/sh\n{lines}\n")

    return does


def job(folder: Path, **given) -> Job:
    config = given.pop("config", {"seed": 0})
    return Job([], config, (), folder, {**OPTIONS, "nodes": 1, "tasks": 1}, **given)


def written(folder: Path, state: str, **more) -> dict:
    folder.mkdir(exist_ok=True)
    status = {"format": 1, "state": state, "error": None, "owner": None} | more
    runs.write_json(folder / "status.json", status)
    return status


def status(folder: Path) -> dict:
    return json.loads((folder / "status.json").read_text())


# -- two commands at once


@pytest.mark.parametrize(
    "meanwhile",
    [
        {"state": "running", "owner": {"host": "h", "pid": 1, "started": "x", "heartbeat": 5.0, "job": "9"}},
        {"state": "submitted", "job": ALIVE | {"submitted": 2.0}},
        {"state": "submitted", "job": ALIVE | {"id": "9"}},
        {"state": "finished"},
    ],
)
def test_what_was_taken_since_it_was_looked_at_is_not_submitted(sbatch, tmp_path, meanwhile):
    jobs = [job(tmp_path / "runs" / name) for name in "abc"]
    for one in jobs:
        one.folder.parent.mkdir(exist_ok=True)
        written(one.folder, "interrupted")
        assert _launch.needed(one)
    other = written(jobs[1].folder, **meanwhile)
    group = list(jobs)
    assert _clusters.Slurm().submit(group, ()) == ["77_0", "77_1"]
    assert group == [jobs[0], jobs[2]] and [one.job for one in group] == ["77_0", "77_1"]
    assert status(jobs[1].folder) == other and "not submitted again" in jobs[1].why


def test_a_group_of_which_nothing_is_left_is_no_array(sbatch, tmp_path):
    sbatch("exit 9")
    one = job(tmp_path / "runs" / "a", legs=(1, 2), leg={"closed": False})
    assert _launch.needed(one)
    one.folder.mkdir(parents=True)
    written(one.folder, "running")
    group = [one]
    _legs.submit(_clusters.Slurm(), group, ())
    assert group == [] and status(one.folder)["state"] == "running"
    assert not list((tmp_path / "runs/.submitit").iterdir())


def test_restarting_a_run_that_another_command_has_restarted_leaves_that_one(sbatch, tmp_path):
    folder = tmp_path / "runs" / "a"
    folder.mkdir(parents=True)
    written(folder, "finished")
    one, other = (job(folder, config={"seed": 0, "restart": True}) for _ in range(2))
    assert _launch.needed(one) and _launch.needed(other) and not list(tmp_path.glob("runs/*.old*"))
    assert _clusters.Slurm().submit([one], ()) == ["77"]
    assert _clusters.Slurm().submit([other], ()) == []
    assert [p.name for p in tmp_path.glob("runs/*.old*")] == ["a.old1"] and status(folder)["job"][
        "id"
    ] == "77"


@pytest.mark.parametrize("state", ["finished", "running"])
def test_sbatch_refuses_a_restart_and_the_earlier_run_is_where_it_was(sbatch, tmp_path, state):
    sbatch("echo no >&2; exit 1")
    folder = tmp_path / "runs" / "a"
    folder.mkdir(parents=True)
    gone = {"host": "h", "pid": 1, "started": "x", "heartbeat": 5.0}
    before = written(folder, state, owner=gone)
    (folder / "summary.json").write_text("{}")
    one = job(folder, config={"seed": 0, "restart": True}, anew=True, known=submission.seen(folder))
    with pytest.raises(UserError, match="sbatch refuses"):
        _clusters.Slurm().submit([one], ())
    assert status(folder) == before and (folder / "summary.json").exists()
    assert sorted(p.name for p in (tmp_path / "runs").iterdir()) == [".submitit", "a"]
    sbatch("echo Submitted batch job 5")
    assert _clusters.Slurm().submit([one], ()) == ["5"]
    assert status(folder)["job"]["id"] == "5" and (tmp_path / "runs/a.old1/summary.json").exists()
    assert status(tmp_path / "runs/a.old1")["state"] == ("finished" if state == "finished" else "interrupted")


# -- chains


def test_a_chain_keeps_its_own_order_whatever_the_user_adds(sbatch, tmp_path, monkeypatch):
    """One line for each sbatch: its directives about the order."""
    seen = tmp_path / "seen"
    words = 'grep "^#SBATCH" "$@" | grep -E "dependency|hold|kill-on-inv|comment" | sort | tr "\\n" " "'
    sbatch(f"({words}; echo) >> {seen}\necho Submitted batch job $(wc -l < {seen})")
    released = []
    monkeypatch.setattr(slurm, "release", released.append)
    own = {"dependency": "afterok:9", "kill_on_invalid_dep": "no", "comment": "x"}
    for more, free in (({}, ["1"]), ({"hold": False}, ["1"]), ({"hold": True}, [])):
        seen.write_text("")
        released.clear()
        one = job(tmp_path / "runs" / f"a{len(more)}{free}", legs=(1, 2, 4), leg={"closed": False})
        one.shape |= {"nodes": 4, "additional": own | more}
        _legs.submit(_clusters.Slurm(), [one], ())
        lines = [line.replace("#SBATCH --", "").split() for line in seen.read_text().splitlines()]
        assert lines == [
            ["comment=x", "dependency=afterok:9", "hold", "kill-on-invalid-dep=no"],
            ["comment=x", "dependency=afterok:1", "kill-on-invalid-dep=yes"],
            ["comment=x", "dependency=afterok:2", "kill-on-invalid-dep=yes"],
        ]
        assert released == free


@pytest.mark.parametrize(
    "recorded, legs", [(None, (1,)), (1, (1,)), (2, (2,)), (4, (4,)), (6, (4,)), (64, (8,)), ("x", (1,))]
)
def test_a_closed_loop_goes_on_with_as_many_processes_as_it_had_come_to(
    tmp_path, monkeypatch, recorded, legs
):
    """8 processes at the most, 4 on a node: more than a node takes whole ones."""
    config = {"hardware": {"phases": 32}, "schedule": {}, "dataset": {}}
    monkeypatch.setattr(_legs.plan, "schedule", lambda *_: None)
    monkeypatch.setattr(_legs, "samples_of", lambda _: 1000)
    first = _legs.legs.Leg(0, 1, 32)
    monkeypatch.setattr(_legs.legs, "legs", lambda *_: [first])
    monkeypatch.setattr(_legs.legs, "is_closed", lambda _: True)
    record = {"id": None} | ({"processes": recorded} if recorded else {})
    written(tmp_path, "interrupted", job=record)
    shape = {"nodes": 2, "tasks": 4}
    assert _legs.planned(config, shape, tmp_path)[0] == legs
    assert _legs.planned(config, shape)[0] == (1,)
    monkeypatch.setattr(_legs.legs, "is_closed", lambda _: False)
    assert _legs.planned(config, shape, tmp_path)[0] == (1,)


def test_what_a_closed_loop_had_come_to_is_not_forgotten_by_its_next_job(sbatch, tmp_path, monkeypatch):
    folder = tmp_path / "runs" / "a"
    folder.mkdir(parents=True)
    written(folder, "submitted", job=ALIVE | {"processes": 4})
    payload = job(folder).payload() | {"leg": {"closed": True}, "shape": {**OPTIONS, "nodes": 4, "tasks": 1}}
    monkeypatch.setattr(_legs.submitted, "run", lambda _: None)
    _legs.run(payload)
    found = status(folder)["job"]
    assert (found["id"], found["processes"]) == ("77", 4)


# -- options


@pytest.mark.parametrize(
    "key, value, words",
    [
        ("gpus_per_node", "a100:2", "additional.gres='gpu:a100:2'"),
        ("gpus_per_node", -1, ""),
        ("timeout_min", "2:00:00", "timeout_min=120"),
        ("timeout_min", 1.5, "whole number of minutes"),
        ("timeout_min", None, "whole number of minutes"),
        ("timeout_min", True, "whole number of minutes"),
        ("mem_gb", "4G", "mem_gb=4"),
        ("mem_gb", 0, "above 0"),
        ("mem_gb", float("nan"), "above 0"),
        ("array_parallelism", 0, "from 1"),
        ("signal_delay_s", -1, "from 0 to 65535"),
        ("signal_delay_s", 70000, "from 0 to 65535"),
        ("cpus_per_task", 0, "from 1"),
        ("setup", "module load cuda", "'[module load cuda]'"),
        ("srun_args", [5], "list of arguments"),
        ("partition", ["a", "b"], "a name"),
        ("additional", 5, "options of sbatch"),
        ("additional", {"gres": []}, "options of sbatch"),
        ("additional", {"gres": [["a"]]}, "options of sbatch"),
        ("additional", {"gres": {"a": 1}}, "options of sbatch"),
        ("python", ["python"], "a command"),
        ("constraint", "a100", "hydra.launcher.additional.OPTION=VALUE"),
    ],
)
def test_an_option_that_no_job_can_have(key, value, words):
    with pytest.raises(UserError) as told:
        _options.checked({**OPTIONS, key: value})
    text = str(told.value)
    assert key in text and words in text and (key == "constraint" or repr(value) in text)


def test_several_values_of_an_option_reach_sbatch_with_commas():
    additional = {"nodelist": ["node1", "node[3-4]"], "gpu_bind": "none"}
    found = _options.parameters({**OPTIONS, "additional": additional, "nodes": 1, "tasks": 1}, Path("f"))
    assert _options.checked({**OPTIONS, "additional": additional}) is None
    assert found["additional_parameters"]["nodelist"] == "node1,node[3-4]"
    assert found["additional_parameters"]["gpu-bind"] == "none"


def test_options_that_are_good():
    more = {"gpus_per_node": 8, "mem_gb": 1.5, "partition": 7, "setup": None, "additional": None,
            "signal_delay_s": 0, "array_parallelism": 1, "cpus_per_task": 4}  # fmt: skip
    assert _options.checked(OPTIONS) is None and _options.checked({**OPTIONS, **more}) is None
    _options.checked({key: OPTIONS[key] for key in _options.LOCAL}, _options.LOCAL)
    with pytest.raises(UserError, match="timeout_min is .* missing"):
        _options.checked({"name": "a"})
    conf = Path(_launch.config.conf_dir()) / "hydra/launcher"
    for name, keys in (("slurm", _options.RULES), ("local", _options.LOCAL)):
        given = OmegaConf.to_container(OmegaConf.load(conf / f"{name}.yaml"))
        del given["_target_"]
        assert set(given) == set(keys)
        _options.checked(given, tuple(keys))


def test_a_folder_for_one_run_is_refused_where_it_would_have_no_effect():
    def tree(*lines):
        return OmegaConf.create({"hydra": {"overrides": {"hydra": list(lines)}}})

    for line in ("hydra.run.dir=here", "++hydra.run.dir=here"):
        with pytest.raises(UserError, match="hydra.sweep.dir.*hydra.sweep.subdir"):
            _launch._named(tree("hydra.mode=MULTIRUN", line))
    kept = ("hydra.sweep.dir=a", "hydra.sweep.subdir=b", "++hydra.launcher.additional.nice=1")
    assert _launch._named(tree("hydra.mode=MULTIRUN", *kept)) == kept


def test_a_token_for_slurm_stays_and_another_jobs_variables_go(monkeypatch):
    for name in ("SLURM_JWT", "SLURM_CONF", "SLURM_JOB_ID", "RANK"):
        monkeypatch.setenv(name, "1")
    with _shell.own_environment():
        assert {"SLURM_JWT", "SLURM_CONF"} <= set(os.environ)
        assert not {"SLURM_JOB_ID", "RANK"} & set(os.environ)
    assert os.environ["SLURM_JOB_ID"] == "1"


# -- the background of this machine


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
    _last_words.main(str(files), "137")
    assert (status(folder)["state"] == "failed") is says
    if says:
        assert "before the run began" in status(folder)["error"]


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

    def states(found):
        asked.append(sorted(found, key=int))
        return dict.fromkeys(found, "RUNNING") if len(asked) == 1 else {}

    monkeypatch.setattr(slurm, "states", states)
    records = _wait.wait(jobs)
    assert asked == [[str(n) for n in range(20)]] * 3  # running, gone, still gone
    assert {r["state"] for r in records} == {"interrupted"}
    assert "job 7 has ended while the run was running" in records[7]["error"]
