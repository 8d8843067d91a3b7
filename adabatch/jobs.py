"""One run from its checked configuration to its exit code: the folder, the signals, the states, the last
words.

`run_job` is what the command line calls for a job, in this process; `sweep.py` gives each job of a multirun a
process of its own. `run` is the same from Python. No torch is imported before a job begins.
"""

import contextlib
import importlib
import logging
import os
import shlex
import signal
import sys
import threading
import time
import traceback
from pathlib import Path

from adabatch import runs
from adabatch.environment import calm_threads, describe
from adabatch.errors import Diverged, Lost, UserError
from adabatch.outcome import figures, full, next_steps, outcome
from adabatch.owner import Owner

log = logging.getLogger("adabatch")


class Stop:
    """Turns the first SIGINT or SIGTERM into a reason to stop at the next step; a second SIGINT interrupts at
    once.

    Works as a context. Outside the main thread Python delivers no signals, and nothing is installed.
    """

    def __init__(self):
        self.reason = None
        self._before = {}

    def __enter__(self) -> "Stop":
        if threading.current_thread() is threading.main_thread() and not self._before:
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._noted)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _noted(self, number, _frame) -> None:
        if self.reason and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.reason = signal.Signals(number).name
        # Not through logging: the signal may have come while a handler held its lock.
        with contextlib.suppress(OSError):
            os.write(2, f"\n{self.reason}: saving at the next step (Ctrl-C again stops without)\n".encode())


def run_job(
    config: dict, folder, overrides, notes=(), stop: Stop | None = None, reraise: bool = False, places=()
):
    """Trains, or goes on, or finds that all is done: (summary or None, exit code 0, 1, 2 or 130).

    config: resolved and checked. notes: lines for the log. reraise: errors are raised after they were
    recorded. places: Hydra's own overrides that name folders, as they belong to the command that resumes.
    """
    folder = Path(folder)
    command = shlex.join(["adabatch", *overrides, *places])
    terminal()
    try:
        with stop or Stop() as stop:
            if (summary := _finished(config, folder)) is not None:
                return summary, 0
            try:
                owner = _claim(config, folder)
            except OSError as error:
                if full(error, folder):
                    raise UserError(f"disk full: {folder} cannot be made. Free some space.") from error
                raise UserError(
                    f"{folder} cannot be written ({error.strerror}): name another hydra.run.dir"
                ) from error
            with _logged(folder):
                summary, code = _owned(config, folder, list(overrides), notes, stop, owner, command, reraise)
        return summary, code
    except UserError as error:
        if reraise:
            raise
        log.error(str(error))
        return None, 2


def _finished(config: dict, folder: Path) -> dict | None:
    """The summary of a run that is done and shall not be repeated."""
    if config.get("restart") or not folder.is_dir():
        return None
    run = runs.Run(folder)
    if run.state != "finished" or (summary := run.summary) is None:
        return None
    _same_run(config, run)
    log.info(f"finished already (restart=true runs it again)\n{figures(summary)}\nfolder: {folder}")
    if lacks := lacking(config, folder):
        log.warning(
            f"this run was made without what is asked for now ({', '.join(lacks)}): restart=true makes it "
            "again"
        )
    if not (folder / "report.html").is_file():
        _report(folder)
    return summary


def lacking(config: dict, folder: Path) -> list[str]:
    """What the configuration asks of a finished run that its folder does not have."""
    asked = {
        "checkpoint.best": ((config.get("checkpoint") or {}).get("best"), "best.pt"),
        "checkpoint.keep": ((config.get("checkpoint") or {}).get("keep") == "last", "weights.pt"),
        "trackers.tensorboard": ((config.get("trackers") or {}).get("tensorboard"), "tensorboard"),
    }
    found = [key for key, (wanted, name) in asked.items() if wanted and not (folder / name).exists()]
    if set(config.get("shadow") or ()) - set((runs.Run(folder).config or {}).get("shadow") or ()):
        found.append("shadow")
    return found


def _claim(config: dict, folder: Path) -> Owner:
    """Ownership of the folder; with restart=true of a new one, the old one renamed."""
    if folder.is_dir():
        run = runs.Run(folder)
        used = run.status is not None or run.config is not None
        if config.get("restart") and used:
            before = run.status or {}
            ended = before.get("state") in runs.STATES and before["state"] != "running"
            held = Owner.claim(folder)  # refused while somebody is working in it
            held.finish(before["state"] if ended else "interrupted", before.get("error"))
            log.info(f"restart=true: the earlier run is now {runs.set_aside(folder)}")
        elif used:
            _same_run(config, run)
    return Owner.claim(folder)


