"""The jobs of a multirun that run at once on this machine: started, told to stop, recorded when they end."""

import contextlib
import logging
import os
import signal
import sys
import time
from pathlib import Path

from adabatch import processes
from adabatch.sharing import SHARED
from adabatch.signals import Forward

log = logging.getLogger("adabatch")


class Pool:
    """The jobs that run now. A signal to this process goes to each of them; then no further one is begun."""

    def __init__(self, recorded):
        """recorded: (folder, overrides, exit code, pid, told to stop) -> what became of a job."""
        self.recorded = recorded
        self.jobs: dict[int, tuple] = {}  # pid -> (record, poll)
        self.forward: Forward | None = None

    def start(self, record: dict, start, job: tuple, most: int) -> None:
        if self.forward is None:
            self.forward = Forward()
            self.forward.__enter__()
        config, folder = job[:2]
        if most > 1 and not self.jobs and (text := processes.crowded(config, most * processes.asked(config))):
            log.warning(text)
        output = folder.parent / ".output" / f"{folder.name}.txt" if most > 1 else None
        try:
            with shared_machine(most > 1), redirected(output):
                pid, poll = start(*job, self.forward)
        except BaseException:
            self.rest()
            raise
        self.jobs[pid] = (record, poll)
        self.forward.to(*(lambda number, pid=pid: os.kill(pid, number) for pid in self.jobs))
        if output:
            log.info(f"its output: {output}")

    def room(self, most: int) -> None:
        """Waits until fewer than `most` jobs run."""
        while len(self.jobs) >= most or (self.jobs and self.forward.count):
            self.wait_for_one()

    def wait_for_one(self) -> None:
        """Until a job has ended and is recorded. KeyboardInterrupt once all have, where one was told to
        stop."""
        record = self._ended()
        told = self.forward.count > 0
        if told or record["exit_code"] == 130:
            if not told:
                for pid in self.jobs:
                    os.kill(pid, signal.SIGINT)
            while self.jobs:
                self._ended()
        elif self.jobs:
            log.info(f"{record['state']}: {record['folder']}")
        self.rest()
        if not self.jobs and (told or record["exit_code"] == 130):
            raise KeyboardInterrupt

    def rest(self) -> None:
        """Signals are this process's own again while none runs."""
        if not self.jobs:
            self.forward.restore()
            self.forward = None

    def _ended(self) -> dict:
        """The record of the next job to end."""
        while (pid := next((p for p, (_, poll) in self.jobs.items() if poll() is not None), None)) is None:
            time.sleep(0.02)
        record, poll = self.jobs.pop(pid)
        record |= self.recorded(
            Path(record["folder"]), record["overrides"], poll(), pid, self.forward.count > 0
        )
        return record


@contextlib.contextmanager
def shared_machine(shared: bool):
    """Jobs that are started meanwhile know that they have the machine not to themselves."""
    before = os.environ.pop(SHARED, None)
    if shared or before:
        os.environ[SHARED] = "1"
    try:
        yield
    finally:
        os.environ.pop(SHARED, None)
        if before:
            os.environ[SHARED] = before


@contextlib.contextmanager
def redirected(path: Path | None):
    """What is started meanwhile writes into the file: several jobs in one terminal could not be read."""
    if path is None:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(number) for number in (1, 2)]
    with open(path, "ab") as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
    try:
        yield
    finally:
        for number, source in zip((1, 2), kept):
            os.dup2(source, number)
            os.close(source)
