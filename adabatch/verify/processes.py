"""The command as processes, one after the other, each with a folder and its words in a file."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from adabatch import runs
from adabatch.errors import UserError
from adabatch.verify.forks import Forks

# Ours come last and win: nothing is sent anywhere, a checkpoint follows every step, evaluation is for the
# end.
ALWAYS = (
    "trackers.wandb.mode=disabled",
    "trackers.tensorboard=false",
    "checkpoint.every_seconds=0",
    "checkpoint.best=false",
    "checkpoint.keep=last",
    "evaluate.every=1000000000",
    "shadow=null",
    "restart=false",
)
LAUNCHED = (
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "ADABATCH_LOCAL",
    "ADABATCH_LISTEN_FD",
    "SLURM_PROCID",
    "SLURM_STEP_ID",
    "SLURM_STEP_NUM_TASKS",
)
# What ranks find out by themselves (agreement.py), by the names that verify has for it.
KNOWN = {"data: order": "data order", "data: inputs": "data order or augmentation", "data: labels": "labels"}
WORDS = 600  # characters of what a failed run said


@dataclass(frozen=True)
class Made:
    """One run. code: its exit code. folder: the run folder. witness: what its ranks wrote."""

    name: str
    code: int
    folder: Path
    witness: Path
    words: str

    @property
    def failure(self) -> str | None:
        """Why it did not finish, in its own words; None where it did."""
        if self.code == 0:
            return None
        with contextlib.suppress(Exception):
            if error := (runs.Run(self.folder).status or {}).get("error"):
                # Without what names a file: the folder is gone soon, unless it is kept.
                said = "\n".join(x for x in str(error).splitlines() if not x.startswith("log:"))
                return next((f"{name}: {said}" for mark, name in KNOWN.items() if mark in said), said)
        lines = [line for line in self.words.splitlines() if line.strip()]
        how = f"killed by signal {-self.code}" if self.code < 0 else f"exit code {self.code}"
        return f"{how}: " + "\n".join(lines)[-WORDS:]


class Processes:
    """Starts the user's command again and again. base: the folder for everything. overrides: the user's.
    tell(text): progress."""

    def __init__(self, base: Path, overrides: list[str], config_dir: str | None, steps: int, tell):
        self.base, self.overrides, self.config_dir = Path(base), list(overrides), config_dir
        self.steps, self.tell, self.number = steps, tell, 0
        self.forks = Forks(environment()) if sys.platform == "linux" else None

    def __enter__(self) -> "Processes":
        return self

    def __exit__(self, *_) -> None:
        if self.forks:
            self.forks.close()

    def run(
        self,
        name: str,
        *overrides: str,
        kill_after: int | None = None,
        going_on: Made | None = None,
        nudge: bool = False,
    ) -> Made:
        """The command with more overrides. kill_after: it kills itself after so many steps. going_on: the run
        whose folder is copied and gone on with. UserError: the command was refused."""
        self.number += 1
        place = self.base / "-".join([f"{self.number:02d}", *re.findall(r"[\w=.]+", name)])
        place.mkdir(parents=True)
        folder, witness = place / "run", place / "witness"
        if going_on:
            shutil.copytree(going_on.folder, folder)
        asked = f"{{steps:{self.steps},kill_after:{kill_after or 'null'},witness:{quoted(witness)}"
        asked += ",nudge:true}" if nudge else "}"
        lines = [
            *self.overrides,
            *ALWAYS,
            *overrides,
            f"++rehearsal={asked}",
            f"hydra.run.dir={quoted(folder)}",
        ]
        lines += ["--config-dir", self.config_dir] if self.config_dir else []
        began = time.monotonic()
        code = self.start("adabatch", lines, place / "output.txt")
        words = (place / "output.txt").read_text(errors="replace")
        self.tell(f"run {self.number:2d}  {name}  ({time.monotonic() - began:.0f} s)")
        if code == 2 and not going_on:
            raise UserError(
                words.strip().splitlines()[-1].removeprefix("adabatch: ") if words.strip() else name
            )
        return Made(name, code, folder, witness, words)

    def start(self, module: str, arguments: list[str], output: Path) -> int:
        """Runs python -m module arguments to its end with its words in `output`; its exit code."""
        if self.forks:
            return self.forks(module, arguments, output)
        command = [sys.executable, "-m", module, *arguments]
        with open(output, "w") as file:
            # A group of its own: Ctrl-C comes to this process, which ends the child and waits for it.
            child = subprocess.Popen(
                command, stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=environment(),
                process_group=0,
            )  # fmt: skip
            try:
                return child.wait()
            finally:
                end(child)

    def expected(self, config: dict, samples: int) -> dict:
        """`expected.expected` and the order, from a process of its own."""
        asked, out = self.base / "config.json", self.base / "expected.json"
        runs.write_json(asked, config | {"rehearsal": {"steps": self.steps}})
        words = self.base / "expected.txt"
        if self.start("adabatch.verify.expected", [str(asked), str(samples), str(out)], words):
            raise RuntimeError(words.read_text()[-WORDS:])
        return json.loads(out.read_text())


def environment() -> dict:
    """What a run is started with: this one's, less what a launcher of several processes left."""
    kept = {k: v for k, v in os.environ.items() if k not in LAUNCHED}
    path = os.pathsep.join(p for p in [os.getcwd(), *sys.path] if p)
    return kept | {"COLUMNS": "200", "PYTHONPATH": path}


def quoted(path) -> str:
    """A path as a value of an override."""
    return "'" + str(path).replace("\\", "\\\\").replace("'", "\\'") + "'"


def end(child: subprocess.Popen, patience: float = 10.0) -> None:
    """Ends a child that is still there and its group: it may save, then it is killed."""
    if child.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            child.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(patience)
    if child.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
