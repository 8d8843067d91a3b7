"""hardware.processes: what is asked for, what no machine should try, what a user should know; how one of
several processes ends. No torch."""

import atexit
import contextlib
import os
import sys
import time

from adabatch.environment import cores
from adabatch.errors import UserError

PATIENCE = 10.0  # seconds that a process leaves the first of its machine to tell a mistake of all


def asked(config: dict) -> int:
    """Processes that the command itself shall start on this machine; 1 = none but itself."""
    return (config.get("hardware") or {}).get("processes") or 1


def refuse(config: dict) -> None:
    """UserError for processes that this machine or the configuration cannot have, before any is started."""
    count, have = asked(config), cores()
    most = max(16, 8 * have)
    if count > most:
        raise UserError(
            f"hardware.processes is at most {most} on a machine of {have} core(s), got {count}: each takes "
            "0.5 GB for torch alone"
        )
    if own := [name for name in targets(config) if name.startswith("__main__.")]:
        raise UserError(
            f"several processes cannot import {own[0]}, which only this program's main module has: put it "
            "into a module of its own, or take hardware.processes=1"
        )


def targets(node) -> list[str]:
    """All `_target_`s of a configuration."""
    if not isinstance(node, dict):
        return []
    return [v for k, v in node.items() if k == "_target_"] + [t for v in node.values() for t in targets(v)]


def crowded(config: dict, processes: int) -> str | None:
    """A warning where this machine's processes have more threads than it has cores; else None."""
    node, have = config.get("hardware") or {}, cores()
    threads = node.get("threads") or have
    if threads * processes <= have or str(node.get("device")).startswith("cuda"):
        return None
    remedy = f"At most {have} of one thread have a core each"
    if processes <= have:
        fits = max(1, have // processes)
        remedy = f"hardware.threads={fits} would do (another number of threads is another run)"
    return (
        f"{processes} process(es) of {threads} thread(s) on {have} core(s) keep each other waiting. {remedy}"
    )


def tells(place) -> bool:
    """Whether this process says what is wrong with a command line that all processes of its machine got.

    The first does. The others wait before they end: torchrun and srun -K end the rest once one has failed,
    and the first, if it is slower, with them.
    """
    if place.local and place.kind in ("torchrun", "slurm"):
        time.sleep(PATIENCE)
    return place.local == 0


def end(code: int) -> None:
    """Ends this process, one of several, without Python's own finalisation: that ends a thread which waits in
    torch's store or in gloo by unwinding C++ frames, and C++ then aborts the process ("terminate called
    without an active exception")."""
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(code)
