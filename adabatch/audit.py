"""Forecast against measured: what a run was expected to take by a profile, and what it took.

Before its first step a run looks for a profile of its network on this machine (`forecast=auto`: among those
beside it; or a file), writes what follows from it into forecast.json, the profile included, and says it. At
its end that profile is held against the ledger, for the stretches that were really trained: of a closed loop
nothing else could be, of an open one they are those of the forecast.
"""

import contextlib
import logging
from dataclasses import asdict
from pathlib import Path

from adabatch import files, memory, phases, profiles
from adabatch.errors import UserError
from adabatch.forecast import (
    Forecast,
    Stretch,
    between,
    differences,
    fitting,
    forecast,
    measuring_of,
    stretches_of,
)
from adabatch.ledger import PASSES
from adabatch.pace import Pace

FILE = "forecast.json"
MOST = 200  # profiles that are looked at
CAUSES = ("compute", "data", "exposed_communication", "measuring", "resize", "recompile")

log = logging.getLogger("adabatch")


def begin(run) -> None:
    """Forecast the run and write it down, once: a resumed run keeps what was forecast at first. run: a
    `Record`. Never an error: a run does not fail by what it was expected to take."""
    asked, path = run.config.get("forecast"), run.folder / FILE
    if asked is None or run.config.get("rehearsal") or not run.writes:
        return
    if run.position and path.is_file():
        return
    try:
        found = search(run, asked)
        if found is None:
            path.unlink(missing_ok=True)
            return
        source, profile = found
        written = described(run, profile)
        files.write_json(path, {"format": files.FORMAT, "source": str(source), **written})
    except (UserError, OSError) as error:
        log.warning("no forecast of this run: %s", error)
        return
    log.info("forecast  %s, by %s", words(written), source)


def search(run, asked: str) -> tuple[Path, profiles.Profile] | None:
    """(file, profile) of this network on this machine. asked: auto (None where there is none), or a file
    (UserError)."""
    configuration, machine = profiles.configured(run.config), machine_of(run)
    if asked != "auto":
        found = profiles.read(asked)
        match = [p for p in found if (p.configuration, p.machine) == (configuration, machine)]
        if match:
            return Path(asked), match[0]
        profile = fitting(found, configuration, asked, machine["processes"], threads=machine["threads"])
        wrong = differences(machine, profile.machine)
        raise UserError(f"forecast={asked} was measured on another machine ({'; '.join(wrong)})")
    for path in near(run.folder):
        with contextlib.suppress(UserError):
            for profile in profiles.read(path):
                if (profile.configuration, profile.machine) == (configuration, machine):
                    return path, profile
    return None


def near(folder: Path) -> list[Path]:
    """The profiles beside a run's folder and in outputs/, the newest first."""
    found = {
        path.resolve(): path
        for parent in (folder.parent, Path("outputs"))
        for path in list(parent.glob("profile-*/profile.json"))[:MOST]
    }
    return sorted(found.values(), key=lambda path: path.stat().st_mtime, reverse=True)


def machine_of(run) -> dict:
    """As a profile has it."""
    hardware = run.parts.hardware
    facts = memory.depends_on(run.parts.step, run.config, run.parts.data.classes, 0)
    return {
        "device": facts["device"],
        "threads": hardware.threads,
        "processes": hardware.ranks.world,
        "adabatch": facts["adabatch"],
        "torch": facts["torch"],
    }


def described(run, profile: profiles.Profile) -> dict:
    """The forecast of a run that has not begun; of a closed loop, for its smallest and its largest batch."""
    schedule, pace = run.parts.schedule, Pace(profile, run.parts.step.micro_batch)
    audits = past(run.folder.parent, profile.machine["device"])
    closed = schedule.growth.closed or schedule.scaling.ends_early
    planned = stretches_of(phases.phases(schedule))
    measuring = measuring_of(schedule)
    found = forecast(pace, planned, audits, measuring)
    head = {
        "profile": profiles.digest(profile),
        "key": profile.key,
        "device": profile.machine["device"],
        "micro_batch": pace.micro_batch,
        "closed_loop": closed,
        "audits": len(audits),
        **{k: v for k, v in asdict(found).items() if k != "phases"},
        "phases": rows(planned, found),
        "given": profile.given,
    }
    if schedule.growth.closed:
        head["range"] = between(pace, planned[0].batch_size, schedule.cap, schedule.budget, measuring)
    return head


