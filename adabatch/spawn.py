"""A run of several processes: the parent that starts them.

`hardware.processes=N` makes the command a parent of N fresh processes; torchrun and srun are such parents
themselves. What the processes do towards each other: `lead.py`.
"""

import contextlib
import logging
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from adabatch import owner, places, runs, signals
from adabatch.errors import RankLost
from adabatch.outcome import outcome
from adabatch.signals import Forward, Stop, name

GRACE = 45.0  # seconds in which the others end by themselves when one process has ended by an error

log = logging.getLogger("adabatch")


def death(code: int) -> str:
    """What an exit code without any message tells."""
    if code >= 0:
        return f"exited with code {code} without a word"
    return f"killed by {name(-code)}{', out of memory?' if code == -signal.SIGKILL else ''}"


def fresh(job: tuple, named=(), environment=None, descriptors=()) -> subprocess.Popen:
    """A new process with a process group of its own that runs `jobs.run_job(*job, places=named)`."""
    paths = {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    with signals.held():  # until `jobs.child` has handlers
        process = subprocess.Popen(
            [sys.executable, "-c", "from adabatch.jobs import child; child()"],
            stdin=subprocess.PIPE,
            env={**os.environ, **paths, **(environment or {})},
            process_group=0,
            pass_fds=descriptors,
        )
    payload = {"job": job, "named": tuple(named), "parent": os.getpid(), "argv": sys.argv}
    with contextlib.suppress(BrokenPipeError), process.stdin as pipe:
        pickle.dump(payload, pipe)
    return process


def supervise(job: tuple, count: int, stop: Stop, named, command: str) -> tuple[int, str | None]:
    """Starts `count` processes on the job and waits for them: (exit code, the last words that rank 0 owed).

    job: config, folder, overrides, notes. stop: this process's own, which may have been told already. named:
    Hydra's own overrides that name folders. command: how to resume.
    """
    children = []
    log.info(f"starting {count} processes")
    with Forward() as forward:
        try:
            with socket.create_server(("127.0.0.1", 0)) as listening:
                for rank in range(count):
                    children.append(fresh(job, named, *places.of_local(rank, count, listening)))
                    if stop.reason or forward.count:
                        break
            forward.to(*(child.send_signal for child in children))
            if stop.reason and not forward.count:
                for child in children:
                    child.send_signal(getattr(signal, stop.reason))
            broken = _watch(children)
        finally:
            for child in children:
                if child.poll() is None:  # only where this function itself failed
                    child.kill()
                child.wait()
        told = bool(stop.reason or forward.count)
        stop.told = stop.reason = signals.stronger(stop.reason, forward.reason)
    return _verdict(children, Path(job[1]), broken, told, command)


def _watch(children: list) -> str | None:
    """Until all have ended; what was first to go wrong. Who has not ended GRACE seconds later is killed."""
    broken, deadline, left = None, None, dict(enumerate(children))
    while left:
        for rank, child in list(left.items()):
            if (code := child.poll()) is None:
                continue
            del left[rank]
            if code < 0:
                message = f"rank {rank} was {death(code)}"
                log.error(message)
                broken = broken or message
            # A rank that was stopped (130) waits for nobody, but rank 0 may be saving for all.
            if deadline is None and (rank == 0 or code not in (0, 130)):
                deadline = time.monotonic() + GRACE
        over = deadline is not None and (time.monotonic() > deadline or all(map(stopped, left.values())))
        if left and over:
            words = f"rank {', '.join(map(str, left))} did not end by itself and is killed"
            broken = broken or words
            log.error(words)
            for child in left.values():
                child.kill()
            deadline = float("inf")
        time.sleep(0.05)
    return broken


def stopped(child) -> bool:
    """Whether a process was halted by SIGSTOP: it cannot end by itself. Linux only."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    return False


def _verdict(children, folder: Path, broken: str | None, told: bool, command: str) -> tuple[int, str | None]:
    """The exit code of the whole; an end that rank 0 could not record is recorded here."""
    code, pid = children[0].returncode, children[0].pid
    state = None
    with contextlib.suppress(Exception):
        status = runs.Run(folder).status or {}
        state = status.get("state") if (status.get("owner") or {}).get("pid") == pid else None
    if code >= 0 and state != "running":
        return code, None
    state, code, message = outcome(RankLost(broken or f"rank 0 {death(code)}"), folder, command)
    if told:
        state, code = "interrupted", 130
    with contextlib.suppress(Exception):
        if owner.mark(folder, pid, state, message):
            return code, message
    return code, None
