"""Jobs that are told to end, ended, or lost: the run goes on in its folder as if nothing had happened.

On a real SLURM of four nodes (tests/slurm.py). The reference is the same run on this machine, undisturbed.
"""

import re
import signal
import subprocess
import sys
import time

import pytest
import slurm_runs
from slurm import ADABATCH

from adabatch import runs

pytestmark = [pytest.mark.slurm, pytest.mark.slow]


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory, user_signal_cluster):
    """bits(processes): of the same run, in one go, without SLURM."""
    made = {}

    def bits(processes: int) -> dict:
        if processes not in made:
            cwd = slurm_runs.place(tmp_path_factory.mktemp("undisturbed"), slow=0)
            more = ("hardware=auto", f"hardware.processes={processes}")
            slurm_runs.command(user_signal_cluster, cwd, *more)
            (folder,) = cwd.glob("outputs/*-????????")
            made[processes] = slurm_runs.bits(folder)
        return made[processes]

    return bits


@pytest.fixture
def cwd(tmp_path):
    return slurm_runs.place(tmp_path)


def goes_on(cluster, job: str, folder, restarts: int = 1):
    """Waits for the end; the positions at which the run was taken up again, from its log."""
    (folder.parent.parent / "slow").unlink()
    found = cluster.wait_for(job, "COMPLETED", seconds=200)
    assert found["Restarts"] == str(restarts), slurm_runs.told(folder)
    assert [path for path in folder.parent.glob("*-????????")] == [folder]
    log = (folder / "log.txt").read_text()
    return [int(found.replace(",", "")) for found in re.findall(r"resumed at position ([\d,]+)", log)]


@pytest.mark.parametrize("nodes", [1, 2])
def test_usr2_saves_and_the_job_queues_itself_again(cluster, cwd, undisturbed, nodes):
    job, folder = slurm_runs.submit(cluster, cwd, f"hardware.nodes={nodes}")
    slurm_runs.training(cluster, job, folder)
    cluster.run("scancel", "--signal=USR2", job)
    cluster.until(lambda: runs.Run(folder).state == "preempted", 60, lambda: slurm_runs.told(folder))
    stopped = slurm_runs.saved(folder)
    assert stopped > 0  # at a step boundary, not at the checkpoint before
    assert goes_on(cluster, job, folder) == [stopped]
    assert slurm_runs.bits(folder) == undisturbed(nodes)
    status = runs.Run(folder).status
    assert status["state"] == "finished" and status["job"]["id"] == job
    assert status["job"]["requeues"] == 1 and status["job"]["idle"] == 0


def test_an_urgent_job_takes_the_nodes_and_the_run_goes_on_after_it(cluster, cwd, undisturbed):
    job, folder = slurm_runs.submit(cluster, cwd, "hardware.nodes=2")
    slurm_runs.training(cluster, job, folder)
    urgent = cluster.submit("sleep 3", "--partition=urgent", "--nodes=4", "--exclusive")
    cluster.wait_for(urgent, "COMPLETED")
    assert runs.Run(folder).state in ("preempted", "running"), slurm_runs.told(folder)
    assert len(goes_on(cluster, job, folder)) == 1
    assert slurm_runs.bits(folder) == undisturbed(2)


def test_a_cluster_that_sends_sigterm_only(cluster_sigterm, cwd, undisturbed):
    """The job saves, waits to be killed, and SLURM queues it again; ending by itself it would be over."""
    job, folder = slurm_runs.submit(cluster_sigterm, cwd, "hardware.nodes=2")
    slurm_runs.training(cluster_sigterm, job, folder)
    urgent = cluster_sigterm.submit("sleep 1", "--partition=urgent", "--nodes=4", "--exclusive")
    cluster_sigterm.wait_for(urgent, "COMPLETED")
    assert len(goes_on(cluster_sigterm, job, folder)) == 1
    assert runs.Run(folder).status["job"].get("requeues") is None  # not by itself
    assert slurm_runs.bits(folder) == undisturbed(2)


