"""OpenMP threads that wait awake while the cores are ours, and go to sleep where others want them.

Between two parallel regions of a step, libgomp's threads spin for a while, so that the next region finds
them awake; a thread that spins where another program wants the core keeps it from whoever has work. Each is
right at its time, by factors (docs/performance.md), and libgomp reads once, when it is loaded, how long to
spin (GOMP_SPINCOUNT, environment.py). But while a process has more OpenMP threads than cores it hardly spins
at all (libgomp's manual, GOMP_SPINCOUNT): a second team of threads that only sleep switches spinning off, and
its end switches it on again. Whether cores are wanted by others is what Linux counts: the time that threads
of ours were ready to run and had no core, be it another's or a container's quota that was used up.

Time alone depends on it, never a bit of a result.
"""

import ctypes
import logging
import os
import threading
import time
from pathlib import Path

import torch

from adabatch import environment

log = logging.getLogger(__name__)

WINDOW = 0.25  # s, between two looks
# Threads that wait, on average. Seen on two cores: at most 0.06 alone, 0.65 and more beside a busy program.
CROWDED, FREE = 0.3, 0.1
HOLD, LONGEST = 4, 64  # windows without waiting before spinning is switched on again
SPARE = 16  # threads that must be left when ours sleep
NAME = "adabatch-crowding"


class Policy:
    """Whether to spin. Off at once when threads of ours wait; on after HOLD quiet windows, which double each
    time, up to LONGEST, that it was too early."""

    def __init__(self):
        self.spins, self._quiet, self._hold = True, 0, HOLD

    def __call__(self, waiting: float) -> bool:
        """waiting: threads that were ready and had no core, on average over the last window."""
        self._quiet = self._quiet + 1 if waiting < FREE else 0
        if self.spins and waiting > CROWDED:
            self.spins = False
        elif not self.spins and self._quiet >= self._hold:
            self.spins, self._quiet, self._hold = True, 0, min(2 * self._hold, LONGEST)
        elif self.spins and self._quiet >= LONGEST:
            self._hold = HOLD
        return self.spins


def waited(tasks: Path = Path("/proc/self/task")) -> dict[str, int]:
    """{thread: nanoseconds that it has been ready to run without a core} of this process."""
    found = {}
    for task in tasks.iterdir():
        try:
            found[task.name] = int((task / "schedstat").read_text().split()[1])
        except (FileNotFoundError, ProcessLookupError):  # it has just ended
            pass
    return found


def growth(before: dict[str, int], after: dict[str, int]) -> float:
    """Seconds that were waited between two answers of `waited`; what a thread that ended had waited is
    unknown."""
    return sum(max(0, now - before.get(task, 0)) for task, now in after.items()) / 1e9


class Sleepers:
    """A team of `count` OpenMP threads that do nothing, until its end. gomp: the library with libgomp's
    functions. RuntimeError: this process can hardly have more threads."""

    def __init__(self, gomp: ctypes.CDLL, count: int):
        self._over, made = threading.Event(), threading.Event()
        _try_threads(2 * count + SPARE)

        def lead():
            nothing = ctypes.cast(gomp.omp_get_level, ctypes.c_void_p)  # may be called in vain
            gomp.GOMP_parallel(nothing, None, ctypes.c_uint(count), ctypes.c_uint(0))
            made.set()
            self._over.wait()  # libgomp keeps a team for as long as the thread that made it

        self._lead = threading.Thread(target=lead, name="adabatch-sleepers", daemon=True)
        self._lead.start()
        made.wait()

    def end(self) -> None:
        self._over.set()
        self._lead.join()


def _try_threads(count: int) -> None:
    """`count` threads for a moment: libgomp ends the whole process where it cannot have one, so there must be
    room for more than it will ask for, other ranks' teams too."""
    over, tried = threading.Event(), []
    try:
        for _ in range(count):
            tried.append(threading.Thread(target=over.wait, daemon=True))
            tried[-1].start()
    except RuntimeError:
        tried.pop()
        raise
    finally:
        over.set()
        for thread in tried:
            thread.join()


def watch(threads: int) -> bool:
    """Begin to watch, in a thread. False where there is nothing to decide: one thread, more threads than
    cores (then libgomp hardly spins), spins that environment.before_torch did not set, another OpenMP."""
    if any(thread.name == NAME for thread in threading.enumerate()):
        return True  # of a run before in this process
    cores = environment.cores()
    if not 2 <= threads <= cores or os.environ.get("GOMP_SPINCOUNT") != environment.SPINS:
        return False
    if (gomp := _libgomp()) is None:
        log.debug("idle OpenMP threads spin and nobody watches them: torch is not built on libgomp")
        return False
    # As many threads as cores: with the two or more of any run in this process, too many to spin.
    threading.Thread(target=_look, args=(gomp, cores), name=NAME, daemon=True).start()
    return True


def _libgomp() -> ctypes.CDLL | None:
    """libgomp as torch has it: others bring one of their own."""
    try:
        torchs = ctypes.CDLL(str(Path(torch.__file__).with_name("lib") / "libtorch_cpu.so"))
    except OSError:
        return None
    # LLVM's and Intel's OpenMP have functions of these names too, and one that libgomp lacks.
    other = any(hasattr(library, "__kmpc_fork_call") for library in (torchs, ctypes.CDLL(None)))
    return torchs if hasattr(torchs, "GOMP_parallel") and not other else None


def _look(gomp: ctypes.CDLL, count: int) -> None:
    policy, sleepers = Policy(), None
    then, before = time.monotonic(), waited()
    while True:
        time.sleep(WINDOW)
        try:
            now, after = time.monotonic(), waited()
        except (OSError, ValueError, IndexError):  # no file may be opened just now: the next window is longer
            continue
        spins = policy(growth(before, after) / (now - then))
        then, before = now, after
        if spins and sleepers:
            log.debug("idle OpenMP threads spin again")
            sleepers.end()
            sleepers = None
        elif not spins and sleepers is None:
            log.debug("idle OpenMP threads sleep: others want the cores")
            try:
                sleepers = Sleepers(gomp, count)
            except RuntimeError:  # what takes the last threads for a moment might end other processes
                log.debug("no: there may be no more threads, so they spin and nobody watches them")
                return