def _same_run(config: dict, run: runs.Run) -> None:
    """UserError where hydra.run.dir names the folder of another run."""
    before = run.identity
    if before and before != runs.identity(config, runs.contents(config)):
        old = run.config or {}
        differs = [k for k in config if runs.identity({k: config[k]}) != runs.identity({k: old.get(k)})]
        raise UserError(
            f"{run.folder} holds a run of another configuration (different: "
            f"{', '.join(differs) or 'unknown'}). Choose another hydra.run.dir, or restart=true."
        )


def _owned(config, folder, overrides, notes, stop, owner, command, reraise):
    """The run itself, every end of it recorded in status.json."""

    def told() -> str | None:
        if owner.taken():
            raise Lost(f"{folder} was taken over by another process: stopping without saving")
        return stop.reason

    began = time.monotonic()
    summary, error = None, None
    try:
        for note in notes:
            log.info(note)
        runs.write_yaml(folder / "config.yaml", {"format": runs.FORMAT, **config})
        label = {"identity": runs.identity(config, runs.contents(config)), "overrides": overrides}
        kept = {"format": runs.FORMAT, **label, "family": runs.family(config)}
        runs.write_yaml(folder / "overrides.yaml", kept)
        calm_threads()
        train = importlib.import_module("adabatch.train").train  # imports torch
        runs.write_json(folder / "environment.json", {"format": runs.FORMAT, **describe(config)})
        done = runs.Run(folder).summary  # written, but killed before the state was: nothing to train
        summary = {"format": runs.FORMAT, **(done or train(config, folder, told)), **label}
        runs.write_json(folder / "summary.json", summary)
        state, code, message = "finished", 0, None
    except BaseException as caught:
        error = caught
        state, code, message = outcome(caught, folder, command)
        if state is None:  # not ours to record
            owner.release()
            log.error(message)
            if reraise or not isinstance(caught, Exception):
                raise
            return None, code
        if (
            code == 1
            and isinstance(caught, Exception)
            and not isinstance(caught, Diverged)
            and not full(caught, folder)
        ):
            log.error("".join(traceback.format_exception(caught)).rstrip())
        (log.warning if code == 130 else log.error)(message)
    try:
        owner.finish(state, message)
    except OSError as trouble:
        log.error(f"status.json could not be written: {trouble}")
    _report(folder)
    if error is None:
        if (config.get("checkpoint") or {}).get("keep") == "none":
            (folder / "checkpoint.pt").unlink(missing_ok=True)
        seconds = time.monotonic() - began
        log.info(
            f"{figures(summary)}\nfolder: {folder} ({seconds:.0f} s in all)\n{next_steps(folder, overrides)}"
        )
    elif reraise or not isinstance(error, (Exception, KeyboardInterrupt)):
        raise error
    return summary, code


def _report(folder: Path) -> None:
    """curves.png and report.html. A report that cannot be drawn is a warning: the run itself is fine."""
    try:
        importlib.import_module("adabatch.report").write_run(folder)
    except Exception as error:
        log.warning(f"no report: {type(error).__name__}: {error}")


class _File(logging.FileHandler):
    """log.txt; a full disk must not put a second error over the first."""

    def handleError(self, record) -> None:
        pass


@contextlib.contextmanager
def _logged(folder: Path):
    try:
        handler = _File(folder / "log.txt", encoding="utf-8")
    except OSError:
        handler = logging.NullHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        with contextlib.suppress(OSError):
            handler.close()


def terminal() -> None:
    """Sends the "adabatch" log to the terminal, once."""
    if log.handlers or log.propagate is False:
        return
    try:
        handler = importlib.import_module("adabatch.console").handler()
    except ModuleNotFoundError:
        handler = logging.StreamHandler(sys.stdout)
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False


def run(overrides=(), config_dir: str | None = None) -> dict:
    """Trains as the command line does and returns the summary; errors are raised (UserError, Diverged, ...).

    overrides: as on the command line, e.g. ["model=vgg", "schedule=adabatch"]. config_dir: as -cd.
    """
    from adabatch import config, mistakes

    overrides = config.lenient([str(o) for o in overrides])
    with config.composer(config_dir):
        try:
            tree = config.load(overrides)
            good = config.checked(tree)
            folder = Path(str(tree.hydra.run.dir))
        except Exception as error:
            if (message := mistakes.explain(error, overrides)) is None:
                raise
            raise UserError(message) from None
    summary, _ = run_job(good.config, folder, overrides, good.notes, reraise=True)
    return summary
