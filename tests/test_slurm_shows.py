"""What a cluster's user is promised, on a real SLURM of four nodes (tests/slurm.py): an array of six runs,
runs of one size on two and four nodes against one process, and faults that only nodes and disks make."""

import json

import numpy as np
import pytest
import slurm_runs
import support
import torch

from adabatch import runs

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(600)]


@pytest.fixture
def cwd(tmp_path):
    return slurm_runs.place(tmp_path, slow=0)


def alone(cwd, cluster, *overrides: str):
    """The folder of the same run in one process of this machine."""
    place = slurm_runs.place(cwd / "alone", slow=0)
    slurm_runs.command(cluster, place, *overrides, "hardware=auto")
    (folder,) = place.glob("outputs/*-????????")
    return folder


def weights(folder) -> dict:
    return torch.load(folder / "weights.pt", weights_only=True)


@pytest.mark.slow
def test_an_array_of_six_runs(cluster, cwd):
    """All six are told, are tasks of one job of which two run at a time, and each is the run it says."""
    more = ("-m", "seed=0,1,2", "schedule=fixed,adabatch", "hydra.launcher.array_parallelism=2", "wait=true")
    done = slurm_runs.command(cluster, cwd, *more, seconds=400)
    found = slurm_runs.listed(done.stdout)
    assert len(found) == 6 and {job.split("_")[0] for job, _ in found} == {found[0][0].split("_")[0]}
    assert {job.split("_")[1] for job, _ in found} == set("012345")
    assert ", 2 at a time" in done.stdout
    wanted = {(name, seed) for name in ("fixed", "adabatch") for seed in (0, 1, 2)}
    seen = set()
    for _, folder in found:
        run = runs.Run(cwd / folder)
        assert run.state == "finished" and f"seed={run.config['seed']}" in folder.name
        (name,) = {n for n in ("fixed", "adabatch") if f"schedule={n}" in folder.name}
        seen.add((name, run.config["seed"]))
    assert seen == wanted
    assert len({runs.Run(cwd / folder).summary["weights_sha256"] for _, folder in found}) == 6
    assert {cluster.state(job) for job, _ in found} == {"COMPLETED"}


@pytest.mark.parametrize(
    "nodes, how",
    [
        (2, "ordered"),  # in CI: the one that trains over nodes there
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in ((2, "precise"), (4, "precise"), (4, "ordered"))
        ),
    ],
)
def test_a_run_on_several_nodes_is_that_of_one_process(cluster, cwd, nodes, how):
    """One batch size throughout: float64 to 1e-10, ordered sums to the bit."""
    precise = ("hardware.precision=fp64",)
    more = precise if how == "precise" else ("hardware.reduction=ordered", "hardware.micro_batch=16")
    job, folder = slurm_runs.submit(cluster, cwd, *more, f"hardware.nodes={nodes}")
    cluster.wait_for(job, "COMPLETED", seconds=200)
    single = alone(cwd, cluster, *more)
    worlds = [{r["world_size"] for r in runs.read_rows(f) if r["event"] == "train"} for f in (folder, single)]
    assert worlds == [{nodes}, {1}]
    if how == "ordered":
        one, other = (runs.Run(f).summary["weights_sha256"] for f in (folder, single))
        assert one == other
    assert support.difference(weights(folder), weights(single)) <= (1e-10 if how == "precise" else 0)


LOCKED = """
import threading

import torch


class Net(torch.nn.Module):
    \"\"\"It can be trained, and holds what cannot be pickled: a lock and a function without a name.\"\"\"

    def __init__(self, num_classes, channels):
        super().__init__()
        self.lock, self.scale = threading.Lock(), lambda x: x * 2
        self.layers = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(channels * 64, num_classes))

    def forward(self, x):
        with self.lock:
            return self.layers(self.scale(x))
"""


@pytest.mark.slow
def test_a_model_that_cannot_be_pickled_trains(cluster, cwd):
    """Only plain data travels: the nodes build it themselves, and a checkpoint holds its tensors."""
    (cwd / "locked.py").write_text(LOCKED)
    job, folder = slurm_runs.submit(cluster, cwd, "model._target_=locked.Net", "hardware.nodes=2")
    cluster.wait_for(job, "COMPLETED", seconds=150)
    assert runs.Run(folder).state == "finished", slurm_runs.told(folder)
    assert len(weights(folder)) == 2  # a matrix and a bias


STORED = """
import numpy


def data(where):
    found = numpy.load(f"{where}/images.npz")
    return (found["images"], found["labels"]), (found["images"], found["labels"])
"""


@pytest.mark.slow
def test_data_that_one_node_does_not_have(cluster, cwd, tmp_path):
    """The folder is there where one submits and on node1: the other node and the file are named."""
    (cwd / "stored.py").write_text(STORED)
    data = tmp_path / "data"
    data.mkdir()
    images = np.zeros((256, 1, 8, 8), np.uint8)
    np.savez(data / "images.npz", images=images, labels=np.arange(256) % 10)
    more = ("dataset._target_=stored.data", f"+dataset.where={data}", "hardware.nodes=2")
    given = ("hydra.launcher.additional.nodelist=[node1,node2]",)
    cluster.exec("node2", "mount", "-t", "tmpfs", "none", str(data))
    try:
        job, folder = slurm_runs.submit(cluster, cwd, *more, *given)
        found = cluster.wait_for(job, "FAILED", seconds=150)
    finally:
        cluster.exec("node2", "umount", str(data), check=False)
    status = runs.Run(folder).status
    assert found["ExitCode"] in ("1:0", "2:0") and status["state"] == "failed", slurm_runs.told(folder)
    assert f"{data}/images.npz" in status["error"] and "node2" in status["error"], status["error"]
    again, same = slurm_runs.submit(cluster, cwd, *more, *given)
    cluster.wait_for(again, "COMPLETED", seconds=150)
    assert same == folder and runs.Run(folder).state == "finished"


@pytest.mark.slow
def test_a_disk_that_is_full(cluster, cwd):
    """A real one, on node1 in the place of the run's folder, filled while the run trains there."""
    (cwd / "slow").write_text("0.5")
    folder = cwd / "runs/one"
    folder.mkdir(parents=True)
    more = ("checkpoint.every_seconds=0.5", "hydra.sweep.dir=runs", "hydra.sweep.subdir=one")
    more += ("hydra.launcher.additional.nodelist=node1",)

    def there(words: str, check: bool = False) -> str:
        return cluster.exec("node1", "sh", "-c", f"cd {folder}; {words}", check=check).stdout

    cluster.exec("node1", "mount", "-t", "tmpfs", "-o", "size=16m", "none", str(folder))
    try:
        job, _ = slurm_runs.submit(cluster, cwd, *more)
        cluster.until(lambda: "checkpoint.pt" in there("ls"), 120, lambda: there("cat log.txt"))
        there("cat /dev/zero > filler 2>/dev/null")
        assert cluster.wait_for(job, "FAILED")["ExitCode"] == "1:0"
        status = json.loads(there("cat status.json"))
        assert status["state"] == "failed" and "disk full" in status["error"], status
        there("rm filler", check=True)
        (cwd / "slow").unlink()
        again, _ = slurm_runs.submit(cluster, cwd, *more)
        cluster.wait_for(again, "COMPLETED")
        assert json.loads(there("cat status.json"))["state"] == "finished"
        assert "resumed at position" in there("cat log.txt")
    finally:
        cluster.exec("node1", "umount", str(folder), check=False)
