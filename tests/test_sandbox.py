"""The one-machine SLURM of launch/sandbox: what tests and contributors may count on, by SLURM's answers."""

import json
import os
import subprocess
import sys

import pytest
import slurm

pytestmark = pytest.mark.slurm
CHANGE = """
import socket, sys, time
if sys.argv[1] == "listen":
    server = socket.create_server(("", 5000))
    print("listening", flush=True)
    connection = server.accept()[0]
    start, count = time.monotonic(), 0
    while part := connection.recv(65536):
        count += len(part)
    print(count, time.monotonic() - start)
else:
    with socket.create_connection((sys.argv[1], 5000)) as connection:
        connection.sendall(bytes(int(sys.argv[2])))
"""


def test_nodes_differ_as_machines_do(cluster):
    said = cluster.run(
        "srun", "--nodes=4", "bash", "-c", "echo $(hostname) $(hostname -I) $(ls /dev/shm | wc -l)"
    )
    rows = sorted(line.split() for line in said.stdout.splitlines())
    assert [row[0] for row in rows] == list(cluster.nodes)
    addresses = {row[1] for row in rows}
    assert len(addresses) == 4 and not any(address.startswith("127.") for address in addresses)
    # A name means the same machine from everywhere, and not oneself.
    there = cluster.run("srun", "--nodes=2", "getent", "hosts", "node3").stdout.splitlines()
    assert [line.split()[0] for line in there] == [rows[2][1]] * 2


def test_what_one_node_has_another_has_not(cluster, tmp_path):
    """Processes, shared memory, ports and mounts; folders are shared."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data/x").touch()
    cluster.exec("node1", "mount", "-t", "tmpfs", "none", tmp_path / "data")
    cluster.exec("node1", "touch", "/dev/shm/adabatch-test", tmp_path / "shared")
    look = f"ls {tmp_path}/data /dev/shm; ls {tmp_path}; ps ax | grep -c '[s]lurmd -D'"
    one = cluster.exec("node1", "bash", "-c", look).stdout
    two = cluster.exec("node2", "bash", "-c", look).stdout
    assert "adabatch-test" in one and "adabatch-test" not in two
    assert "x\n" not in one and "x\n" in two and not os.path.exists("/dev/shm/adabatch-test")
    assert "shared" in one and "shared" in two
    assert one.splitlines()[-1] == two.splitlines()[-1] == "1"


def test_an_array_keeps_to_its_limit(cluster, tmp_path):
    task = f"{tmp_path}/$SLURM_ARRAY_TASK_ID"
    body = f"touch {task}; ls {tmp_path}/? 2>/dev/null | wc -l; sleep 0.5; rm {task}"
    job = cluster.submit(body, "--array=0-5%2")
    cluster.wait_for(job, "COMPLETED")
    assert len(cluster.tasks(job)) == 6
    at_once = list(map(int, cluster.log(job).split()))
    assert len(at_once) == 6 and max(at_once) <= 2


def test_gpus_are_handed_out(cluster):
    command = ("srun", "--nodes=1", "--gpus-per-node=2", "bash", "-c", "echo $CUDA_VISIBLE_DEVICES")
    assert cluster.run(*command).stdout.strip() == "0,1"
    too_many = cluster.run("srun", "--nodes=1", "--gpus-per-node=5", "true", check=False)
    assert too_many.returncode != 0 and "node configuration is not available" in too_many.stderr


def test_sacct_says_what_scontrol_says(cluster):
    good, bad = cluster.submit("true"), cluster.submit("exit 3")
    running = cluster.submit("sleep 60", "--array=0-3%1")
    cluster.wait_for(good, "COMPLETED")
    cluster.wait_for(bad, "FAILED")
    cluster.until(lambda: "RUNNING" in [task["JobState"] for task in cluster.tasks(running)])
    ask = ("sacct", "-n", "-P", "-o", "JobID,State,ExitCode")
    lines = cluster.run(*ask, "-j", f"{good},{bad}", "-j", running).stdout.splitlines()
    assert lines[:2] == [f"{good}|COMPLETED|0:0", f"{bad}|FAILED|3:0"]
    assert sorted(lines[2:]) == [f"{running}_0|RUNNING|0:0", f"{running}_[1-3%1]|PENDING|0:0"]
    cluster.run("scancel", f"{running}_0")
    cluster.until(lambda: f"{running}_0|CANCELLED" in cluster.run(*ask, "-j", running).stdout)


def test_a_cancelled_job_stays_cancelled(cluster):
    job = cluster.submit("srun sleep 60")
    cluster.wait_for(job, "RUNNING")
    cluster.run("scancel", job)
    assert cluster.wait_for(job, "CANCELLED")["Restarts"] == "0"
    cluster.until(lambda: cluster.run("squeue", "-h").stdout == "")
    assert cluster.state(job) == "CANCELLED"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["cluster", "cluster_sigterm"])
def test_urgent_jobs_preempt(kind, request, tmp_path):
    """With the user's signal first where the cluster sends it; requeued and run again either way."""
    cluster = request.getfixturevalue(kind)
    said = tmp_path / "said"
    body = (
        f"trap 'echo USR2 >>{said}' USR2; trap 'echo TERM >>{said}' TERM; echo start >>{said};"
        'while [ "$SLURM_RESTART_COUNT" != 1 ]; do sleep 0.2; done'
    )
    victim = cluster.submit(body, "--nodes=4", "--exclusive", "--signal=B:USR2@30", "--time=60")
    cluster.until(said.exists)
    urgent = cluster.submit("true", "--nodes=4", "--exclusive", "--partition=urgent")
    cluster.wait_for(urgent, "COMPLETED")
    assert cluster.wait_for(victim, "COMPLETED")["Restarts"] == "1"
    words = said.read_text().split()
    assert words[0] == words[-1] == "start" and words.count("start") == 2
    assert ("USR2" in words) == (kind == "cluster") and "TERM" in words


