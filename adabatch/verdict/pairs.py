"""One candidate against one rival: the clauses, or what takes their place."""

import numpy as np

from adabatch import statistics
from adabatch.verdict.arms import Arm, Comparison, Plan, Run

LEAST = 2  # runs without which there is no spread


def compare(w: Arm, j: Arm, plan: Plan, m: int) -> Comparison:
    """w: the candidate. m: arms in its class."""
    if w.diverged:
        return Comparison(w.name, j.name, False, why=_diverged(w, "so it cannot win"))
    if j.diverged:
        words = "so it counts as beaten" if j.gone else "which decides nothing"
        return Comparison(w.name, j.name, j.gone, why=_diverged(j, words))
    if min(len(w.errors), len(j.errors)) < LEAST:
        return Comparison(w.name, j.name, False, why=f"fewer than {LEAST} finished runs of each")
    difference = statistics.welch(w.errors, j.errors, statistics.rounding(plan.evaluated))
    pairs = timed(w, j)
    no_time = not_comparable(pairs)
    speed = None if no_time else statistics.paired(*np.log([[b.seconds, a.seconds] for a, b in pairs]).T)
    made = statistics.clauses(difference, speed, plan.margins, w.adaptive, m)
    both = sorted(w.counted.keys() & j.counted.keys())
    return Comparison(
        w.name,
        j.name,
        bool(made.beats),
        difference,
        speed,
        made,
        equal=statistics.equivalence(difference, plan.delta),
        correlation=statistics.correlation(*([arm.counted[s].error for s in both] for arm in (w, j))),
        no_time=no_time,
        target=None if no_time else to_target(w, j),
    )


def to_target(w: Arm, j: Arm) -> tuple | None:
    """The 95 % interval of the rival's time to the target over the candidate's; None without a target."""
    own, other = ([run.target for run in arm.runs if run.target is not None] for arm in (w, j))
    return statistics.shift_interval(other, own) if own and other else None


def _diverged(arm: Arm, words: str) -> str:
    return f"{arm.name} diverged in {arm.diverged} of {len(arm.runs)} runs, {words}"


def timed(w: Arm, j: Arm) -> list[tuple[Run, Run]]:
    """Runs of a seed that both have, in order of seeds."""
    seeds = sorted(w.counted.keys() & j.counted.keys())
    return [(w.counted[s], j.counted[s]) for s in seeds]


def not_comparable(pairs: list[tuple[Run, Run]]) -> str | None:
    """Why these runs' times cannot be compared; None where they can."""
    found = [run for pair in pairs for run in pair]
    if len(pairs) < LEAST:
        return "no times of the same seeds"
    for run in found:
        if run.alone:
            return f"no time verdict: {run.alone}"
        if not run.seconds or run.seconds <= 0:
            return "no time verdict: a run has no training time"
    for name in dict.fromkeys(name for run in found for name in run.key):
        values = list(dict.fromkeys(run.key.get(name) for run in found))
        if len(values) > 1:
            shown = " and ".join(str(v) for v in values[:3])
            return f"time not comparable: {name} differs ({shown})"
        if values == [None]:
            return f"time not comparable: {name} is not recorded"
    return None
