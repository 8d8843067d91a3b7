#!/usr/bin/env python3
"""A SLURM cluster on one machine, to try and to test: `sandbox.py up DIR`. See README.md.

Needs Linux, root and Debian's packages of SLURM; of Python the standard library only.
"""

import argparse
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import machines
import settings
from machines import CONTROLLER, PATH, Problem

PACKAGES = {
    "slurmctld": "slurmctld",
    "slurmd": "slurmd",
    "srun": "slurm-client",
    "munged": "munge",
    "ip": "iproute2",
    "unshare": "util-linux",
}
DEFAULTS = {"nodes": 4, "cpus": 8, "gpus": 4, "grace": 10, "timeout": 10, "user_signal": True}
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
GOOD = ("idle", "mixed", "allocated", "completing")  # states of a node that works


class Missing(Problem):
    """The machine has not got what a sandbox needs."""


def missing() -> str | None:
    """What keeps a sandbox from running here, with the remedy; None if nothing."""
    if os.geteuid() != 0:
        return "a sandbox needs root, to make namespaces and network links: run it with sudo"
    packages = {package: name for name, package in PACKAGES.items() if not shutil.which(name, path=PATH)}
    if packages:
        absent = ", ".join(packages.values())
        return f"{absent} missing: apt-get install --no-install-recommends {' '.join(packages)}"
    probe = ("mount", "-t", "tmpfs", "tmpfs", "/dev/shm")
    denied = machines.call("unshare", *machines.NAMESPACES, *probe, check=False)
    if denied.returncode:
        why = denied.stderr.strip()
        return f"no namespaces can be made here ({why}): in Docker, start the container with --privileged"
    return None


def up(directory: Path, asked: dict) -> int:
    """Start what is not running; the number of nodes. `asked`: the options that were given."""
    if problem := missing():
        raise Missing(problem)
    settings.check_place(directory)
    if not 1 <= asked.get("nodes", 1) <= 99:
        raise Problem(f"--nodes={asked['nodes']}: a sandbox has 1 to 99")
    os.umask(0o022)  # others than root may use it
    directory.mkdir(parents=True, exist_ok=True)
    with settings.locked(directory):
        known = settings.stored(directory).get("options", {})
        options = DEFAULTS | known | asked
        if CONTROLLER not in machines.running(directory):
            _start_all(directory, options)
        elif options == known:
            _start(directory, settings.nodes(directory))
        else:
            raise Problem(f"{directory} is up with other options ({known}): take it down first")
    return options["nodes"]


def _start_all(directory: Path, options: dict) -> None:
    """Controller and nodes; nothing runs afterwards where one of them does not start."""
    _off(directory)  # nodes that outlived a controller hang on no switch
    subnet = machines.free_subnet(directory)
    settings.write(directory, options, subnet)
    try:
        machines.power_on(directory, CONTROLLER, f"{subnet}.2")
        _wait(directory, "the controller", lambda: "is UP" in slurm(directory, "scontrol", "ping"))
        _start(directory, settings.nodes(directory))
    except BaseException:
        _off(directory)
        raise


def start(directory: Path, name: str) -> None:
    """Bring a node back, whether its power was cut or SLURM has it down."""
    address = _address(directory, name)
    with settings.locked(directory):
        _start(directory, {name: address})


def _start(directory: Path, nodes: dict[str, str]) -> None:
    alive = machines.running(directory)
    for name in nodes.keys() - alive.keys():
        machines.power_on(directory, name, nodes[name])
    for name in nodes:
        if state(directory, name) in ("down", "drained", "draining"):  # it answers, but is not to be used
            slurm(directory, "scontrol", "update", f"nodename={name}", "state=resume")
        _wait(directory, name, lambda name=name: state(directory, name) in GOOD)


def cut(directory: Path, name: str) -> None:
    _address(directory, name)
    machines.power_off(directory, name)


def throttle(directory: Path, name: str, rate: str) -> None:
    nodes = settings.nodes(directory)
    alive = machines.running(directory)
    for one in nodes.keys() & alive.keys() if name == "all" else [name]:
        _address(directory, one)
        machines.throttle(directory, one, rate)


def execute(directory: Path, name: str, command: list[str]) -> None:
    if name != CONTROLLER:
        _address(directory, name)
    command = machines.enter(machines.pid_of(directory, name), *command)
    os.execvpe(command[0], command, _environment(directory))


def _address(directory: Path, name: str) -> str:
    nodes = settings.nodes(directory)
    if name not in nodes:
        raise Problem(f"there is no node {name!r}: the nodes are {', '.join(nodes)}")
    return nodes[name]


