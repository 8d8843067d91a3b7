"""Choices that were measured on this machine, kept for later runs: the bits of a run depend on them, so that
they are measured once.

One JSON file, $ADABATCH_CACHE/micro_batch.json (default ~/.cache/adabatch). Deleting it is safe: the next run
measures anew. A file that is damaged, or cannot be read or written, only costs the measurement.
"""

import contextlib
import hashlib
import json
import logging
import os
import time
from pathlib import Path

from adabatch.errors import UserError
from adabatch.files import FORMAT, read_json, write_json

KEPT = 256  # choices; the oldest go
LOCK_SECONDS = 10.0  # a writer holds the lock for milliseconds

log = logging.getLogger("adabatch")


def path() -> Path:
    """RuntimeError: no home folder is known."""
    return Path(os.environ.get("ADABATCH_CACHE") or "~/.cache/adabatch").expanduser() / "micro_batch.json"


def stamp() -> dict:
    return {"format": FORMAT, "measured": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}


def recall(facts: dict) -> dict | None:
    """The choice that was recorded under equal facts, or None."""
    try:
        found = _choices(path()).get(_key(facts))
    except RuntimeError:
        return None
    if not (isinstance(found, dict) and found.get("depends_on") == facts):
        return None
    size = found.get("micro_batch")
    if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= facts["at_most"]:
        return None
    if size % facts["ghost"]:
        return None
    log.info("micro-batch  %d, as measured on %s (%s)", size, found.get("measured"), path())
    return found


def record(facts: dict, found: dict) -> None:
    """Keep a choice. Never an error: what cannot be kept is measured again next time."""
    import filelock  # 30 ms, and only for whoever writes

    try:
        target = path()
        target.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(str(target) + ".lock").acquire(timeout=LOCK_SECONDS):
            choices = _choices(target) | {_key(facts): found}
            latest = sorted(choices, key=lambda key: str(choices[key].get("measured")))[-KEPT:]
            write_json(target, {"format": FORMAT, "choices": {key: choices[key] for key in latest}})
    except (OSError, RuntimeError, filelock.Timeout) as error:
        log.warning("the measured micro-batch is not kept for the next run (%s)", error)


def _choices(path: Path) -> dict:
    """What the file holds; empty where there is none or it is damaged."""
    with contextlib.suppress(UserError):
        choices = read_json(path).get("choices")
        if isinstance(choices, dict):
            return {key: found for key, found in choices.items() if isinstance(found, dict)}
    return {}


def _key(facts: dict) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
