"""Submitting without SLURM: what becomes of folders and options."""

import os
from pathlib import Path

import pytest
from hydra_plugins.adabatch_launcher import _clusters, _launch, _legs, _options, _shell
from omegaconf import OmegaConf
from submissions import ALIVE, OPTIONS, job, stand_ins, status, written

from adabatch import submission
from adabatch.errors import UserError

QUEUE = _launch.Queue([])  # SLURM was asked about none of these runs


@pytest.fixture
def sbatch(tmp_path, monkeypatch):
    return stand_ins(tmp_path / "bin", monkeypatch)


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
        assert _launch.needed(one, QUEUE)
    other = written(jobs[1].folder, **meanwhile)
    group = list(jobs)
    assert _clusters.Slurm().submit(group, ()) == ["77_0", "77_1"]
    assert group == [jobs[0], jobs[2]] and [one.job for one in group] == ["77_0", "77_1"]
    assert status(jobs[1].folder) == other and "not submitted again" in jobs[1].why


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("echo sbatch: error: invalid account >&2; exit 1", "sbatch refuses 2 job.*invalid account"),
        ("echo what?", "sbatch refuses 2 job.*what?"),
        ('rm "$1"; echo Submitted batch job 77', "2 job.*not be submitted.*FileNotFound.*squeue --me"),
    ],
)
def test_a_submission_that_fails_leaves_the_folders_and_says_whose_words_these_are(
    sbatch, tmp_path, lines, words
):
    sbatch(lines)
    jobs = [job(tmp_path / "runs" / name) for name in "ab"]
    jobs[0].folder.parent.mkdir()
    kept = written(jobs[0].folder, "interrupted")
    assert _launch.needed(jobs[0], QUEUE)
    with pytest.raises(UserError, match=words):
        _clusters.Slurm().submit(jobs, ())
    assert status(jobs[0].folder) == kept and not jobs[1].folder.exists()
    assert not list((tmp_path / "runs/.submitit").iterdir())


def test_a_group_of_which_nothing_is_left_is_no_array(sbatch, tmp_path):
    sbatch("exit 9")
    one = job(tmp_path / "runs" / "a", legs=(1, 2), leg={"closed": False})
    assert _launch.needed(one, QUEUE)
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
    assert (
        _launch.needed(one, QUEUE) and _launch.needed(other, QUEUE) and not list(tmp_path.glob("runs/*.old*"))
    )
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
    kept += ("hydra/launcher=local", "hydra.mode=MULTIRUN")
    assert _launch._named(tree("hydra/sweeper=x", *kept)) == kept


def test_a_token_for_slurm_stays_and_another_jobs_variables_go(monkeypatch):
    for name in ("SLURM_JWT", "SLURM_CONF", "SLURM_JOB_ID", "RANK"):
        monkeypatch.setenv(name, "1")
    with _shell.own_environment():
        assert {"SLURM_JWT", "SLURM_CONF"} <= set(os.environ)
        assert not {"SLURM_JOB_ID", "RANK"} & set(os.environ)
    assert os.environ["SLURM_JOB_ID"] == "1"


def test_a_job_that_is_faster_than_its_launcher_has_logs_that_can_be_found(sbatch, tmp_path):
    """It has taken its folder, and filled in its id, before sbatch has returned."""
    one = job(tmp_path / "runs" / "a")
    taken = 's/"id": *null/"id": "77"/; s/"submitted",/"running",/'
    sbatch(f"sed -i '{taken}' {one.folder}/status.json; echo Submitted batch job 77")
    assert _clusters.Slurm().submit([one], ("hydra.launcher.qos=a",)) == ["77"]
    found = status(one.folder)
    assert found["state"] == "running" and found["job"]["id"] == "77"
    assert "/77_*_log" in found["job"]["logs"] and one.record["logs"] == found["job"]["logs"]
    assert found["job"]["named"] == ["hydra.launcher.qos=a"]