def rows(planned: list[Stretch], found: Forecast) -> list[dict]:
    return [
        {"start_position": s.start, "batch_size": s.batch_size, "steps": s.steps, "forecast_seconds": seconds}
        for s, seconds in zip(planned, found.phases)
    ]


def words(written: dict) -> str:
    """ "12.3 s of training (11.7 to 12.9)"."""
    if "range" in written:
        low, high = written["range"]
        return f"{low:,.3g} to {high:,.3g} s of training, by what the schedule decides"
    low, high = written["low"], written["high"]
    said = "" if low is None else f" ({low:,.3g} to {high:,.3g})"
    return f"{written['seconds']:,.3g} s of training{said}"


def finished(run) -> dict | None:
    """The audit for summary.json; None where nothing was forecast."""
    path = run.folder / FILE
    if not run.writes or not path.is_file() or run.config.get("forecast") is None:
        return None
    try:
        written = files.read_json(path)
        (profile,) = profiles.parsed({"format": files.FORMAT, "profiles": [written.get("given")]}, path)
    except UserError as error:
        log.warning("the forecast cannot be compared: %s", error)
        return None
    pace = Pace(profile, run.parts.step.micro_batch)
    trained = recorded(run.phases, run.trained)
    found = forecast(pace, trained, measuring=measuring_of(run.parts.schedule))
    seconds, ledger = run.ledger.training(), whole(run.ledger.read())
    low, high = (written.get(name) for name in ("low", "high"))
    if written.get("closed_loop"):
        low, high = found.low, found.high
    return {
        "profile": written.get("profile"),
        "key": written.get("key"),
        "device": written.get("device"),
        "seconds": found.seconds,
        "low": low,
        "high": high,
        "measured": seconds,
        "extrapolated": found.extrapolated,
        "closed_loop": bool(written.get("closed_loop")),
        "same_machine": profile.machine == machine_of(run),
        "phases": [
            {**row, "seconds": phase["seconds"]} for row, phase in zip(rows(trained, found), run.phases)
        ],
        "causes": {
            cause: {"forecast": found.causes.get(cause, 0.0), "measured": ledger[cause]} for cause in CAUSES
        },
    }


def whole(ledger: dict) -> dict:
    """The seconds by cause with those of forward and backward passes, where they are told apart, put back."""
    passes = sum(ledger.get(cause, 0.0) for cause in PASSES)
    return {c: s for c, s in ledger.items() if c not in PASSES} | {"compute": ledger["compute"] + passes}


def recorded(found: list[dict], samples: int) -> list[Stretch]:
    """The stretches of a run from its phases. samples: that it trained, by which the last batch was cut."""
    missing = sum(p["steps"] * p["batch_size"] for p in found) - samples
    trained = [Stretch(p["start_position"], p["batch_size"], p["steps"]) for p in found]
    if trained and 0 < missing < trained[-1].batch_size:
        s = trained[-1]
        trained[-1] = Stretch(s.start, s.batch_size, s.steps, s.batch_size - missing)
    return trained


def past(parent: Path, device: str) -> list[float]:
    """measured / forecast of finished runs on this device, from their summaries beside each other and in
    comparisons there: the newest MOST, but for those that shared the machine."""
    try:
        each = [path for depth in ("*", "*/*") for path in parent.glob(f"{depth}/summary.json")]
        found = sorted(each, key=lambda p: p.stat().st_mtime)[-MOST:]
    except OSError:
        return []
    ratios = []
    for path in found:
        with contextlib.suppress(UserError):
            summary = files.read_json(path)
            audit = summary.get("forecast")
            if isinstance(audit, dict) and audit.get("device") == device and not summary.get("shared"):
                expected, measured = (files.number(audit.get(k)) for k in ("seconds", "measured"))
                if expected and measured and expected > 0 and measured > 0 and audit.get("same_machine"):
                    ratios.append(measured / expected)
    return ratios
