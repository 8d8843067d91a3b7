"""Idle OpenMP threads: when they may spin, and that a team that sleeps stops it."""

import ctypes
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from adabatch import crowding, environment

TASKS = Path("/proc/self/task")
TORCH = str(Path(torch.__file__).with_name("lib") / "libtorch_cpu.so")


def answers(policy, waiting: str) -> str:
    """One letter a window: c crowded, b in between, q quiet -> S spins, - does not."""
    threads = {"c": crowding.CROWDED + 0.01, "b": (crowding.CROWDED + crowding.FREE) / 2, "q": 0.0}
    return "".join("S" if policy(threads[window]) else "-" for window in waiting)


@pytest.mark.parametrize(
    "waiting, spins",
    [
        ("qbqq", "SSSS"),
        ("qcqqqq", "S----S"),  # off at once, on after four quiet windows
        ("cqqqbqqqq", "--------S"),  # quiet ones in a row
        ("cqqqqcqqqqqqqq", "----S--------S"),  # it was too early: eight the next time
        ("ccccqqqq", "-------S"),  # one crowd, however long
        ("cqqqqbbbbcqqqqqqqq", "----SSSSS--------S"),
    ],
)
def test_when_threads_spin(waiting, spins):
    assert answers(crowding.Policy(), waiting) == spins


def test_the_time_it_waits_is_bounded_and_forgotten_after_a_long_quiet():
    policy = crowding.Policy()
    holds = []
    for _ in range(7):
        assert not policy(1.0)
        holds.append(next(n for n in range(1, 1000) if policy(0.0)))
    assert holds == [4, 8, 16, 32, 64, 64, 64]
    assert answers(policy, "q" * 63 + "c" + "q" * 64) == "S" * 63 + "-" * 64 + "S"  # one too few
    assert answers(policy, "q" * 64 + "cqqqq") == "S" * 64 + "----S"


def test_waiting_is_added_up_over_threads_and_one_that_ended_is_none(tmp_path):
    for task, said in (("7", "5 1500000000 3"), ("8", "9 250000000 4"), ("9", None)):
        (tmp_path / task).mkdir()
        if said:
            (tmp_path / task / "schedstat").write_text(said)
    assert crowding.waited(tmp_path) == {"7": 1_500_000_000, "8": 250_000_000}
    after = {"8": 1_000_000_000, "9": 500_000_000}  # 7 has ended, 9 is there
    assert crowding.growth(crowding.waited(tmp_path), after) == 1.25
    assert crowding.growth(after, after) == 0


@pytest.mark.slow
def test_two_that_compute_on_one_core_wait_for_each_other():
    program = f"""if True:
        import os, sys, time
        from adabatch import crowding
        os.sched_setaffinity(0, {{{min(os.sched_getaffinity(0))}}})
        child, end = os.fork(), time.monotonic() + 1
        while time.monotonic() < end:
            pass
        if child:
            os.waitpid(child, 0)
            print(crowding.growth({{}}, crowding.waited()))
    """
    waited = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout
    assert float(waited) > 0.2  # of a second, half of which belongs to the other


def test_sleepers_are_there_until_their_end():
    def tasks():
        return len(list(TASKS.iterdir()))

    before = tasks()

    def become(count):
        """Threads that were joined may still be there for a moment."""
        until = time.monotonic() + 20
        while tasks() != count and time.monotonic() < until:
            time.sleep(0.01)
        assert tasks() == count

    sleepers = crowding.Sleepers(ctypes.CDLL(TORCH), 5)
    become(before + 5)
    sleepers.end()
    become(before)


def test_near_the_limit_of_threads_there_are_no_sleepers_and_nothing_is_left(monkeypatch):
    """Room for the team of another rank, and more, is asked for."""
    start, begun = threading.Thread.start, []

    def limited(self):
        if len(begun) == 2 * 5 + crowding.SPARE - 1:
            raise RuntimeError("can't start new thread")
        begun.append(self)
        start(self)

    monkeypatch.setattr(threading.Thread, "start", limited)
    with pytest.raises(RuntimeError, match="new thread"):
        crowding.Sleepers(None, 5)  # no libgomp is asked: it would end the process
    assert len(begun) == 25 and not any(thread.is_alive() for thread in begun)


SPIN = """if True:
    import ctypes, sys, time
    from adabatch import environment
    environment.before_torch()
    import torch
    from adabatch import crowding
    torch.set_num_threads(2)
    x = torch.ones(1 << 17)

    def burnt():
        began = time.process_time()
        for _ in range(50):
            x.add_(1)  # in two threads, of which one is idle for the next 20 ms
            time.sleep(0.02)
        return time.process_time() - began

    burnt()
    alone = burnt()
    sleepers = crowding.Sleepers(ctypes.CDLL(sys.argv[1]), environment.cores())
    burnt()
    crowded = burnt()
    sleepers.end()
    burnt()
    print(alone, crowded, burnt())
"""


