"""The decision procedure: arms and a plan in, a verdict out. Pure.

What it promises was simulated (tests/test_statistics_simulated.py): at looks of 5, 10 and 20 runs a false
"adaptive" or "fixed" in at most 5 % of sweeps, also where arms differ in spread.
"""

import math
from dataclasses import replace

import numpy as np

from adabatch.verdict import pairs, power, words
from adabatch.verdict.arms import Arm, Comparison, Plan, Verdict

CLASSES = {True: "adaptive", False: "fixed"}
NEAR = 0.2  # numbers of updates that differ by less are about equal
SMALL = 5000  # samples of an evaluation set, below which a verdict is one for this set


def decide(arms: list[Arm], plan: Plan, pending: int = 0) -> Verdict:
    """The verdict, also for a sweep in progress. pending: runs of which nothing is known yet."""
    kept, notes = distinct(arms, plan)
    kept = [unreplayed(arm, arms, plan) for arm in kept]
    present, left = feasible(kept)
    inside = [arm for arm in present if arm.adaptive is not None]
    made = comparisons(inside, plan)
    untimed = list(dict.fromkeys(c.no_time for c in made if c.no_time))
    base = Verdict("interim", "", tuple(kept), tuple(made), notes=tuple(notes + left + untimed))
    if why := unready(arms, present, plan, pending):
        return replace(base, sentence=f"interim, no verdict: {why}")
    if plan.table:
        return replace(base, decision="table", sentence=words.tabulated(len(kept)))
    if why := one_sided(kept, inside):
        return replace(base, decision="undecided", sentence=f"undecided: {why}")
    base = replace(base, notes=(*base.notes, *remarks(made, plan), *unmatched(inside, plan)))
    won = winners(inside, made)
    kinds = {arm.adaptive for arm in inside if arm.name in won}
    if len(kinds) != 1:
        return undecided(base, inside, plan, both=len(kinds) == 2)
    order = ranks(inside, made)
    winner = min((arm for arm in inside if arm.name in won), key=lambda arm: order[arm.name])
    rival = fastest_rival(winner.name, made, order)
    sentence = words.won(winner, rival, inside, plan) + words.qualifications(plan, SMALL, base.arms)
    return replace(
        base, decision="adaptive" if winner.adaptive else "fixed", sentence=sentence, winner=winner.name
    )


def distinct(arms: list[Arm], plan: Plan) -> tuple[list[Arm], list[str]]:
    """Arms that are not the same runs as another of their class (equal weights at every common seed), nor
    controls that are the same runs as any; and notes. An adaptive arm that never moved is still held against
    the fixed batch that it was."""
    kept, notes = [], []

    def control(arm: Arm) -> bool:
        return arm.name in plan.named and plan.named[arm.name].control is not None

    def weight(arm: Arm) -> tuple:
        return not control(arm), arm.adaptive is not None, len(arm.counted)

    for arm in arms:
        alike = (o for o in kept if arm.adaptive == o.adaptive or control(arm) or control(o))
        same = next((other for other in alike if same_runs(arm, other)), None)
        if same is None:
            kept.append(arm)
        else:
            notes.append(f"{arm.name} and {same.name} are the same runs (equal weights): one arm")
            if weight(arm) > weight(same):
                kept[kept.index(same)] = arm
    return kept, notes


def unreplayed(arm: Arm, arms: list[Arm], plan: Plan) -> Arm:
    """A control that lacks only seeds at which nothing was there to be replayed: its source broke down, or
    did not go on after it ran out of memory. Two of its runs or more make a rival (Welch's test needs no
    equal numbers, and times pair by seed), fewer show no spread."""
    said = plan.named.get(arm.name)
    source = next((o for o in arms if said and said.replayed and o.name == said.of), None)
    if source is None:
        return arm
    every = {run.seed for other in arms for run in other.runs}
    lacking = every - arm.seeds
    lost = broken(source) | (every - source.seeds if source.infeasible else set())
    if not lacking or not lacking <= lost:
        return arm
    seeds = words.listed(sorted(lacking)[:5])
    why = f"{source.name} broke down at seed {seeds}, so it lacks what it replays"
    enough = sum(run.counted or not run.over for run in arm.runs) >= pairs.LEAST  # what runs may count yet
    return replace(arm, partial=why) if enough else replace(arm, outside=why)


def broken(source: Arm) -> set[int]:
    """The seeds whose run has ended without a figure."""
    return {run.seed for run in source.runs if run.over and not run.counted}


