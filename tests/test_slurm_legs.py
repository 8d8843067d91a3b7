"""hardware.phases on a real SLURM: chains of jobs of growing size, equal to the run that nobody cut."""

import profile_files
import pytest
import slurm_runs
import support
import torch
from slurm import ADABATCH

from adabatch import profiles, runs

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(600)]
RUN = (
    "model=convnet", "model.ghost=16", "dataset=digits", "hardware.threads=1", "trackers.wandb.mode=disabled",
    "schedule.base_batch=32",
)  # fmt: skip
OPEN = (
    "epochs=2",
    "schedule=adabatch",
    "schedule.max_batch=128",
    "schedule.growth.every=0.25",
)  # 32, 64, 128
CLOSED = ("epochs=3", "schedule=noise_scale", "schedule.noise_group=16", "hardware.precision=fp64")
CHAIN = ("hardware=slurm", "hardware.nodes=4", "hardware.phases=auto")


def submitted(cluster, folder, *overrides: str):
    """(what `adabatch` says of a chain, the folder in which it was submitted)."""
    folder.mkdir(exist_ok=True)
    done = cluster.run(*ADABATCH, *RUN, *CHAIN, *overrides, cwd=folder, seconds=400)
    return done.stdout, folder


def alone(folder, *overrides: str):
    """The same run in one process, in memory of this one."""
    support.run(folder, *RUN, *overrides)
    return folder


def only(folder):
    """The folder of the one run there."""
    (found,) = (path.parent for path in folder.glob("outputs/*/summary.json"))
    return found


def distance(a, b) -> float:
    """Relative difference of the weights of two runs."""
    weights = (torch.load(folder / "weights.pt", weights_only=True) for folder in (a, b))
    return support.difference(*weights)


def worlds(folder) -> list[tuple[int, int]]:
    """(batch size, processes) of the training rows, each pair once."""
    rows = [r for r in runs.read_rows(folder) if r["event"] == "train"]
    return list(dict.fromkeys((r.get("divisor", r["batch_size"]), r["world_size"]) for r in rows))


def test_a_chain_of_jobs_is_the_run_that_nobody_cut(cluster, tmp_path):
    precise = (*OPEN, "hardware.precision=fp64")
    text, place = submitted(cluster, tmp_path / "chain", *precise, "wait=true")
    assert "then 2 in job" in text and "then 4 in job" in text
    chained = only(place)
    assert worlds(chained) == [(32, 1), (64, 2), (128, 4)]
    single = alone(tmp_path / "alone", *precise)
    assert distance(chained, single) <= 1e-10
    one, other = (runs.Run(folder).summary for folder in (chained, single))
    assert one["steps"] == other["steps"] and one["final_test_error"] == other["final_test_error"]
    assert one["train_seconds"] < one["device_seconds"] < 4 * one["train_seconds"]
    assert not cluster.run("squeue", "-h").stdout


def test_a_chain_of_ordered_sums_has_the_same_bits(cluster, tmp_path):
    lines = (*OPEN, "hardware.reduction=ordered", "hardware.micro_batch=16")
    _, place = submitted(cluster, tmp_path / "chain", *lines, "wait=true", "trackers.wandb.mode=offline")
    single, folder = alone(tmp_path / "alone", *lines), only(place)
    key = "weights_sha256"
    assert runs.Run(folder).summary[key] == runs.Run(single).summary[key]
    sittings = [path.name for path in (folder / "wandb").glob("offline-run-*")]
    assert len(sittings) == 3  # a job each, of one W&B run
    assert all(name.endswith((folder / "wandb_id").read_text().strip()) for name in sittings)


def test_several_runs_are_an_array_for_each_leg(cluster, tmp_path):
    text, place = submitted(cluster, tmp_path / "chain", *OPEN, "seed=0,1", "wait=true")
    assert "as array" in text
    found = sorted(place.glob("outputs/*/summary.json"))
    assert len(found) == 2
    for path in found:
        assert worlds(path.parent) == [(32, 1), (64, 2), (128, 4)]


def test_one_member_of_an_array_of_chains_fails_and_the_other_goes_on(cluster, tmp_path):
    """Its later jobs leave the queue by themselves; the other's are not touched by that."""
    place = tmp_path / "chain"
    place.mkdir()
    line = (*ADABATCH, *RUN, *CHAIN, *OPEN, "schedule.base_lr=0.05,1e30", "wait=true")
    done = cluster.run(*line, cwd=place, check=False, seconds=400)
    assert done.returncode == 1 and "as array" in done.stdout, done.stderr
    found = {runs.Run(path.parent).state: path.parent for path in place.glob("outputs/*/status.json")}
    assert set(found) == {"finished", "diverged"}
    assert worlds(found["finished"]) == [(32, 1), (64, 2), (128, 4)]
    cluster.until(lambda: not cluster.run("squeue", "-h").stdout, 60, lambda: cluster.run("squeue").stdout)
    assert not [row for row in runs.Run(found["diverged"]).rows if row.get("world_size", 1) > 1]


