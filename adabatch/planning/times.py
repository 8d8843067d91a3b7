"""--profile: what a plan takes, what it is worth over each fixed batch, and what it costs. No torch."""

from dataclasses import dataclass, replace

from adabatch import audit, cutting, memory, profiles, worlds
from adabatch.combinations import Compared
from adabatch.forecast import (
    between,
    fitting,
    fixed_arm,
    forecast,
    measuring_of,
    speed_up,
    stretches_of,
    upper_bound,
)
from adabatch.pace import Pace
from adabatch.planning import power
from adabatch.planning.job import Plan

GROUPED = {"trace", "sq_norm", "halves", "inner"}  # what is measured over noise groups, at which passes end
ARMS = 8  # fixed batches that a plan is held against


@dataclass(frozen=True)
class Asked:
    """Of the command line. price: EUR per device and hour."""

    profile: str
    world: str | None = None
    devices: int | None = None
    price: float | None = None


def forecasts(plans: list[Plan], asked: Asked) -> list[Plan]:
    """The plans with their forecasts; arms under one batch size are the fixed arms of all."""
    found = profiles.read(asked.profile)
    audits = _audits(asked, found)
    paces = [pace_of(plan, found, asked) for plan in plans]
    done = [
        replace(plan, forecast=forecast_of(plan, pace, asked, audits)) for plan, pace in zip(plans, paces)
    ]
    if len(plans) == 1:
        return [_against_fixed(done[0], paces[0])]
    return [_against_arms(plan, pace, done, paces) for plan, pace in zip(done, paces)]


def _audits(asked: Asked, found: list) -> list[float]:
    """Of finished runs beside the profile's folder, if all its profiles are of one device."""
    devices = {p.machine["device"] for p in found}
    if asked.world or len(devices) > 1:
        return []
    path, _ = profiles.split(asked.profile)
    folder = path if path.is_dir() else path.parent
    return audit.past(folder.resolve().parent, devices.pop())


def pace_of(plan: Plan, found: list, asked: Asked):
    """How fast the plan's run goes. UserError: the profile is of another run."""
    config, schedule = plan.config, plan.schedule
    configuration, hardware = profiles.configured(config), config["hardware"]
    largest = memory.largest_batch(schedule)
    if asked.world:
        world = worlds.read(asked.world, asked.devices)
        # A profile of another precision tells as much of operations and bytes.
        precision = {"hardware": configuration["hardware"] | {"precision": None}}
        alike = [
            replace(p, configuration=p.configuration | {"hardware": _hardware(p) | {"precision": None}})
            for p in found
        ]
        wanted = configuration | precision
        fewest = min((p.world for p in alike if p.configuration == wanted), default=1)
        profile = fitting(alike, wanted, asked.profile, fewest)
        return worlds.WorldPace(profile, world, hardware["precision"], largest)
    world = hardware.get("processes") or 1
    profile = fitting(found, configuration, asked.profile, world, hardware.get("threads"))
    if isinstance(hardware.get("micro_batch"), int):
        return Pace(profile, hardware["micro_batch"], asked=True)
    ordered, compiled = hardware.get("reduction") == "ordered", bool(hardware.get("compile"))
    group = plan.closed["noise_group"] if schedule.needs & GROUPED else None
    batch = schedule(0).divisor if ordered or compiled else largest
    longest = cutting.longest(batch, profile.unit, profile.world, ordered, compiled, group)
    return Pace(profile, min(profile.fits, longest))


def _hardware(profile) -> dict:
    found = profile.configuration.get("hardware")
    return found if isinstance(found, dict) else {}


def forecast_of(plan: Plan, pace, asked: Asked, audits: list[float]) -> dict:
    """The plan's `forecast` in --json. seconds: of training (`train_seconds`); null for a closed loop, of
    which only the range is known. low, high: 95 %, or of 5 to 95 % of the audits where there are ten."""
    smallest, largest = bounds_of(plan)
    bound, measuring = upper_bound(pace, smallest, largest), measuring_of(plan.schedule)
    head = {
        "kind": worlds.LABEL if asked.world else "measured",
        "profile": profiles.digest(pace.profile),
        "machine": machine(pace),
        "micro_batch": pace.micro_batch,
        "upper_bound": {
            "ratio": bound.ratio,
            "batch_size": bound.batch_size,
            "over": bound.slow,
            "measured_to": bound.reach,
        },
        "audits": len(audits),
        "measuring_known": not measuring.needs or pace.measuring(measuring.needs, smallest) is not None,
    }
    devices = pace.world.devices if asked.world else pace.profile.world
    if plan.closed and plan.closed.get("updates_if_it_stays") != plan.closed.get("updates_if_at_the_cap"):
        low, high = between(pace, smallest, largest, plan.schedule.budget, measuring)
        return (
            head
            | {"seconds": None, "low": low, "high": high, "phases": None}
            | cost(low, high, devices, asked)
        )
    found = forecast(pace, stretches_of(plan.found), audits, measuring)
    rows = [
        {"start_position": p.start, "batch_size": p.batch_size, "forecast_seconds": s}
        for p, s in zip(plan.found, found.phases)
    ]
    return {
        **head,
        "seconds": found.seconds,
        "low": found.low,
        "high": found.high,
        "wall_seconds": _wall(plan, pace, found.seconds),
        "phases": rows,
        "causes": found.causes,
        "extrapolated": None if asked.world else found.extrapolated,
        **cost(found.seconds, found.seconds, devices, asked),
    }


