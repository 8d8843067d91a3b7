"""Programs that are timed against each other take turns: each has a process, stopped while others run.

Each sets up its process as it likes: allocator, threads, worker processes. Between turns its whole process
group is stopped (SIGSTOP), so nothing of it computes ahead or spins. A turn is a number of steps, timed by
the contender itself from one step's end to another's.
"""

import contextlib
import ctypes
import fcntl
import json
import os
import signal
import subprocess
import sys
import tempfile
import time


def die_with_parent(_=None) -> None:
    """A killed parent must not leave stopped processes, which take no other signal than this one. Linux."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # 1 = PR_SET_PDEATHSIG


class Contender:
    """A contender's process, seen from the parent. command: of a program that makes a `Turns`."""

    def __init__(self, name: str, command: list[str]):
        self.name, self.log = name, tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            start_new_session=True,
        )
        try:
            self.ready = self._answer()
        except BaseException:
            self.close()
            raise

    def turn(self, steps: int) -> dict:
        """{"seconds": ..., "items": ...} of so many steps. RuntimeError: it has ended."""
        self._signal(signal.SIGCONT)
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(f"{steps}\n")
            self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            self.log.seek(0)
            last = self.log.read()[-2000:]
            raise RuntimeError(f"{self.name} ended with code {self.process.wait()}:\n{last}")
        self._signal(signal.SIGSTOP)
        return json.loads(line)

    def close(self) -> None:
        self._signal(signal.SIGKILL)
        self.process.wait()

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, number)


class Turns:
    """The contender's side: `passed()` after every step. finish: waits for the device, before the clock is
    read."""

    def __init__(self, finish=lambda: None):
        die_with_parent()
        self.finish, self.left, self.items, self.begun = finish, 1, 0, None
        self.answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # what the program prints is no answer

    def passed(self, items: int) -> None:
        """A step of so many items is done; the first one, which may compile, belongs to no turn."""
        self.left, self.items = self.left - 1, self.items + items
        if self.left:
            return
        self.finish()
        seconds = time.perf_counter() - self.begun if self.begun else None
        print(json.dumps({"seconds": seconds, "items": self.items}), file=self.answers, flush=True)
        line = sys.stdin.readline()
        if not line:
            os._exit(0)
        self.left, self.items, self.begun = int(line), 0, time.perf_counter()


class Lock:
    """A lock file (flock) that all who share a machine take: alone to time, together for other work. Held
    alone for HOLD seconds at the most, then others have a chance. path=None: no lock."""

    HOLD = 75

    def __init__(self, path: str | None):
        self.file, self.since = open(path, "a") if path else None, None

    def alone(self) -> None:
        """Take it, or go on holding it."""
        if self.file and (self.since is None or time.monotonic() - self.since > self.HOLD):
            self.free()
            fcntl.flock(self.file, fcntl.LOCK_EX)
            self.since = time.monotonic()

    def together(self) -> None:
        if self.file:
            fcntl.flock(self.file, fcntl.LOCK_SH)

    def free(self) -> None:
        if self.file:
            fcntl.flock(self.file, fcntl.LOCK_UN)
            self.since = None


def compete(programs: dict[str, list[str]], count: int, seconds: float, lock: Lock) -> tuple[dict, dict]:
    """({name: items a second in each of `count` rounds}, {name: why it failed}) of programs with `Turns`.

    A round is one turn of about so many seconds for everybody, in an order that alternates. A round before
    them, which is not counted, says how many steps a turn is. Who fails is left out.
    """
    running, failed, steps, found = {}, {}, {}, {}
    try:
        for name, command in programs.items():
            lock.together()
            with _kept(failed, name):
                running[name] = Contender(name, command)
            lock.free()
        for index in range(-1, count):
            lock.alone()
            for name in sorted(set(running) - set(failed), reverse=index % 2):
                with _kept(failed, name):
                    if index < 0:
                        running[name].turn(2)
                    took = running[name].turn(steps.get(name, 2))
                    if index < 0:
                        steps[name] = max(1, round(2 * seconds / took["seconds"]))
                    else:
                        found.setdefault(name, []).append(took["items"] / took["seconds"])
    finally:
        lock.free()
        for contender in running.values():
            contender.close()
    return {name: found[name] for name in programs if name in found and name not in failed}, failed


@contextlib.contextmanager
def _kept(failed: dict, name: str):
    try:
        yield
    except RuntimeError as error:
        failed[name] = str(error)
