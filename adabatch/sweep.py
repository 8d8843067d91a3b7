"""Multirun with Hydra's own launcher: every job in a process of its own, one after the other, or
hardware.parallel_runs of them at once; with hardware.own_process=false all in this one.

A job that fails, exits or is killed is recorded, and the others go on. A job is forked, which saves importing
torch once more, only from a parent in which torch is imported and untouched; otherwise a fresh process is
started.
"""

import contextlib
import logging
import math
import os
import re
import signal
import sys
import threading
import traceback
from pathlib import Path

from adabatch import jobs, labels, owner, processes, runs, spawn
from adabatch.environment import before_torch
from adabatch.pool import Pool
from adabatch.signals import Stop, die_with_parent

log = logging.getLogger("adabatch")
records: list[dict] = []  # what became of the jobs of this process's multirun, in order
accepted = {"finished"}  # states that are no failure of the multirun; a comparison records others as outcomes
epilogue: list = []  # what is called after the table
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


def run_isolated(config: dict, folder, overrides, notes=(), fork: bool | None = None, named=()) -> dict:
    """One job in its own process; appends to `records` and returns what became of it. Never raises for the
    job.

    With hardware.parallel_runs above 1 it returns while the job runs (state "running"), as soon as fewer jobs
    than that do; `drain` waits for the rest. fork: None decides by may_fork. named: Hydra's own overrides
    that belong to the command that goes on with this job alone. KeyboardInterrupt after all children have
    ended, when this process was told to stop. OSError where the process could not be started.
    """
    folder, overrides = Path(folder), list(overrides)
    if (config.get("hardware") or {}).get("own_process") is False:
        return _here(config, folder, overrides, notes, named)
    if fork is None:
        if sys.platform == "linux":
            import_torch()
        fork = may_fork(config)
    most = parallel(config)
    pool.room(most)
    number = len(records)
    log.info(f"job {number}: {label(overrides) or 'defaults'}")
    record = {"overrides": overrides, "folder": str(folder), "state": "running", "error": None,
              "exit_code": None, "summary": None}  # fmt: skip
    pool.start(
        record, _fork if fork else _fresh, (config, folder, overrides, tuple(notes), tuple(named)), most
    )
    records.append(record)  # not before: one that could not be started would be "running" for ever
    if most == 1:
        drain()
    return record


def parallel(config: dict) -> int:
    """Jobs of a multirun that may run at once on this machine."""
    return (config.get("hardware") or {}).get("parallel_runs") or 1


def forget(record: dict) -> None:
    """A job that is no longer this multirun's: another process has done it, or it is begun anew."""
    records[:] = [other for other in records if other is not record]


def drain() -> None:
    """Waits for the jobs that still run. KeyboardInterrupt where this process was told to stop."""
    while pool.jobs:
        pool.wait_for_one()


def _here(config, folder, overrides, notes, named) -> dict:
    """The job in this process, which has what the one before it left: torch at work, the data, a GPU's
    context. KeyboardInterrupt where it was told to stop."""
    log.info(f"job {len(records)}: {label(overrides) or 'defaults'}")
    with contextlib.suppress(OSError):  # Linux: the peak of memory is that of this job
        Path("/proc/self/clear_refs").write_text("5")
    with Stop() as stop:
        code = jobs.run_job(config, folder, overrides, notes, stop=stop, places=named)[1]
    records.append(_record(folder, overrides, code, os.getpid(), stop.reason is not None))
    if code == 130:
        raise KeyboardInterrupt
    return records[-1]


def _fork(config, folder, overrides, notes, named, forward):
    parent = os.getpid()
    sys.stdout.flush()
    sys.stderr.flush()
    # Held back until the child has its own handlers: a signal in between would reach the parent's copies.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        pid = os.fork()
    except OSError:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        raise
    if pid == 0:
        code = 1
        try:
            os.setpgid(0, 0)
            forward.restore()
            with Stop() as stop:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
                die_with_parent(parent)
                code = jobs.run_job(config, folder, overrides, notes, stop=stop, places=named)[1]
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
    ended = []

    def poll() -> int | None:
        if not ended and (found := os.waitpid(pid, os.WNOHANG))[0]:
            ended.append(os.waitstatus_to_exitcode(found[1]))
        return ended[0] if ended else None

    return pid, poll


