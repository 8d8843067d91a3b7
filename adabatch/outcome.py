"""What ended a run, as a state, an exit code and a message that says what to do."""

import contextlib
import errno
import os
import shlex
import shutil
from pathlib import Path

from adabatch import runs, suggestions
from adabatch.errors import (
    Diverged,
    HandOver,
    Interrupted,
    Lost,
    OutOfMemory,
    RankLost,
    UserError,
    is_out_of_memory,
)
from adabatch.owner import FULL
from adabatch.places import manager
from adabatch.signals import AGAIN, END

DISK_FULL = "disk full"  # how its message begins


def outcome(error: BaseException, folder, command: str) -> tuple[str | None, int, str]:
    """(state, exit code, message) for what ended a run; state None when the folder is no longer ours."""
    text = f"{type(error).__name__}: {error}"
    again = f"Resume with the same command:\n  {command}"
    if isinstance(error, Lost):
        return None, 1, str(error)
    if isinstance(error, UserError):
        return "failed", 2, str(error)
    if isinstance(error, Diverged):
        return "diverged", 1, str(error)
    if lost_host(error):
        return "preempted", 130, f"{error}\nThe job queues itself again, on other hosts. {again}"
    if isinstance(error, RankLost):
        return "failed", 1, f"{error}\nNothing before the last checkpoint is lost. {again}"
    # Only SLURM ends a job itself after SIGTERM, and starts it again if it was preempted.
    if isinstance(error, HandOver):
        return "submitted", 0, f"{error}: this job hands over to the next"
    if isinstance(error, Interrupted) and (str(error), manager()) in (
        (AGAIN, "slurm"), (AGAIN, "local"), (END, "slurm"),
    ):  # fmt: skip
        return "preempted", 130, preempted(str(error), again)
    if isinstance(error, Interrupted):
        return "interrupted", 130, f"stopped ({error}), everything is saved. {again}"
    if isinstance(error, KeyboardInterrupt):
        return (
            "interrupted",
            130,
            f"stopped at once, what was done since the last checkpoint is lost. {again}",
        )
    if full(error, folder):
        return (
            "failed",
            1,
            f"{DISK_FULL} ({folder}): nothing before the last checkpoint is lost. Free some space. {again}",
        )
    if isinstance(error, OutOfMemory):
        return "out_of_memory", 1, f"{error}. {again}"
    if is_out_of_memory(error):
        remedy = "A smaller hardware.micro_batch changes nothing but the memory it takes."
        return "out_of_memory", 1, f"out of memory ({text.splitlines()[0]}). {remedy} {again}"
    if "does not have a deterministic implementation" in str(error):
        remedy = "hardware.deterministic=false runs it, and then repeated runs differ in their last bits."
        return (
            "failed",
            1,
            f"an operation of this network has no deterministic form on the GPU: {text}. {remedy}",
        )
    return "failed", 1, f"failed: {text}\nlog: {Path(folder) / 'log.txt'}"


def lost_host(error: BaseException | None) -> bool:
    """Whether a job of SLURM has lost a host, which SLURM itself may see many minutes later."""
    return isinstance(error, RankLost) and error.away and manager() == "slurm"


def reason(error: BaseException | None) -> str | None:
    """Why a process ends, for `requeue.leave`: the signal that it was told, or one that stands for it."""
    return str(error) if isinstance(error, Interrupted) else AGAIN if lost_host(error) else None


def preempted(told: str, again: str) -> str:
    """The message of a run whose job will be ended by its manager (`requeue.py`)."""
    if told == AGAIN:
        return f"told that the job will end ({told}), everything is saved; the job queues itself again"
    return (
        f"told to end ({told}), everything is saved. A preempted job comes back by itself; a cancelled "
        "one does not. "
        f"{again}"
    )


def ended(status: dict, code: int) -> Exception:
    """The error that stands for the end of a run in other processes: its status.json, its exit code."""
    message = status.get("error") or "see the messages above"
    known = {"diverged": Diverged, "interrupted": Interrupted}
    return UserError(message) if code == 2 else known.get(status.get("state"), RuntimeError)(message)


def traced(error: BaseException, code: int, folder) -> bool:
    """Whether a traceback tells more than the message: for failures of the program only."""
    told = isinstance(error, (Diverged, RankLost)) or not isinstance(error, Exception)
    return code == 1 and not told and not full(error, folder)


def full(error: BaseException | None, folder) -> bool:
    """Whether a full disk is behind the error. torch.save reports one as a RuntimeError of its zip writer."""
    seen = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if (isinstance(error, OSError) and error.errno in FULL) or os.strerror(errno.ENOSPC) in str(error):
            return True
        if isinstance(error, RuntimeError) and "PytorchStreamWriter" in str(error):
            with contextlib.suppress(OSError):
                if shutil.disk_usage(folder).free < 64 << 20:
                    return True
        error = error.__cause__ or error.__context__
    return False


def figures(summary: dict) -> str:
    """The end of a run in a line; figures that the summary lacks are left out."""
    parts = []
    for key, words in (("final_test_error", "test error"), ("final_validation_error", "validation error")):
        if isinstance(value := summary.get(key), (int, float)):
            parts.append(f"{words} {100 * value:.2f} %")
    if isinstance(value := summary.get("final_train_loss"), (int, float)):
        parts.append(f"training loss {value:.4g}")
    if isinstance(value := summary.get("epochs_trained", summary.get("epochs")), (int, float)):
        parts.append(f"{value:g} epochs, {summary.get('steps', 0):,} steps")
    if isinstance(value := summary.get("train_seconds"), (int, float)):
        parts.append(f"{value:.1f} s of training")
    if isinstance(value := summary.get("images_per_second"), (int, float)):
        parts.append(f"{value:,.0f} samples/s")
    return " · ".join(parts) or "done"


def next_steps(folder: Path, command: str) -> str:
    """Where the report lies, and the command that compares this run's schedule with fixed batches. command:
    the one that resumes the run."""
    lines = [f"report: {folder / 'report.html'}"] if (folder / "report.html").is_file() else []
    run, typed = runs.Run(folder), shlex.split(command)
    if words := suggestions.comparison(run.overrides, run.config or {}, run.summary or {}):
        own = typed.index("--config-dir") if "--config-dir" in typed else len(typed)  # of the user's options
        lines.append(f"compare: {shlex.join([*words, *typed[own : own + 2]])}")
    return "\n".join(lines)