def missing(arms: list[Arm], plan: Plan) -> int:
    """How many declared arms have not begun; a control of which every source's run broke down never will."""
    begun = {arm.name: arm for arm in arms}
    if not plan.declared:
        return max(0, (plan.arms or 0) - len(arms))
    lost = {name for name, arm in begun.items() if arm.runs and broken(arm) == arm.seeds}
    return sum(arm.name not in begun and not (arm.replayed and arm.of in lost) for arm in plan.declared)


def same_runs(a: Arm, b: Arm) -> bool:
    common = a.counted.keys() & b.counted.keys()
    hashes = [(a.counted[seed].weights, b.counted[seed].weights) for seed in common]
    return bool(hashes) and all(x is not None and x == y for x, y in hashes)


def feasible(arms: list[Arm]) -> tuple[list[Arm], list[str]]:
    """Arms that take part, and notes on the others and on those that do so with fewer seeds."""
    notes = [
        f"{arm.name} ran out of memory here: infeasible, left out"
        if arm.infeasible
        else f"{arm.name} is left out: {arm.outside}"
        for arm in arms
        if arm.infeasible or arm.outside
    ]
    inside = [arm for arm in arms if not arm.infeasible and not arm.outside]
    for arm in (arm for arm in inside if arm.partial and arm.adaptive is not None):
        notes.append(f"{arm.name} is a rival with the {len(arm.counted)} seeds that it has: {arm.partial}")
    return inside, notes


def comparisons(arms: list[Arm], plan: Plan) -> list[Comparison]:
    """Every arm that may win against every arm of the other class."""
    sizes = {kind: sum(arm.adaptive is kind for arm in arms) for kind in (True, False)}
    ordered = sorted(arms, key=lambda arm: not arm.adaptive)
    return [
        pairs.compare(w, j, plan, sizes[w.adaptive])
        for w in ordered
        for j in arms
        if w.adaptive != j.adaptive and not w.partial
    ]


def unready(arms: list[Arm], inside: list[Arm], plan: Plan, pending: int) -> str | None:
    """Why there can be no verdict yet; None where there can."""
    unread = f"{pending} run{'s have not begun or' if pending > 1 else ' has not begun or it'} cannot be read"
    if pending and not arms:
        return unread
    for kind, name in CLASSES.items():
        if not plan.table and not any(arm.adaptive is kind for arm in arms):
            return f"no {name} arm was run"
    if absent := missing(arms, plan):
        return f"{plan.arms - absent} of the {plan.arms} declared arms have begun"
    if pending:
        return unread
    if waiting := [(arm, run) for arm in inside for run in arm.runs if not run.over]:
        every = sum(len(arm.runs) for arm in inside)
        return f"{len(waiting)} of {every} runs not finished ({words.unfinished(waiting)})"
    seeds = sorted({run.seed for arm in inside for run in arm.runs})
    for arm in inside:
        if lacking := [] if arm.partial else sorted(set(seeds) - arm.seeds):
            shown = ", ".join(map(str, lacking[:5])) + (", ..." if len(lacking) > 5 else "")
            return f"{arm.name} lacks seed {shown}, which other arms have"
    n = len(seeds)
    if n in plan.looks or not inside or plan.table:
        return None
    later = [look for look in plan.looks if look > n]
    listed = words.listed(plan.looks)
    if not later:
        return f"n = {n} lies beyond the last look ({listed})"
    which, assumed = "first" if n < plan.looks[0] else "next", " by default" if plan.assumed else ""
    return f"n = {n}, the {which} look is at {later[0]} runs of each arm{assumed}"


def one_sided(arms: list[Arm], inside: list[Arm]) -> str | None:
    """Why there is nothing to compare, where every arm of a class is left out and no run is to come."""
    for kind, name in CLASSES.items():
        if any(arm.adaptive is kind for arm in inside):
            continue
        lost = [arm for arm in arms if arm.adaptive is kind]
        each = "; ".join(f"{a.name} {'ran out of memory' if a.infeasible else a.outside}" for a in lost)
        small = "; smaller batches may fit" if any(arm.infeasible for arm in lost) else ""
        return f"every {name} arm is left out ({each}){small}"
    return None


def winners(arms: list[Arm], made: list[Comparison]) -> set[str]:
    """Names of the candidates that beat every arm of the other class."""
    candidates = {arm.name for arm in arms} & {c.candidate for c in made}
    return {name for name in candidates if all(c.beats for c in made if c.candidate == name)}


