"""Profiles of the time that a step takes: what `adabatch-profile` measures, and the only reader and writer of
that format. No torch.

{"format": 1, "profiles": [{
   "key": 8 hex digits over the next two,
   "configuration": what of a run's configuration its speed depends on (`configured`),
   "machine": {"device", "threads", "processes", "adabatch", "torch"},
   "unit": samples of a ghost group, "fits": the largest micro-batch that a run takes,
   "points": [{"batch_size", "micro_batch", "accumulation", "seconds", "low", "high", "data", "communication",
               "first_step_seconds", "peak_memory_bytes", "out_of_memory"}, ...],
   "reference": seconds of the point that was re-timed between the others, "sustained_ratio", ...}]}

One file may hold several: of other machines, worlds or networks. It may come from a stranger: reading is
bounded, and what is not a number where one belongs is refused.
"""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

from adabatch.errors import UserError
from adabatch.files import FORMAT, number, read_json, write_json
from adabatch.labels import TOLD

REMEDY = "adabatch-profile writes such a file, with the same overrides as the run's"
MOST_PROFILES, MOST_POINTS, MOST_PASSES = 64, 500, 10_000
LARGEST, MOST_PROCESSES = 10**8, 10_000  # samples of a batch; ranks


@dataclass(frozen=True)
class Point:
    """One way to take a step. seconds: the median over steps of the slowest rank, divided by the drift; low,
    high: its quartiles; data, communication: what of it went into reading samples, and into waiting for other
    ranks. rounds: the medians of its visits. accumulation: forward passes of the rank that makes most."""

    batch_size: int
    micro_batch: int
    accumulation: int
    seconds: float = 0.0
    low: float = 0.0
    high: float = 0.0
    data: float = 0.0
    communication: float = 0.0
    first_step_seconds: float = 0.0
    steps: int = 0
    rounds: tuple[float, ...] = ()
    peak_memory_bytes: int | None = None
    out_of_memory: bool = False

    @property
    def samples_per_second(self) -> float:
        return self.batch_size / self.seconds


@dataclass(frozen=True)
class Profile:
    """One network on one machine. points: those that ran; failed: those for which the memory did not
    suffice. given: the whole of it as it stands in the file."""

    key: str
    configuration: dict
    machine: dict
    unit: int
    fits: int
    points: tuple[Point, ...]
    failed: tuple[Point, ...]
    reference: tuple[float, ...] = ()
    sustained_ratio: float = 1.0
    measuring: tuple[frozenset, tuple] = (frozenset(), ())  # (what, ((batch size, more seconds), ...))
    given: dict = field(default_factory=dict)

    @property
    def world(self) -> int:
        return self.machine["processes"]

    @property
    def ordered(self) -> bool:
        return (self.configuration.get("hardware") or {}).get("reduction") == "ordered"

    def plain(self) -> list[Point]:
        """Each batch as a run cuts it: of several ways the one with the fewest passes; by batch size."""
        by = {p.batch_size: p for p in sorted(self.points, key=lambda p: -p.accumulation)}
        return [by[batch] for batch in sorted(by)]

    def words(self) -> str:
        """The machine in a few words."""
        world, threads = self.world, self.machine["threads"]
        each = f"{threads} thread{'' if threads == 1 else 's'}{' each' if world > 1 else ''}"
        return f"{f'{world} x ' if world > 1 else ''}{self.machine['device']}, {each}"

    def figure(self, name: str) -> float | None:
        """A further figure of the file, if it is a number above 0."""
        found = number(self.given.get(name))
        return found if found is not None and found > 0 else None


# Keys of a model that cost no time; younger ones at what older profiles had (what is trained costs time).
OTHERWISE = ("base_lr", "init_from", "init_head", *TOLD)
EARLIER = (("train", "all"), ("norm", "own"))


