"""Which process of how many this is, read from what started it. No torch.

torchrun says so in RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT; srun in the variables of the
job *step* (a batch script has SLURM_PROCID=0 and SLURM_NTASKS=N too, and is one process: only the step
counts); `hardware.processes=N` in those of torchrun and ADABATCH_LOCAL. Without any of them there is one
process.
"""

import os
import re
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from adabatch import slurm
from adabatch.errors import UserError

TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
LISTEN, LOCAL = "ADABATCH_LISTEN_FD", "ADABATCH_LOCAL"  # set for the processes that we start ourselves
PORTS = range(12000, 32000)  # for SLURM steps; below the ports that Linux gives to outgoing connections


@dataclass(frozen=True)
class Place:
    """One process among `world`.

    kind: single, local (started by us), torchrun, slurm. rank: among all; local: on its host, of local_world.
    address, port: where rank 0's store is met. listening: descriptor of a socket that already listens there.
    """

    kind: str
    rank: int
    world: int
    local: int
    local_world: int
    address: str
    port: int
    listening: int | None = None


def detect(env=os.environ) -> Place:
    """This process's place. UserError where the environment is incomplete or contradicts itself."""
    step = "SLURM_STEP_ID" in env and "SLURM_STEP_NUM_TASKS" in env
    step = step and _number(env, "SLURM_STEP_NUM_TASKS", 1) > 1
    # Scripts for srun often export WORLD_SIZE and MASTER_ADDR for programs that take only their rank from
    # SLURM.
    given = [name for name in ("RANK", "LOCAL_RANK") + ("WORLD_SIZE",) * (not step) if env.get(name)]
    if given:
        return _torchrun(env, given)
    if step:
        return _slurm(env)
    return Place("single", 0, 1, 0, 1, "127.0.0.1", 0)


def of_local(rank: int, count: int, listening: socket.socket) -> tuple[dict, tuple]:
    """(variables, open descriptors) of one of `count` ranks on this machine. listening: where they meet; rank
    0 gets the open socket, so that nobody else can take the port meanwhile."""
    found = {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(listening.getsockname()[1]),
        LOCAL: "1",
    }
    if rank:
        return found, ()
    return found | {LISTEN: str(listening.fileno())}, (listening.fileno(),)


def manager(env=os.environ) -> str | None:
    """Who tells this process by signals that its job will be ended, and can start it again: "slurm" (a step),
    "local" (submitit's executor), or None.

    torchrun ends its processes itself. In a terminal (srun --pty bash) there is a user, who wants an answer.
    """
    if any(env.get(name) for name in ("RANK", "LOCAL_RANK")) and env.get(LOCAL) != "1":
        return None
    if env.get("SUBMITIT_EXECUTOR") == "local" and env.get("SUBMITIT_LOCAL_JOB_ID"):
        return "local"
    if "SLURM_STEP_ID" in env and not (sys.stdin and sys.stdin.isatty()):
        return "slurm"
    return None


def job_id(env=os.environ) -> str | None:
    """The job that this process belongs to: SLURM's, or that of submitit's local executor."""
    return env.get("SUBMITIT_LOCAL_JOB_ID") if manager(env) == "local" else slurm.job_id(env)


def _torchrun(env, given) -> Place:
    missing = [name for name in TORCHRUN if not env.get(name)]
    if missing:
        raise UserError(
            f"a process of several needs all of {', '.join(TORCHRUN)}; {', '.join(given)} "
            f"{'is' if len(given) == 1 else 'are'} set and {', '.join(missing)} not. Start it with torchrun, "
            f"srun or hardware.processes=N, or take the variables away: unset {' '.join(given)}"
        )
    world = _number(env, "WORLD_SIZE", 1)
    rank = _number(env, "RANK", 0, world, "WORLD_SIZE")
    local = _number(env, "LOCAL_RANK", 0)
    several = _number(env, "LOCAL_WORLD_SIZE", 1) if env.get("LOCAL_WORLD_SIZE") else max(1, local + 1)
    if local >= several or several > world:
        raise UserError(
            f"LOCAL_RANK counts below LOCAL_WORLD_SIZE, and that is at most WORLD_SIZE; got "
            f"LOCAL_RANK={local}, LOCAL_WORLD_SIZE={several}, WORLD_SIZE={world}"
        )
    port = _number(env, "MASTER_PORT", 1, 65536)
    ours = bool(env.get(LISTEN)) or env.get(LOCAL) == "1"
    listening = _number(env, LISTEN, 0) if rank == 0 and env.get(LISTEN) else None
    kind = "local" if ours else "torchrun"
    return Place(kind, rank, world, local, several, env["MASTER_ADDR"], port, listening)