@pytest.mark.slow
@pytest.mark.skipif(environment.cores() < 2, reason="needs two cores: on one libgomp never spins")
def test_beside_sleepers_nobody_spins():
    """Processor time, not the clock: what an idle thread burns is what is switched off."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}
    done = subprocess.run([sys.executable, "-c", SPIN, TORCH], capture_output=True, text=True, env=clean)
    assert done.returncode == 0, done.stderr
    alone, crowded, again = map(float, done.stdout.split())
    assert min(alone, again) > 2 * crowded, done.stdout


BESIDE = """if True:
    import os, subprocess, sys, time
    from pathlib import Path
    from adabatch import environment
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
    environment.before_torch()
    import torch
    from adabatch.hardware import Hardware
    torch.set_num_threads(2)
    x = torch.ones(1 << 17)
    x.add_(1)
    before = len(list(Path("/proc/self/task").iterdir())) + 1  # and the one that set_up begins, to watch
    Hardware(device="cpu", threads=2).set_up()
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
    try:
        until = time.monotonic() + 60
        while (now := len(list(Path("/proc/self/task").iterdir()))) <= before and time.monotonic() < until:
            x.add_(1)
    finally:
        for process in busy:
            process.kill()
            process.wait()
    print(now - before)
"""


@pytest.mark.skipif(environment.cores() < 2, reason="needs two cores: on one libgomp never spins")
def test_beside_busy_programs_a_run_puts_its_threads_to_sleep():
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}
    done = subprocess.run([sys.executable, "-c", BESIDE], capture_output=True, text=True, env=clean)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0


class Script:
    """The watch's clock and what threads wait, window by window; a window of None cannot be read."""

    def __init__(self, monkeypatch, waiting, limited=False):
        self.waiting, self.limited, self.said, self.now, self.total = waiting, limited, [], 0.0, 0

        class Sleepers:
            def __init__(team, gomp, count):
                self.said.append((self.now / crowding.WINDOW, "sleep", gomp, count))
                if self.limited:
                    raise RuntimeError("can't start new thread")

            def end(team):
                self.said.append((self.now / crowding.WINDOW, "wake"))

        monkeypatch.setattr(crowding, "Sleepers", Sleepers)
        monkeypatch.setattr(crowding, "waited", self.waited)
        monkeypatch.setattr(crowding, "time", SimpleNamespace(sleep=self.sleep, monotonic=lambda: self.now))

    def sleep(self, seconds):
        if not self.waiting:
            raise StopIteration
        self.now += seconds
        self.window = self.waiting.pop(0)
        self.total += round((self.window or 0) * seconds * 1e9)

    def waited(self):
        if self.now and self.window is None:
            raise OSError("Too many open files")
        return {"1": self.total}


def test_the_watch_puts_threads_to_sleep_and_wakes_them(monkeypatch):
    script = Script(monkeypatch, [0.0, 0.9, 0.9, 0.0, 0.0, None, 0.0, 0.0, 0.0])
    with pytest.raises(StopIteration):
        crowding._look("gomp", 5)
    assert script.said == [(2, "sleep", "gomp", 5), (8, "wake")]


def test_the_watch_ends_at_the_limit_of_threads(monkeypatch):
    """Asking again and again for the last threads might end a process that needs one."""
    script = Script(monkeypatch, [0.9, 0.9], limited=True)
    crowding._look("gomp", 5)
    assert script.said == [(1, "sleep", "gomp", 5)] and script.waiting == [0.9]


def test_what_is_watched(monkeypatch):
    begun = []

    class Thread(threading.Thread):
        def start(self):
            begun.append(self)

    monkeypatch.setattr(crowding.threading, "Thread", Thread)
    monkeypatch.setattr(crowding.threading, "enumerate", lambda: begun)
    monkeypatch.setattr(environment, "cores", lambda: 4)
    monkeypatch.setenv("GOMP_SPINCOUNT", "100000")
    assert not crowding.watch(4), "the user has said how long"
    monkeypatch.setenv("GOMP_SPINCOUNT", environment.SPINS)
    assert not crowding.watch(1), "one thread waits for nobody"
    assert not crowding.watch(5), "with more threads than cores libgomp does not spin"
    with monkeypatch.context() as patched:
        patched.setattr(crowding, "_libgomp", lambda: None)
        assert not crowding.watch(4), "another OpenMP"
    assert begun == []
    assert crowding.watch(3) and crowding.watch(4) and crowding.watch(2) and len(begun) == 1
    gomp, count = begun[0]._args
    assert begun[0]._target is crowding._look and hasattr(gomp, "GOMP_parallel")
    assert count == 4, "with two threads or more of a run: more than cores"


def test_another_openmp_or_none_is_not_taken_for_libgomp(monkeypatch):
    def library(**functions):
        return lambda path: SimpleNamespace(**(functions if path else {}))

    for functions, taken in (
        ({"GOMP_parallel": 1}, True),
        ({"GOMP_parallel": 1, "__kmpc_fork_call": 1}, False),
        ({}, False),
    ):
        monkeypatch.setattr(crowding.ctypes, "CDLL", library(**functions))
        assert (crowding._libgomp() is not None) is taken, functions
    monkeypatch.setattr(crowding.ctypes, "CDLL", lambda path: SimpleNamespace(**{
        "GOMP_parallel" if path else "__kmpc_fork_call": 1}))  # fmt: skip
    assert crowding._libgomp() is None, "preloaded"

    def missing(path):
        raise OSError(path)

    monkeypatch.setattr(crowding.ctypes, "CDLL", missing)
    assert crowding._libgomp() is None