def configured(config: dict) -> dict:
    """What of a resolved configuration a step's time depends on beside the batch: known without torch."""
    model, data, hardware = config["model"], config["dataset"], config["hardware"]
    kept = "precision memory_format compile convolution ghost_norm deterministic reduction".split()
    optimizer, evaluated = config["optimizer"], config.get("evaluate") or {}
    varied = data.get("augment")
    if isinstance(varied, dict):  # younger keys, which older profiles lack, are null unless they are used
        varied = {k: v for k, v in varied.items() if v is not None}
    chosen = {k: v for k, v in hardware.items() if k == "benchmark" and v != "auto"}
    unread = (*OTHERWISE, "ghost") if model.get("norm") == "own" else OTHERWISE
    found = {
        "model": {k: v for k, v in model.items() if k not in unread and (k, v) not in EARLIER},
        "dataset": {k: data.get(k) for k in ("_target_", "size")} | {"augment": varied},
        "hardware": {k: hardware.get(k) for k in kept} | chosen,
        "optimizer": " ".join(str(optimizer[k]) for k in ("_target_", "base", "steps") if k in optimizer),
        "loss": config["loss"]["_target_"],
        "ema": bool(config.get("ema")),
        "clip_norm": bool(config.get("clip_norm")),
        # Of the evaluation's rate.
        **{key: evaluated[key] for key in ("flip", "translate") if evaluated.get(key)},
    }
    return json.loads(json.dumps(found, default=str))


