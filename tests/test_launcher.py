"""The launcher: what is submitted and what is not, as sbatch and SLURM see it. The jobs are held and never
run."""

import re
from pathlib import Path

import pytest
import slurm_runs

from adabatch import runs

HELD = ("hydra.launcher.additional.hold=true",)


@pytest.fixture
def cwd(tmp_path):
    return slurm_runs.place(tmp_path, slow=0)


def folders(cwd: Path) -> list[Path]:
    return sorted(cwd.glob("outputs/*-????????"))


def script(cluster, job: str) -> str:
    """The batch script as SLURM has it."""
    return cluster.run("scontrol", "write", "batch_script", job.split("_")[0], "-").stdout


@pytest.mark.slurm
def test_a_sweep_is_one_array_for_each_shape_of_job(cluster, cwd):
    more = ("seed=0,1,2", "hardware.nodes=1,2", "hydra.launcher.array_parallelism=2")
    done = slurm_runs.command(cluster, cwd, "-m", *more, *HELD)
    found = slurm_runs.listed(done.stdout)
    arrays = {job.split("_")[0] for job, _ in found}
    assert len(found) == 6 and len(arrays) == 2 and len({folder for _, folder in found}) == 6
    for array in arrays:
        (job,) = cluster.tasks(array)  # one line: nothing has begun
        assert (job["ArrayTaskId"], job["ArrayTaskThrottle"]) == ("0-2%2", "2")
        nodes = {re.search(r"nodes=(\d)", str(folder))[1] for name, folder in found if name.startswith(array)}
        assert nodes == {job["NumNodes"].split("-")[0]} and job["NumTasks"] == job["NumNodes"].split("-")[0]
    for job, folder in found:
        status = runs.Run(cwd / folder).status
        assert status["state"] == "submitted" and status["error"] is None
        assert status["job"]["id"] == job and status["job"]["cluster"] == "slurm"
        assert Path(status["job"]["logs"]).parent.is_dir() and job in status["job"]["logs"]
        assert f"{folder}" in done.stdout.partition("adabatch-status ")[2]
    assert re.search(r"cancel: scancel (\d+) (\d+)$", done.stdout, re.M)[1] in arrays


@pytest.mark.slurm
def test_any_option_of_sbatch_reaches_slurm(cluster, cwd):
    more = (
        "name=abc",
        "timeout_min=90",
        "partition=urgent",
        "gpus_per_node=2",
        "cpus_per_task=3",
        "mem_gb=1.5",
        "signal_delay_s=200",
        'setup=["export MINE=1"]',
        'srun_args=["--cpu-bind=none"]',
        "account=me",
        "additional.comment=a b",
        "additional.nice=7",
        "additional.exclusive=true",
    )
    options = [f"hydra.launcher.{o}" for o in more]
    ((job, _),) = slurm_runs.listed(
        slurm_runs.command(cluster, cwd, *options, *HELD, "hardware.nodes=2").stdout
    )
    found = cluster.job(job)
    assert found["JobName"] == "abc" and found["TimeLimit"] == "01:30:00" and found["Partition"] == "urgent"
    assert found["NumTasks"] == "4"  # a process for each GPU
    assert (found["CPUs/Task"], found["Comment"].strip(), found["Nice"]) == ("3", "a b", "7")
    assert found["OverSubscribe"] == "NO" and found["Requeue"] == "1" and found["MinMemoryNode"] == "1.50G"
    text = script(cluster, job)
    assert "--gpus-per-node=2" in text and "--signal=USR2@200" in text and "--account=me" in text
    lines = text.splitlines()
    assert lines.index("export MINE=1") < next(
        i for i, line in enumerate(lines) if line.startswith("srun --")
    )
    assert "--kill-on-bad-exit=1 --cpu-bind=none" in text and "SRUN_CPUS_PER_TASK" in text
    assert "wckey" not in text


