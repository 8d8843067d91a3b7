"""The errors that the command line knows how to report, and the suggestions that go with them."""

import difflib
import sys

# What torch, CUDA and its libraries say, as a RuntimeError, when an allocation fails (in lower case).
NO_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "failed to allocate",
    "_alloc_failed",  # CUBLAS_STATUS_, CUDNN_STATUS_, CUSPARSE_STATUS_, CUFFT
    "_allocation_failed",  # CUDNN_STATUS_INTERNAL_ERROR_DEVICE_
)


class UserError(ValueError):
    """The user's mistake: printed as one message (rule, value received, remedy) without a traceback; exit
    code 2."""


class Diverged(RuntimeError):
    """The loss or the gradient stopped being finite; the message names the position and the setting. Exit
    code 1."""


class Interrupted(RuntimeError):
    """The run was told to stop and has saved its state; the message is the reason. Exit code 130."""


class HandOver(Interrupted):
    """The run has saved its state and goes on in another job, on `processes` processes. Exit code 0."""

    def __init__(self, processes: int):
        super().__init__(f"the next batch suits {processes} processes")
        self.processes = processes


class RankLost(RuntimeError):
    """Another process of this run has died or failed; the message names it, and `rank` where it is known.
    Exit code 1. away: its host is silent, and is not the one where a job of several hosts began."""

    def __init__(self, message: str = "", rank: int | None = None, away: bool = False):
        super().__init__(message)
        self.rank, self.away = rank, away


class Lost(RuntimeError):
    """Another process took the folder over; nothing may be written into it any more."""


class OutOfMemory(MemoryError):
    """The memory does not suffice, and no smaller micro-batch is left; the message is all that needs saying.
    Exit code 1."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on the CPU or a GPU. Our own errors may quote one, and are none."""
    torch = sys.modules.get("torch")
    if isinstance(error, (MemoryError, getattr(torch, "OutOfMemoryError", MemoryError))):
        return True
    ours = type(error).__module__ == __name__
    return isinstance(error, RuntimeError) and not ours and any(w in str(error).lower() for w in NO_MEMORY)


def suggest(word: str, known) -> str:
    """ " Did you mean 'vgg'?" for the known word nearest to `word`, or an empty string where none is near."""
    near = difflib.get_close_matches(str(word), [str(k) for k in known], n=1, cutoff=0.6)
    return f" Did you mean {near[0]!r}?" if near else ""
