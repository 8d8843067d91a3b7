"""Which runs belong to one comparison, and to which arm. From the run folders' files alone."""

import json
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from adabatch import files
from adabatch.errors import UserError
from adabatch.report.facts import text
from adabatch.status.folders import find
from adabatch.verdict import plan as plans
from adabatch.verdict.arms import Arm, Plan, Run
from adabatch.verdict.readings import TUNED, TUNING, Reading, read, spent

MOST = 5000  # runs of one comparison
REPLAY = "adabatch.schedules.replay"


@dataclass(frozen=True)
class Found:
    """A comparison as its folders show it. pending: runs that are there and tell nothing yet."""

    folder: Path  # that they have in common
    arms: list[Arm]
    plan: Plan
    pending: int
    runs: int
    notes: list[str]
    readings: list[Reading]
    validation: int  # samples held out


def look(named: list[str], given: dict, read=read) -> Found:
    """The comparison of the runs in these folders. given: margins that the command line sets. read: of one
    folder, e.g. one that remembers.

    UserError: no run, runs that differ in more than schedule and seed, or a compare.yaml that is wrong.
    """
    found = find(named)
    if len(found.runs) > MOST:
        raise UserError(f"{len(found.runs):,} runs: name folders of one comparison (at most {MOST:,} runs)")
    folder = common([Path(name) for name in named])
    declared = plans.together(plans.declared(folder), [path.parent for path in found.runs])
    plan = plans.overridden(declared, given)
    tuning = [path for path in found.runs if path.parent == folder / TUNING]
    paths = sorted(set(found.runs) - set(tuning))
    read_in = [read(path, plan.split) for path in paths]
    readings = [reading for reading in read_in if isinstance(reading, Reading)]
    others = [reading for reading in read_in if isinstance(reading, str)]
    tuning += [path for path, note in zip(paths, read_in) if isinstance(note, str) and note.endswith(TUNED)]
    others = [note for note in others if not note.endswith(TUNED)]
    readings, strangers = of_the_plan(readings, plan)
    if plan.table:
        tabulated(readings)
    else:
        alike(readings)
    notes = others + strangers + plans.late(declared, given)
    notes += [note for reading in readings for note in reading.notes]
    if tuning:
        notes.append(f"{len(tuning)} runs that tuned learning rates left out ({spent(tuning)})")
    if found.aside:
        notes.append(f"{found.aside} put aside by restart=true (*.old1, ...) left out")
    validation = 0
    if readings:
        first = readings[0]
        validation = first.validation
        plan = replace(plan, evaluated=first.evaluated, chosen=first.validation > 0, chance=first.chance)
    arms, more, samples = arms_of(readings, plan)
    plan = replace(plan, samples=samples)
    pending = sum(not note.endswith("no run") for note in others)
    return Found(folder, arms, plan, pending, len(found.runs), notes + more, readings, validation)


def common(paths: list[Path]) -> Path:
    """The folder that holds all that was named; that itself where it is one."""
    whole = [path.resolve() for path in paths]
    parts = list(zip(*(path.parts for path in whole)))
    same = [names[0] for names in parts if len(set(names)) == 1]
    depth = next((i for i, names in enumerate(parts) if len(set(names)) > 1), len(same))
    return Path(*whole[0].parts[:depth])


def tabulated(readings: list[Reading]) -> None:
    """UserError: runs of an arm that differ, or arms that saw other data."""
    for name in sorted({reading.arm for reading in readings if reading.arm}):
        alike([reading for reading in readings if reading.arm == name])
    alike(readings, "dataset.")


def alike(readings: list[Reading], within: str = "") -> None:
    """UserError: runs that differ in more than schedule, seed and hardware. within: what such keys begin
    with."""
    keys = sorted({key for reading in readings for key in reading.same if key.startswith(within)})
    for key in keys:
        values = {}
        for reading in readings:
            values.setdefault(reading.same.get(key, "absent"), reading.run.folder)
        if len(values) > 1:
            (one, here), (other, there) = list(values.items())[:2]
            raise UserError(
                f"these runs differ in {key}: {text(one, 60)} in {here}, {text(other, 60)} in {there}. A "
                "comparison varies schedule and seed only: name the folders of one"
            )