def _slurm(env) -> Place:
    world = _number(env, "SLURM_STEP_NUM_TASKS", 1)
    missing = [name for name in ("SLURM_PROCID", "SLURM_LOCALID") if not env.get(name)]
    if not env.get("MASTER_ADDR") and not env.get("SLURM_STEP_NODELIST"):
        missing.append("SLURM_STEP_NODELIST")
    if missing:
        raise UserError(
            f"this is a SLURM step of {world} tasks (SLURM_STEP_NUM_TASKS), but {', '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} not set: start it with srun, or run it as one "
            "process with "
            "srun -n1"
        )
    rank = _number(env, "SLURM_PROCID", 0, world, "SLURM_STEP_NUM_TASKS")
    if env.get("WORLD_SIZE") and _number(env, "WORLD_SIZE", 1) != world:
        raise UserError(
            f"WORLD_SIZE={env['WORLD_SIZE']} is set in a SLURM step of {world} tasks (SLURM_STEP_NUM_TASKS). "
            "Take it away (unset WORLD_SIZE) or start as many tasks: srun -n"
        )
    local = _number(env, "SLURM_LOCALID", 0)
    if env.get("MASTER_PORT"):
        port = _number(env, "MASTER_PORT", 1, 65536)
    else:  # a function of the step, so that all its tasks find it and two steps seldom meet
        digits = [int(n) for n in re.findall(r"\d+", f"{env.get('SLURM_JOB_ID', 0)} {env['SLURM_STEP_ID']}")]
        port = PORTS[(digits[0] * 7 + sum(digits[1:]) * 101) % len(PORTS)]
    counts = tasks_per_node(env.get("SLURM_STEP_TASKS_PER_NODE", ""))
    node = env.get("SLURM_NODEID", "")
    here = counts[int(node)] if node.isdecimal() and int(node) < len(counts) else local + 1
    address = env.get("MASTER_ADDR") or first_host(env["SLURM_STEP_NODELIST"])
    return Place("slurm", rank, world, local, max(here, local + 1), address, port)


def _number(env, name: str, least: int, end: int | None = None, of: str = "") -> int:
    """The variable as an integer from `least`, below `end` (the value of the variable `of`)."""
    text = env.get(name, "")
    value = int(text) if text.isascii() and text.isdecimal() else None
    if value is None or value < least or (end is not None and value >= end):
        limit = f" and below {of + '=' if of else ''}{end}" if end is not None else ""
        raise UserError(
            f"{name} is an integer from {least}{limit}, got {text!r}. torchrun and srun set it; set by "
            "hand, it "
            f"must agree in all processes"
        )
    return value


def first_host(nodes: str) -> str:
    """The first host of a SLURM list: "rack[1-2]node[03,5],x" -> "rack1node03"."""
    bare = re.sub(r"\[([^\],-]*)[^\]]*\]", r"\1", nodes)
    return bare.split(",")[0]


def tasks_per_node(text: str) -> list[int]:
    """SLURM's "2(x3),1" as [2, 2, 2, 1]; [] where it is not written so."""
    parts = [re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part) for part in text.split(",")]
    return [int(p[1]) for p in parts for _ in range(int(p[2] or 1))] if all(parts) else []


def agree(place: Place, hardware_node) -> None:
    """UserError where `hardware.processes` is set and another number of processes was started.

    hardware_node: the configuration's `hardware`, or None. One process may still start the others itself.
    """
    asked = (hardware_node or {}).get("processes")
    if place.kind != "single" and asked is not None and asked != place.world:
        by = {"slurm": "srun", "torchrun": "torchrun", "local": "the starting process"}[place.kind]
        raise UserError(
            f"hardware.processes is null or the number of processes that were started, got {asked} in a "
            "run of "
            f"{place.world} started by {by}. Leave it out, or start {asked}"
        )


def started(pid: int) -> str | None:
    """When the process began, as a text that no later process with this number shares; None when it is gone.

    Linux: the boot and the clock tick from /proc (a zombie counts as gone). Elsewhere: `ps`.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()[:8]
        return None if fields[0] in "ZX" else f"{boot}-{fields[19]}"
    except OSError:
        if Path("/proc/self/stat").exists():
            return None
    answer = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True)
    return answer.stdout.strip() or None
