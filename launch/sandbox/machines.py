"""Machines of the sandbox: each is a set of Linux namespaces (host name, mounts, processes, network).

Killing its PID 1 is the power switch: the kernel ends every other process of the machine and takes its
network away. No pid is written down anywhere: a machine is found by the command line of its PID 1, and is
signalled through a handle (pidfd) that cannot come to mean another process.

The controller's network namespace holds the switch (a bridge). Every node has a cable into it, and so has the
host, where `sandboxN` is all that shows; it disappears with the controller. A firewall of the host, such as
the one that Docker sets up, does not see what the nodes say to each other.
"""

import os
import select
import signal
import subprocess
import zlib
from pathlib import Path

SCRIPT = Path(__file__).resolve().parent / "machine.sh"
PATH = f"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:{os.environ.get('PATH', '')}"
CONTROLLER = "controller"
# Mounts that the host makes later show in the machines; theirs do not show on the host.
NAMESPACES = "--uts --ipc --net --pid --fork --kill-child --mount --propagation slave --mount-proc".split()


class Problem(Exception):
    """What the user is told, in one line or a few."""


def call(*command, check: bool = True) -> subprocess.CompletedProcess:
    """Run a program and return it with its output; where it fails, a Problem with what it said."""
    command = [str(part) for part in command]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PATH": PATH})
    if check and done.returncode:
        raise Problem(f"{' '.join(command)} failed: {done.stderr.strip() or done.stdout.strip()}")
    return done


def running(directory: Path) -> dict[str, int]:
    """{name: pid of its PID 1, as numbered here} of the machines of this directory that are up."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (entry / "cmdline").read_bytes().split(b"\0")[:-1]
            if len(arguments) != 4 or arguments[2] != os.fsencode(directory):
                continue
            if not arguments[1].endswith(b"/launch/sandbox/machine.sh"):  # of this checkout or another
                continue
            status = dict(line.split(":", 1) for line in (entry / "status").read_text().splitlines())
        except OSError:  # has ended meanwhile
            continue
        if status["NSpid"].split()[-1] == "1":
            found[arguments[3].decode()] = int(entry.name)
    return found


def pid_of(directory: Path, name: str) -> int:
    pid = running(directory).get(name)
    if pid is None:
        raise Problem(f"{name} is not up in {directory}")
    return pid


def power_on(directory: Path, name: str, address: str) -> None:
    """Start a machine and plug it in; address: "198.18.5.11"."""
    environment = {"PATH": PATH, "SLURM_CONF": f"{directory}/etc/slurm.conf", "LANG": "C"}
    log = directory / "log" / f"{name}.out"
    with log.open("ab") as errors:
        machine = subprocess.Popen(
            ["unshare", *NAMESPACES, "bash", str(SCRIPT), str(directory), name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=environment,
            cwd="/",
            start_new_session=True,
        )
    with machine.stdin, machine.stdout:  # closed before the address is written: the machine ends
        if machine.stdout.readline() != b"ready\n":
            raise Problem(f"{name} did not start: {log.read_text(errors='replace').strip()[-500:]}")
        pid = pid_of(directory, name)
        if name == CONTROLLER:
            _lay_switch(pid, address)
        else:
            _plug_in(pid, name, address, pid_of(directory, CONTROLLER))
        machine.stdin.write(f"{address}\n".encode())


def power_off(directory: Path, name: str) -> bool:
    """Cut its power; False if it was not up. Returns when the last process of the machine is gone."""
    pid = running(directory).get(name)
    if pid is None:
        return False
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        # Between the two lines above it may have ended, and its number be another's.
        if running(directory).get(name) != pid:
            return False
        if name == CONTROLLER:  # at once; the kernel would do it in the background
            call("nsenter", "-t", pid, "-n", "ip", "link", "delete", "host", check=False)
        signal.pidfd_send_signal(handle, signal.SIGKILL)
        if not select.select([handle], [], [], 30)[0]:
            raise Problem(f"{name} (pid {pid}) is still there 30 s after SIGKILL")
    finally:
        os.close(handle)
    return True


def enter(pid: int, *command) -> list[str]:
    """The command that runs another one inside a machine, in the same folder."""
    return ["nsenter", "-t", str(pid), "-m", "-u", "-i", "-n", "-p", f"--wdns={os.getcwd()}", "--", *command]


def _inside(pid: int, *command, check: bool = True) -> subprocess.CompletedProcess:
    """Run a network command in a machine's network, with the host's programs."""
    return call("nsenter", "-t", pid, "-n", *command, check=check)


def _lay_switch(pid: int, address: str) -> None:
    subnet, _ = address.rsplit(".", 1)
    link = _link(subnet)
    _inside(pid, "ip", "link", "add", "eth0", "address", _hardware(address), "type", "bridge")
    call("ip", "link", "add", link, "type", "veth", "peer", "name", "host", "netns", pid)
    _inside(pid, "ip", "link", "set", "host", "master", "eth0", "up")
    call("ip", "address", "add", f"{subnet}.1/24", "dev", link)
    call("ip", "link", "set", link, "up")


def _plug_in(pid: int, name: str, address: str, controller: int) -> None:
    veth = ("type", "veth", "peer", "name", "eth0", "address", _hardware(address), "netns", pid)
    _inside(controller, "ip", "link", "delete", name, check=False)  # of before a power cut
    _inside(controller, "ip", "link", "add", name, *veth)
    _inside(controller, "ip", "link", "set", name, "master", "eth0", "up")


def _hardware(address: str) -> str:
    """A machine's own for good: others remember it, and would send to an old one for up to 30 s.

    A bridge's changes with its ports unless it is given one.
    """
    return "02:00" + "".join(f":{int(part):02x}" for part in address.split("."))


def _link(subnet: str) -> str:
    _, second, third = subnet.split(".")
    return f"sandbox{(int(second) - 18) * 256 + int(third)}"


def free_subnet(directory: Path) -> str:
    """ "198.18.5", ...: a network of 198.18.0.0/15 (RFC 2544, for tests) that this host has no route to."""
    first = zlib.crc32(os.fsencode(directory))
    for number in range(first, first + 512):
        subnet = f"198.{18 + number % 512 // 256}.{number % 256}"
        if not call("ip", "-4", "route", "show", "root", f"{subnet}.0/24").stdout.strip():
            return subnet
    raise Problem("all 512 networks of 198.18.0.0/15 are in use on this host: take other sandboxes down")


def throttle(directory: Path, name: str, rate: str) -> None:
    """Limit a node's link to `rate` ("200mbit", as tc writes it) each way, or lift the limit ("off")."""
    ends = ((pid_of(directory, name), "eth0"), (pid_of(directory, CONTROLLER), name))
    for pid, device in ends:
        if rate == "off":
            _inside(pid, "tc", "qdisc", "delete", "dev", device, "root", check=False)
        else:
            limit = ("tbf", "rate", rate, "burst", "256kb", "latency", "100ms")
            _inside(pid, "tc", "qdisc", "replace", "dev", device, "root", *limit)
