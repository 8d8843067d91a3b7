"""One run from its checked configuration to its exit code: the folder, the signals, the states, the last
words.

`run_job` is what the command line calls for a job, in this process; `sweep.py` gives each job of a multirun a
process of its own. `run` is the same from Python. No torch is imported before a job begins.
"""

import contextlib
import importlib
import logging
import os
import pickle
import shlex
import sys
import time
from pathlib import Path

from adabatch import claim, processes, published, runs, sharing, signals, spawn, submission, traces
from adabatch.environment import before_torch, describe
from adabatch.errors import HandOver, Interrupted, Lost, RankLost, UserError
from adabatch.lead import Lead, follow
from adabatch.legs import suiting
from adabatch.logs import logged, terminal
from adabatch.outcome import ended, figures, next_steps, outcome, reason, traced
from adabatch.owner import Owner, in_use
from adabatch.places import agree, detect, manager
from adabatch.requeue import lacking, leave
from adabatch.signals import Stop, die_with_parent

log = logging.getLogger("adabatch")


def run_job(
    config: dict,
    folder,
    overrides,
    notes=(),
    stop: Stop | None = None,
    reraise: bool = False,
    places=(),
    leg: dict | None = None,
):
    """Trains, or goes on, or finds that all is done: (summary or None, exit code 0, 1, 2 or 130).

    config: resolved and checked. notes: lines for the log. reraise: errors are raised after they were
    recorded. places: Hydra's own overrides that name folders, as they belong to the command that resumes.
    leg: of a chain of jobs (`legs.Rule.plain`); the run may end with (None, 0), handed over to the next job.
    A rank above 0 has no summary.
    """
    folder, overrides = Path(folder), list(overrides)
    command = shlex.join(["adabatch", *overrides, *places])
    place = None
    terminal()
    try:
        place = detect()
        if leg is None:
            agree(place, config.get("hardware"))
        with stop or Stop(quiet=place.rank > 0) as stop:
            job = (config, str(folder), overrides, tuple(notes))
            try:
                summary, code = _placed(job, folder, stop, place, places, command, reraise, leg)
            except Interrupted as error:
                if reraise:
                    raise
                summary, code, stop.told = None, 130, str(error)
                log.error(f"stopped ({error}) before all processes had come")
            return summary, leave(stop, place, folder) if code == 130 else code
    except (UserError, RankLost) as error:  # before the folder was claimed
        if reraise:
            raise
        if place is None or processes.tells(place):
            log.error(str(error))
        with contextlib.suppress(OSError, UserError):
            submission.failed_early(folder, str(error))
        return None, 2 if isinstance(error, UserError) else 1


def _placed(job: tuple, folder: Path, stop: Stop, place, places, command: str, reraise: bool, leg):
    """(summary, exit code) of the process at this place."""
    config = job[0]
    if place.rank:
        code, error = follow(config, folder, place, stop, suiting(leg, place.world))
        if error is not None and (reraise or not isinstance(error, (Exception, KeyboardInterrupt))):
            raise error
        return None, code
    with Lead(place, config, stop, suiting(leg, place.world)) as lead:
        if (summary := claim.finished(config, folder)) is not None:
            lead.say("done")
            return summary, 0
        if leg is not None and (words := submission.handed_on(folder)):
            lead.say("done")
            log.warning(words)
            return None, 0
        published.check(config)
        if place.world == 1 and processes.asked(config) > 1 and leg is None:
            return _supervised(job, folder, stop, places, command, reraise)
        owner = claim.claim(config, folder)
        with logged(folder):
            if leg is None and (config.get("hardware") or {}).get("phases"):
                log.warning("hardware.phases is for jobs that hydra/launcher=slurm submits, not for this run")
            if (config.get("hardware") or {}).get("parallel_runs", 1) > 1 and not os.environ.get(
                sharing.SHARED
            ):
                log.warning("hardware.parallel_runs is for a multirun (adabatch -m), not for this run")
            if text := lacking(place, bool(leg and leg["closed"])):
                log.warning(text)
            return _owned(job, folder, stop, owner, command, reraise, lead)


