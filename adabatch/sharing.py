"""Whether a run has its machine to itself: only then do its seconds mean something.

A run that does not gets a file `.shared` in its folder, which stays when it goes on alone; summary.json then
says `"shared": true`, and adabatch-report gives no time verdict.
"""

import os
import socket
from pathlib import Path

from adabatch import owner, places
from adabatch.errors import UserError

SHARED = "ADABATCH_SHARED"  # set for a run that is started beside others
MARK = ".shared"


def note(folder: Path, config: dict) -> None:
    """Marks the run in this folder, and those beside which it begins, where they share the machine.

    Seen are: what started it says so; runs of the same comparison that train on this host now. Not asked in
    SLURM's jobs, which have what SLURM gave them.
    """
    beside = []
    if (config.get("compare") or {}).get("arm") and places.manager() != "slurm":
        beside = running(folder.parent, but=folder)
    if beside or os.environ.get(SHARED):
        for each in (folder, *beside):
            (each / MARK).touch()


def running(parent: Path, but: Path) -> list[Path]:
    """The runs in this folder that a living process on this host trains."""
    found, here = [], socket.gethostname()
    for path in parent.glob("*/status.json"):
        if path.parent.resolve() == but.resolve():
            continue
        try:
            status = owner.status_of(path)
            own = status.get("owner")
            mine = isinstance(own, dict) and own.get("host") == here
            if status.get("state") == "running" and mine and owner.in_use(path.parent):
                found.append(path.parent)
        except (OSError, UserError):  # gone meanwhile, or no run of this version
            continue
    return found


def shared(folder: Path) -> bool:
    """Whether the run has shared the machine at any time."""
    return (folder / MARK).exists()
