"""Other ways to start a run on a cluster: srun, torchrun, Hydra's own launcher for SLURM; and which GPUs it
sees.

On a real SLURM of four nodes (tests/slurm.py). The reference is the same run of two processes on this
machine.
"""

import subprocess
import sys

import pytest
import slurm_runs
from slurm import ADABATCH

from adabatch import profiles, runs

pytestmark = [pytest.mark.slurm, pytest.mark.slow]
TORCHRUN = (
    "head=$(scontrol show hostnames $SLURM_JOB_NODELIST | head -1)\n"
    f"srun {sys.executable} -m torch.distributed.run --nnodes=2 --nproc-per-node=1 --rdzv-backend=c10d "
    "--rdzv-id=1 --rdzv-endpoint=$head:29500"
)


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory, user_signal_cluster):
    cwd = slurm_runs.place(tmp_path_factory.mktemp("alone"), slow=0)
    slurm_runs.command(user_signal_cluster, cwd, "hardware=auto", "hardware.processes=2")
    (folder,) = cwd.glob("outputs/*-????????")
    return slurm_runs.bits(folder)


@pytest.fixture
def cwd(tmp_path):
    return slurm_runs.place(tmp_path)


def lines(cwd, words) -> str:
    return f"cd {cwd}\n{words} {' '.join(slurm_runs.RUN)}"


def test_srun_in_an_allocation_and_a_requeue(cluster, cwd, undisturbed):
    """Nothing of ours submitted it; SIGUSR2 has it queued again all the same."""
    job = cluster.submit(lines(cwd, f"srun {' '.join(ADABATCH)}"), "--nodes=2", "--open-mode=append")
    folder = cluster.until(lambda: next(cwd.glob("outputs/*-????????"), None), 90)
    slurm_runs.training(cluster, job, folder)
    cluster.run("scancel", "--signal=USR2", job)
    cluster.until(lambda: cluster.job(job)["Restarts"] == "1", 60)
    (cwd / "slow").unlink()
    cluster.wait_for(job, "COMPLETED")
    assert "resumed at position" in (folder / "log.txt").read_text()
    assert slurm_runs.bits(folder) == undisturbed


@pytest.mark.parametrize("how", ["srun", "torchrun"])
def test_a_profile_of_several_nodes(cluster, cwd, how):
    """adabatch-profile in a job of two processes: one file, with communication in it."""
    asked = "adabatch.profiling model=convnet dataset=digits hardware.threads=1 --batches 64,128,256 "
    asked += f"--seconds 0.2 --sustained 1 --out {cwd}/profile.json"
    start = f"srun {sys.executable}" if how == "srun" else TORCHRUN
    job = cluster.submit(f"cd {cwd}\n{start} -m {asked}", "--nodes=2", "--ntasks-per-node=1")
    cluster.wait_for(job, "COMPLETED", seconds=150)
    (found,) = profiles.read(next(cwd.glob("**/profile.json")))
    assert found.world == 2 and {64, 128, 256} <= {p.batch_size for p in found.points}
    assert all(p.communication > 0 for p in found.points)


def test_torchrun_on_each_node(cluster, cwd, undisturbed):
    (cwd / "slow").unlink()
    job = cluster.submit(lines(cwd, f"{TORCHRUN} -m adabatch"), "--nodes=2", "--ntasks-per-node=1")
    cluster.wait_for(job, "COMPLETED", seconds=150)
    (folder,) = cwd.glob("outputs/*-????????")
    assert slurm_runs.bits(folder) == undisturbed


def test_hydras_own_launcher_and_a_requeue(cluster, cwd, undisturbed):
    words = [
        *ADABATCH, "-m", *slurm_runs.RUN, "hydra/launcher=submitit_slurm", "hydra.launcher.nodes=2",
        "hydra.launcher.timeout_min=60", "hydra.launcher.tasks_per_node=1",
    ]  # fmt: skip
    shell = subprocess.Popen(words, cwd=cwd, env=cluster.environment, stdout=subprocess.PIPE, text=True)
    folder = cluster.until(lambda: next(cwd.glob("outputs/*-????????"), None), 90)
    job = cluster.run("squeue", "-h", "-o", "%A").stdout.strip()
    slurm_runs.training(cluster, job, folder)
    cluster.run("scancel", "--signal=USR2", job)
    cluster.until(lambda: cluster.job(job)["Restarts"] == "1", 60)
    (cwd / "slow").unlink()
    text = shell.communicate(timeout=150)[0]
    assert shell.returncode == 0, text + slurm_runs.told(folder)
    assert "resumed at position" in (folder / "log.txt").read_text()
    assert slurm_runs.bits(folder) == undisturbed


SEES = """
import os

def loss(logits, labels):
    from adabatch.losses import cross_entropy

    with open(f"seen{os.environ['SLURM_PROCID']}", "w") as file:
        file.write(os.environ["CUDA_VISIBLE_DEVICES"])
    return cross_entropy(logits, labels)
"""


def test_a_run_sees_the_gpus_that_slurm_gave_it(cluster, cwd):
    """Another job has the first two of the node."""
    (cwd / "sees.py").write_text(SEES)
    first = cluster.submit(
        "srun bash -c 'echo $CUDA_VISIBLE_DEVICES; sleep 600'", "--gpus=2", "--nodelist=node1"
    )
    cluster.until(lambda: cluster.log(first).strip() == "0,1", 30, lambda: cluster.log(first))
    more = (
        "loss._target_=sees.loss",
        "hydra.launcher.gpus_per_node=2",
        "hydra.launcher.additional.nodelist=node1",
    )
    given = {"env": cluster.environment | {"CUDA_VISIBLE_DEVICES": "0"}}  # of the submitting shell
    job, folder = slurm_runs.submit(cluster, cwd, *more, **given)
    cluster.wait_for(job, "COMPLETED")
    assert runs.Run(folder).summary["steps"] > 0 and runs.read_rows(folder)[0]["world_size"] == 2
    assert [(cwd / f"seen{rank}").read_text() for rank in (0, 1)] == ["2,3", "2,3"]
