"""Who this process is among how many, read from environments as torchrun, srun and we ourselves make them."""

import os
import subprocess
import sys
import time

import pytest

from adabatch.errors import UserError
from adabatch.places import Place, agree, detect, first_host, started, tasks_per_node

TORCHRUN = {
    "RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "node7", "MASTER_PORT": "29500",
}  # fmt: skip
# A batch script of two nodes with two tasks each has these; `srun` inside it adds STEP's.
BATCH = {
    "SLURM_JOB_ID": "4711", "SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0", "SLURM_JOB_NODELIST": "gpu[07-08]", "SLURM_TASKS_PER_NODE": "2(x2)",
}  # fmt: skip
STEP = BATCH | {
    "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_NODELIST": "gpu[07-08]",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)", "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_NODEID": "1",
}  # fmt: skip


def without(env, *names):
    return {name: value for name, value in env.items() if name not in names}


@pytest.mark.parametrize(
    ("env", "place"),
    [
        ({}, Place("single", 0, 1, 0, 1, "127.0.0.1", 0)),
        ({"MASTER_ADDR": "node7", "MASTER_PORT": "29500"}, Place("single", 0, 1, 0, 1, "127.0.0.1", 0)),
        (TORCHRUN, Place("torchrun", 5, 8, 1, 4, "node7", 29500)),
        (without(TORCHRUN, "LOCAL_WORLD_SIZE"), Place("torchrun", 5, 8, 1, 2, "node7", 29500)),
        (
            TORCHRUN | {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"},
            Place("torchrun", 0, 1, 0, 1, "node7", 29500),
        ),
        # Ours: the socket is rank 0's alone, whatever the others inherit.
        (TORCHRUN | {"ADABATCH_LOCAL": "1"}, Place("local", 5, 8, 1, 4, "node7", 29500)),
        (
            TORCHRUN | {"RANK": "0", "LOCAL_RANK": "0", "ADABATCH_LISTEN_FD": "7"},
            Place("local", 0, 8, 0, 4, "node7", 29500, 7),
        ),
        (TORCHRUN | {"ADABATCH_LISTEN_FD": "7"}, Place("local", 5, 8, 1, 4, "node7", 29500)),
        # A batch script is one process, though SLURM tells it of four tasks; so is a step of one task.
        (BATCH, Place("single", 0, 1, 0, 1, "127.0.0.1", 0)),
        (STEP | {"SLURM_STEP_NUM_TASKS": "1"}, Place("single", 0, 1, 0, 1, "127.0.0.1", 0)),
        (STEP | {"MASTER_PORT": "29501"}, Place("slurm", 3, 4, 1, 2, "gpu07", 29501)),
        (STEP | {"MASTER_ADDR": "10.0.0.9", "MASTER_PORT": "1"}, Place("slurm", 3, 4, 1, 2, "10.0.0.9", 1)),
        # Scripts for srun export what does not differ between the tasks.
        (STEP | {"WORLD_SIZE": "4", "MASTER_PORT": "9"}, Place("slurm", 3, 4, 1, 2, "gpu07", 9)),
        # srun that starts one torchrun per node: torchrun's word counts.
        (STEP | TORCHRUN, Place("torchrun", 5, 8, 1, 4, "node7", 29500)),
    ],
)
def test_detect(env, place):
    assert detect(env) == place


@pytest.mark.parametrize(
    ("env", "words"),
    [
        (
            {"RANK": "0"},
            ["RANK is set", "WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT not", "unset RANK"],
        ),
        ({"WORLD_SIZE": "2"}, ["WORLD_SIZE is set", "RANK, LOCAL_RANK"]),
        (without(TORCHRUN, "MASTER_PORT"), ["MASTER_PORT not"]),
        (TORCHRUN | {"MASTER_ADDR": ""}, ["MASTER_ADDR not"]),
        (TORCHRUN | {"RANK": "8"}, ["RANK is an integer from 0 and below WORLD_SIZE=8, got '8'"]),
        (TORCHRUN | {"RANK": "-1"}, ["RANK", "got '-1'"]),
        (TORCHRUN | {"RANK": "one"}, ["RANK", "got 'one'"]),
        (TORCHRUN | {"RANK": "²"}, ["RANK", "got '²'"]),
        (TORCHRUN | {"WORLD_SIZE": "0"}, ["WORLD_SIZE is an integer from 1, got '0'"]),
        (TORCHRUN | {"MASTER_PORT": "70000"}, ["MASTER_PORT", "below 65536, got '70000'"]),
        (TORCHRUN | {"LOCAL_RANK": "4"}, ["LOCAL_RANK=4, LOCAL_WORLD_SIZE=4"]),
        (TORCHRUN | {"LOCAL_WORLD_SIZE": "9"}, ["LOCAL_WORLD_SIZE=9, WORLD_SIZE=8"]),
        (STEP | {"WORLD_SIZE": "2"}, ["WORLD_SIZE=2 is set in a SLURM step of 4 tasks"]),
        (STEP | {"RANK": "0"}, ["RANK is set", "LOCAL_RANK, MASTER_ADDR"]),
        (STEP | {"SLURM_PROCID": "4"}, ["SLURM_PROCID", "below SLURM_STEP_NUM_TASKS=4, got '4'"]),
        (without(STEP, "SLURM_PROCID"), ["SLURM step of 4 tasks", "SLURM_PROCID is not set"]),
        (without(STEP, "SLURM_STEP_NODELIST", "SLURM_LOCALID"), ["SLURM_LOCALID, SLURM_STEP_NODELIST are"]),
        (STEP | {"SLURM_STEP_NUM_TASKS": "?"}, ["SLURM_STEP_NUM_TASKS", "got '?'"]),
    ],
)
def test_an_environment_that_cannot_be_is_refused_by_name(env, words):
    with pytest.raises(UserError) as error:
        detect(env)
    for word in words:
        assert word in str(error.value), str(error.value)


def test_the_tasks_of_a_step_find_one_port_and_other_steps_another():
    ports = {detect(STEP | {"SLURM_PROCID": str(rank)}).port for rank in range(4)}
    assert len(ports) == 1
    steps = {detect(STEP | {"SLURM_JOB_ID": str(j), "SLURM_STEP_ID": str(s)}).port
             for j in range(4000, 4010) for s in range(10)}  # fmt: skip
    assert len(steps) == 100
    huge = detect(STEP | {"SLURM_STEP_ID": "4294967290"}).port  # an interactive step
    assert all(1024 < port < 32768 for port in steps | ports | {huge})


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("node1", "node1"),
        ("node1,node2", "node1"),
        ("gpu[07-08,12]", "gpu07"),
        ("gpu[3,1],a", "gpu3"),
        ("rack[1-2]node[03-05]-ib", "rack1node03-ib"),
        ("a-b.c,d[1-2]", "a-b.c"),
    ],
)
def test_first_host(nodes, host):
    assert first_host(nodes) == host


