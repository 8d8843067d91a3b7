"""What can be said of a closed loop before it has measured anything."""

import copy
import math

from adabatch import cutting
from adabatch.phases import phases
from adabatch.schedules.closed import NEEDS, Controller


def frozen(schedule, batch: int):
    """The same schedule as if its rule had jumped to `batch` before the first step; None for a growth that
    cannot be told to."""
    if not isinstance(schedule.growth, Controller):
        return None
    other = copy.deepcopy(schedule)
    other.growth.batch = batch
    return other


def updates(schedule, batch: int) -> int:
    """Steps of the run if it has this batch from the first step on."""
    other = frozen(schedule, batch)
    if other is not None:
        return sum(phase.steps for phase in phases(other))
    return math.ceil(schedule.budget / batch)


def measuring(schedule, unit: int | None) -> dict:
    """The plan of a schedule that measures. unit: samples of a ghost group, None where only the network
    knows."""
    growth, loop = schedule.growth, schedule.measuring
    rule = growth.rule if isinstance(growth, Controller) else None
    group = loop.group if loop else None
    if group is None and unit is not None:
        group = cutting.noise_group(None, unit, schedule.base_batch)
    found = {
        "rule": type(rule or growth).__name__,
        "needs": {name: NEEDS.get(name, "") for name in [*NEEDS, *schedule.needs] if name in schedule.needs},
        "memory": rule.memory if rule else "none",
        "measure_every": loop.every if loop else None,
        "noise_group": group,
        "noise_horizon": loop.average.horizon if loop else None,
    }
    for name in ("dwell", "hysteresis", "shrink"):
        found[name] = getattr(growth, name, None)
    if growth.closed:
        first = schedule(0).divisor
        found |= {"smallest_batch": first, "largest_batch": schedule.cap}
        found |= {
            "updates_if_it_stays": updates(schedule, first),
            "updates_if_at_the_cap": updates(schedule, schedule.cap),
        }
        return found
    sizes = phases(schedule)  # only the learning rate is measured
    found |= {
        "smallest_batch": min(p.batch_size for p in sizes),
        "largest_batch": max(p.batch_size for p in sizes),
    }
    most = least = sum(p.steps for p in sizes)
    if getattr(schedule.scaling, "stop", None) == "gained":  # a step gains lr_batch to batch samples
        most = min(most, math.ceil(schedule.frame.budget / schedule.lr_batch))
        least = math.ceil(schedule.frame.budget / found["largest_batch"])
    return found | {"updates_if_it_stays": most, "updates_if_at_the_cap": least}
