"""One run from its checked configuration to its exit code: the folder, the signals, the states, the last
words.

`run_job` is what the command line calls for a job, in this process; `sweep.py` gives each job of a multirun a
process of its own. `run` is the same from Python. No torch is imported before a job begins.
"""

import contextlib
import importlib
import logging
import pickle
import shlex
import sys
import time
import traceback
from pathlib import Path

from adabatch import processes, runs, spawn
from adabatch.environment import before_torch, describe
from adabatch.errors import Interrupted, Lost, RankLost, UserError
from adabatch.logs import logged, terminal
from adabatch.outcome import ended, figures, full, next_steps, outcome, traced
from adabatch.owner import Owner, in_use
from adabatch.places import agree, detect
from adabatch.signals import Stop, die_with_parent

log = logging.getLogger("adabatch")


def run_job(
    config: dict, folder, overrides, notes=(), stop: Stop | None = None, reraise: bool = False, places=()
):
    """Trains, or goes on, or finds that all is done: (summary or None, exit code 0, 1, 2 or 130).

    config: resolved and checked. notes: lines for the log. reraise: errors are raised after they were
    recorded. places: Hydra's own overrides that name folders, as they belong to the command that resumes.
    A rank above 0 has no summary.
    """
    folder, overrides = Path(folder), list(overrides)
    command = shlex.join(["adabatch", *overrides, *places])
    place = None
    terminal()
    try:
        place = detect()
        agree(place, config.get("hardware"))
        with stop or Stop(quiet=place.rank > 0) as stop:
            if place.rank:
                code, error = spawn.follow(config, folder, place, stop)
                if error is not None and (reraise or not isinstance(error, (Exception, KeyboardInterrupt))):
                    raise error
                return None, code
            with spawn.Lead(place, config, stop) as lead:
                if (summary := _finished(config, folder)) is not None:
                    lead.say("done")
                    return summary, 0
                job = (config, str(folder), overrides, tuple(notes))
                if place.world == 1 and processes.asked(config) > 1:
                    return _supervised(job, folder, stop, places, command, reraise)
                owner = _writable(config, folder)
                with logged(folder):
                    return _owned(job, folder, stop, owner, command, reraise, lead)
    except (UserError, RankLost, Interrupted) as error:  # before the folder was claimed
        if reraise:
            raise
        stopped = isinstance(error, Interrupted)
        if place is None or place.local == 0:  # once for each machine
            log.error(f"stopped ({error}) before all processes had come" if stopped else str(error))
        return None, 130 if stopped else 2 if isinstance(error, UserError) else 1


def _supervised(job: tuple, folder: Path, stop: Stop, places, command: str, reraise: bool):
    """The run in processes of this process's own; what can be refused without them is refused here."""
    config = job[0]
    if folder.is_dir():
        if why := in_use(folder):
            raise UserError(f"{folder} is in use: {why}")
        if not config.get("restart"):
            _same_run(config, runs.Run(folder))
    processes.refuse(config)
    code, words = spawn.supervise(job, processes.asked(config), stop, places, command)
    if words:
        with logged(folder):
            log.error(words)
    run = runs.Run(folder) if folder.is_dir() else None
    if code and reraise:
        raise ended((run and run.status) or {}, code)
    return (run.summary if code == 0 else None), code


def child() -> None:
    """The whole life of a process that `spawn.fresh` started: its job comes through stdin from its parent."""
    with Stop() as stop:
        payload = pickle.load(sys.stdin.buffer)
        sys.argv = payload["argv"]
        die_with_parent(payload["parent"])
        try:
            code = run_job(*payload["job"], stop=stop, places=payload["named"])[1]
        except KeyboardInterrupt:  # before it had begun
            code = 130
    sys.exit(code)


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


def _writable(config: dict, folder: Path) -> Owner:
    """`_claim`; a UserError where the folder cannot be written."""
    try:
        return _claim(config, folder)
    except OSError as error:
        if full(error, folder):
            raise UserError(f"disk full: {folder} cannot be made. Free some space.") from error
        raise UserError(
            f"{folder} cannot be written ({error.strerror}): name another hydra.run.dir"
        ) from error


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


def _owned(job: tuple, folder: Path, stop: Stop, owner: Owner, command: str, reraise: bool, lead):
    """The run itself, every end of it recorded in status.json."""

    def told() -> str | None:
        if owner.taken():
            raise Lost(f"{folder} was taken over by another process: stopping without saving")
        return stop.reason

    config, _, overrides, notes = job
    began = time.monotonic()
    summary, error = None, None
    try:
        for note in notes:
            log.info(note)
        label = _labelled(config, folder, overrides)
        before_torch()
        train = importlib.import_module("adabatch.train").train  # imports torch
        runs.write_json(folder / "environment.json", {"format": runs.FORMAT, **describe(config)})
        if text := processes.crowded(config, lead.place.local_world):
            log.warning(text)
        done = runs.Run(folder).summary  # written, but killed before the state was: nothing to train
        lead.say("done" if done else "go", lambda text: _abandoned(RankLost(text), folder, command, owner))
        summary = {
            "format": runs.FORMAT,
            **(done or train(config, folder, told, **lead.arguments())),
            **label,
        }
        runs.write_json(folder / "summary.json", summary)
        state, code, message = "finished", 0, None
    except BaseException as caught:
        error = lead.explain(caught, stop)
        state, code, message = outcome(error, folder, command)
        if state is None:  # not ours to record
            owner.release()
            log.error(message)
            lead.end(error, code)
            if reraise or not isinstance(error, Exception):
                raise
            return None, code
        if traced(error, code, folder):
            log.error("".join(traceback.format_exception(error)).rstrip())
        (log.warning if code == 130 else log.error)(message)
    try:
        owner.finish(state, message)
    except OSError as trouble:
        log.error(f"status.json could not be written: {trouble}")
    lead.end(error, code)
    stop.over = False  # a report may be interrupted
    if not config.get("rehearsal"):
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


def _labelled(config: dict, folder: Path, overrides: list) -> dict:
    """Writes what was asked for; what of it the summary repeats."""
    runs.write_yaml(folder / "config.yaml", {"format": runs.FORMAT, **config})
    label = {"identity": runs.identity(config, runs.contents(config)), "overrides": overrides}
    runs.write_yaml(
        folder / "overrides.yaml", {"format": runs.FORMAT, **label, "family": runs.family(config)}
    )
    return label


def _abandoned(error: RankLost, folder: Path, command: str, owner: Owner) -> None:
    """The last words of a process whose main thread waits in vain for another rank: it is ended after."""
    state, _, message = outcome(error, folder, command)
    log.error(message)
    with contextlib.suppress(Exception):
        owner.finish(state, message)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()


def _report(folder: Path) -> None:
    """curves.png and report.html. A report that cannot be drawn is a warning: the run itself is fine."""
    try:
        importlib.import_module("adabatch.report").write_run(folder)
    except Exception as error:
        log.warning(f"no report: {type(error).__name__}: {error}")


def run(overrides=(), config_dir: str | None = None) -> dict:
    """Trains as the command line does and returns the summary; errors are raised (UserError, Diverged, ...).

    overrides: as on the command line, e.g. ["model=vgg", "schedule=adabatch"]. config_dir: as -cd. Of several
    ranks (torchrun, srun) rank 0 gets the summary, the others None.
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
