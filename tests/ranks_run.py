"""Processes that are the ranks of a small run, for tests: forked from one that has imported torch already."""

import contextlib
import itertools
import json
import multiprocessing
import os
import socket
import sys
import time
import traceback
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # as meeting.py does, before torch is imported
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["torch", "torch.distributed", "adabatch.ranks", "ranks_run"])


# Below the numbers that the system gives to whoever asks for any: rank 0 takes its port seconds later.
_PORTS = itertools.count(20_000 + 700 * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]))


def free_port() -> int:
    for port in _PORTS:
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


class Rank:
    """One process that calls what(meeting, *arguments). It ends as the program does: fail() or leave().

    named: kind, patience, delay (seconds before it comes), listening (rank 0's socket), environment,
    constants (of watch.py and meeting.py, in this process), told ([rank, seconds]: where it first waits for
    another it is told to stop, and notices nothing for so long).
    """

    def __init__(self, folder: Path, what, rank, world, port, arguments=(), **named):
        self.rank, self.path = rank, Path(folder) / f"rank{rank}-{time.monotonic_ns()}"
        arguments = (str(self.path), what, rank, world, port, arguments, named)
        self.process = CONTEXT.Process(target=_live, args=arguments, daemon=True)
        self.process.start()
        self.began = time.monotonic()

    def end(self, seconds: float = 60.0) -> dict:
        """{"value"} or {"error", "kind", "rank"}, with "code" and "text", all that it printed."""
        self.process.join(seconds)
        alive = self.process.is_alive()
        if alive:
            self.process.kill()
        assert not alive, f"not ended after {seconds} s:\n{self.path.with_suffix('.txt').read_text()}"
        found = {"code": self.process.exitcode, "text": self.path.with_suffix(".txt").read_text()}
        with contextlib.suppress(FileNotFoundError):
            found |= json.loads(self.path.with_suffix(".json").read_text())
        return found

    def wait_for(self, word: str, seconds: float = 60.0) -> None:
        """Until it has printed the word."""
        until = time.monotonic() + seconds
        path = self.path.with_suffix(".txt")
        while word not in (text := path.read_text() if path.exists() else ""):
            assert time.monotonic() < until and self.process.is_alive(), text
            time.sleep(0.02)

    @property
    def name(self) -> str:
        return f"rank {self.rank} (process {self.process.pid} on {socket.gethostname()})"


def world(folder, what, count: int, *arguments, **named) -> list[Rank]:
    port = free_port()
    return [Rank(folder, what, rank, count, port, arguments, **named) for rank in range(count)]


def values(ranks) -> list:
    """What the ranks returned; none may have failed."""
    found = [rank.end() for rank in ranks]
    assert all("value" in one for one in found), "\n".join(
        str(one.get("error")) + one["text"] for one in found
    )
    return [one["value"] for one in found]


def _stop(rank: int, whom: int | None, seconds: float):
    return (lambda: time.sleep(seconds) or "SIGTERM") if rank == whom else lambda: None


def _live(path, what, rank, world, port, arguments, named) -> None:
    text = os.open(f"{path}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(text, 1)
    os.dup2(text, 2)
    import logging

    from adabatch import meeting as module
    from adabatch import watch
    from adabatch.places import Place

    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s")
    named = {"kind": "torchrun", "patience": 30.0, "delay": 0.0, "environment": {}, "constants": {}, **named}
    os.environ.update(named["environment"])
    for name, value in named["constants"].items():
        setattr(watch if hasattr(watch, name) else module, name, value)
    time.sleep(named["delay"])
    meeting = None
    try:
        listening = named.get("listening")
        place = Place(
            named["kind"], rank, world, rank, world, "127.0.0.1", port,
            listening.detach() if listening and rank == 0 else None,
        )  # fmt: skip
        meeting = module.Meeting(place, named["patience"], _stop(rank, *named.get("told", (None, 0))))
        found = {"value": what(meeting, *arguments)}
        meeting.leave()
    except BaseException as caught:
        error = meeting.explain(caught) if meeting else caught
        traceback.print_exception(error)
        if meeting:
            meeting.fail(f"{type(error).__name__}: {error}", 1)
        found = {"error": str(error), "kind": type(error).__name__, "rank": getattr(error, "rank", None)}
    Path(f"{path}.json").write_text(json.dumps(found))
    sys.exit(0 if "value" in found else 1)


def fails(meeting) -> None:
    raise AssertionError("nothing to say")
