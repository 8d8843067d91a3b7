"""A comparison in words, before its first run."""

from adabatch.compare.arms import Arm, spread, updates
from adabatch.compare.asked import Asked


def rate(arm: Arm, multiplier: float = 1) -> str:
    """Its learning rate, first and last, at so many times the rule's (every rate is a multiple of
    base_lr)."""
    if not arm.path:
        return "-" if multiplier == 1 else f"x{multiplier:.4g}"
    first, last = arm.path[0][2] * multiplier, arm.path[-1][2] * multiplier
    peak = max(lr for _, _, lr in arm.path) * multiplier
    rises = f" to {peak:.4g}" if peak > first * 1.001 else ""
    return f"{first:.4g}{rises} to {last:.3g}"


def number(pair: tuple[int, int]) -> str:
    return f"{pair[0]:,}" if pair[0] == pair[1] else f"{pair[0]:,} to {pair[1]:,}"


def table(arms: list[Arm], notes: list[str], multipliers: dict[str, float], heading: str) -> list[str]:
    """A line for each arm. multipliers: of the rule's learning rate. heading: of the rates."""
    rows = [("arm", "batch", heading, "updates")]
    for arm in arms:
        if arm.source:
            rows.append((arm.name, f"{arm.control} of {arm.source}'s run", "-", number(updates(arm, arms))))
        else:
            rows.append(
                (arm.name, spread(arm), rate(arm, multipliers.get(arm.name, 1)), number(updates(arm, arms)))
            )
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    lines = ["  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    return [*lines, *(f"  {note}" for note in notes)]


def cost(arms: list[Arm], asked: Asked, samples: int, done: int, tuning: int) -> list[str]:
    """Runs, updates and samples in all. samples: of a run that replays another. tuning: runs of the search,
    at least."""
    pairs = [updates(arm, arms) for arm in arms]
    total = (asked.seeds * sum(p[0] for p in pairs), asked.seeds * sum(p[1] for p in pairs))
    runs = asked.seeds * len(arms)
    looks = "" if asked.table else f" (looks at {', '.join(map(str, asked.looks))})"
    every = asked.seeds * sum(arm.schedule.budget if arm.schedule else samples for arm in arms)
    text = f"{runs} runs: {len(arms)} arms x {asked.seeds} seeds{looks}, {number(total)} updates, "
    text += f"{every:,} samples"
    lines = [text + (f"; {done} finished already" if done else "")]
    if tuning:
        lines.append(
            f"before them {tuning} runs or more to tune learning rates, {tuning * samples:,} samples"
        )
    return lines