def _fresh(config, folder, overrides, notes, named, _forward):
    process = spawn.fresh((config, str(folder), overrides, notes), named)
    return process.pid, process.poll


def _record(folder: Path, overrides: list, code: int, pid: int, told_to_stop: bool) -> dict:
    """What became of a job, from its exit code and its folder; a death without a word is written into
    status.json."""
    summary, error, state, held = None, None, None, None
    with contextlib.suppress(Exception):
        run = runs.Run(folder)
        status = run.status or {}
        state, error = status.get("state"), status.get("error")
        summary = run.summary
        held = owner.in_use(folder)
    if code == 0 and summary is not None:
        state, error = "finished", None  # another process may have claimed it since, only to find that
    elif code == 2 and held:
        state, error = "in use", "another process has its folder, see above"
    elif code == 2 and state != "failed":
        state, error = "refused", "see above"
    elif code < 0 or state == "running" or (state in (None, "finished") and code not in (0, 2)):
        why = spawn.death(code)
        ours = "interrupted" if told_to_stop else "failed"
        with contextlib.suppress(Exception):
            if owner.mark(folder, pid, ours, why):
                state, error = ours, why
        if state == "running" or state is None:
            state, error = ours, why
        log.error(f"{label(overrides) or 'defaults'}: {why}" + ("" if told_to_stop else "; the others go on"))
        code = 130 if told_to_stop else (code or 1)
    summary = summary if state == "finished" else None
    return {"overrides": overrides, "folder": str(folder), "state": state, "error": error,
            "exit_code": code, "summary": summary}  # fmt: skip


def label(overrides: list[str]) -> str:
    """A job's overrides in a line; of a comparison's job what tells it from the others."""
    return labels.brief(overrides) or " ".join(overrides)


def table(found: list[dict]):
    """All jobs of a multirun as a rich table: what distinguishes them, state, error, seconds, folder. The
    jobs of a comparison have long names in one folder: its place is told once, and of each the end, by which
    a shell finds it."""
    from rich.table import Table

    compared = all(labels.named(r["overrides"]) for r in found)
    at = {os.path.dirname(r["folder"]) for r in found} if compared else set()
    ends = [re.search(r"-[0-9a-f]{8}$", r["folder"]) for r in found]
    brief = len(at) == 1 and all(ends)
    found = [{**r, "overrides": [label(r["overrides"])]} for r in found] if compared else found
    if brief:
        found = [{**r, "folder": f"*{end[0]}"} for r, end in zip(found, ends)]
    common = set.intersection(*(set(r["overrides"]) for r in found)) if len(found) > 1 else set()
    more = f", all with {' '.join(sorted(common))}" if common else f" in {at.pop()}" if brief else ""
    result = Table(title=f"{len(found)} job{'s' * (len(found) != 1)}{more}")
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


pool = Pool(_record)


def score(record: dict) -> float | None:
    """What a sweeper that searches (Optuna) makes smaller: the validation error, infinite for a run that
    broke down by what was chosen for it."""
    if record["state"] in ("diverged", "out_of_memory"):
        return math.inf
    return (record["summary"] or {}).get("final_validation_error")


def show() -> int:
    """Prints the table of this process's multirun and returns the exit code: 1 if any job failed, or what
    came after the table failed with."""
    if records:
        _show()
    failed = int(any(record["state"] not in accepted for record in records))
    return max([failed, *(more() or 0 for more in epilogue)])


def _show() -> None:
    from rich.console import Console

    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console = Console(width=200, highlight=False, markup=False)  # a file has no width to keep to
    console.print(table(records))
    for number, record in enumerate(records):
        if record["error"]:
            first = record["error"].splitlines()[0].partition(" Resume with")[0]  # by the sweep's command
            console.print(f"job {number}: {first}")