@pytest.mark.slurm
def test_what_is_queued_running_or_finished_is_not_submitted_again(cluster, cwd):
    first = slurm_runs.command(cluster, cwd, "seed=0,1", *HELD)
    found = slurm_runs.listed(first.stdout)
    again = slurm_runs.command(cluster, cwd, "seed=0,1", *HELD)
    assert not slurm_runs.listed(again.stdout)
    assert all(
        f"{folder}: not submitted again: job {job} has it (submitted)" in again.stdout
        for job, folder in found
    )
    cluster.run("scancel", found[0][0])  # it never began: nothing is left of it but the folder
    third = slurm_runs.listed(slurm_runs.command(cluster, cwd, "seed=0,1", *HELD).stdout)
    assert [folder for _, folder in third] == [found[0][1]]
    folder = cwd / found[1][1]
    cluster.run("scancel", found[1][0])
    runs.write_json(folder / "status.json", {"format": 1, "state": "finished", "error": None})
    runs.write_json(folder / "summary.json", {"format": 1, "final_test_error": 0.5})
    fourth = slurm_runs.command(cluster, cwd, "seed=1", *HELD)
    assert fourth.stdout.strip() == f"{found[1][1]}: finished already (restart=true runs it again)"
    fifth = slurm_runs.listed(slurm_runs.command(cluster, cwd, "seed=1", "restart=true", *HELD).stdout)
    assert [folder for _, folder in fifth] == [found[1][1]]
    assert not (folder / "summary.json").exists()
    assert (folder.with_name(folder.name + ".old1") / "summary.json").exists()


@pytest.mark.slurm
@pytest.mark.parametrize("before", [False, True])
def test_sbatch_refuses_and_the_folders_are_as_before(cluster, cwd, before):
    if before:
        slurm_runs.command(cluster, cwd, "seed=0", *HELD)
        cluster.run("scancel", "-u", "root")
        (folder,) = folders(cwd)
        runs.write_json(folder / "status.json", {"format": 1, "state": "interrupted", "error": "x"})
        kept = (folder / "status.json").read_bytes()
    done = slurm_runs.command(cluster, cwd, "seed=0,1", "hydra.launcher.partition=nowhere", check=False)
    assert done.returncode == 2 and done.stdout == ""
    assert len(done.stderr.splitlines()) == 1 and "invalid partition" in done.stderr.lower()
    assert "nowhere" in done.stderr
    if before:
        assert folders(cwd) == [folder] and (folder / "status.json").read_bytes() == kept
    else:
        assert folders(cwd) == [] and not list(cwd.glob("outputs/.submitit/*"))


@pytest.mark.slurm
def test_when_a_later_array_is_refused_the_earlier_one_stays_and_is_told(cluster, cwd):
    more = ("hardware.nodes=2,1", "seed=0,1", 'hydra.launcher.additional.nodelist="node1,node2"')
    done = slurm_runs.command(cluster, cwd, *more, *HELD, check=False)
    assert done.returncode == 2 and "number of nodes" in done.stderr, done.stderr
    found = slurm_runs.listed(done.stdout)
    assert folders(cwd) == sorted(cwd / folder for _, folder in found) and len(found) == 2
    assert all("nodes=2" in str(folder) for _, folder in found)
    assert {runs.Run(cwd / folder).status["job"]["id"] for _, folder in found} == {job for job, _ in found}
    assert cluster.state(found[0][0].split("_")[0]) == "PENDING"


@pytest.mark.slurm
def test_nothing_is_submitted_when_one_job_is_wrong(cluster, cwd):
    done = slurm_runs.command(cluster, cwd, "schedule.base_batch=32,0", check=False)
    assert done.returncode == 2 and "job 1 of 2" in done.stderr and folders(cwd) == []
    assert cluster.run("squeue", "-h").stdout == ""


@pytest.mark.slurm
def test_the_jobs_environment_is_not_that_of_the_submitting_one(cluster, cwd):
    """Submitted from inside a job with two tasks, a store's address and its own GPUs: none of it goes along,
    and the user's own defaults for sbatch do."""
    foreign = {
        "RANK": "",
        "MASTER_ADDR": "elsewhere",
        "MASTER_PORT": "1",
        "CUDA_VISIBLE_DEVICES": "3",
        "SLURM_JOB_ID": "7",
        "SLURM_CPUS_PER_TASK": "99",
        "SRUN_CPUS_PER_TASK": "99",
        "SUBMITIT_PREEMPT_SIGNAL": "TERM",
        "SBATCH_ACCOUNT": "mine",
        "KEPT": "1",
    }
    setup = 'hydra.launcher.setup=["env > seen; exit 0"]'
    job, _ = slurm_runs.submit(cluster, cwd, setup, env=cluster.environment | foreign)
    assert cluster.job(job)["Account"] == "mine"
    assert "--signal=USR2@120" in script(cluster, job)
    cluster.wait_for(job, "COMPLETED", seconds=30)
    seen = dict(line.split("=", 1) for line in (cwd / "seen").read_text().splitlines() if "=" in line)
    assert seen["KEPT"] == "1" and seen["SLURM_JOB_ID"] == job
    assert not {"MASTER_ADDR", "MASTER_PORT", "SUBMITIT_PREEMPT_SIGNAL", "SRUN_CPUS_PER_TASK"} & set(seen)
    assert seen.get("CUDA_VISIBLE_DEVICES") != "3"
