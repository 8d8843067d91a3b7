"""Margins and looks: declared in compare.yaml before the first run, or assumed, or given with the command."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

from adabatch.errors import UserError
from adabatch.files import number, read_yaml
from adabatch.report.facts import text
from adabatch.verdict import search
from adabatch.verdict.arms import Declared, Plan

FILE = "compare.yaml"
UNDECLARED = "looks were not declared beforehand"
METRIC = "final_error"
MOST, NAME = 200, 40  # arms of a comparison; characters of a name


def digest(content: dict) -> str:
    """SHA-256 over what compare.yaml declares: its keys but `sha256` and `format`, as sorted JSON."""
    kept = {k: v for k, v in content.items() if k not in ("sha256", "format")}
    return hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()


def declared(folder: Path) -> Plan:
    """The plan of a folder: `{delta, r0, alpha, looks, metric, split, samples, arms, tuned, target, sha256}`.

    delta is in percentage points, target an error rate, arms a list. Without the file the defaults, and a
    remark that says so. UserError names what is wrong.
    """
    path = folder / FILE
    if not path.is_file():
        return Plan(remark=UNDECLARED, assumed=True)
    content = read_yaml(path)
    try:
        same = content.get("sha256") == digest(content)
    except (TypeError, ValueError, RecursionError):
        same = False
    try:
        plan = checked(content)
    except UserError as error:
        raise UserError(f"{text(path)}: {error}") from None
    plan = searched(plan, folder) if plan.tuned else plan
    return plan if same else replace(plan, remark=f"{FILE} is not as it was hashed, so {UNDECLARED}")


def searched(plan: Plan, folder: Path) -> Plan:
    """With what is recorded of the search for learning rates; a damaged record is remarked on."""
    try:
        found = search.read(folder, digest)
    except UserError:
        return replace(plan, remark=f"{search.FILE} is not as it was hashed")
    return replace(plan, declared=tuple(replace(arm, search=found.get(arm.name)) for arm in plan.declared))


def checked(content: dict) -> Plan:
    """The plan of plain values; what is absent is as in `Plan`."""
    plan, arms = Plan(), content.get("arms")
    if (metric := content.get("metric", METRIC)) != METRIC:
        raise UserError(f"metric is {METRIC}, got {text(metric, 60)}: no other is compared")
    if (split := content.get("split", plan.split)) not in ("test", "validation"):
        raise UserError(f"split is test or validation, got {text(split, 60)}")
    if arms is not None and (not isinstance(arms, (list, dict)) or not arms):
        raise UserError(f"arms is a list of the arms, got {text(arms, 60)}")
    if arms is not None and len(arms) > MOST:
        raise UserError(f"arms are at most {MOST}, got {len(arms):,}")
    return Plan(
        delta=bounded(content, "delta", 1.0, 0.001, 50) / 100,
        r0=bounded(content, "r0", plan.r0, 1.0, 10),
        alpha=bounded(content, "alpha", plan.alpha, 0.0001, 0.2),
        looks=looks_of(content.get("looks", plan.looks)),
        split=split,
        tuned=content.get("tuned") is True,
        arms=len(arms) if arms else None,
        declared=described(arms or ()),
        samples=None if content.get("samples") is None else int(bounded(content, "samples", 0, 1, 1e15)),
        target=None if content.get("target") is None else bounded(content, "target", 0, 0, 1),
        table=content.get("table") is True,
    )


def described(arms) -> tuple[Declared, ...]:
    """The declared arms, where every one says its name as `{name: ...}`; else (). UserError: two of one name,
    or a control of none."""
    if not all(isinstance(arm, dict) and isinstance(arm.get("name"), str) for arm in arms):
        return ()
    found = tuple(one(arm) for arm in arms)
    names = [arm.name for arm in found]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"an arm's name is its own, got {twice} twice (of the first {NAME} characters)")
    if lost := next((arm for arm in found if arm.of is not None and arm.of not in names), None):
        raise UserError(f"{lost.name} is a control of {lost.of}, which is no declared arm")
    return found


def one(arm: dict) -> Declared:
    """A declared arm. UserError: a value that none can have."""
    name, adaptive = text(arm["name"], NAME), arm.get("adaptive")
    if adaptive is not None and not isinstance(adaptive, bool):
        raise UserError(f"adaptive of {name} is true or false, got {text(adaptive, 60)}")
    for key in ("control", "of", "identity"):
        if not isinstance(arm.get(key), (str, type(None))):
            raise UserError(f"{key} of {name} is a name, got {text(arm[key], 60)}")
    known = (text(arm[key], NAME) if arm.get(key) else None for key in ("control", "of", "identity"))
    control, of, identity = known
    # A control is no candidate as adaptive, whatever its batch does; some are in neither class (science: A8).
    replayed = control is not None and "overrides" not in arm
    return Declared(name, False if control else adaptive, control, of, replayed, identity)


def bounded(content: dict, name: str, otherwise: float, low: float, high: float) -> float:
    value = content.get(name, otherwise)
    found = number(value)
    if found is None or not low <= found <= high:
        raise UserError(f"{name} is a number from {low:g} to {high:g}, got {text(value, 60)}")
    return found


def looks_of(value) -> tuple[int, ...]:
    """Numbers of runs of each arm, ascending: [5, 10, 20], 5 or "5,10,20"."""
    given = value.split(",") if isinstance(value, str) else [value] if isinstance(value, int) else value
    rule = f"looks are ascending numbers of runs from 2 to 1000, e.g. 5,10,20, got {text(value, 60)}"
    if not isinstance(given, (list, tuple)) or not 1 <= len(given) <= 20:
        raise UserError(rule)
    try:
        found = tuple(int(str(n)) for n in given)
    except ValueError:
        raise UserError(rule) from None
    if list(found) != sorted(set(found)) or found[0] < 2 or found[-1] > 1000:
        raise UserError(rule)
    return found


def overridden(plan: Plan, given: dict) -> Plan:
    """The plan with what the command line says; a change of what was declared is remarked on."""
    asked = {k: v for k, v in given.items() if v is not None}
    changes = {k: v for k, v in asked.items() if v != getattr(plan, k)}
    remark, decides = plan.remark, sorted(changes.keys() - {"target"})
    if remark is None and decides:
        remark = f"{' and '.join(decides)} not as declared in {FILE}"
    return replace(plan, **changes, remark=remark, assumed=plan.assumed and "looks" not in asked)


def together(plan: Plan, folders: list[Path]) -> Plan:
    """Of a folder without a declaration, whose runs lie in these: comparisons that have one each have none of
    what all of them make together."""
    parts = sorted({folder for folder in folders if (folder / FILE).is_file()})
    if not plan.remark == UNDECLARED or not parts:
        return plan
    shown = " and ".join(text(part.name, NAME) for part in parts[:3]) + (" ..." if len(parts) > 3 else "")
    whole = " together" if len(parts) > 1 else " with what stands beside it here"
    return replace(plan, remark=f"{UNDECLARED} for {shown}{whole}")


def late(plan: Plan, given: dict) -> list[str]:
    """A note where the target is the command's: no verdict rests on it, but it was not fixed in advance.
    plan: as declared."""
    target = given.get("target")
    if target is None or target == plan.target:
        return []
    said = "none was declared" if plan.target is None else f"{100 * plan.target:g} % was declared"
    return [f"the target of {100 * target:g} % came with the command; {said} beforehand"]
