"""The commands of launch/sandbox: what they leave alone, what they leave behind, how they answer mistakes."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import slurm

pytestmark = pytest.mark.slurm


def sandbox(*words, **given) -> subprocess.CompletedProcess:
    command = [sys.executable, slurm.SANDBOX, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **given)


def ask(directory: Path, *command: str) -> str:
    """What one of SLURM's programs says about the sandbox in this directory."""
    env = os.environ | {"SLURM_CONF": f"{directory}/etc/slurm.conf"}
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60).stdout


def leftovers(directory: Path) -> list[str]:
    """Command lines on this host, inside the nodes too, that name the directory."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            line += (entry / "environ").read_bytes().decode(errors="replace")
        except OSError:
            continue
        found += [line] * (str(directory) in line)
    return found


def link(directory: Path) -> str:
    """What `ip` says of this host's address in the sandbox's network."""
    hosts = (directory / "etc/hosts").read_text().split()
    subnet = hosts[hosts.index("controller") - 1].rsplit(".", 1)[0]
    command = ["ip", "-4", "-o", "address", "show", "to", f"{subnet}.0/24"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def place(cluster):
    """A folder that does not exist yet, short enough for sockets; whatever is started in it is ended."""
    directory = Path(tempfile.mkdtemp(prefix="slurm-")) / "own"
    yield directory
    sandbox("down", directory, "--purge")
    shutil.rmtree(directory.parent)


def test_two_side_by_side_and_nothing_left(cluster, place):
    assert sandbox("up", place, "--nodes=2").returncode == 0
    assert "sandbox" in link(place) and link(place) != link(cluster.directory)
    assert ask(place, "srun", "--nodes=2", "hostname").split() in (["node1", "node2"], ["node2", "node1"])
    assert ask(place, "sinfo", "-h", "-p", "main", "-o", "%D").strip() == "2"
    assert cluster.run("sinfo", "-h", "-p", "main", "-o", "%D").stdout.strip() == "4"
    job = ask(place, "sbatch", "--parsable", "--output=/dev/null", "--wrap=srun setsid sleep 100").strip()
    for _ in range(100):
        if "R" == ask(place, "squeue", "-h", "-o", "%t", "-j", job).strip():
            break
        time.sleep(0.1)
    assert len(leftovers(place)) > 6
    assert sandbox("down", place).returncode == 0
    assert leftovers(place) == [] and link(place) == ""
    assert (place / "log").is_dir()  # to be read
    assert cluster.run("srun", "--nodes=4", "hostname").stdout.count("node") == 4
    assert sandbox("down", place, "--purge").returncode == 0 and not place.exists()


def test_up_twice_starts_what_is_missing(place):
    assert sandbox("up", place, "--nodes=2").returncode == 0
    first = ask(
        place, "sbatch", "--parsable", "--output=/dev/null", "--nodelist=node2", "--wrap=sleep 100"
    ).strip()
    sandbox("cut", place, "node1")
    again = sandbox("up", place)
    assert again.returncode == 0 and again.stdout.startswith("up: 2 nodes")
    assert ask(place, "srun", "--nodes=2", "hostname").split() in (["node1", "node2"], ["node2", "node1"])
    assert ask(place, "squeue", "-h", "-t", "running", "-o", "%A").split() == [
        first
    ]  # the rest was left as it was
    other = sandbox("up", place, "--nodes=3")
    assert other.returncode == 1 and "take it down first" in other.stderr
    sandbox("down", place)
    assert sandbox("up", place, "--nodes=3").returncode == 0
    assert ask(place, "sinfo", "-h", "-p", "main", "-o", "%D").strip() == "3"


def test_it_goes_when_its_holder_is_killed(place):
    """As when the suite itself is killed: only the pipe tells."""
    command = [sys.executable, slurm.SANDBOX, "up", place, "--hold", "--nodes=1"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline().startswith("up: 1 nodes")
        assert leftovers(place)
        holder.stdin.close()
        assert holder.wait(60) == 0
    assert not place.exists() and leftovers(place) == []


def test_down_finds_what_lost_its_folder(place):
    assert sandbox("up", place, "--nodes=1").returncode == 0
    shutil.rmtree(place)
    assert "2 machines stopped" in sandbox("down", place).stdout
    assert leftovers(place) == []


def test_a_process_that_only_looks_like_a_machine_is_left_alone(place):
    """Its command line is that of a machine, but it is no first process of a namespace."""
    script = place.parent / "launch/sandbox/machine.sh"
    script.parent.mkdir(parents=True)
    script.write_text("echo; sleep 60; true")
    with subprocess.Popen(["bash", script, place, "node1"], stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        assert "nothing was up" in sandbox("down", place).stdout
        assert process.poll() is None
        process.kill()


def mistakes(directory: Path) -> dict[str, tuple]:
    return {
        "holds something else": ("up", directory),
        "holds something else: nothing was touched": ("down", directory, "--purge"),
        "at most 67 bytes": ("up", directory / ("x" * 70)),
        "cannot hold ' '": ("up", directory / "a b"),
        "1 to 99": ("up", directory / "a", "--nodes=0"),
        "is not a sandbox: start one there": ("cut", directory / "a", "node1"),
    }


@pytest.mark.parametrize("part", mistakes(Path("/")))
def test_mistakes_are_answered(place, part):
    place.mkdir()
    (place / "precious").touch()
    done = sandbox(*mistakes(place)[part])
    assert done.returncode == 1 and done.stderr.startswith("sandbox: ") and part in done.stderr
    assert [path.name for path in place.iterdir()] == ["precious"] and done.stderr.count("\n") == 1


def test_a_node_that_is_not_there(cluster):
    for command in ("cut", "start"):
        done = cluster.sandbox(command, "node7", check=False)
        assert (
            done.returncode == 1
            and "no node 'node7': the nodes are node1, node2, node3, node4" in done.stderr
        )
    done = cluster.sandbox("throttle", "node1", "slowly", check=False)
    assert done.returncode == 1 and 'illegal value for "rate": "slowly"' in done.stderr


@pytest.mark.parametrize(
    "command, remedy",
    [
        ("mount --bind /dev/null /usr/sbin/slurmctld", "apt-get install --no-install-recommends slurmctld\n"),
        ("mount --bind /dev/null /usr/bin/srun", "apt-get install --no-install-recommends slurm-client\n"),
        (
            "mount() { :; }; without='setpriv --bounding-set=-sys_admin'",
            "start the container with --privileged",
        ),
        ("without='unshare --user'", "run it with sudo"),
    ],
)
def test_what_is_missing_is_named(place, command, remedy):
    """In a mount namespace of its own, in which a program is hidden, or with fewer rights."""
    script = f"{command}; exec $without {sys.executable} {slurm.SANDBOX} up {place}"
    line = ["unshare", "--mount", "bash", "-c", script]
    done = subprocess.run(line, capture_output=True, text=True, timeout=60)
    assert done.returncode == 3 and done.stderr.startswith("sandbox: ") and remedy in done.stderr
    assert not place.exists()
