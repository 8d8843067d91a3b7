"""A run of several processes: the parent that starts them, the word of rank 0, and a rank above 0.

`hardware.processes=N` makes the command a parent of N fresh processes; torchrun and srun are such parents
themselves. Rank 0 decides whether there is anything to train and alone writes; the others follow it.
"""

import contextlib
import importlib
import json
import logging
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from adabatch import alike, owner, runs, signals, traces
from adabatch.environment import before_torch
from adabatch.errors import Diverged, Interrupted, Lost, RankLost, UserError
from adabatch.logs import errors_only
from adabatch.outcome import outcome, traced
from adabatch.signals import Forward, Stop, name

GRACE = 45.0  # seconds in which the others end by themselves when one process has ended by an error
ALIKE = 5.0  # seconds in which rank 0 says by what it ended, so that others need not say it again
END = "adabatch/end"  # the key under which it says so

log = logging.getLogger("adabatch")


def death(code: int) -> str:
    """What an exit code without any message tells."""
    if code >= 0:
        return f"exited with code {code} without a word"
    return f"killed by {name(-code)}{', out of memory?' if code == -signal.SIGKILL else ''}"


def fresh(job: tuple, named=(), environment=None, descriptors=()) -> subprocess.Popen:
    """A new process with a process group of its own that runs `jobs.run_job(*job, places=named)`."""
    paths = {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    with signals.held():  # until `jobs.child` has handlers
        process = subprocess.Popen(
            [sys.executable, "-c", "from adabatch.jobs import child; child()"],
            stdin=subprocess.PIPE,
            env={**os.environ, **paths, **(environment or {})},
            process_group=0,
            pass_fds=descriptors,
        )
    payload = {"job": job, "named": tuple(named), "parent": os.getpid(), "argv": sys.argv}
    with contextlib.suppress(BrokenPipeError), process.stdin as pipe:
        pickle.dump(payload, pipe)
    return process


def supervise(job: tuple, count: int, stop: Stop, named, command: str) -> tuple[int, str | None]:
    """Starts `count` processes on the job and waits for them: (exit code, the last words that rank 0 owed).

    job: config, folder, overrides, notes. stop: this process's own, which may have been told already. named:
    Hydra's own overrides that name folders. command: how to resume. The port is chosen here and handed to
    rank 0 as an open socket, so that nobody else can take it meanwhile.
    """
    children = []
    log.info(f"starting {count} processes")
    with Forward() as forward:
        try:
            with socket.create_server(("127.0.0.1", 0)) as listening:
                shared = {
                    "WORLD_SIZE": str(count),
                    "LOCAL_WORLD_SIZE": str(count),
                    "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": str(listening.getsockname()[1]),
                    "ADABATCH_LOCAL": "1",
                }
                for rank in range(count):
                    own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                    handed = (listening.fileno(),) if rank == 0 else ()
                    own |= {"ADABATCH_LISTEN_FD": str(handed[0])} if handed else {}
                    children.append(fresh(job, named, shared | own, handed))
                    if stop.reason or forward.count:
                        break
            forward.to(*(child.send_signal for child in children))
            if stop.reason and not forward.count:
                for child in children:
                    child.send_signal(getattr(signal, stop.reason))
            broken = _watch(children)
        finally:
            for child in children:
                if child.poll() is None:  # only where this function itself failed
                    child.kill()
                child.wait()
        told = bool(stop.reason or forward.count)
        stop.told = stop.reason = signals.stronger(stop.reason, forward.reason)
    return _verdict(children, Path(job[1]), broken, told, command)


def _watch(children: list) -> str | None:
    """Until all have ended; what was first to go wrong. Who has not ended GRACE seconds later is killed."""
    broken, deadline, left = None, None, dict(enumerate(children))
    while left:
        for rank, child in list(left.items()):
            if (code := child.poll()) is None:
                continue
            del left[rank]
            if code < 0:
                message = f"rank {rank} was {death(code)}"
                log.error(message)
                broken = broken or message
            # A rank that was stopped (130) waits for nobody, but rank 0 may be saving for all.
            if deadline is None and (rank == 0 or code not in (0, 130)):
                deadline = time.monotonic() + GRACE
        over = deadline is not None and (time.monotonic() > deadline or all(map(stopped, left.values())))
        if left and over:
            words = f"rank {', '.join(map(str, left))} did not end by itself and is killed"
            broken = broken or words
            log.error(words)
            for child in left.values():
                child.kill()
            deadline = float("inf")
        time.sleep(0.05)
    return broken


def stopped(child) -> bool:
    """Whether a process was halted by SIGSTOP: it cannot end by itself. Linux only."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    return False


def _verdict(children, folder: Path, broken: str | None, told: bool, command: str) -> tuple[int, str | None]:
    """The exit code of the whole; an end that rank 0 could not record is recorded here."""
    code, pid = children[0].returncode, children[0].pid
    state = None
    with contextlib.suppress(Exception):
        status = runs.Run(folder).status or {}
        state = status.get("state") if (status.get("owner") or {}).get("pid") == pid else None
    if code >= 0 and state != "running":
        return code, None
    state, code, message = outcome(RankLost(broken or f"rank 0 {death(code)}"), folder, command)
    if told:
        state, code = "interrupted", 130
    with contextlib.suppress(Exception):
        if owner.mark(folder, pid, state, message):
            return code, message
    return code, None


class Lead:
    """Rank 0 towards the others, as a context; alone, with nobody to talk to, it does nothing.

    However it is left before "go" or "done" was said, the others hear "refused" and end.
    """

    def __init__(self, place, config: dict, stop: Stop, leg=None):
        self.place, self.config, self.leg = place, config, leg
        self.meeting, self._said, self._heard = None, False, []
        if place.world > 1:
            self.meeting = meet(place, config, stop)

    def __enter__(self) -> "Lead":
        return self

    def __exit__(self, *_) -> None:
        if not self._said:
            self.say("refused")
        if self._heard:  # who failed likewise says nothing once it has seen that this rank did
            _wait(lambda: self.meeting.store.check(self._heard), ALIKE)
        if self.meeting:
            _part(self.meeting, None, 0)  # the word has been heard when this returns

    def say(self, word: str, lost=None) -> None:
        """lost: called with the error before the process is ended because another rank is gone."""
        self._said = True
        if self.meeting:
            self.meeting.on_lost = lost
            alike.publish(self.meeting.store, self.config)
            self.meeting.say(word)

    def arguments(self) -> dict:
        """What `train` is told of the others, and of when to hand over."""
        return {k: v for k, v in {"meeting": self.meeting, "leg": self.leg}.items() if v}

    def explain(self, error: BaseException, stop: Stop) -> BaseException:
        """What training ended by; where another rank is the cause, the error that says so."""
        return self.traced(_explain(self.meeting, error, stop))

    def traced(self, error: BaseException) -> BaseException:
        """The error; the log gets the traceback of the rank behind it."""
        if trace := traces.told(self.meeting, error):
            log.error(trace)
        return error

    def end(self, error: BaseException | None, code: int) -> None:
        """Tells the others by what rank 0 ends; None = well."""
        if self.meeting is None:
            return
        with contextlib.suppress(Exception):
            self.meeting.store.set(END, json.dumps([words(error), code]))
        _part(self.meeting, error, code)
        if isinstance(error, Exception) and not isinstance(error, (Interrupted, RankLost)):
            self._heard = [f"{END}/{rank}" for rank in range(1, self.place.world)]


def meet(place, config: dict, stop: Stop):
    """The meeting of all ranks. Interrupted when this one is told to stop before all have come. Imports
    torch."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # sockets that close are told in our own words
    before_torch()
    patience = (config.get("hardware") or {}).get("join_timeout") or 300
    return importlib.import_module("adabatch.meeting").Meeting(place, patience, lambda: stop.reason)


def follow(config: dict, folder: Path, place, stop: Stop, leg=None) -> tuple[int, BaseException | None]:
    """A rank above 0, to its exit code: it writes nothing into the folder and says only errors of its own."""
    errors_only(place.rank)
    stop.quiet, meeting = True, None
    try:
        meeting = meet(place, config, stop)
        if (word := meeting.hear()) != "go":
            meeting.leave()
            stop.told = stop.reason
            return {"done": 0}.get(word, 130 if stop.reason else 2), None
        alike.compare(meeting.store, config, f"rank {place.rank}")
        train = importlib.import_module("adabatch.train").train
        train(config, folder, lambda: stop.reason, meeting=meeting, **({"leg": leg} if leg else {}))
        meeting.leave()
        return 0, None
    except BaseException as caught:
        error = _explain(meeting, caught, stop)
        _, code, _ = outcome(error, folder, "")
        stop.told = str(error) if isinstance(error, Interrupted) else None
        if trace := traced(error, code, folder):
            traces.tell(meeting, error)
        if meeting is not None:
            _part(meeting, error, code)
        if _own(meeting, error, code):
            if trace:
                log.error(traces.text(error))
            log.error(words(error))
        if meeting is not None:
            with contextlib.suppress(Exception):
                meeting.store.set(f"{END}/{place.rank}", "")
        return code, error


def words(error: BaseException | None) -> str | None:
    """An error in a line for other ranks."""
    if error is None or isinstance(error, (UserError, Diverged, RankLost, Lost)):
        return None if error is None else str(error)
    return f"{type(error).__name__}: {error}"


def _explain(meeting, error: BaseException, stop: Stop) -> BaseException:
    """The error, or a RankLost where another rank is behind it. Errors that tell their own cause stay."""
    stop.over = True
    told = (UserError, Diverged, Interrupted, Lost, RankLost, MemoryError)
    if meeting is not None and isinstance(error, Exception) and not isinstance(error, told):
        error = meeting.explain(error)
    # Told twice, all ranks leave at once: who notices that another has left was told as well.
    return KeyboardInterrupt() if stop.twice and isinstance(error, RankLost) else error


def _part(meeting, error: BaseException | None, code: int) -> None:
    with contextlib.suppress(Exception):
        if error is None or isinstance(error, Interrupted):
            meeting.leave()
        else:
            meeting.fail(words(error), code)


def _own(meeting, error: BaseException, code: int) -> bool:
    """Whether a rank above 0 must say its error itself: rank 0 neither ended by the same nor says it."""
    said = []

    def heard() -> bool:
        said[:] = [meeting.store.get(END)] if meeting.store.check([END]) else []
        return bool(said)

    if isinstance(error, (Interrupted, KeyboardInterrupt)):
        return False
    if meeting is None:
        return True
    if isinstance(error, RankLost):
        return error.rank in (0, None) and not _wait(heard, 1.0)
    return not _wait(heard, ALIKE) or json.loads(said[0]) != [words(error), code]


def _wait(reached, seconds: float) -> bool:
    """Whether `reached()` became true in time; False as well where the store is gone."""
    until = time.monotonic() + seconds
    with contextlib.suppress(Exception):
        while not reached():
            if time.monotonic() > until:
                return False
            time.sleep(0.05)
        return True
    return False