def down(directory: Path, purge: bool) -> None:
    if settings.is_foreign(directory):
        raise Problem(f"{directory} holds something else: nothing was touched")
    ended = _off(directory)
    if purge and settings.is_sandbox(directory):
        shutil.rmtree(directory)
    print(f"down: {ended} machines stopped" if ended else f"nothing was up in {directory}")


def _off(directory: Path) -> int:
    """Nodes first, the controller last."""
    names = sorted(machines.running(directory), key=lambda name: name == CONTROLLER)
    return sum(machines.power_off(directory, name) for name in names)


def hold(directory: Path, nodes: int) -> None:
    """Wait for the end of standard input, a line on it, or a signal; then leave nothing."""
    try:
        say_up(directory, nodes)
        sys.stdin.readline()
    finally:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        down(directory, purge=True)


def say_up(directory: Path, nodes: int) -> None:
    print(f"up: {nodes} nodes; source {shlex.quote(str(directory / 'env.sh'))}", flush=True)


def _environment(directory: Path) -> dict[str, str]:
    return os.environ | {"PATH": PATH, "SLURM_CONF": f"{directory}/etc/slurm.conf"}


def slurm(directory: Path, *command: str) -> str:
    """What one of SLURM's programs answers, or nothing while the controller does not answer."""
    return subprocess.run(command, env=_environment(directory), capture_output=True, text=True).stdout


def state(directory: Path, node: str) -> str:
    """SLURM's long word for it, with a "*" at its end while it does not answer."""
    return slurm(directory, "sinfo", "-h", "-N", "-p", "main", "-n", node, "-o", "%T").strip()


def _wait(directory: Path, what: str, arrived, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not arrived():
        if time.monotonic() > end:
            raise Problem(f"{what} is not up after {seconds:.0f} s: its output is in {directory}/log")
        time.sleep(0.05)


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="sandbox.py", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.add_argument("directory", metavar="DIR", type=lambda path: Path(os.path.realpath(path)))
        return added

    add = command("up", "start the cluster, or what of it is not running; everything it writes is in DIR")
    add.add_argument("--nodes", type=int, help="node1, node2, ... (4)")
    add.add_argument("--cpus", type=int, help="that each node claims to have (8)")
    add.add_argument("--gpus", type=int, help="that each node claims to have; nothing is behind them (4)")
    add.add_argument(
        "--grace", type=int, metavar="SECONDS", help="between a preempted job's SIGTERM and SIGKILL (10)"
    )
    add.add_argument(
        "--timeout", type=int, metavar="SECONDS", help="after which a silent node is taken for lost (10)"
    )
    add.add_argument(
        "--user-signal", action=argparse.BooleanOptionalAction, help="send a preempted job's --signal (yes)"
    )
    add.add_argument(
        "--hold", action="store_true", help="stay; take it down and remove DIR at Ctrl-C or end of input"
    )
    add = command("down", "stop it")
    add.add_argument("--purge", action="store_true", help="remove DIR too")
    command("cut", "cut the power of a node").add_argument("node", metavar="NODE")
    command("start", "bring a node back").add_argument("node", metavar="NODE")
    add = command("throttle", "limit the link of a node, or of all, each way")
    add.add_argument("node", metavar="NODE|all")
    add.add_argument("rate", metavar="RATE|off", help="as tc writes it: 200mbit")
    add = command("exec", "run a command inside a node, or inside the controller")
    add.add_argument("node", metavar="NODE")
    add.add_argument("words", metavar="COMMAND", nargs=argparse.REMAINDER)
    return parser.parse_args(given)


def main() -> None:
    given = arguments()
    try:
        if given.command == "up":
            for number in SIGNALS:
                signal.signal(number, lambda number, frame: sys.exit(128 + number))
            nodes = up(given.directory, {k: v for k in DEFAULTS if (v := getattr(given, k)) is not None})
            (hold if given.hold else say_up)(given.directory, nodes)
        elif given.command == "down":
            down(given.directory, given.purge)
        elif given.command == "throttle":
            throttle(given.directory, given.node, given.rate)
        elif given.command == "exec":
            execute(given.directory, given.node, given.words)
        else:
            {"cut": cut, "start": start}[given.command](given.directory, given.node)
    except Problem as problem:
        print(f"sandbox: {problem}", file=sys.stderr)
        sys.exit(3 if isinstance(problem, Missing) else 1)


if __name__ == "__main__":
    main()