def key_of(configuration: dict, machine: dict) -> str:
    text = json.dumps([configuration, machine], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def digest(profile: Profile) -> str:
    """Of all that is in it, 16 hex digits: which measurement a forecast was made by."""
    return hashlib.sha256(json.dumps(profile.given, sort_keys=True).encode()).hexdigest()[:16]


def read(source) -> list[Profile]:
    """The profiles of a file; `FILE@1a2b3c4d` names one of them by its key. UserError: there is none, or it
    is damaged."""
    path, asked = split(source)
    if path.is_dir():
        path = path / "profile.json"
    if not path.is_file():
        raise UserError(f"{source}: there is no such profile. {REMEDY}")
    return chosen(parsed(read_json(path), path), asked, path)


def split(source) -> tuple[Path, str | None]:
    """ "FILE@KEY" -> (FILE, KEY)."""
    path = Path(source).expanduser()
    name, at, asked = str(path).rpartition("@")
    if at and not path.exists():
        return Path(name), asked
    return path, None


def chosen(found: list[Profile], asked: str | None, path) -> list[Profile]:
    if asked is None:
        return found
    one = [p for p in found if p.key == asked]
    if not one:
        held = ", ".join(p.key for p in found)
        raise UserError(f"{path} holds no profile {asked!r}, but {held}: leave @{asked} out or name one")
    return one


def parsed(value, path) -> list[Profile]:
    """The profiles of a file's content."""
    given = value.get("profiles") if isinstance(value, dict) else None
    if not isinstance(given, list) or not given or value.get("format") != FORMAT:
        raise UserError(f'{path} is no profile ("format": {FORMAT}, "profiles": [...]). {REMEDY}')
    if len(given) > MOST_PROFILES:
        raise UserError(f"{path} holds {len(given):,} profiles, {MOST_PROFILES} at most")
    try:
        return [_profile(each) for each in given]
    except (KeyError, TypeError, ValueError) as error:
        why = error if type(error) is ValueError else f"{type(error).__name__}: {error}"
        raise UserError(f"{path} is no profile ({why}). {REMEDY}") from None


def _profile(given: dict) -> Profile:
    machine, configuration = given["machine"], given["configuration"]
    if not isinstance(configuration, dict) or not isinstance(machine, dict):
        raise ValueError("configuration and machine are dictionaries")
    machine = {
        "device": printable(machine["device"]),
        "threads": _whole(machine["threads"], "threads"),
        "processes": _whole(machine["processes"], "processes", MOST_PROCESSES),
        "adabatch": printable(machine["adabatch"]),
        "torch": printable(machine["torch"]),
    }
    if not isinstance(given["points"], list) or len(given["points"]) > MOST_POINTS:
        raise ValueError(f"points is a list of at most {MOST_POINTS:,}")
    points = [_point(each) for each in given["points"]]
    if not (ran := tuple(p for p in points if not p.out_of_memory)):
        raise ValueError("no point of it could be measured")
    reference = _list(given.get("reference"), "reference")
    return Profile(
        key=key_of(configuration, machine),
        configuration=configuration,
        machine=machine,
        unit=_whole(given["unit"], "unit"),
        fits=_whole(given["fits"], "fits"),
        points=ran,
        failed=tuple(p for p in points if p.out_of_memory),
        reference=reference,
        sustained_ratio=_seconds(given.get("sustained_ratio") or 1.0, "sustained_ratio"),
        measuring=_measuring(given.get("measuring") or {}),
        given=given,
    )


def _measuring(given: dict) -> tuple:
    needs, points = given.get("needs") or [], given.get("points") or []
    if (
        not isinstance(points, list)
        or len(points) > MOST_POINTS
        or not all(isinstance(n, str) for n in needs)
    ):
        raise ValueError("measuring has needs, a list of names, and points, a list")
    rows = {_whole(p["batch_size"], "batch_size"): _seconds(p["seconds"], "seconds") for p in points}
    return frozenset(needs), tuple(sorted(rows.items()))


def _point(given: dict) -> Point:
    whole = {k: _whole(given[k], k) for k in ("batch_size", "micro_batch", "accumulation")}
    if whole["batch_size"] > MOST_PASSES * whole["micro_batch"]:
        raise ValueError(f"a step has at most {MOST_PASSES:,} forward passes")
    if given.get("out_of_memory") is True:
        return Point(**whole, out_of_memory=True)
    seconds = _seconds(given["seconds"], "seconds")
    times = {"low": seconds, "high": seconds, "data": 0.0, "communication": 0.0, "first_step_seconds": 0.0}
    for name, otherwise in times.items():
        if given.get(name) is not None:
            found = number(given[name])
            if found is None or found < 0:
                raise ValueError(f"{name} is a number of seconds, got {printable(given[name])}")
            otherwise = found
        times[name] = otherwise
    peak, steps, rounds = number(given.get("peak_memory_bytes")), given.get("steps"), given.get("rounds")
    return Point(
        **whole,
        **times,
        seconds=seconds,
        peak_memory_bytes=None if peak is None else int(peak),
        steps=_whole(steps, "steps") if steps else 0,
        rounds=_list(rounds, "rounds", 100),
    )


def _list(value, name: str, most: int = MOST_POINTS) -> tuple[float, ...]:
    if value is not None and (not isinstance(value, list) or len(value) > most):
        raise ValueError(f"{name} is a list of at most {most} times")
    return tuple(_seconds(each, name) for each in value or ())


def printable(value) -> str:
    return "".join(c if c.isprintable() else "?" for c in str(value)[:200])


def _whole(value, name: str, most: int = LARGEST) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise ValueError(f"{name} is a whole number from 1 to {most:,}, got {printable(value)}")
    return value


def _seconds(value, name: str) -> float:
    found = number(value)
    if found is None or not 1e-12 < found < 1e12:
        raise ValueError(f"{name} is a number above 0, got {printable(value)}")
    return found


def write(path: Path, given: list[dict]) -> None:
    write_json(path, {"format": FORMAT, "profiles": given})


def merged(sources) -> list[dict]:
    """The profiles of several files, as they stand in them. UserError: two sessions of one network on one
    machine. Each time is held against its own session's reference, which need not be the same point: no
    interval is known that would cover both."""
    found, origin = {}, {}
    for source in sources:
        for profile in read(source):
            whole = {**profile.given, "key": profile.key}
            if found.setdefault(profile.key, whole) != whole:
                held = parsed({"format": FORMAT, "profiles": [found[profile.key]]}, source)
                sizes = sorted({p.batch_size for p in (*held[0].points, *profile.points)})
                raise UserError(
                    f"{origin[profile.key]} and {source} are two sessions of one network on one machine "
                    f"({profile.key}: {profile.words()}), whose times are no one profile: measure all sizes "
                    f"in one (adabatch-profile --batches {','.join(map(str, sizes))}), or name one of the two"
                )
            origin.setdefault(profile.key, source)
    if len(found) > MOST_PROFILES:
        raise UserError(f"a file holds {MOST_PROFILES} profiles at most, these are {len(found)}")
    return list(found.values())
