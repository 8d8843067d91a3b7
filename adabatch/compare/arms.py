"""An arm of a comparison."""

import json
import math
from dataclasses import dataclass

from adabatch.verdict.arms import TURNING

CONTROLS = ("mean_matched", "lr_twin", "batch_twin", "reversed")
WORDS = {"mean_matched": "mean-matched to", "lr_twin": "lr twin of", "batch_twin": "batch twin of",
         "reversed": "reversed"}  # fmt: skip


@dataclass(frozen=True)
class Arm:
    """lines: overrides of the schedule. config: of seed 0, schedule: made of it, path: its trajectory, None
    for a closed loop. control: what it is of the arm `of`. A control of the second stage has nothing else: it
    is replayed from the same seed's run of that arm. of: None too for an arm of the user's own whose schedule
    is a control. adaptive: whether it is a candidate, whose batch changes and which is no control."""

    name: str
    lines: tuple[str, ...] = ()
    config: dict | None = None
    schedule: object = None
    path: list | None = None
    control: str | None = None
    of: str | None = None
    adaptive: bool = False

    @property
    def source(self) -> str | None:
        """The arm whose runs it replays; None of an arm that is known beforehand."""
        return self.of if self.config is None else None

    @property
    def weight(self) -> int:
        """Which of two arms that do the same is kept: a candidate, then what is fixed."""
        return 2 if self.adaptive else int(self.control not in TURNING)

    @property
    def batches(self) -> tuple[int, int]:
        """The smallest and largest batch that it may have."""
        if self.path:
            return min(b for _, b, _ in self.path), max(b for _, b, _ in self.path)
        return self.schedule(0).divisor, getattr(self.schedule, "cap", 0)


def control_of(node: dict) -> str | None:
    """Which control a schedule is by its own keys."""
    if node.get("twin"):
        return f"{node['twin']}_twin"
    found = node.get("control", "none")
    return None if found == "none" else found


def key_of(line: str) -> str:
    return line.lstrip("+~").partition("=")[0]


def spelled(value) -> str:
    """A value as an override takes it."""
    return value if isinstance(value, str) else json.dumps(value)


def spread(arm: Arm) -> str:
    """Its batch sizes in words."""
    if arm.schedule is None:
        return "-"
    low, high = arm.batches
    return str(low) if low == high else f"{low} to {high}"


def updates(arm: Arm, arms: list[Arm]) -> tuple[int, int]:
    """Fewest and most updates of a run."""
    if arm.path:
        return len(arm.path), len(arm.path)
    if arm.schedule is not None:
        low, high = arm.batches
        return math.ceil(arm.schedule.budget / high), math.ceil(arm.schedule.budget / low)
    source = next(other for other in arms if other.name == arm.source)
    few, many = updates(source, arms)
    return (many, many) if arm.control == "lr_twin" else (few, many)
