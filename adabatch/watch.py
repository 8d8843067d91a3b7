"""Who of a run is still there: two threads of every rank. See `meeting.py`.

The first beats in the store and reads; it can hang there, with the host that keeps the store. The second
waits for nothing: it looks at this host's processes and at what the first has read, and judges.
"""

import atexit
import json
import logging
import os
import threading
import time
from datetime import timedelta

from adabatch.errors import Interrupted, RankLost, UserError
from adabatch.places import started

BEAT = 2.0  # seconds between two beats, at most
LOOK = 0.25  # seconds between two looks at what is known
SILENCE = (
    30.0  # seconds without a beat after which a rank is lost; its main thread may be as slow as it likes
)
SUSPECT = 10.0  # the same once a collective has failed, which proves that something is wrong
GRACE = 5.0  # seconds that the main thread has to notice by itself; it is then taken to be stuck
LAST = 45.0  # seconds for its last words once it has noticed
AWAY = 7200.0  # the same where a host is lost: SLURM is asked, and ends the process (`requeue.py`)
VERDICT = 40.0  # seconds that a failed collective waits for the name of the lost rank
WORDS = ("gloo", "nccl", "connection", "connect", "peer", "socket", "broken pipe", "timed out", "timeout")

log = logging.getLogger("adabatch")


