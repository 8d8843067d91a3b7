"""Signals: a reason to stop for a process that trains; for the parent of such processes, passing them on.

SIGUSR2 means, in a job that somebody manages (`places.manager`), that it will be ended soon and shall be
queued again. The stronger of two reasons counts: whoever was told SIGTERM is never queued again by us.
"""

import contextlib
import ctypes
import os
import signal
import threading

from adabatch import places

NUMBERS = (signal.SIGINT, signal.SIGTERM)
AGAIN, END = "SIGUSR2", "SIGTERM"  # of a job's manager: queue it again, or only save
STRENGTH = (None, AGAIN, END)  # anything else is stronger


def numbers() -> tuple:
    """The signals that are reasons to stop here."""
    return NUMBERS + ((signal.SIGUSR2,) if places.manager() else ())


def stronger(one: str | None, other: str | None) -> str | None:
    """The reason that counts of two; the first of equals."""
    return max(one, other, key=lambda r: STRENGTH.index(r) if r in STRENGTH else len(STRENGTH))


def votes(reason: str | None) -> tuple[bool, bool, bool]:
    """A rank's reason as flags to be added up over ranks."""
    return bool(reason) and reason not in STRENGTH, reason == END, reason == AGAIN


def agreed(counts, own: str | None) -> str:
    """The reason of all ranks from their added votes, of which at least one is not 0."""
    if counts[0]:
        return own if own and own not in STRENGTH else "another rank was told to stop"
    return END if counts[1] else AGAIN


@contextlib.contextmanager
def held():
    """Signals wait meanwhile; a process that is started in between has them wait until it says `release`."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def release() -> None:
    """Signals that were held come now."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers())


class Stop:
    """Turns the first SIGINT or SIGTERM into a reason to stop at the next step; a second SIGINT interrupts at
    once.

    Works as a context. Outside the main thread Python delivers no signals, and nothing is installed.
    """

    def __init__(self, quiet: bool = False):
        self.reason, self.quiet = None, quiet
        self.told = None  # the reason for which this process has saved and ends, as all ranks agreed
        self.twice, self.over = False, False  # over: training has ended, there is nothing to interrupt
        self._before = {}

    def __enter__(self) -> "Stop":
        if threading.current_thread() is threading.main_thread() and not self._before:
            for number in numbers():
                self._before[number] = signal.signal(number, self._noted)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _noted(self, number, _frame) -> None:
        if self.reason and number == signal.SIGINT:
            self.twice = True
            if self.over:
                return
            raise KeyboardInterrupt
        said, self.reason = self.reason, stronger(self.reason, signal.Signals(number).name)
        if self.quiet or said == self.reason:
            return
        # Not through logging: the signal may have come while a handler held its lock.
        again = "" if self.reason == AGAIN else " (Ctrl-C again stops without)"
        with contextlib.suppress(OSError):
            os.write(2, f"\n{self.reason}: saving at the next step{again}\n".encode())


class Forward:
    """Passes signals on to child processes, once each. These have process groups of their own, so
    that Ctrl-C in a terminal does not reach them a second time."""

    def __init__(self):
        self.count, self._senders, self._pending, self._before = 0, None, [], {}
        self.reason = None  # the strongest that came

    def __enter__(self) -> "Forward":
        if threading.current_thread() is threading.main_thread():
            for number in numbers():
                self._before[number] = signal.signal(number, self._got)
        return self

    def __exit__(self, *_) -> None:
        self.restore()

    def restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def to(self, *senders) -> None:
        """From now on to these, and what has come so far too. senders: called with the signal's number."""
        self._senders = senders
        for number in self._pending:
            self._send(number)

    def _got(self, number, _frame) -> None:
        self.count += 1
        self.reason = stronger(self.reason, signal.Signals(number).name)
        if self._senders is None:
            self._pending.append(number)
        else:
            self._send(number)

    def _send(self, number) -> None:
        for sender in self._senders:
            with contextlib.suppress(ProcessLookupError):
                sender(number)


def die_with_parent(parent: int) -> None:
    """SIGTERM (save and stop) when the parent is gone, so that a killed parent leaves nothing running. Linux
    only."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # 1 = PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGTERM)


def name(number: int) -> str:
    """'signal 9 (SIGKILL)'."""
    known = number in set(signal.Signals)
    return f"signal {number} ({signal.Signals(number).name})" if known else f"signal {number}"