def of_the_plan(readings: list[Reading], plan: Plan) -> tuple[list[Reading], list[str]]:
    """The runs of declared arms, where arms are declared by name; notes on the others. UserError: a run that
    is not the declared one."""
    if not plan.declared:
        return readings, []
    kept = [reading for reading in readings if reading.arm in plan.named]
    for reading in kept if not plan.tuned else ():  # a search changes the learning rate, and so the identity
        said = plan.named[reading.arm].identity
        if reading.run.seed == 0 and None not in (said, reading.identity) and said != reading.identity:
            raise UserError(
                f"{plans.FILE} declares {reading.arm} with identity {said} at seed 0, and the run in "
                f"{reading.run.folder} has {reading.identity}: it is of another configuration. Move it "
                "elsewhere"
            )
    plain = sum(reading.arm is None for reading in readings)
    strange = sorted({reading.arm for reading in readings if reading.arm} - plan.named.keys())
    notes = [f"{name}: left out, it is no declared arm" for name in strange]
    return kept, notes + [f"left out as runs of no declared arm: {plain}"] * bool(plain)


def arms_of(readings: list[Reading], plan: Plan) -> tuple[list[Arm], list[str], int | None]:
    """The runs by schedule, fixed arms first, those of neither class last, each by its largest batch; notes;
    the samples of each run."""
    groups: dict[tuple, list[Reading]] = {}
    for reading in readings:
        groups.setdefault((reading.arm, played(reading)), []).append(reading)
    notes = ambiguous(groups, plan)

    def kind(group: list[Reading]) -> bool | None:
        said = plan.named.get(group[0].arm)
        if said is not None and said.beside:
            return None
        return changed(group) if said is None or said.adaptive is None else said.adaptive

    def place(group: list[Reading]) -> tuple:
        of_its_kind = (False, True, None).index(kind(group))
        return of_its_kind, *reversed(sizes(group)), group[0].option, group[0].digest

    listed = sorted(groups.values(), key=place)
    if plan.table:  # as they were declared
        listed.sort(key=lambda group: list(plan.named).index(group[0].arm))
    budget, arms = budget_of(listed, plan), []
    for name, group in zip(names(listed), listed):
        chosen, twice = once(group)
        if twice:
            notes.append(f"{name}: left out as a seed that another run has: {twice}")
        notes += mixed(name, chosen)
        made = [timed(reading, plan) for reading in chosen]
        if plan.table:
            arms.append(Arm(name, None, tuple(made), budget=share(group, budget)))
            continue
        arms.append(Arm(name, kind(group), tuple(made), outside(group, budget)))
    return arms, notes, budget


def played(reading: Reading) -> str:
    """What tells schedules apart: the digest; of an arm's replays, each of the run of its own seed, what is
    made of that run."""
    if reading.arm is None or reading.schedule.get("_target_") != REPLAY:
        return reading.digest
    return json.dumps({k: v for k, v in reading.schedule.items() if k != "run"}, sort_keys=True)


def ambiguous(groups: dict[tuple, list[Reading]], plan: Plan) -> list[str]:
    """Notes on names that more than one schedule has. UserError: a declared one."""
    notes = []
    for name, count in Counter(name for name, _ in groups if name is not None).items():
        if count < 2:
            continue
        alike = [group for (arm, _), group in groups.items() if arm == name]
        shown = " and ".join(f"{', '.join(difference(g, alike))} in {g[0].run.folder}" for g in alike[:2])
        if name in plan.named:
            raise UserError(
                f"the runs of an arm have one schedule, and those of {name} have {count}: {shown}. Move the "
                "runs that do not belong to this comparison elsewhere"
            )
        notes.append(f"{name}: {count} schedules have this name, and each is an arm ({shown})")
    return notes


def changed(group: list[Reading]) -> bool:
    """Whether the batch changed in any of the runs that tell; else whether the schedule may change it."""
    told = [reading for reading in group if reading.batches]
    return any(reading.adaptive for reading in told or group)


def sizes(group: list[Reading]) -> tuple[int, int]:
    """The smallest and the largest batch; (0, 0) before the first."""
    found = [n for reading in group for n in reading.batches]
    return (min(found), max(found)) if found else (0, 0)


