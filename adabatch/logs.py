"""Where the log of a run goes: the terminal, log.txt, and for a rank above 0 only its errors to stderr."""

import contextlib
import importlib
import logging
import sys
import warnings
from pathlib import Path

log = logging.getLogger("adabatch")


class _File(logging.FileHandler):
    """log.txt; a full disk must not put a second error over the first."""

    def handleError(self, record) -> None:
        pass


@contextlib.contextmanager
def logged(folder: Path):
    """The log also goes to the folder's log.txt."""
    try:
        handler = _File(folder / "log.txt", encoding="utf-8")
    except OSError:
        handler = logging.NullHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        with contextlib.suppress(OSError):
            handler.close()


def terminal() -> None:
    """Sends the "adabatch" log to the terminal, once."""
    if log.handlers or log.propagate is False:
        return
    try:
        handler = importlib.import_module("adabatch.console").handler()
    except ModuleNotFoundError:
        handler = logging.StreamHandler(sys.stdout)
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False


def errors_only(rank: int) -> None:
    """Only errors, each with the rank's number, to stderr: rank 0 says what all have to say."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(f"rank {rank}: %(message)s"))
    log.handlers[:] = [handler]
    log.setLevel(logging.ERROR)
    log.propagate = False
    warnings.simplefilter("ignore")  # rank 0 shows its own, which are the same