def ranks(arms: list[Arm], made: list[Comparison]) -> dict[str, float]:
    """{arm: its mean log time over the seeds that all share}; where times cannot be compared its mean error.
    Arms of which nothing finished come last."""
    errors = {arm.name: float(np.mean(arm.errors)) if arm.errors else math.inf for arm in arms}
    whole = [arm for arm in arms if arm.counted and not arm.diverged]
    common = set.intersection(*(set(arm.counted) for arm in whole)) if whole else set()
    if not common or any(c.no_time for c in made):
        return errors
    times = {arm.name: np.mean([math.log(arm.counted[s].seconds) for s in common]) for arm in whole}
    return {arm.name: float(times.get(arm.name, math.inf)) for arm in arms}


def fastest_rival(w: str, made: list[Comparison], order: dict[str, float]) -> Comparison | None:
    """The comparison with the fastest rival that the winner is not worse than; None where all diverged."""
    against = [c for c in made if c.candidate == w and c.clauses is not None and c.clauses.not_worse]
    return min(against, key=lambda c: order[c.rival], default=None)


def undecided(base: Verdict, arms: list[Arm], plan: Plan, both: bool) -> Verdict:
    """What failed, and how many seeds would decide."""
    made = list(base.comparisons)
    n = max(len(arm.runs) for arm in arms)
    failed = words.failed(leading(arms, made), made, plan) if not both else "each class beats the other"
    count, last, errors = power.seeds(arms, made, plan, n)
    no_time = next((c.no_time for c in made if c.no_time), None)
    tail = words.qualifications(plan, SMALL, base.arms)
    if count:
        again = "" if any(look > n for look in plan.looks) else " in a new comparison"
        found = f"undecided: {failed}; {count} seeds{again} would decide with 80 % power{tail}"
        return replace(base, decision="undecided", sentence=found, seeds=count)
    flaky = next((c.why for c in made if c.why and not c.beats), None)
    if no_time or flaky:
        return replace(base, decision="undecided", sentence=f"undecided: {failed}{tail}")
    remedy = "the arms lie too near the margins to be told apart"
    if errors:
        remedy = power.unsteady(arms, plan) or "enlarge the evaluation set"
    found = f"not resolvable with {last} seeds: {remedy} ({failed}){tail}"
    return replace(base, decision="not resolvable", sentence=found)


def leading(arms: list[Arm], made: list[Comparison]) -> list[Arm]:
    """Of each class the candidate that comes nearest to winning: by rivals beaten, then by rivals that it is
    not worse than, then by what is in doubt, its error or its speed."""
    order = ranks(arms, made)

    def nearness(arm: Arm) -> tuple:
        own = [c for c in made if c.candidate == arm.name]
        known = [c.clauses for c in own if c.clauses is not None]
        accurate = sum(bool(k.not_worse) for k in known)
        doubt = order[arm.name] if accurate == len(known) else max(float(k.limit) for k in known)
        return -sum(c.beats for c in own), -accurate, doubt

    found = []
    for kind in (True, False):
        own = [arm for arm in arms if arm.adaptive is kind and not arm.partial]
        found += sorted([arm for arm in own if not arm.diverged] or own, key=nearness)[:1]
    return found


def unmatched(arms: list[Arm], plan: Plan) -> list[str]:
    """Adaptive arms without their decisive rival: a fixed batch of about as many updates."""
    updates = {arm.name: [run.updates for run in arm.counted.values() if run.updates] for arm in arms}
    found = []
    for w in (arm for arm in arms if arm.adaptive and updates[arm.name] and plan.samples):
        own = float(np.mean(updates[w.name]))
        others = [float(np.mean(updates[j.name])) for j in arms if not j.adaptive and updates[j.name]]
        if not any(abs(other / own - 1) <= NEAR for other in others):
            batch = max(1, round(plan.samples / own))
            found.append(f"no fixed arm has about as many updates as {w.name} ({own:,.0f}: batch {batch:,})")
    return found


def remarks(made: list[Comparison], plan: Plan) -> list[str]:
    """What is said beside the verdict."""
    found, margin = [], words.points(plan.delta)
    for c in made:
        if c.equal is not None and c.equal < 0.05 and c.candidate < c.rival:
            found.append(
                f"{c.candidate} and {c.rival}: errors equal within {margin} "
                f"(TOST, {words.p_value(c.equal)}; 90 % interval {words.interval(c.difference, 0.9)} pp)"
            )
    return found
