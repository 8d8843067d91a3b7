"""Rank 0 of a run towards the others, and a rank above 0.

Rank 0 decides whether there is anything to train and alone writes; the others follow its word. Alone, rank 0
has nobody to talk to.
"""

import contextlib
import importlib
import json
import logging
import os
import time
from pathlib import Path

from adabatch import alike, traces
from adabatch.environment import before_torch
from adabatch.errors import Diverged, Interrupted, Lost, RankLost, UserError
from adabatch.logs import errors_only
from adabatch.outcome import outcome, reason, traced
from adabatch.requeue import leave
from adabatch.signals import END, Stop

ALIKE = 5.0  # seconds in which rank 0 says by what it ended, so that others need not say it again
OVER = "adabatch/end"  # the key under which it says so

log = logging.getLogger("adabatch")


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
            self.meeting.store.set(OVER, json.dumps([words(error), code]))
        _part(self.meeting, error, code)
        if isinstance(error, Exception) and not isinstance(error, (Interrupted, RankLost)):
            self._heard = [f"{OVER}/{rank}" for rank in range(1, self.place.world)]


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
        meeting.on_lost = lambda error: _ended(error, stop, place, folder)
        # Beside rank 0, which does so before its word: when rank 0 fails, little time is left to hear of it.
        train = importlib.import_module("adabatch.train").train
        if (word := meeting.hear()) != "go":
            meeting.leave()
            stop.told = stop.reason
            return {"done": 0}.get(word, 130 if stop.reason else 2), None
        alike.compare(meeting.store, config, f"rank {place.rank}")
        train(config, folder, lambda: stop.reason, meeting=meeting, **({"leg": leg} if leg else {}))
        meeting.leave()
        return 0, None
    except BaseException as caught:
        error = _explain(meeting, caught, stop)
        _, code, _ = outcome(error, folder, "")
        stop.told = reason(error)
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
                meeting.store.set(f"{OVER}/{place.rank}", "")
        return code, error


def _ended(error: Exception, stop: Stop, place, folder: Path) -> None:
    """The last words of a rank above 0 whose main thread waits in vain for another."""
    log.error(str(error))
    stop.told = reason(error)
    leave(stop, place, folder)


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
    if isinstance(error, RankLost) and stop.reason == END:
        error.away = False  # srun ends a job of which a process was killed: it is no lost host
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
        said[:] = [meeting.store.get(OVER)] if meeting.store.check([OVER]) else []
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
