"""Whether a run's folder may be used: finished already, another run's, in use, or to be begun anew."""

import importlib
import logging
from pathlib import Path

from adabatch import jobrecord, runs, slurm
from adabatch.errors import UserError
from adabatch.outcome import figures, full
from adabatch.owner import Owner

log = logging.getLogger("adabatch")


def anew(config: dict, folder: Path) -> bool:
    """Whether to begin again: asked for, and not yet done by this job's launcher or earlier life."""
    if not config.get("restart"):
        return False
    prepared = folder.is_dir() and jobrecord.own_job(runs.Run(folder).status or {})
    return not (slurm.restarts() or prepared)


def done(config: dict, folder: Path) -> dict | None:
    """The summary of a run that is done and shall not be repeated."""
    if not folder.is_dir() or anew(config, folder):
        return None
    run = runs.Run(folder)
    if run.state != "finished" or (summary := run.summary) is None:
        return None
    same_run(config, run)
    return summary


def finished(config: dict, folder: Path) -> dict | None:
    """`done`, with words for the user; a report that is missing is drawn."""
    if (summary := done(config, folder)) is None:
        return None
    log.info(f"finished already (restart=true runs it again)\n{figures(summary)}\nfolder: {folder}")
    if lacks := lacking(config, folder):
        log.warning(
            f"this run was made without what is asked for now ({', '.join(lacks)}): restart=true makes it "
            "again"
        )
    if not (folder / "report.html").is_file():
        report(folder)
    return summary


def lacking(config: dict, folder: Path) -> list[str]:
    """What the configuration asks of a finished run that its folder does not have."""
    asked = {
        "checkpoint.best": ((config.get("checkpoint") or {}).get("best"), "best.pt"),
        "checkpoint.keep": ((config.get("checkpoint") or {}).get("keep") == "last", "weights.pt"),
        "trackers.tensorboard": ((config.get("trackers") or {}).get("tensorboard"), "tensorboard"),
    }
    found = [key for key, (wanted, name) in asked.items() if wanted and not (folder / name).exists()]
    before = runs.Run(folder).config or {}
    if set(config.get("shadow") or ()) - set(before.get("shadow") or ()):
        found.append("shadow")
    if config.get("timing") and "forward" not in ((runs.Run(folder).summary or {}).get("ledger") or {}):
        found.append("timing")
    if (config.get("log") or {}).get("distance") and not (before.get("log") or {}).get("distance"):
        found.append("log.distance")
    return found


def replaces(config: dict, folder: Path) -> bool:
    """Whether a run that is there is to be renamed first. UserError: it is another run."""
    if not folder.is_dir():
        return False
    run = runs.Run(folder)
    if run.status is None and run.config is None:
        return False
    if anew(config, folder):
        return True
    same_run(config, run)
    return False


def prepare(config: dict, folder: Path) -> None:
    """With restart=true the run that is there is renamed. UserError: it is another run, or in use."""
    if not replaces(config, folder):
        return
    before = runs.Run(folder).status or {}
    ended = before.get("state") in runs.STATES and before["state"] != "running"
    held = Owner.claim(folder)  # refused while somebody is working in it
    held.finish(before["state"] if ended else "interrupted", before.get("error"))
    log.info(f"restart=true: the earlier run is now {runs.set_aside(folder)}")


def claim(config: dict, folder: Path) -> Owner:
    """Ownership of the folder; with restart=true of a new one. UserError, too, where it cannot be written."""
    try:
        prepare(config, folder)
        return Owner.claim(folder)
    except OSError as error:
        if full(error, folder):
            raise UserError(f"disk full: {folder} cannot be made. Free some space.") from error
        raise UserError(
            f"{folder} cannot be written ({error.strerror}): name another hydra.run.dir"
        ) from error


def same_run(config: dict, run: runs.Run) -> None:
    """UserError where hydra.run.dir names the folder of another run."""
    before = run.identity
    if before and before != runs.identity(config, runs.contents(config)):
        old = run.config or {}
        differs = [k for k in config if runs.identity({k: config[k]}) != runs.identity({k: old.get(k)})]
        raise UserError(
            f"{run.folder} holds a run of another configuration (different: "
            f"{', '.join(differs) or 'unknown'}). Choose another hydra.run.dir, or restart=true."
        )


def report(folder: Path) -> None:
    """curves.png and report.html. A report that cannot be drawn is a warning: the run itself is fine."""
    try:
        importlib.import_module("adabatch.report").write_run(folder)
    except Exception as error:
        log.warning(f"no report: {type(error).__name__}: {error}")