def test_a_closed_loop_submits_the_larger_job_itself(cluster, tmp_path):
    _, place = submitted(cluster, tmp_path / "chain", *CLOSED, "wait=true")
    chained = only(place)
    pairs = worlds(chained)
    sizes = [world for _, world in pairs]
    assert pairs[0] == (32, 1) and sizes == sorted(sizes) and sizes[-1] > 1
    assert distance(chained, alone(tmp_path / "alone", *CLOSED)) <= 1e-10


def test_a_leg_that_is_refused_leaves_nothing_in_the_queue(cluster, tmp_path):
    """A node has four GPUs: the chain's last leg asks for eight."""
    (tmp_path / "chain").mkdir()
    line = (*ADABATCH, *RUN, *OPEN, *CHAIN[:1], "hardware.phases=16", "hydra.launcher.gpus_per_node=8")
    done = cluster.run(*line, cwd=tmp_path / "chain", check=False, seconds=120)
    assert done.returncode == 2 and "sbatch refuses" in done.stderr, done.stderr
    cluster.until(lambda: not cluster.run("squeue", "-h").stdout, 30)
    assert not list((tmp_path / "chain").glob("outputs/*-????????"))  # as a single job that is refused
    assert "scancel" not in done.stderr  # SLURM says that the first leg is gone


def slowly(cluster, place, rule=OPEN):
    """A chain whose first job trains: (overrides, the job, the run's folder)."""
    slurm_runs.place(place)
    precise = (*rule, "hardware.precision=fp64", "loss._target_=slow.loss")
    text, _ = submitted(cluster, place, *precise)
    ((job, folder),) = slurm_runs.listed(text)
    slurm_runs.training(cluster, job, place / folder)
    return precise, job, place / folder


def test_cancelling_the_first_leg_ends_the_chain_and_the_command_goes_on(cluster, tmp_path):
    place = tmp_path / "chain"
    precise, job, folder = slowly(cluster, place)
    cluster.run("scancel", job)
    cluster.until(lambda: not cluster.run("squeue", "-h").stdout, 90, lambda: cluster.run("squeue").stdout)
    assert runs.Run(folder).state == "preempted"
    (place / "slow").unlink()
    submitted(cluster, place, *precise, "wait=true")
    assert worlds(folder) == [(32, 1), (64, 2), (128, 4)]
    assert distance(folder, alone(tmp_path / "alone", *precise[:-1])) <= 1e-10


def test_a_closed_loop_that_was_cancelled_goes_on_and_still_grows(cluster, tmp_path):
    place = tmp_path / "chain"
    precise, job, folder = slowly(cluster, place, CLOSED[:-1])
    cluster.run("scancel", job)
    cluster.until(lambda: not cluster.run("squeue", "-h").stdout, 90, lambda: cluster.run("squeue").stdout)
    assert runs.Run(folder).state == "preempted"
    (place / "slow").unlink()
    submitted(cluster, place, *precise, "wait=true")
    sizes = [world for _, world in worlds(folder)]
    assert sizes[0] == 1 and sizes == sorted(sizes) and sizes[-1] > 1
    assert distance(folder, alone(tmp_path / "alone", *precise[:-1])) <= 1e-10


def test_a_leg_that_is_told_to_end_comes_back_and_the_later_ones_wait_for_it(cluster, tmp_path):
    precise, job, folder = slowly(cluster, tmp_path / "chain")
    cluster.run("scancel", "--signal=USR2", job)
    cluster.until(lambda: cluster.job(job)["Restarts"] == "1", 60, lambda: cluster.job(job))
    (tmp_path / "chain/slow").unlink()
    cluster.until(lambda: not cluster.run("squeue", "-h").stdout, 200, lambda: cluster.run("squeue").stdout)
    assert runs.Run(folder).state == "finished", slurm_runs.told(folder)
    assert worlds(folder) == [(32, 1), (64, 2), (128, 4)]
    assert distance(folder, alone(tmp_path / "alone", *precise[:-1])) <= 1e-10


def test_a_profile_says_how_many_processes_a_batch_fills(cluster, tmp_path):
    """A batch of 64 keeps a process of this profile busy: 32 and 64 get one, 128 two."""
    place = tmp_path / "chain"
    place.mkdir()
    rates = {32: 100.0, 64: 195.0, 128: 200.0}
    points = [profile_files.point(batch, batch, batch / rate) for batch, rate in rates.items()]
    of = profiles.configured(support.resolved(*RUN, *OPEN, "hardware=slurm"))
    profile_files.written(place / "profile.json", profile_files.entry(points, configuration=of))
    submitted(cluster, place, *OPEN, "hardware.phases=profile.json", "wait=true")
    assert worlds(only(place)) == [(32, 1), (64, 1), (128, 2)]