def _supervised(job: tuple, folder: Path, stop: Stop, places, command: str, reraise: bool):
    """The run in processes of this process's own; what can be refused without them is refused here."""
    config = job[0]
    if folder.is_dir():
        if why := in_use(folder):
            raise UserError(f"{folder} is in use: {why}")
        if not claim.anew(config, folder):
            claim.same_run(config, runs.Run(folder))
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
        signals.release()
        payload = pickle.load(sys.stdin.buffer)
        sys.argv = payload["argv"]
        die_with_parent(payload["parent"])
        try:
            code = run_job(*payload["job"], stop=stop, places=payload["named"])[1]
        except KeyboardInterrupt:  # before it had begun
            code = 130
    processes.end(code)


def _owned(job: tuple, folder: Path, stop: Stop, owner: Owner, command: str, reraise: bool, lead):
    """The run itself, every end of it recorded in status.json."""

    def told() -> str | None:
        if owner.taken():
            raise Lost(f"{folder} was taken over by another process: stopping without saving")
        return stop.reason

    def gone(error: Exception) -> None:
        _abandoned(error := lead.explain(error, stop), folder, command, owner)
        stop.told = reason(error)
        leave(stop, lead.place, folder)

    config = job[0]
    began = time.monotonic()
    summary, error = None, None
    try:
        summary = _trained(job, folder, lead, told, gone)
        state, code, message = "finished", 0, None
    except BaseException as caught:
        error = lead.explain(caught, stop)
        state, code, message = outcome(error, folder, command)
        stop.told = reason(error)
        if state is None:  # not ours to record
            owner.release()
            log.error(message)
            lead.end(error, code)
            if reraise or not isinstance(error, Exception):
                raise
            return None, code
        if traced(error, code, folder):
            log.error(traces.text(error))
        {0: log.info, 130: log.warning}.get(code, log.error)(message)
    try:
        if isinstance(error, HandOver):
            submission.handed_over(owner, error.processes)
        else:
            owner.finish(state, message if code else None)
    except (OSError, UserError) as trouble:  # the folder's lock, too: all is saved, and the code stays
        log.error(f"status.json could not be written: {trouble}")
    lead.end(error, code)
    stop.over = False  # a report may be interrupted
    # A job that was told to end has little time, and where one task has failed SLURM kills the others.
    hurried = state == "preempted" or (error is not None and manager() == "slurm")
    if not config.get("rehearsal") and not hurried:
        claim.report(folder)
    if error is None:
        if (config.get("checkpoint") or {}).get("keep") == "none":
            (folder / "checkpoint.pt").unlink(missing_ok=True)
        seconds = time.monotonic() - began
        log.info(
            f"{figures(summary)}\nfolder: {folder} ({seconds:.0f} s in all)\n{next_steps(folder, command)}"
        )
    elif reraise or not isinstance(error, (Exception, KeyboardInterrupt)):
        raise error
    return summary, code


def _trained(job: tuple, folder: Path, lead, told, gone) -> dict:
    """The summary, written. told(): a reason to stop, or None. gone: called where another rank is lost."""
    config, _, overrides, notes = job
    for note in notes:
        log.info(note)
    label = _labelled(config, folder, overrides)
    before_torch()
    train = importlib.import_module("adabatch.train").train  # imports torch
    runs.write_json(folder / "environment.json", {"format": runs.FORMAT, **describe(config)})
    if text := processes.crowded(config, lead.place.local_world):
        log.warning(text)
    done = runs.Run(folder).summary  # written, but killed before the state was: nothing to train
    lead.say("done" if done else "go", gone)
    found = done or train(config, folder, told, **lead.arguments())
    summary = {"format": runs.FORMAT, **found, **label}
    if sharing.shared(folder):
        summary["shared"] = True
    runs.write_json(folder / "summary.json", summary)
    return summary


def _labelled(config: dict, folder: Path, overrides: list) -> dict:
    """Writes what was asked for; what of it the summary repeats."""
    runs.write_yaml(folder / "config.yaml", {"format": runs.FORMAT, **config})
    sharing.note(folder, config)
    label = {"identity": runs.identity(config, runs.contents(config)), "overrides": overrides}
    runs.write_yaml(
        folder / "overrides.yaml", {"format": runs.FORMAT, **label, "family": runs.family(config)}
    )
    return label


def _abandoned(error: Exception, folder: Path, command: str, owner: Owner) -> None:
    """The last words of a process whose main thread waits in vain for another rank: it is ended after."""
    state, _, message = outcome(error, folder, command)
    log.error(message)
    with contextlib.suppress(Exception):
        owner.finish(state, message)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()


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
