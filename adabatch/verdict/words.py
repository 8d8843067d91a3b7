"""The sentence and its parts. Every name was made printable where it was read."""

import math
from statistics import fmean

from adabatch.statistics import Estimate
from adabatch.verdict import search
from adabatch.verdict.arms import Arm, Comparison, Plan, Run


def points(fraction: float) -> str:
    """0.01 -> "1 pp": percentage points."""
    return f"{100 * fraction:.3g} pp"


def _decimals(estimate: Estimate, level: float) -> int:
    low, high = estimate.interval(level)
    return 1 if 100 * (high - low) >= 0.2 else 2


def _plain(value: float, digits: int) -> str:
    return f"{round(value, digits) + 0.0:.{digits}f}"  # no "-0.0"


def interval(estimate: Estimate, level: float) -> str:
    """ "[-0.2, 0.4]" of a difference of errors, in percentage points."""
    digits = _decimals(estimate, level)
    low, high = (_plain(100 * float(x), digits) for x in estimate.interval(level))
    return f"[{low}, {high}]"


def difference(estimate: Estimate) -> str:
    """ "+0.1 [-0.2, 0.4]": in percentage points, with the 90 % interval."""
    mean = _plain(100 * float(estimate.mean), _decimals(estimate, 0.9))
    return f"{'' if mean.startswith('-') else '+'}{mean} {interval(estimate, 0.9)}"


def ratio(value: float) -> str:
    """ "1.42" """
    return f"{value:.2f}" if value < 9.995 else f"{value:.3g}"


def speed(estimate: Estimate, slower: bool = False) -> str:
    """ "1.42x faster [1.36, 1.47]": the ratio of times with its 95 % interval. slower: the reverse."""
    sign = -1 if slower else 1
    low, high = sorted(math.exp(sign * float(x)) for x in estimate.interval(0.95))
    mean = math.exp(sign * float(estimate.mean))
    return f"{ratio(mean)}x {'slower' if slower else 'faster'} [{ratio(low)}, {ratio(high)}]"


def p_value(p: float) -> str:
    return f"p = {p:.2g}" if p >= 0.001 else "p < 0.001"


def listed(values) -> str:
    return ", ".join(str(v) for v in values)


def unfinished(waiting: list[tuple[Arm, Run]], most: int = 3) -> str:
    """ "fixed 32 seed 4: running, ..." """
    shown = [f"{arm.name} seed {run.seed}: {state(run)}" for arm, run in waiting[:most]]
    return ", ".join(shown) + (", ..." if len(waiting) > most else "")


def state(run: Run) -> str:
    """What became of a run that does not count."""
    return run.state.replace("_", " ") if run.state != "finished" else "finished without an error figure"


def won(winner: Arm, best: Comparison | None, arms: list[Arm], plan: Plan) -> str:
    """The first part of the sentence. best: against the fastest rival that the winner is not worse than."""
    rivals = [arm for arm in arms if arm.adaptive != winner.adaptive]
    several = len(arms) - len(rivals) > 1
    head = winner.name if not winner.adaptive else f"adaptive ({winner.name})" if several else "adaptive"
    if best is None:
        lost = ", ".join(f"{arm.name} in {arm.diverged} of {len(arm.runs)} runs" for arm in rivals)
        return f"{head}: every rival diverged ({lost}; n = {len(winner.errors)})"
    n = f"n = {len(winner.errors)}"
    if best.clauses.fast:
        worse = f"error not worse by more than {points(plan.delta)} ({difference(best.difference)}, {n})"
        return f"{head}: {_fast(best, winner, plan)}, {worse}"
    better = f"more accurate than {best.rival} by more than {points(plan.delta)} "
    better += f"({difference(best.difference)}, {n})"
    if best.speed is None:
        return f"{head}: {better}; {best.no_time}"
    slower = float(best.speed.mean) < 0
    return f"{head}: {better}, {speed(best.speed, slower)}"


def _fast(best: Comparison, winner: Arm, plan: Plan) -> str:
    if winner.adaptive or float(best.speed.lower(0.975)) > 0:
        return f"{speed(best.speed)} than {best.rival}"
    shown = speed(best.speed).replace("x faster", "x as fast", 1)
    return f"not slower than {best.rival} by {plan.r0:g}x or more ({shown})"


def tabulated(count: int) -> str:
    """Of arms that nobody compares."""
    return f"a table of {count} arms, no verdict: they differ in more than their schedule"


def qualifications(plan: Plan, small: int, arms: tuple[Arm, ...]) -> str:
    """What a reader of the sentence alone must know. arms: all of the verdict's."""
    replayed = " but for replayed controls" if any(arm.replayed for arm in plan.declared) else ""
    found = [f"LRs tuned{replayed}" if plan.tuned else "LRs by rule, untuned"]
    found += search.troubles({arm.name: arm.search for arm in plan.declared if arm.search})
    found += unlearned(arms, plan)
    if plan.evaluated is not None and plan.evaluated < small:
        found.append("for this evaluation set")
    if plan.remark:
        found.append(plan.remark)
    if not plan.chosen:
        found.append("chosen and measured on the same set")
    return "; " + "; ".join(found)


def unlearned(arms: tuple[Arm, ...], plan: Plan) -> list[str]:
    """Arms whose error is the one of guessing, to two standard errors of the evaluation set: whoever beats
    these, or equals them, has shown nothing."""
    if plan.chance is None or not plan.evaluated:
        return []
    least = plan.chance - 2 * math.sqrt(plan.chance * (1 - plan.chance) / plan.evaluated)
    compared = (arm for arm in arms if arm.adaptive is not None and not arm.infeasible and not arm.outside)
    told = [arm for arm in compared if arm.errors]
    names = [arm.name for arm in told if fmean(arm.errors) >= least]
    who = "every arm" if len(names) == len(told) else listed(names)
    return [f"no better than guessing ({points(plan.chance).replace('pp', '% error')}): {who}"] * bool(names)


def failed(leading: list[Arm], made: list[Comparison], plan: Plan) -> str:
    """What the leading candidate of each class could not show, of one rival each."""
    parts, more = [], 0
    for arm in leading:
        wrong = [c for c in made if c.candidate == arm.name and not c.beats]
        parts.append(_failure(wrong[0], arm, plan))
        more += len(wrong) - 1
    rest = f"; {more} more pair{'s' if more > 1 else ''} below" if more else ""
    return "; ".join(dict.fromkeys(parts)) + rest


def _failure(c: Comparison, arm: Arm, plan: Plan) -> str:
    if c.clauses is None:
        return c.why
    shown, margin = f"{difference(c.difference)} pp", points(plan.delta)
    slow = f"less than {plan.r0:g}x faster" if arm.adaptive else f"more than {plan.r0:g}x slower"
    if c.clauses.not_worse and c.speed is None:
        return f"{c.candidate} may not be {margin} more accurate than {c.rival} ({shown}); {c.no_time}"
    at = "" if c.speed is None else f" ({speed(c.speed).replace('x faster', 'x', 1)})"
    if c.clauses.not_worse:
        return f"{c.candidate} may be {slow} than {c.rival}{at}"
    also = f"; {c.no_time}" if c.speed is None else "" if c.clauses.fast else f" and {slow}{at}"
    return f"{c.candidate} may be more than {margin} worse than {c.rival} ({shown}){also}"