def names(groups: list[list[Reading]]) -> list[str]:
    """ "fixed 512", "adabatch 32-512"; where two are alike, with the keys in which they differ."""
    short = []
    for group in groups:
        if group[0].arm:
            short.append(group[0].arm)
            continue
        low, high = sizes(group)
        batches = f" {low}" if low == high else f" {low}-{high}"
        short.append(group[0].option + (batches if high else ""))
    found = []
    for name, group in zip(short, groups):
        alike = [other for other, n in zip(groups, short) if n == name]
        found.append(name if len(alike) == 1 else ", ".join([name, *difference(group, alike)]))
    many = Counter(found)
    return [n if many[n] == 1 else f"{n} ({g[0].digest[:6]})" for n, g in zip(found, groups)]


def difference(group: list[Reading], alike: list[list[Reading]]) -> list[str]:
    """What tells a schedule from others of its name: "base_lr=0.1", up to two of the keys that it has."""
    nodes = [other[0].schedule for other in alike]
    keys = sorted({key for node in nodes for key in node})
    own = group[0].schedule
    differing = [key for key in keys if len({node.get(key) for node in nodes}) > 1]
    shown = [key for key in differing if own.get(key) not in (None, "null")]
    return [f"{key.rpartition('.')[2]}={text(own[key], 20)}" for key in shown[:2]]


def once(group: list[Reading]) -> tuple[list[Reading], int]:
    """One run a seed, in order of seeds: one that finished, if there is any; and how many were left out."""
    by_seed: dict[int, Reading] = {}
    for reading in group:
        held = by_seed.get(reading.run.seed)
        if held is None or (reading.run.counted and not held.run.counted):
            by_seed[reading.run.seed] = reading
    return [by_seed[seed] for seed in sorted(by_seed)], len(group) - len(by_seed)


def mixed(name: str, group: list[Reading]) -> list[str]:
    """A note where an arm's runs differ in hardware that changes results: its mean is over unlike runs."""
    found = []
    for key in sorted({key for reading in group for key in reading.hardware}):
        values = list(dict.fromkeys(reading.hardware.get(key, "absent") for reading in group))
        if len(values) > 1:
            found.append(f"{key} ({' and '.join(text(value, 30) for value in values[:3])})")
    more = ", ..." if len(found) > 3 else ""
    return [f"{name}: its runs differ in {', '.join(found[:3])}{more}, and enter one mean"] if found else []


def budget_of(groups: list[list[Reading]], plan: Plan) -> int | None:
    """The samples that count: declared, else those of most finished runs."""
    if plan.samples is not None:
        return plan.samples
    found = Counter(r.samples for group in groups for r in group if r.run.counted and r.samples)
    return max(found, key=lambda n: (found[n], -n), default=None)


def outside(group: list[Reading], budget: int | None) -> str | None:
    """Why an arm is in no comparison at equal samples."""
    wrong = next((r.samples for r in group if r.run.counted and r.samples != budget), budget)
    if wrong == budget:
        return None
    return f"it trained {wrong or 0:,} samples where the comparison has {budget or 0:,}"


def share(group: list[Reading], budget: int | None) -> float | None:
    """How many times the samples of most runs an arm of a table trained; None where it is as many."""
    found = next((r.samples for r in group if r.run.counted and r.samples != budget), None)
    return found / budget if found and budget else None


def timed(reading: Reading, plan: Plan) -> Run:
    """The run with its time to the target; infinite where it ended without reaching it."""
    if plan.target is None or not reading.run.over:
        return reading.run
    reached = [seconds for _, seconds, error in reading.evaluations if error <= plan.target]
    return replace(reading.run, target=reached[0] if reached else float("inf"))


def write(folder: Path, value: dict) -> str | None:
    """Writes report.json into the folder; else why it was not."""
    if len(folder.parts) < 3:  # what far apart folders have in common is nobody's place
        return f"report.json was not written into {text(folder)}: say where with --out"
    try:
        files.write_json(folder / "report.json", value)
    except OSError as error:
        return f"{text(folder / 'report.json')} was not written ({error.strerror}): say where with --out"
    return None