def bounds_of(plan: Plan) -> tuple[int, int]:
    """The smallest batch of a plan, and the largest that it may ever have."""
    sizes = [p.batch_size for p in plan.found]
    return min(sizes), max(*sizes, plan.closed["largest_batch"] if plan.closed else 0, plan.schedule.cap)


def machine(pace) -> str:
    if not isinstance(pace, worlds.WorldPace):
        return pace.profile.words()
    count = pace.world.devices
    return f"{f'{count} x ' if count > 1 else ''}{pace.world.name}"


def cost(low: float, high: float, devices: int, asked: Asked) -> dict:
    """Device-hours and, given a price, money; of a range the mean of its ends."""
    hours = devices * (low + high) / 2 / 3600
    money = {} if asked.price is None else {"eur": hours * asked.price}
    return {"devices": devices, "device_hours": hours, **money}


def _wall(plan: Plan, pace, seconds: float) -> float | None:
    """With evaluations and the start; None where the profile does not know them."""
    rate, start = pace.profile.figure("evaluation_samples_per_second"), pace.profile.figure("setup_seconds")
    split = plan.config["dataset"].get("validation") or plan.config["dataset"].get("test_samples")
    if isinstance(pace, worlds.WorldPace) or not (rate and start and split):
        return None
    every = plan.config["evaluate"]["every"]
    count = max(1, -(-plan.schedule.budget // round(every * plan.schedule.samples)))
    return seconds + start + count * split / rate


def _ratio(slow: tuple, fast: tuple, of: str, batch: int) -> dict:
    """slow, fast: (pace, stretches)."""
    if isinstance(slow[0], worlds.WorldPace):
        ratio, low, high = forecast(*slow).seconds / forecast(*fast).seconds, None, None
    else:
        ratio, low, high = speed_up(slow, fast)
    beyond = not isinstance(slow[0], worlds.WorldPace) and slow[0].step(batch).extrapolated
    return {"arm": of, "batch_size": batch, "ratio": ratio, "low": low, "high": high, "extrapolated": beyond}


def _against_fixed(plan: Plan, pace) -> Plan:
    """The schedule against fixed batches of equal samples: the first, at every x2 up to the largest, and the
    one of as many updates."""
    if plan.forecast["seconds"] is None or fixed_batch(plan):
        return plan
    smallest, _ = bounds_of(plan)
    largest, samples = max(p.batch_size for p in plan.found), sum(p.trained for p in plan.found)
    sizes = [smallest]
    while 2 * sizes[-1] <= largest and len(sizes) < ARMS:
        sizes.append(2 * sizes[-1])
    matched, rows = round(plan.totals["mean_batch"]), []
    for batch in sorted({*sizes, largest, matched}):
        arm = fixed_arm(batch, samples)
        name = f"fixed {batch:,}" + (" (as many updates)" if batch == matched else "")
        slow = pace.alone(batch), arm
        row = _ratio(slow, (pace, stretches_of(plan.found)), name, batch)
        rows.append(row | {"seconds": forecast(*slow).seconds, "updates": arm[0].steps})
    return replace(plan, forecast=plan.forecast | {"speed_up_over": rows})


def fixed_batch(plan: Plan) -> int | None:
    """The batch size of a plan that has only one."""
    sizes = {p.batch_size for p in plan.found}
    return None if plan.closed and plan.closed.get("dwell") is not None or len(sizes) > 1 else sizes.pop()


def _against_arms(plan: Plan, pace, plans: list[Plan], paces: list) -> Plan:
    """The plan against the fixed arms of its sweep, if they train as many samples on the same machine."""
    if plan.forecast["seconds"] is None or fixed_batch(plan):
        return plan
    rows: dict[int, dict] = {}
    mine = pace, stretches_of(plan.found)
    for other, own in zip(plans, paces):
        batch, same = fixed_batch(other), other.schedule.budget == plan.schedule.budget
        if batch and batch not in rows and same and own.profile.key == pace.profile.key:
            row = _ratio((own, stretches_of(other.found)), mine, f"fixed {batch:,}", batch)
            rows[batch] = row | {"seconds": other.forecast["seconds"], "updates": other.totals["updates"]}
    return replace(plan, forecast=plan.forecast | {"speed_up_over": [rows[b] for b in sorted(rows)]})


def resolution(plans: list[Plan], compared: Compared | None = None) -> list[str]:
    """Whether the evaluation set and the seeds of a sweep (one run: the default number) can tell arms apart,
    a sentence for each evaluation set. A comparison has seeds and a margin of its own, and its alpha is
    shared by its looks and candidates."""
    seeds: dict[tuple, set] = {}
    for plan in plans:
        seeds.setdefault(arm_of(plan), set()).add(plan.config["seed"])
    count = min(map(len, seeds.values())) if len(plans) > 1 else power.SEEDS
    data = {p.config["dataset"].get("test_samples") or p.config["dataset"].get("validation") for p in plans}
    margin, alpha = power.MARGIN, power.ALPHA
    if compared:
        count, margin = compared.seeds, compared.margin
        alpha /= compared.looks * max(1, compared.adaptive)
    return [power.resolved(samples, count, margin, alpha) for samples in sorted(filter(None, data))]


def arm_of(plan: Plan) -> tuple:
    return tuple(o for o in plan.overrides if not o.startswith("seed="))
