"""Profiles whose truth is known: times follow a formula."""

import json

from adabatch import files, profiles

MACHINE = {"device": "A processor", "threads": 1, "processes": 1, "adabatch": "0", "torch": "0"}


def point(batch: int, micro: int, seconds: float, accumulation: int = 1, **more) -> dict:
    row = {"batch_size": batch, "micro_batch": micro, "accumulation": accumulation, "seconds": seconds}
    return row | more


def entry(points, *, unit=1, fits=1 << 20, world=1, configuration=None, **more) -> dict:
    """As it stands in a file."""
    machine = MACHINE | {"processes": world} | more.pop("machine", {})
    return {
        "configuration": configuration or {"model": {"_target_": "a.Net"}},
        "machine": machine,
        "unit": unit,
        "fits": fits,
        "points": points,
        **more,
    }


def followed(t, c=0.0, sizes=(32, 64, 128, 256, 512), counts=(2, 4), world=1, **more) -> dict:
    """One in which a pass over m samples takes t(m) and a step c more."""
    rows = [point(m * world, m, t(m) + c) for m in sizes]
    rows += [point(m * p * world, m, p * t(m) + c, p) for m in sizes for p in counts]
    return entry(rows, world=world, **more)


def profile(given: dict) -> profiles.Profile:
    (found,) = profiles.parsed({"format": files.FORMAT, "profiles": [given]}, "here")
    return found


def written(path, *given) -> str:
    path.write_text(json.dumps({"format": 1, "profiles": list(given)}))
    return str(path)