def test_an_operators_requeue(cluster, cwd, undisturbed):
    job, folder = slurm_runs.submit(cluster, cwd)
    slurm_runs.training(cluster, job, folder)
    cluster.run("scontrol", "requeue", job)
    (resumed,) = goes_on(cluster, job, folder)
    assert resumed > 0
    assert slurm_runs.bits(folder) == undisturbed(1)


def test_the_time_limit_twice(cluster, cwd, undisturbed):
    (cwd / "slow").write_text("5")
    more = ("hydra.launcher.timeout_min=1", "hydra.launcher.signal_delay_s=30")
    job, folder = slurm_runs.submit(cluster, cwd, *more)
    for restarts in ("1", "2"):  # a minute less the delay; SLURM looks every half minute
        cluster.until(
            lambda n=restarts: cluster.job(job)["Restarts"] == n, 150, lambda: slurm_runs.told(folder)
        )
    assert len(goes_on(cluster, job, folder, restarts=2)) == 2
    assert slurm_runs.bits(folder) == undisturbed(1)


@pytest.mark.parametrize("first", [None, "USR2"])
def test_a_cancelled_job_stays_cancelled_and_the_same_command_goes_on(cluster, cwd, undisturbed, first):
    """Also where it was told before that it would end, and is just about to queue itself again."""
    job, folder = slurm_runs.submit(cluster, cwd)
    slurm_runs.training(cluster, job, folder)
    if first:
        cluster.run("bash", "-c", f"scancel --signal={first} {job}; scancel {job}")
    else:
        cluster.run("scancel", job)
    cluster.wait_for(job, "CANCELLED", seconds=60)
    position = slurm_runs.saved(folder)
    time.sleep(10)  # a job that is queued again begins after 6 s
    assert cluster.job(job)["JobState"] == "CANCELLED" and cluster.job(job)["Restarts"] == "0"
    assert runs.Run(folder).state == "preempted", slurm_runs.told(folder)
    again, same = slurm_runs.submit(cluster, cwd)
    assert same == folder and again != job
    assert goes_on(cluster, again, folder, restarts=0) == [position]
    assert slurm_runs.bits(folder) == undisturbed(1)


def test_the_last_task_of_an_array_queues_only_itself_again(cluster, cwd):
    """Its number (SLURM_JOB_ID) is that of the whole array."""
    found = slurm_runs.listed(slurm_runs.command(cluster, cwd, "seed=0,1").stdout)
    found = [(job, cwd / folder) for job, folder in found]
    for job, folder in found:
        slurm_runs.training(cluster, job, folder)
    cluster.run("scancel", "--signal=USR2", found[1][0])
    cluster.until(lambda: cluster.job(found[1][0])["Restarts"] == "1", 60)
    (cwd / "slow").unlink()
    ends = [cluster.wait_for(job, "COMPLETED")["Restarts"] for job, _ in found]
    assert ends == ["0", "1"]


@pytest.mark.parametrize("lost", [0, 1])
def test_a_node_that_loses_power(cluster, cwd, undisturbed, lost):
    """Nothing is said and nothing saved: from the last checkpoint, on other nodes, without waiting for the
    owner who cannot end."""
    job, folder = slurm_runs.submit(cluster, cwd, "hardware.nodes=2", "checkpoint.every_seconds=0.5")
    slurm_runs.training(cluster, job, folder)
    position = cluster.until(lambda: slurm_runs.saved(folder), 30)
    node = runs.Run(folder).status["owner"]["host"]
    others = [n for n in ("node1", "node2") if n != node]
    cut = node if lost == 0 else others[0]
    cluster.cut(cut)
    cluster.until(lambda: cluster.job(job)["Restarts"] == "1", 90, lambda: cluster.job(job))
    resumed = goes_on(cluster, job, folder)
    assert len(resumed) == 1 and resumed[0] >= position
    assert cut not in runs.Run(folder).status["owner"]["host"]
    assert slurm_runs.bits(folder) == undisturbed(2)
    if lost == 0:
        assert "taking over from process" in slurm_runs.told(folder)


