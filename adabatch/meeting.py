"""Where the processes of one run meet: a store under one address, who is there, and who is gone.

Rank 0 keeps the store (torch's TCPStore), or torchrun does. Each rank registers; then two threads watch. One
beats in the store and reads the others' beats; the other, which never waits for anything, judges. A rank is
lost that left a note of failure, whose process on this host is gone, or that was silent for SILENCE seconds.
gloo and NCCL only say that some connection broke, or wait for ever: ask `explain`.
"""

import contextlib
import json
import logging
import os
import socket
import threading
import time
from datetime import timedelta

from adabatch.errors import Interrupted, RankLost, UserError
from adabatch.places import started
from adabatch.watch import Watch, failure

NEWS = 20.0  # seconds of waiting after which the log says for whom
STORE = timedelta(seconds=300)  # of one answer
LINGER = 10.0  # seconds for which the process that keeps the store waits for the others to end
WORDS = 5.0  # seconds for a rank's last words to the store

log = logging.getLogger("adabatch")
_kept = {}  # (address, port) -> the store that this process keeps, to its end: the next run meets there again


class _Broken(Exception):
    """The store went away before all had come: perhaps an earlier run's, whose rank 0 has just ended."""


class Meeting:
    """One rank among the others. Constructing it waits until all are there, at most `patience` seconds.

    stop: returns None, or a reason to wait no longer (Interrupted). UserError: a port in use, two processes
    with one rank, different world sizes, ranks that do not come.
    """

    def __init__(self, place, patience: float = 300.0, stop=lambda: None):
        # c10d prints a C++ stack for each socket that closes; read when torch is first imported.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
        self.place, self.patience, self._stop = place, patience, stop
        self.agent = place.kind == "torchrun" and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        self._keeps, self._at = place.rank == 0 and not self.agent, f"{place.address}:{place.port}"
        self._until, self._told = time.monotonic() + patience, False
        self.mine = {"pid": os.getpid(), "host": socket.gethostname(), "started": started(os.getpid())}
        while True:
            try:
                self._tcp = self._open()
                with _broken():
                    self.store = self._register()
                    self.who = self._await()
                break
            except _Broken as error:
                self._wait(f"the store at {self._at} ({error})")
        self._groups, self._over = 0, False
        self.on_lost = None  # called with the error by a watching thread before that ends this process
        self._watch = Watch(self)

    def _wait(self, for_whom: str, seconds: float = 0.2) -> None:
        """Sleeps; says once for whom; UserError when patience is at its end."""
        now = time.monotonic()
        if reason := self._stop():
            raise Interrupted(reason)
        if now > self._until:
            raise UserError(
                f"rank {self.place.rank} of {self.place.world} waited {self.patience:g} s in vain for "
                f"{for_whom}. All ranks need the same MASTER_ADDR, MASTER_PORT and WORLD_SIZE, and a network "
                "that lets them reach the port; hardware.join_timeout=SECONDS waits longer"
            )
        if not self._told and now > self._until - self.patience + NEWS:
            self._told = True
            log.warning(f"rank {self.place.rank} waits for {for_whom}, {self._until - now:.0f} s more")
        time.sleep(min(seconds, max(0.0, self._until - now) + 0.01))

    def _open(self):
        """A connection to the store; rank 0 makes the store, where torchrun does not keep one."""
        from torch.distributed import TCPStore

        place = self.place
        if place.rank or self.agent:
            return self._reach(lambda: TCPStore(place.address, place.port, None, False, STORE))
        key = place.address, place.port
        if key not in _kept:
            given = {} if place.listening is None else {"master_listen_fd": place.listening}
            try:
                _kept[key] = TCPStore("127.0.0.1", place.port, None, True, STORE, False, **given)
            except RuntimeError as error:
                if "EADDRINUSE" not in str(error) and "in use" not in str(error):
                    raise
                raise UserError(
                    f"rank 0 meets the others at port {place.port} of {self.mine['host']}, which another "
                    "program or a second rank 0 uses. Choose another (MASTER_PORT, or torchrun "
                    f"--master-port), or end the program that has it: ss -ltnp 'sport = :{place.port}'"
                ) from None
        return _kept[key]

    def _reach(self, connect):
        """connect() in a thread of its own: it has no limit where the port listens but nobody answers."""
        what = f"{'torchrun' if self.agent else 'rank 0'}'s store at {self._at}"
        reached, found = False, []
        while not reached:
            try:  # torch prints a stack for every try that fails
                socket.create_connection((self.place.address, self.place.port), timeout=2).close()
                reached = True
            except OSError as error:
                self._wait(f"{what} ({error.strerror or error})")

        def call() -> None:
            try:
                found.append(connect())
            except RuntimeError as error:
                found.append(error)

        thread = threading.Thread(target=call, daemon=True)
        thread.start()
        while thread.is_alive():
            thread.join(0.2)
            if thread.is_alive():
                self._wait(f"{what} (the port listens, nobody answers)", 0)
        if isinstance(found[0], RuntimeError):
            raise _Broken(str(found[0]).splitlines()[0])
        return found[0]

    def _register(self):
        """This rank's name in the first round of this store that it has not taken part in yet: the jobs of a
        sweep meet one after another in torchrun's store."""
        from torch.distributed import PrefixStore

        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") if self.agent else "0"
        place, turn = self.place, 0
        while True:
            store = PrefixStore(f"adabatch/{attempt}/{turn}", self._tcp)
            own = json.dumps({"rank": place.rank, "world": place.world, **self.mine})
            first = json.loads(store.compare_set("world", "", own))
            if first["world"] == place.world:
                holder = json.loads(store.compare_set(f"here/{place.rank}", "", own))
                if who(holder) == who(self.mine) and not store.check([f"beat/{place.rank}"]):
                    store.set(f"beat/{place.rank}", "0")
                    return store
                if not self._ended(store, holder):
                    raise self._refused(
                        store,
                        f"two processes are rank {place.rank} of one run at {self._at}: {who(holder)} and "
                        f"{who(self.mine)}. Each needs a RANK of its own, and each run a MASTER_PORT",
                    )
            elif not self._ended(store, first):
                raise self._refused(
                    store,
                    f"WORLD_SIZE must be the same in all processes: rank {first['rank']} ({who(first)}) has "
                    f"{first['world']}, rank {place.rank} ({who(self.mine)}) has {place.world}",
                )
            turn += 1

    def _ended(self, store, one: dict) -> bool:
        """Whether a process that has registered there takes no part any more."""
        over = store.check([key := f"beat/{one['rank']}"]) and store.get(key) in (b"left", b"heard")
        return over or who(one) == who(self.mine) or self._gone(one)

    def _gone(self, one: dict) -> bool:
        return one["host"] == self.mine["host"] and started(one["pid"]) != one["started"]

    def _await(self) -> dict:
        """rank -> {pid, host, started, near: its process can be seen from here}, once all are there."""
        place, store = self.place, self.store
        keys = [f"here/{rank}" for rank in range(place.world)]
        while not store.check(keys):
            if store.check(["lost"]):
                raise failure(json.loads(store.get("lost")))
            try:
                self._wait(_ranks(r for r, key in enumerate(keys) if not store.check([key])))
            except Interrupted as error:  # the others may see that all are there, and begin
                self._tell(store, {"rank": place.rank, "message": "told to stop", "stopped": str(error)})
                raise
            except UserError as error:
                raise self._refused(store, str(error)) from None
        found = {rank: json.loads(value) for rank, value in enumerate(store.multi_get(keys))}
        for one in found.values():  # a host's name and a process's number say little across containers
            one["near"] = one["host"] == self.mine["host"] and started(one["pid"]) == one["started"]
        return found

    def _refused(self, store, message: str) -> UserError:
        """The error, which the others get too while they still wait for somebody."""
        world = json.loads(store.get("world"))["world"]
        if not store.check([f"here/{rank}" for rank in range(world)]):
            self._tell(store, {"rank": None, "message": message})
        return UserError(message)

    def _tell(self, store, note: dict) -> None:
        store.compare_set("lost", "", json.dumps(note))
        if self._keeps:
            time.sleep(1)  # the store ends with this process

    # --- speaking

    def fresh(self):
        """A connection to the store of its own, with its own names; the same names on all ranks, as long as
        all make the same calls."""
        from torch.distributed import PrefixStore

        self._groups += 1
        return PrefixStore(f"group/{self._groups}", self.store.clone())

    def say(self, word: str) -> None:
        """Rank 0's word to all others: go, done, refused."""
        self.store.set("word", word)

    def hear(self) -> str:
        """Rank 0's word. RankLost when a rank is lost, or rank 0 silent for a while."""
        until = time.monotonic() + (limit := max(self.patience, 60.0))
        while not self.store.check(["word"]):
            if self.lost:
                raise self._watch.error()
            if time.monotonic() > until:
                raise RankLost(f"{self.name(0)} did not say within {limit:g} s whether to train", 0)
            time.sleep(0.1)
        return self.store.get("word").decode()

    # --- ending

    def name(self, rank: int) -> str:
        return f"rank {rank} ({who(self.who[rank])})"

    @property
    def lost(self) -> str | None:
        """What is known of a lost rank, as a sentence; None while all are well."""
        return self._watch.lost and self._watch.lost["message"]

    def noticed(self) -> None:
        """The main thread is on its way out by an error, and not stuck."""
        self._watch.noticed()

    def explain(self, error: BaseException) -> BaseException:
        """RankLost, which names the rank, where a lost rank explains the error; else the error itself.
        Waits (at most 40 s) only for an error that a broken connection can cause."""
        return self._watch.explain(error)

    def fail(self, message: str, code: int = 1) -> None:
        """This rank ends by an error: the others are told, unless another rank was first."""
        own = {"rank": self.place.rank, "code": code}
        own["message"] = f"{self.name(self.place.rank)} failed: {message}"
        self._end("heard", self._watch.lost or own)

    def leave(self) -> None:
        """This rank ends well, and is not missed. Who keeps the store waits a little for the others."""
        self._end("left")

    def _end(self, state: str, note: dict | None = None) -> None:
        if self._over:
            return
        self._over = True
        self._watch.stop()
        last = threading.Thread(target=self._last, args=(state, note), daemon=True)
        last.start()
        last.join(LINGER + WORDS)  # nobody ends this process any more where the store's host is frozen

    def _last(self, state: str, note: dict | None) -> None:
        with contextlib.suppress(RuntimeError):  # the store may be gone
            if note:
                self.store.compare_set("lost", "", json.dumps(note))
            self.store.set(f"beat/{self.place.rank}", state)
            if self._keeps:
                self._linger()

    def _linger(self) -> None:
        """Until the others have left, heard of the failure, or are gone."""
        until, waiting = time.monotonic() + LINGER, set(self.who) - {self.place.rank}
        while waiting and time.monotonic() < until:
            for rank in list(waiting):
                ended = self.store.get(f"beat/{rank}") in (b"left", b"heard")
                if ended or (self.who[rank]["near"] and self._gone(self.who[rank])):
                    waiting.remove(rank)
            time.sleep(0.05)


def who(record: dict) -> str:
    return f"process {record['pid']} on {record['host']}"


def _ranks(numbers) -> str:
    numbers = [str(n) for n in numbers]
    more = f" and {len(numbers) - 8} more" if len(numbers) > 8 else ""
    return f"rank{'s' * (len(numbers) > 1)} {', '.join(numbers[:8])}{more}"


@contextlib.contextmanager
def _broken():
    """torch's errors of a connection as _Broken."""
    try:
        yield
    except RuntimeError as error:
        if not type(error).__name__.startswith("Dist"):
            raise
        raise _Broken(str(error).splitlines()[0]) from None
