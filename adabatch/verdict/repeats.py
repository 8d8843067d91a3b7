"""An arm's repeated runs where a target is set, as the fast CIFAR-10 recipes tell them: least, mean and
median of final error and training time, and how many ended at the target."""

from statistics import fmean, median

from adabatch import statistics
from adabatch.verdict import table
from adabatch.verdict.arms import Arm, Plan, Verdict
from adabatch.verdict.table import Column


def figures(arm: Arm, plan: Plan) -> dict:
    """For report.json; errors are fractions, times seconds. Empty without a target, or where no run is over.

    at_target: the share of runs whose final error is the target or less, with its exact 95 % interval; one
    that diverged is none of them, and one that reached the target only in between neither ("reached").
    """
    over = [run for run in arm.runs if run.over]
    if plan.target is None or not over or arm.infeasible:
        return {}
    errors = arm.errors
    seconds = [run.seconds for run in arm.counted.values() if run.seconds is not None]
    hits = sum(error <= plan.target for error in errors)
    low, high = statistics.fraction_interval(hits, len(over))
    found = {"over": len(over), "at_target": hits / len(over), "at_target_low": low, "at_target_high": high}
    for name, values in (("final_error", errors), ("seconds", seconds)):
        found |= {f"{name}_min": min(values, default=None)}
        found |= {f"{name}_median": median(values) if values else None}
    return found


def columns(verdict: Verdict, plan: Plan) -> list[Column]:
    """A row for each arm of which runs were repeated; nothing without a target."""
    each = [(arm, made) for arm in verdict.arms if (made := figures(arm, plan)) and made["over"] > 1]
    if not each:
        return []
    return [
        Column("arm", [arm.name for arm, _ in each], 99, right=False),
        Column("final error: min / mean / median", [_errors(arm, made) for arm, made in each], 98),
        Column(f"at {100 * plan.target:g} % or less", [_share(made) for _, made in each], 97),
        Column("seconds: min / mean / median", [_seconds(arm, made) for arm, made in each], 96),
    ]


def _errors(arm: Arm, made: dict) -> str:
    if not arm.errors:
        return table.NOTHING
    told = (made["final_error_min"], fmean(arm.errors), made["final_error_median"])
    return " / ".join(f"{100 * value:.2f}" for value in told) + " %"


def _share(made: dict) -> str:
    hits = round(made["at_target"] * made["over"])
    return f"{hits}/{made['over']} [{made['at_target_low']:.2f}, {made['at_target_high']:.2f}]"


def _seconds(arm: Arm, made: dict) -> str:
    if made["seconds_min"] is None:
        return table.NOTHING
    known = [run.seconds for run in arm.counted.values() if run.seconds is not None]
    return " / ".join(map(table.compact, (made["seconds_min"], fmean(known), made["seconds_median"]))) + " s"
