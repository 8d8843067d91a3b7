"""compare.yaml: what a comparison is, written before its first run and never changed (science: A8)."""

from pathlib import Path

from adabatch import files, runs
from adabatch.compare.arms import Arm
from adabatch.compare.asked import Asked
from adabatch.errors import UserError
from adabatch.verdict.arms import Plan
from adabatch.verdict.plan import FILE, METRIC, digest

MULTIPLIERS = (0.5, 1.0, 2.0)  # of the learning rate
EXTENSIONS = 3  # how often the search goes on at an edge


def content(asked: Asked, arms: list[Arm], samples: int) -> dict:
    """What is declared. samples: that each run trains, but for a table, whose arms may differ in that."""
    found = {
        "delta": asked.delta, "r0": Plan.r0, "alpha": Plan.alpha, "looks": list(asked.looks),
        "metric": METRIC, "split": "test", "samples": samples, "target": asked.target, "tuned": asked.tune_lr,
        "arms": [entry(arm) for arm in arms], "order": asked.order,
    }  # fmt: skip
    if asked.table:
        found |= {"table": True, "samples": None}
    if asked.tune_lr:
        found["tuning"] = {
            "multipliers": list(MULTIPLIERS), "square_root_rule": True, "extensions": EXTENSIONS,
            "seed": asked.tuning_seed, "split": "validation",
        }  # fmt: skip
    return found


def entry(arm: Arm) -> dict:
    """An arm as it is declared. adaptive: whether it is one of the candidates, which the report does not
    guess from what its runs did. identity: of its run with seed 0 (before tuning)."""
    found = {"name": arm.name, "adaptive": arm.adaptive}
    if arm.control is not None:
        found |= {"control": arm.control, "of": arm.of}
    if arm.source is not None:
        return found
    identity = runs.identity(arm.config | {"seed": 0}, runs.contents(arm.config))
    return found | {"overrides": list(arm.lines), "identity": identity}


def settle(folder: Path, wanted: dict) -> bool:
    """Writes the declaration, or finds the same one there. Returns whether it was written.

    UserError: another one is declared, or runs are there and none is.
    """
    import filelock

    path = folder / FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(str(folder / ".compare.lock"), timeout=60):
            if path.is_file():
                refuse_changes(files.read_yaml(path), wanted, path)
                return False
            refuse_undeclared(folder)
            files.write_yaml(path, {"format": files.FORMAT, **wanted, "sha256": digest(wanted)})
            return True
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written ({error.strerror}): name another hydra.sweep.dir"
        ) from error


def refuse_undeclared(folder: Path) -> None:
    """UserError where runs were made before anything was declared."""
    if any((entry / "status.json").is_file() for entry in folder.iterdir() if entry.is_dir()):
        raise UserError(
            f"{folder} holds runs and no {FILE}: what is compared is declared before the first run. Name "
            "another folder: hydra.sweep.dir=..."
        )


def refuse_changes(before: dict, wanted: dict, path: Path) -> None:
    """UserError unless both declare the same."""
    declared = {k: v for k, v in before.items() if k not in ("format", "sha256")}
    another = "name another folder: hydra.sweep.dir=..."
    if before.get("sha256") != digest(declared):
        raise UserError(f"{path} is not as it was hashed: put it back, or {another}")
    if digest(declared) == digest(wanted):
        return
    changed = [k for k in {**declared, **wanted} if declared.get(k) != wanted.get(k)]
    key = next((k for k in changed if k != "arms"), "arms")  # other keys change the arms too
    raise UserError(
        f"{path} declares {told(declared.get(key), wanted.get(key), key)}. A comparison is declared once, "
        f"before its first run: give the command as it was, or {another}"
    )


def told(before, now, key: str) -> str:
    """What differs, in words."""
    if key != "arms" or not all(isinstance(v, list) for v in (before, now)):
        return f"{key}: {before}, and this command asks for {now}"
    old, new = ({e["name"]: e for e in v if isinstance(e, dict) and "name" in e} for v in (before, now))
    missing, added = [n for n in old if n not in new], [n for n in new if n not in old]
    if missing or added:
        parts = [f"lacks {', '.join(missing)}"] * bool(missing) + [f"adds {', '.join(added)}"] * bool(added)
        return f"the arms {', '.join(old)}, and this command {' and '.join(parts)}"
    name = next((n for n in old if old[n] != new[n]), None)
    if name is None:
        return "the arms in another order"
    differing = [k for k in {**old[name], **new[name]} if old[name].get(k) != new[name].get(k)]
    if "overrides" in differing:
        return (
            f"{name} as {old[name].get('overrides')}, and this command asks for {new[name].get('overrides')}"
        )
    if differing == ["identity"]:
        return (
            f"{name} under another configuration (identity {old[name].get('identity')}), not this command's"
        )
    said, asked = (", ".join(f"{k}: {e.get(k)}" for k in differing) for e in (old[name], new[name]))
    return f"{name} with {said}, and this command asks for {asked}"
