"""Throughput by batch size as it was recorded: a profile in a JSON file, or the phases of a finished run.

What `adabatch-profile` writes (of several profiles in one file FILE@KEY names one), or

{"format": 1, "points": [{"batch_size": 32, "samples_per_second": 1000.0}, ...]}
"""

import math
from pathlib import Path

from adabatch import profiles
from adabatch.errors import UserError
from adabatch.files import FORMAT, read_json, write_json

SHARE = 0.95  # of the highest throughput: the knee
REMEDY = (
    "name a file of adabatch-profile's, a JSON file of points, or the folder of a finished run that trained "
    "two batch sizes or more"
)


def profile(source: str) -> list[tuple[int, float]]:
    """[(batch size, samples per second), ...] by batch size, two or more. source: a file or a run's folder.
    UserError: neither, or it does not hold them."""
    path, key = profiles.split(source)
    if path.is_dir() and (path / "profile.json").is_file() and not (path / "config.yaml").exists():
        path = path / "profile.json"
    if path.is_dir():
        if not (path / "summary.json").is_file():
            raise UserError(f"schedule.profile={source} is no finished run (no summary.json): {REMEDY}")
        path, phases = path / "summary.json", True
    elif path.is_file():
        phases = False
    else:
        raise UserError(f"schedule.profile={source}: there is no such file or run: {REMEDY}")
    value = read_json(path)
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise UserError(f'{path} has no "format": {FORMAT}: {REMEDY}')
    if not phases and "profiles" in value:
        return _of_profile(profiles.chosen(profiles.parsed(value, path), key, path), source)
    try:
        found = _of_phases(value["phases"]) if phases else _of_points(value["points"])
    except (KeyError, TypeError, ValueError) as error:
        why = error if type(error) is ValueError else f"{type(error).__name__}: {error}"
        raise UserError(f"{path} is no profile of throughput ({why}): {REMEDY}") from None
    if len(found) < 2:
        raise UserError(f"{path} holds {len(found)} batch size(s), a profile two or more: {REMEDY}")
    return sorted(found.items())


def keep(source: str, folder: Path) -> None:
    """The points that a run decides by, into its folder, to be read later; a resumed run needs the source
    again, by which it is identified."""
    points = [{"batch_size": b, "samples_per_second": rate} for b, rate in profile(source)]
    write_json(Path(folder) / "profile.json", {"format": FORMAT, "points": points})


def _of_profile(found: list, source) -> list[tuple[int, float]]:
    """Each batch as a run cuts it."""
    if len(found) > 1:
        held = "; ".join(f"@{p.key} ({p.words()})" for p in found)
        raise UserError(f"schedule.profile={source} holds {len(found)} profiles, name one: {held}")
    rates = [(p.batch_size, p.samples_per_second) for p in found[0].plain()]
    if len(rates) < 2:
        raise UserError(f"{source} holds {len(rates)} batch size(s), a profile two or more: {REMEDY}")
    return rates


def _of_points(points: list) -> dict[int, float]:
    found = {}
    for point in points:
        batch, rate = point["batch_size"], point["samples_per_second"]
        if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1 or batch in found:
            raise ValueError(f"batch_size is a whole number above 0, each once, got {batch!r}")
        if isinstance(rate, bool) or not 0 < rate < math.inf:
            raise ValueError(f"samples_per_second is a number above 0, got {rate!r}")
        found[batch] = float(rate)
    return found


def _of_phases(phases: list) -> dict[int, float]:
    """Over all phases of a batch size together; one in which no time was measured is left out."""
    sums: dict[int, list] = {}
    for phase in phases:
        total = sums.setdefault(int(phase["batch_size"]), [0.0, 0.0])
        total[0] += phase["steps"] * phase["batch_size"]
        total[1] += phase["seconds"]
    return {b: samples / s for b, (samples, s) in sums.items() if b > 0 and samples > 0 and 0 < s < math.inf}


def knee(rates: dict[int, float]) -> tuple[int, bool]:
    """(the smallest batch with 95 % of the highest throughput, whether throughput stopped rising before the
    largest). rates: samples per second by batch."""
    best = max(rates.values())
    first = min(batch for batch, rate in rates.items() if rate >= SHARE * best)
    return first, first < max(rates)
