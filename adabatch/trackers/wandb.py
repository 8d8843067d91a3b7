"""Weights & Biases as one tracker that can neither ask, nor hang, nor end a run. Files under <folder>/wandb.

mode auto: online where a key is configured (environment, netrc, settings), otherwise offline; the
environment's WANDB_MODE and WANDB_DISABLED are obeyed. online: the same, with a warning where it had to be
offline after all. The x axis of every chart is `position`; W&B's own step counts log calls and starts anew
in an offline resume, so it is never set. Rows between the last checkpoint and a kill are logged twice, at
the same positions. group: the comparison; job type: the arm, by which W&B groups within it; tags: arm and
seed. Changes of the batch are series (change/lr, ...), and at the end a table with their rules. Written for
wandb 0.31 (its `finish_timeout` and `login(prompt=False)` are needed).
"""

import json
import logging
import os
import secrets
import time
from hashlib import sha256
from pathlib import Path

from adabatch import labels
from adabatch.errors import UserError, suggest
from adabatch.trackers import flat

log = logging.getLogger("adabatch")

CHANGE = ("position", "epoch", "quantity", "before", "after", "rule")
TABLE = 1000  # rows of the table of changes
MODES = ("auto", "online", "offline", "disabled")
FROM_ENVIRONMENT = {"disabled": "disabled", "offline": "offline", "dryrun": "offline"}


def resolve(mode: str) -> str:
    """The mode with the environment taken into account; "auto" stays where the environment says nothing."""
    if mode not in MODES:
        known = ", ".join(MODES)
        raise UserError(f"trackers.wandb.mode is one of {known}, not {mode!r}.{suggest(mode, MODES)}")
    if mode != "auto":
        return mode
    if os.environ.get("WANDB_DISABLED", "").lower() in ("1", "true", "yes", "on"):
        return "disabled"
    return FROM_ENVIRONMENT.get(os.environ.get("WANDB_MODE", ""), "auto")


def run_id(folder: Path) -> str:
    """The id of this folder's W&B run, made once and kept in <folder>/wandb_id.

    Its first half follows from the folder's name; the second is drawn, so that the same run in another
    checkout, by a colleague, or after restart=true is another run of the W&B project and no continuation.
    """
    path = Path(folder) / "wandb_id"
    if path.exists() and (stored := path.read_text().strip()):
        return stored
    made = f"{sha256(Path(folder).name.encode()).hexdigest()[:8]}-{secrets.token_hex(4)}"
    draft = path.with_suffix(".tmp")
    draft.write_text(made + "\n")
    os.replace(draft, path)
    return made


class Wandb:
    """A W&B run, opened at once. mode: auto, online or offline. Exceptions are the caller's to handle.

    init_timeout, finish_timeout: seconds (W&B's own defaults are 90 and for ever).
    """

    def __init__(
        self,
        config: dict,
        folder: Path,
        mode: str,
        project: str | None = None,
        entity: str | None = None,
        group: str | None = None,
        name: str | None = None,
        tags: list[str] | None = None,
        init_timeout: float = 30.0,
        finish_timeout: float = 120.0,
    ):
        import wandb

        self.folder = Path(folder)
        self.finish_timeout = finish_timeout
        self._wandb = wandb
        self._options = {
            "id": run_id(folder),
            "resume": "allow",
            "project": project or os.environ.get("WANDB_PROJECT") or "adabatch",
            "entity": entity,
            "group": group,
            "name": name or self.folder.name,
            "tags": list(tags) if tags else None,
            "config": {**config, "arm": labels.arm(config)},
            "dir": str(folder),
            "job_type": labels.arm(config)[: labels.LONGEST],
        }
        self._settings = {
            "init_timeout": init_timeout,
            "finish_timeout": finish_timeout,
            "console": "off",  # it would put itself between the program and the terminal
            "reinit": "finish_previous",  # the default returns the previous run, whatever the id
            "silent": True,
        }
        try:
            self.run = self._open(mode)
            self.run.define_metric("*", step_metric="position")
        except Exception:
            self._end()
            raise

    def _open(self, mode: str):
        """The run: online where that is wanted and possible, else offline, with a message that says which."""
        if mode != "offline" and self._has_key(mode):
            try:
                run = self._init("online")
                log.info("W&B: %s", run.url or "online")
                return run
            except Exception as error:
                log.warning("W&B: no connection (%s); this run is recorded offline", _first_line(error))
                self._end()  # its process still holds the run's id and would refuse it a second time
        run = self._init("offline")
        where = self.folder / "wandb"
        log.info("W&B: offline in %s (to look at it: wandb leet; to send it: wandb sync)", where)
        return run

    def _init(self, mode: str):
        self._wandb.setup(self._wandb.Settings(silent=True))  # its messages would break into the live line
        return self._wandb.init(mode=mode, settings=self._wandb.Settings(**self._settings), **self._options)

    def _has_key(self, mode: str) -> bool:
        """Whether credentials are configured. Asks nobody: neither the user nor a server."""
        self._wandb.setup(self._wandb.Settings(silent=True))
        if self._wandb.run is not None:  # a run left open in this process: login() would answer no, unasked
            self._wandb.finish()
        try:
            found = self._wandb.login(prompt=False, verify=False)
        except Exception as error:
            log.warning("W&B: the configured key is refused (%s)", _first_line(error))
            return False
        if not found and mode == "online":
            log.warning("W&B: mode=online needs a key and none is configured: run `wandb login`")
        return bool(found)

    def resume(self, position: int, rows: int) -> None:
        """Nothing to take back: repeated rows fall on the positions where they were."""

    def log(self, row: dict) -> None:
        values = flat(row)
        if row.get("event") == "end":
            self.run.summary.update(values)
        self.run.log(values)

    def sync(self) -> None:
        """W&B writes and sends by itself; only metrics.jsonl must be complete before a checkpoint."""

    def close(self, exit_code: int = 0) -> None:
        began = time.monotonic()
        if exit_code == 0:
            self._tabulate()
        where = self.run.settings.sync_dir
        try:
            self.run.finish(exit_code=exit_code)
        finally:
            self._end()
        if time.monotonic() - began >= self.finish_timeout:
            log.warning(
                "W&B: not everything was sent within %g s; it is kept, and `wandb sync %s` sends it",
                self.finish_timeout,
                where,
            )

    def _tabulate(self) -> None:
        """Log the change events as a table: once, for `wandb leet` draws its columns too. From metrics.jsonl,
        which also has those of before a resume."""
        try:
            rows = list(changes(self.folder / "metrics.jsonl"))
            if rows:
                self.run.log({"changes": self._wandb.Table(columns=list(CHANGE), data=rows)})
        except Exception as error:
            log.warning("W&B: no table of the changes (%s)", _first_line(error))

    def _end(self) -> None:
        """End W&B's own process and threads here, not at exit, where nobody would handle their errors."""
        try:
            self._wandb.teardown()
        except SystemExit as error:  # so it reports that its process ended badly
            raise RuntimeError(f"the W&B process ended with exit code {error.code}") from None
        finally:
            self._wandb.run = None  # it would keep a run whose process died, and trip over it later


def changes(path: Path):
    """[position, epoch, quantity, before, after, rule] of each change event, TABLE rows at the most."""
    found = 0
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            if '"change"' not in line:
                continue
            row = json.loads(line)
            for name, (before, after) in row.get("changes", {}).items() if row["event"] == "change" else ():
                if found == TABLE:
                    return
                found += 1
                yield [row["position"], row["epoch"], name, before, after, row.get("rule")]


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
