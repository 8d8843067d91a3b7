"""The search for each arm's learning rate (science: A9): the same one for all, on a seed of its own, scored
on validation data.

Candidates are the arm's own learning rate times 1/2, 1 and 2; where the batch is larger than the one that
the learning rate belongs to and the rule is linear, the square-root rule's level too. Where the best is the
smallest or largest that was tried, the next one beyond is tried as well.
"""

import math
from dataclasses import dataclass
from pathlib import Path

from adabatch import files, runs
from adabatch.compare.arms import Arm
from adabatch.compare.declare import EXTENSIONS, MULTIPLIERS
from adabatch.compare.jobs import state
from adabatch.errors import UserError
from adabatch.verdict.plan import digest
from adabatch.verdict.search import FILE

FOLDER = "tuning"


@dataclass(frozen=True)
class Score:
    """What became of a candidate. error: on validation data, infinite where the learning rate broke the run
    down, None where it is to come, also where the run failed for another reason."""

    multiplier: float
    error: float | None
    state: str | None = None
    folder: str = ""


def first(arm: Arm) -> list[float]:
    """The multipliers of an arm's learning rate to begin with, ascending."""
    found, node = list(MULTIPLIERS), arm.config["schedule"]
    batch, tuned = node.get("base_batch"), node.get("lr_batch")
    exponent = getattr(arm.schedule.scaling, "exponent", 0.5)
    if batch and tuned and batch > tuned and exponent > 0.5:
        root = (batch / tuned) ** (0.5 - exponent)
        if not any(math.isclose(root, m, rel_tol=1e-6) for m in found):
            found.append(root)
    return sorted(found)


def best(scores: list[Score]) -> float:
    """The multiplier with the lowest error; of equals the nearest to the rule. Where every one broke down,
    the smallest: the verdict counts what becomes of the arm, at the rate that is the likeliest to train."""
    if all(math.isinf(score.error) for score in scores):
        return min(score.multiplier for score in scores)
    return min(scores, key=lambda s: (s.error, abs(math.log(s.multiplier)), s.multiplier)).multiplier


def further(arm: Arm, scores: list[Score]) -> float | None:
    """The candidate to be tried next, once all there are have a score; None where the search is over."""
    tried = sorted(score.multiplier for score in scores)
    extra = len(tried) - len(first(arm))
    if extra >= EXTENSIONS:
        return None
    if all(math.isinf(score.error) for score in scores):
        return tried[0] / 2
    found = best(scores)
    return found / 2 if found == tried[0] else found * 2 if found == tried[-1] else None


def lines(arm: Arm, multiplier: float) -> tuple[str, ...]:
    """The arm's overrides at so many times its learning rate."""
    if multiplier == 1:
        return arm.lines
    kept = tuple(line for line in arm.lines if not line.startswith("schedule.base_lr="))
    return (*kept, f"schedule.base_lr={base_lr(arm, multiplier):.12g}")


def base_lr(arm: Arm, multiplier: float) -> float:
    return arm.config["schedule"]["base_lr"] * multiplier


def write(folder: Path, seed: int, arms: list[Arm], found: dict[str, list[Score]]) -> dict[str, float]:
    """Records what was tried and chosen in tuning.yaml; returns {arm: multiplier}. arms: that were tuned."""
    chosen = {name: best(scores) for name, scores in found.items()}
    rates = {arm.name: base_lr(arm, chosen[arm.name]) for arm in arms}
    entries = {
        name: {
            "multiplier": chosen[name], "base_lr": rates[name],
            "at_an_edge": chosen[name] in (scores[0].multiplier, scores[-1].multiplier),
            "tried": [
                {"multiplier": s.multiplier, "validation_error": None if math.isinf(s.error) else s.error,
                 "state": s.state, "folder": s.folder}
                for s in scores
            ],
        }
        for name, scores in ((n, sorted(s, key=lambda s: s.multiplier)) for n, s in found.items())
    }  # fmt: skip
    content = {"seed": seed, "arms": entries}
    files.write_yaml(folder / FILE, {"format": files.FORMAT, **content, "sha256": digest(content)})
    return chosen


def read(folder: Path, names: list[str]) -> dict[str, float] | None:
    """The recorded choice for these arms; None where it is not complete. UserError: it was edited."""
    if not (folder / FILE).is_file():
        return None
    content = files.read_yaml(folder / FILE)
    if content.get("sha256") != digest(content):
        raise UserError(
            f"{folder / FILE} is not as it was hashed: put it back, or name another folder: "
            "hydra.sweep.dir=..."
        )
    arms = content.get("arms")
    found = {n: files.number((arms.get(n) or {}).get("multiplier")) for n in names} if arms else {}
    return found if found and all(found.values()) else None


def score(multiplier: float, folder: Path) -> Score:
    """A candidate's score from its run's folder."""
    found = state(folder)
    if found == "finished":
        error = files.number((runs.Run(folder).summary or {}).get("final_validation_error"))
        return Score(multiplier, math.inf if error is None else error, found, folder.name)
    broken = found in ("diverged", "out_of_memory")
    return Score(multiplier, math.inf if broken else None, found, folder.name)