def test_tasks_per_node():
    assert tasks_per_node("2(x3),1") == [2, 2, 2, 1]
    assert tasks_per_node("4") == [4]
    assert tasks_per_node("") == tasks_per_node("?") == []


@pytest.mark.parametrize("kind", ["torchrun", "slurm", "local"])
def test_agree(kind):
    place = Place(kind, 1, 4, 1, 4, "a", 1)
    for fine in (None, {}, {"processes": None}, {"processes": 4}):
        agree(place, fine)
    with pytest.raises(UserError, match=r"got 2 in a run of 4 started by .*start 2"):
        agree(place, {"processes": 2})


def test_one_process_may_still_start_the_others():
    agree(Place("single", 0, 1, 0, 1, "a", 0), {"processes": 4})
    with pytest.raises(UserError, match="got 4 in a run of 1"):
        agree(Place("torchrun", 0, 1, 0, 1, "a", 1), {"processes": 4})


def test_started_tells_processes_apart_and_a_zombie_is_gone():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    time.sleep(0.05)
    assert started(child.pid) == started(child.pid) != started(os.getpid())
    child.kill()
    until = time.monotonic() + 10
    while started(child.pid) is not None:  # not yet waited for
        assert time.monotonic() < until
    child.wait()
    assert started(child.pid) is None
