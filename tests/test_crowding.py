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
    answers(policy, "q" * 64)
    assert answers(policy, "cqqqq") == "----S"


def test_waiting_is_added_up_over_threads_and_one_that_ended_is_none(tmp_path):
    for task, said in (("7", "5 1500000000 3"), ("8", "9 250000000 4"), ("9", None)):
        (tmp_path / task).mkdir()
        if said:
            (tmp_path / task / "schedstat").write_text(said)
    assert crowding.waited(tmp_path) == 1.75


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
            print(crowding.waited())
    """
    waited = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout
    assert float(waited) > 0.2  # of a second, half of which belongs to the other


def test_sleepers_are_there_until_their_end():
    def tasks():
        return len(list(TASKS.iterdir()))

    before = tasks()
    sleepers = crowding.Sleepers(ctypes.CDLL(TORCH), 5)
    assert tasks() == before + 5
    sleepers.end()
    until = time.monotonic() + 20
    while tasks() > before and time.monotonic() < until:
        time.sleep(0.01)
    assert tasks() == before


def test_at_the_limit_of_threads_there_are_no_sleepers_and_nothing_is_left(monkeypatch):
    start, begun = threading.Thread.start, []

    def limited(self):
        if len(begun) == 3:
            raise RuntimeError("can't start new thread")
        begun.append(self)
        start(self)

    monkeypatch.setattr(threading.Thread, "start", limited)
    with pytest.raises(RuntimeError, match="new thread"):
        crowding.Sleepers(None, 5)  # no libgomp is asked: it would end the process
    assert len(begun) == 3 and not any(thread.is_alive() for thread in begun)


SPIN = """if True:
    import ctypes, sys, time
    from adabatch import environment
    environment.before_torch()
    import torch
    from adabatch import crowding
    torch.set_num_threads(2)
    x = torch.ones(1 << 20)

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


def test_beside_sleepers_nobody_spins():
    """Processor time, not the clock: what an idle thread burns is what is switched off."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}
    done = subprocess.run([sys.executable, "-c", SPIN, TORCH], capture_output=True, text=True, env=clean)
    assert done.returncode == 0, done.stderr
    alone, crowded, again = map(float, done.stdout.split())
    assert min(alone, again) > 2 * crowded, done.stdout


def test_the_watch_puts_threads_to_sleep_and_wakes_them(monkeypatch):
    """Windows: crowded, crowded at the limit of threads, crowded, four quiet ones, quiet."""
    waiting, said = [0.9, 0.9, 0.9, 0.0, 0.0, 0.0, 0.0, 0.0], []
    clock, total = [0.0], [0.0]
    limited = [True]

    class Sleepers:
        def __init__(self, gomp, count):
            if limited:
                limited.pop()
                raise RuntimeError("can't start new thread")
            said.append(("sleep", clock[0], gomp, count))

        def end(self):
            said.append(("wake", clock[0]))

    def window(seconds):
        if not waiting:
            raise StopIteration
        clock[0] += seconds
        total[0] += waiting.pop(0) * seconds

    monkeypatch.setattr(crowding, "Sleepers", Sleepers)
    monkeypatch.setattr(crowding, "waited", lambda: total[0])
    monkeypatch.setattr(crowding, "time", SimpleNamespace(sleep=window, monotonic=lambda: clock[0]))
    with pytest.raises(StopIteration):
        crowding._look("gomp", 5)
    w = crowding.WINDOW
    assert said == [("sleep", 2 * w, "gomp", 5), ("wake", 7 * w)]


def test_what_is_watched(monkeypatch):
    begun = []

    class Thread(threading.Thread):
        def start(self):
            begun.append(self)

    monkeypatch.setattr(crowding.threading, "Thread", Thread)
    monkeypatch.setattr(crowding.threading, "enumerate", lambda: begun)
    monkeypatch.setattr(environment, "cores", lambda: 4)
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    assert not crowding.watch(4), "the user has said how long"
    monkeypatch.setenv("GOMP_SPINCOUNT", environment.SPINS)
    assert not crowding.watch(1), "one thread waits for nobody"
    monkeypatch.setattr(environment, "cores", lambda: 4 + crowding.MOST)
    assert not crowding.watch(4), "cores enough for everybody"
    assert begun == []
    monkeypatch.setattr(environment, "cores", lambda: 4)
    assert crowding.watch(4) and crowding.watch(4) and crowding.watch(2) and len(begun) == 1
