"""Multirun with Hydra's own launcher: every job in a process of its own, one after the other.

A job that fails, exits or is killed is recorded, and the others go on. A job is forked, which saves importing
torch once more, only from a parent in which torch is imported and untouched; otherwise a fresh process is
started.
"""

import contextlib
import logging
import os
import signal
import sys
import threading
import traceback
from pathlib import Path

from adabatch import jobs, owner, processes, runs, spawn
from adabatch.environment import before_torch
from adabatch.signals import Forward, Stop, die_with_parent

log = logging.getLogger("adabatch")
records: list[dict] = []  # what became of the jobs of this process's multirun, in order
_threads_after_import: int | None = None  # native threads when torch had just been imported


def native_threads() -> int | None:
    """Threads of this process as the kernel counts them (OpenMP's and CUDA's too); None where it cannot be
    asked."""
    try:
        return len(os.listdir("/proc/self/task"))
    except OSError:
        return None


def import_torch() -> None:
    """Imports torch for the jobs to share, and notes how many threads that left."""
    global _threads_after_import
    if _threads_after_import is None:
        before_torch()
        import torch  # noqa: F401

        _threads_after_import = native_threads()


def may_fork(config: dict) -> bool:
    """Whether a forked child is sure to work: torch imported, no operator run, no thread, no CUDA, no W&B
    run.

    Operators start OpenMP's threads, which a fork would lose; so their count must be what it was after the
    import. A class of the user's own may do anything when its module is imported, so it gets a fresh process.
    """
    torch, wandb = sys.modules.get("torch"), sys.modules.get("wandb")
    return (
        sys.platform == "linux"
        and torch is not None
        and _threads_after_import is not None
        and native_threads() == _threads_after_import
        and threading.active_count() == 1
        and not torch.cuda.is_initialized()
        and getattr(wandb, "run", None) is None
        and all(t.startswith(("adabatch.", "torch.nn.functional.")) for t in processes.targets(config))
    )


def run_isolated(config: dict, folder, overrides, notes=(), fork: bool | None = None) -> dict:
    """One job in its own process; appends to `records` and returns what became of it. Never raises for the
    job.

    fork: None decides by may_fork. KeyboardInterrupt after the child has ended, when this process was told to
    stop.
    """
    folder = Path(folder)
    if fork is None:
        if sys.platform == "linux":
            import_torch()
        fork = may_fork(config)
    log.info(f"job {len(records)}: {' '.join(overrides) or 'defaults'}")
    start = _fork if fork else _fresh
    with Forward() as forward:
        pid, wait = start(config, folder, list(overrides), tuple(notes), forward)
        forward.to(lambda number: os.kill(pid, number))
        code = wait()
    record = _record(folder, list(overrides), code, pid, forward.count > 0)
    records.append(record)
    if forward.count or record["exit_code"] == 130:
        raise KeyboardInterrupt
    return record


def _fork(config, folder, overrides, notes, forward):
    parent = os.getpid()
    sys.stdout.flush()
    sys.stderr.flush()
    # Held back until the child has its own handlers: a signal in between would reach the parent's copies.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.setpgid(0, 0)
            forward.restore()
            with Stop() as stop:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
                die_with_parent(parent)
                code = jobs.run_job(config, folder, overrides, notes, stop=stop)[1]
        except BaseException as error:
            code = error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else 1
            traceback.print_exc()
        finally:
            with contextlib.suppress(BaseException):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)
    with contextlib.suppress(OSError):  # the child does the same; whoever is first
        os.setpgid(pid, pid)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return pid, lambda: os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _fresh(config, folder, overrides, notes, _forward):
    process = spawn.fresh((config, str(folder), overrides, notes))
    return process.pid, process.wait


def _record(folder: Path, overrides: list, code: int, pid: int, told_to_stop: bool) -> dict:
    """What became of a job, from its exit code and its folder; a death without a word is written into
    status.json."""
    summary, error, state = None, None, None
    with contextlib.suppress(Exception):
        run = runs.Run(folder)
        status = run.status or {}
        state, error = status.get("state"), status.get("error")
        summary = run.summary
    if code < 0 or state == "running" or (state in (None, "finished") and code not in (0, 2)):
        why = spawn.death(code)
        ours = "interrupted" if told_to_stop else "failed"
        with contextlib.suppress(Exception):
            if owner.mark(folder, pid, ours, why):
                state, error = ours, why
        if state == "running" or state is None:
            state, error = ours, why
        log.error(
            f"job {len(records)}: {why}; the others go on"
            if not told_to_stop
            else f"job {len(records)}: {why}"
        )
        code = 130 if told_to_stop else (code or 1)
    elif code == 2 and state != "failed":
        state, error = "refused", "see above"
    summary = summary if state == "finished" else None
    return {"overrides": overrides, "folder": str(folder), "state": state, "error": error,
            "exit_code": code, "summary": summary}  # fmt: skip


def table(found: list[dict]):
    """All jobs of a multirun as a rich table: what distinguishes them, state, error, seconds, folder."""
    from rich.table import Table

    common = set.intersection(*(set(r["overrides"]) for r in found)) if len(found) > 1 else set()
    result = Table(title=f"{len(found)} jobs" + (f", all with {' '.join(sorted(common))}" if common else ""))
    for name, justify in (("job", "right"), ("overrides", "left"), ("state", "left"), ("error", "right"),
                          ("seconds", "right"), ("folder", "left")):  # fmt: skip
        result.add_column(name, justify=justify, overflow="fold")
    for number, record in enumerate(found):
        summary = record["summary"] or {}
        error, seconds = summary.get("final_test_error"), summary.get("train_seconds")
        state = (
            record["state"] if record["state"] == "finished" else f"{record['state']} ({record['exit_code']})"
        )
        result.add_row(
            str(number),
            " ".join(o for o in record["overrides"] if o not in common) or "-",
            state,
            "-" if error is None else f"{100 * error:.2f} %",
            "-" if seconds is None else f"{seconds:.1f}",
            record["folder"],
        )
    return result


def show() -> int:
    """Prints the table of this process's multirun and returns the exit code: 1 if any job failed."""
    from rich.console import Console

    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console = Console(width=200, highlight=False, markup=False)  # a file has no width to keep to
    console.print(table(records))
    for number, record in enumerate(records):
        if record["error"]:
            console.print(f"job {number}: {record['error'].splitlines()[0]}")
    return int(any(record["state"] != "finished" for record in records))