def test_a_lost_node_that_only_the_ranks_have_noticed(patient_cluster, cwd, undisturbed):
    """SLURM would take its time; a job that ended as failed would not come back."""
    cluster = patient_cluster
    job, folder = slurm_runs.submit(cluster, cwd, "hardware.nodes=2", "checkpoint.every_seconds=0.5")
    slurm_runs.training(cluster, job, folder)
    cluster.until(lambda: slurm_runs.saved(folder), 30)
    node = runs.Run(folder).status["owner"]["host"]
    (cut,) = {"node1", "node2"} - {node}
    cluster.cut(cut)
    cluster.until(lambda: runs.Run(folder).state == "preempted", 75, lambda: slurm_runs.told(folder))
    error = runs.Run(folder).status["error"]
    assert "rank 1 (process" in error and cut in error and "has been silent" in error
    again = slurm_runs.command(cluster, cwd, "hardware.nodes=2", "checkpoint.every_seconds=0.5").stdout
    assert f"job {job} has it" in again and not slurm_runs.listed(again)
    cluster.until(lambda: cluster.job(job)["Restarts"] == "1", 120, lambda: cluster.job(job))
    # Until SLURM gives the node up, the job is being completed there.
    cluster.until(lambda: slurm_runs.begun(folder) == 2, 150, lambda: cluster.job(job))
    assert len(goes_on(cluster, job, folder)) == 1
    assert slurm_runs.bits(folder) == undisturbed(2)


def test_no_requeue_without_a_step_of_training_a_second_time(cluster, cwd):
    """A job that is always told to end before its processes have met would go round for ever."""
    (cwd / "hold.sh").write_text(f'[ "$SLURM_PROCID" = 0 ] || exec sleep 1000\nexec {sys.executable} "$@"\n')
    more = ("hardware.nodes=2", "hydra.launcher.python=bash hold.sh")
    job, folder = slurm_runs.submit(cluster, cwd, *more)

    def restarted() -> bool:
        cluster.run("scancel", "--signal=USR2", job, check=False)  # lost while rank 0 starts
        time.sleep(1)
        return cluster.job(job)["Restarts"] == "1"

    cluster.until(restarted, 60, lambda: cluster.job(job))
    assert runs.Run(folder).status["job"]["idle"] == 1

    def failed() -> bool:
        cluster.run("scancel", "--signal=USR2", job, check=False)
        time.sleep(1)
        return cluster.state(job) == "FAILED"

    cluster.until(failed, 60, lambda: cluster.job(job))
    assert cluster.job(job)["Restarts"] == "1"
    status = runs.Run(folder).status
    assert status["state"] == "failed" and "2 times in a row" in status["error"]


def test_wandb_keeps_its_id(cluster, cwd):
    job, folder = slurm_runs.submit(cluster, cwd, "trackers.wandb.mode=offline")
    slurm_runs.training(cluster, job, folder)
    cluster.until((folder / "wandb_id").exists, 60)  # W&B starts beside the training
    before = (folder / "wandb_id").read_text().strip()
    cluster.run("scancel", "--signal=USR2", job)
    goes_on(cluster, job, folder)
    assert (folder / "wandb_id").read_text().strip() == before
    sittings = list((folder / "wandb").glob("offline-run-*"))
    assert len(sittings) == 2 and all(path.name.endswith(before) for path in sittings)


def test_an_interactive_step_is_ended_by_ctrl_c_as_anywhere(cluster, cwd):
    """srun -X passes the first on; without it srun waits for a second, and then kills within a second."""
    words = ["srun", "-X", "--nodes=1", *ADABATCH, *slurm_runs.RUN, "hydra.run.dir=outputs/one"]
    shell = subprocess.Popen(words, cwd=cwd, env=cluster.environment, stdin=subprocess.DEVNULL)
    folder = cwd / "outputs/one"
    slurm_runs.training(cluster, "", folder)
    shell.send_signal(signal.SIGINT)
    assert shell.wait(60) == 130
    assert runs.Run(folder).state == "interrupted" and slurm_runs.saved(folder) > 0