class Watch:
    """Begins at once. lost: {"rank", "message"} of the first rank that was found lost, else None."""

    def __init__(self, meeting):
        self.meeting, self.lost = meeting, None
        self.rank, self.world = meeting.place.rank, meeting.place.world
        now = time.monotonic()
        self._seen = {
            rank: (None, now) for rank in range(self.world) if rank != self.rank
        }  # beat, since when
        self._left, self._missed, self._broke = set(), {}, None
        self._asked = self._read = now  # when the store was last read; _asked is forgiven hold-ups
        self._suspicion = self._answered = None  # when a collective failed; when the main thread noticed
        self._stopped, self._wake, self._decided = threading.Event(), threading.Event(), threading.Event()
        self._threads = [threading.Thread(target=f, daemon=True) for f in (self._beat, self._judge)]
        for thread in self._threads:
            thread.start()
        atexit.register(self.stop)  # a thread that wakes up in a dying interpreter can crash it

    def stop(self) -> None:
        """Ends both threads; from then on nobody beats for this rank, and this process is not ended."""
        atexit.unregister(self.stop)
        self._stopped.set()
        self._wake.set()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(BEAT)  # it may hang in the store

    # --- the thread that talks to the store

    def _beat(self) -> None:
        try:
            store = self.meeting.store.clone()  # a connection serves one call at a time
            store.set_timeout(timedelta(seconds=SILENCE))
            turn = 0
            while not self._stopped.is_set():
                self._wake.clear()
                turn += 1
                self._turn(store, turn)
                self._wake.wait(BEAT / 2)
        except RuntimeError as error:
            self._broke = str(error).splitlines()[0]

    def _turn(self, store, turn: int) -> None:
        asked = time.monotonic()
        if self.lost:
            store.compare_set("lost", "", json.dumps(self.lost))
        if not self._stopped.is_set():  # stop() waits for this thread, so that it has the last word
            store.set(f"beat/{self.rank}", "heard" if self.lost else str(turn))
        others = [rank for rank in self._seen if rank not in self._left]
        beats = store.multi_get([f"beat/{rank}" for rank in others]) if others else []
        for rank, beat in zip(others, beats):
            if beat == b"left":
                self._left.add(rank)
            elif self._seen[rank][0] != beat:
                self._seen[rank] = beat, time.monotonic()
        if not self.lost and store.check(["lost"]):
            self._found(json.loads(store.get("lost")))
        self._asked = self._read = asked

    # --- the thread that judges

    def _judge(self) -> None:
        before = time.monotonic()
        while not self._stopped.wait(LOOK):
            before, late = time.monotonic(), time.monotonic() - before - LOOK
            if late > 1:  # held up itself, by a long call that keeps Python's lock or a stopped process
                self._forgive(late)
            if not self.lost:
                self._look(before)
                continue
            waited = time.monotonic() - (self._answered or self._decided_at)
            if waited > (LAST if self._answered else GRACE):
                self._end()

    def _forgive(self, seconds: float) -> None:
        """Silence is not counted for so long; what was read was still read when it was."""
        self._asked += seconds
        self._seen = {rank: (beat, since + seconds) for rank, (beat, since) in self._seen.items()}

    def _look(self, now: float) -> None:
        read = self._read  # before _left is read: what that reading of the store found is in it
        there = [rank for rank in self._seen if rank not in self._left]
        for rank in there:
            one = self.meeting.who[rank]
            if one["near"] and started(one["pid"]) != one["started"]:
                self._missed.setdefault(rank, time.monotonic())  # it may have left between `now` and here
        for rank, since in self._missed.items():
            # Its last words are read first: it may have left, or told why it ends.
            if rank in there and (read > since or self._broke or now - since > GRACE):
                return self._say(rank, "is gone: killed, or out of memory?")
        silence = SUSPECT if self._suspicion else SILENCE
        if self._broke or now - self._asked > silence:
            return self._unreachable(now)
        for rank in there:
            if now - self._seen[rank][1] > silence:
                near = self.meeting.who[rank]["near"]
                why = "stopped, or starved?" if near else "host or network down?"
                away = not near and rank != 0
                return self._say(rank, f"has been silent for {silence:.0f} s: {why}", away=away)
        if self._suspicion and self._left and now - self._suspicion > SUSPECT + BEAT:
            self._say(min(self._left), f"has ended its run, and rank {self.rank} has not")

    def _unreachable(self, now: float) -> None:
        """The store does not answer."""
        quiet = now - self._asked
        how = f"({self._broke})" if self._broke else f"for {quiet:.0f} s"
        if self.meeting.agent:
            self._found(
                {"rank": None, "message": f"torchrun's store does not answer {how}: its host is down?"}
            )
        # Where its process can be seen, a broken connection is a process that ends just now: seen soon.
        elif 0 not in self._left and (quiet > GRACE or not self.meeting.who[0]["near"]):
            self._say(0, f"is gone: its store does not answer {how}")

    def _say(self, rank: int, what: str, **more) -> None:
        self._found({"rank": rank, "message": f"{self.meeting.name(rank)} {what}", **more})

    def _found(self, note: dict) -> None:
        if self._stopped.is_set() or self.lost:
            return
        self._decided_at, self.lost = time.monotonic(), note
        self._decided.set()
        self._wake.set()  # the others are told

    def _end(self) -> None:
        """The main thread is stuck in a collective that cannot end."""
        call, error = self.meeting.on_lost or log.error, failure(self.lost)
        thread = threading.Thread(target=call, args=(error,), daemon=True)
        thread.start()
        thread.join(AWAY if getattr(error, "away", False) else 2 * GRACE)
        os._exit(130 if isinstance(error, Interrupted) else 1)

    # --- the main thread

    def noticed(self) -> None:
        self._answered = self._answered or time.monotonic()

    def error(self) -> Exception:
        self.noticed()
        return failure(self.lost)

    def explain(self, error: BaseException) -> BaseException:
        self.noticed()
        if isinstance(error, (RankLost, Interrupted)) or not breaks(error):
            return error
        if not self._stopped.is_set():
            self._suspicion = time.monotonic()
            self._wake.set()
            self._decided.wait(VERDICT)
        return self.error() if self.lost else error


def failure(note: dict) -> Exception:
    """What a note of a lost rank means for the others: {"rank", "message"}; "away": as in RankLost;
    "stopped": the reason for which it was told to stop before the run began."""
    if note.get("stopped"):
        return Interrupted(note["stopped"])
    if note["rank"] is None:
        return UserError(note["message"])
    return RankLost(note["message"], note["rank"], note.get("away", False))


def breaks(error: BaseException) -> bool:
    """Whether a rank that is gone can be the cause of the error."""
    if type(error).__name__.startswith("Dist"):  # torch.distributed's own, told without importing torch
        return True
    text = str(error).lower()
    return isinstance(error, (RuntimeError, OSError)) and any(word in text for word in WORDS)