def test_a_lost_node_gives_its_job_back(cluster):
    """By what SLURM is told, which is quick; a power cut below."""
    job = cluster.submit("srun hostname; sleep 3", "--nodes=2", "--open-mode=append")
    cluster.until(lambda: len(cluster.log(job).split()) >= 2)
    cluster.fail("node1")
    assert cluster.wait_for(job, "COMPLETED", seconds=60)["Restarts"] == "1"
    assert "node1" in cluster.log(job).split()[:2] and "node1" not in cluster.log(job).split()[-2:]
    cluster.start("node1")
    assert cluster.node_state("node1") == "idle"


@pytest.mark.slow
def test_a_power_cut(cluster):
    job = cluster.submit("srun hostname; sleep 5", "--nodes=2", "--open-mode=append")
    cluster.until(lambda: cluster.log(job))
    cluster.cut("node1")
    assert cluster.exec("node1", "true", check=False).returncode != 0
    cluster.until(lambda: cluster.node_state("node1").startswith("down"), 120)
    assert cluster.wait_for(job, "COMPLETED", seconds=60)["Restarts"] == "1"
    assert sorted(cluster.log(job).split()[-2:]) == ["node2", "node3"]
    cluster.start("node1")
    assert cluster.run("srun", "--nodelist=node1", "hostname").stdout == "node1\n"


def test_a_machine_keeps_its_addresses(cluster):
    """Else what others remember of it leads nowhere, for half a minute after a power cut."""

    def addresses():
        look = ("ip", "-json", "address", "show", "eth0")
        said = [json.loads(cluster.exec(name, *look).stdout)[0] for name in ("controller", *cluster.nodes)]
        return [(one["address"], one["addr_info"][0]["local"]) for one in said]

    before = addresses()
    assert len(set(before)) == 5
    cluster.cut("node1")
    cluster.start("node1")
    assert addresses() == before


def seconds_for(cluster, count: int) -> float:
    """Of `count` bytes from node1 to node2."""
    command = (slurm.SANDBOX, "exec", cluster.directory, "node2", sys.executable, "-c", CHANGE, "listen")
    with subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, text=True) as listening:
        assert listening.stdout.readline() == "listening\n"
        cluster.exec("node1", sys.executable, "-c", CHANGE, "node2", str(count))
        received, seconds = listening.stdout.readline().split()
    assert int(received) == count
    return float(seconds)


@pytest.mark.parametrize("throttled", ["node1", "node2"])
def test_a_throttled_link_is_slow(cluster, throttled):
    """Both ways. A lower bound only: 2 MB at 8 Mbit/s take 2 s, less 0.4 s for what the buckets hold."""
    cluster.throttle(throttled, "8mbit")
    assert seconds_for(cluster, 2_000_000) > 1.4
    other = {"node1": "node2", "node2": "node1"}[throttled]
    assert "tbf" not in cluster.exec(other, "tc", "qdisc", "show", "dev", "eth0").stdout
    cluster.throttle("all", "off")
    assert "tbf" not in cluster.exec(throttled, "tc", "qdisc", "show", "dev", "eth0").stdout
