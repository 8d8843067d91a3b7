"""Run folders in every state that `adabatch-status` knows, and a SLURM whose answers are written out."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from run_folders import LEDGER, make_rows, write_rows

from adabatch import places, runs
from adabatch.status import command

HERE = socket.gethostname()
ROOT = Path(__file__).resolve().parents[1]
BASE = {key: os.environ[key] for key in ("HOME", "LANG") if key in os.environ} | {"PYTHONPATH": str(ROOT)}


def dead_process() -> dict:
    """The owner record of a process of this host that has lived and is gone."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    owner = owner_of(child.pid)
    child.communicate()
    return owner


def owner_of(pid: int, host: str = HERE, beat: float = 5, job: str | None = None) -> dict:
    """What a process writes of itself; beat: seconds since its last heartbeat."""
    began = places.started(pid)
    return {"host": host, "pid": pid, "started": began, "job": job, "requeued": 0,
            "heartbeat": time.time() - beat}  # fmt: skip


def elsewhere(beat: float = 5, job: str | None = None) -> dict:
    """The owner record of a process on another host."""
    return {"host": "node7", "pid": 4711, "started": "0badc0de-1", "job": job, "requeued": 0,
            "heartbeat": time.time() - beat}  # fmt: skip


def submitted(job, cluster="slurm", ago: float = 5) -> dict:
    return {"id": job, "cluster": cluster, "logs": "logs/%j.out", "submitted": time.time() - ago}


def make(folder, state, owner=None, job=None, error=None, epochs=20, rows=None, overrides=("seed=0",)):
    """A run's folder with the given status.json; rows: what it has trained."""
    folder.mkdir(parents=True, exist_ok=True)
    status = {"format": 1, "state": state, "error": error, "owner": owner or dead()}
    runs.write_json(folder / "status.json", status | ({"job": job} if job else {}))
    age(folder, owner)
    runs.write_yaml(folder / "config.yaml", {"format": 1, "seed": 0, "epochs": epochs, "model": {"depth": 8}})
    runs.write_yaml(folder / "overrides.yaml", {"format": 1, "overrides": list(overrides)})
    if rows is not None:
        write_rows(folder, rows)
    if state == "finished":
        figures = {"epochs": epochs, "epochs_trained": float(epochs), "samples": 1437 * epochs, "seed": 0,
                   "final_test_error": 0.0139, "images_per_second": 9331.2, "ledger": LEDGER}  # fmt: skip
        runs.write_json(folder / "summary.json", {"format": 1, **figures})
    return folder


def dead() -> dict:
    return {
        "host": HERE,
        "pid": 2**22 + 5,
        "started": "0badc0de-1",
        "job": None,
        "heartbeat": time.time() - 90,
    }


def age(folder, owner) -> None:
    """status.json was written at the last heartbeat."""
    if owner and isinstance(owner["heartbeat"], float):
        os.utime(folder / "status.json", (owner["heartbeat"], owner["heartbeat"]))


def half() -> list:
    """The rows of a run that stands in its ninth epoch of twenty."""
    rows = make_rows()
    return rows[: len(rows) // 2]


def fake_slurm(
    folder, squeue: str = "", sacct: str | None = "", code: int = 0, errors: str = "", first: str = ""
):
    """Puts `squeue` (and `sacct`) into folder: they print what is given, and append their arguments to
    folder/asked. first: shell lines before that."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in (("squeue", squeue), ("sacct", sacct)):
        if text is None:
            continue
        program = folder / name
        (folder / f"{name}.txt").write_text(text)
        said = f"echo '{errors}' >&2\n" if errors and name == "squeue" else ""
        ending = code if name == "squeue" else 0
        program.write_text(
            f'#!/bin/sh\necho "{name} $*" >> "{folder}/asked"\n{first}\n{said}'
            f'cat "{folder}/{name}.txt"\nexit {ending}\n'
        )
        program.chmod(0o755)
    return folder


def alone(arguments, cwd, env=(), **options):
    """The command as a user starts it."""
    line = [sys.executable, "-m", "adabatch.status", *map(str, arguments)]
    return subprocess.run(
        line, cwd=cwd, env=BASE | {"PATH": "/nowhere"} | dict(env), capture_output=True, text=True,
        timeout=20, **options,
    )  # fmt: skip


def told(capsys, *arguments) -> dict:
    """{name of the folder: its JSON}."""
    command.command([*map(str, arguments), "--json"])
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    return {Path(one["folder"]).name: one for one in found}


def states(capsys, *arguments) -> dict:
    return {name: one["state"] for name, one in told(capsys, *arguments).items()}
