"""A table of arms (compare.table=true): what an experiment shows side by side, and no comparison.

Each arm is the user's command with what the arm says. Arms may differ in anything but the data and the seed,
and in how many samples they train; so there is no verdict on them, and the report gives none.
"""

from adabatch import plan, runs
from adabatch.compare import matching
from adabatch.compare.arms import Arm, control_of, key_of
from adabatch.compare.asked import Asked
from adabatch.compare.making import refuse_name
from adabatch.errors import UserError

SAME = ("seed", "compare", "experiment", "hydra", "dataset", "trackers", "restart")  # what no arm may set


def arms(asked: Asked, arguments: list[str], samples: int | None, compose) -> tuple[list[Arm], list[str]]:
    """The arms in the order given, and what is to be said of them. arguments: the command's overrides, those
    of the schedule among them hold for every arm. samples: of an epoch. compose: overrides -> checked
    configuration. UserError: arms that cannot stand in a table."""
    if not samples:
        raise UserError(
            "a table of arms must know the training samples beforehand: set dataset.samples to their number"
        )
    given = {key_of(line): line for line in arguments}
    common = [line for key, line in given.items() if key.split(".")[0] == "schedule"]
    found: list[Arm] = []
    for entry in asked.arms:
        refuse_lines(entry, given)
        lines = (*common, *entry["overrides"])
        arm = made(entry["name"], lines, samples, compose)
        for other in found:
            if arm.name == other.name:
                raise UserError(f"two arms are called {arm.name}: name one of them otherwise")
            if runs.identity(arm.config) == runs.identity(other.config):
                raise UserError(
                    f"{arm.name} and {other.name} are the same run, so they are no two arms: "
                    f"{' '.join(entry['overrides'])}"
                )
        found.append(arm)
    return found, budgets(found)


def refuse_lines(entry: dict, given: dict) -> None:
    """UserError for an override that no arm of a table may have, or that the command has too."""
    refuse_name(entry["name"])
    for line in entry["overrides"]:
        key = key_of(line)
        if key.split(".")[0] in SAME:
            raise UserError(
                f"arm {entry['name']}: {line}: all arms of a table have the same {key.split('.')[0]}: give "
                "it with the command"
            )
        if key in given:
            raise UserError(
                f"{given[key]}: arm {entry['name']} says {line} itself, so this would change nothing: leave "
                "it out, or write other compare.arms"
            )


def made(name: str, lines: tuple, samples: int, compose) -> Arm:
    try:
        config = compose([*lines, f"compare.arm='{name}'", "compare.stage=verdict"])
        schedule = plan.schedule(config, samples)
    except UserError as error:
        raise UserError(f"arm {name} (compare.arms): {error}") from error
    path = matching.trajectory(schedule) if matching.open_loop(schedule) else None
    arm = Arm(name, lines, config, schedule, path, control_of(config["schedule"]))
    low, high = arm.batches
    return Arm(**vars(arm) | {"adaptive": arm.control is None and (path is None or low != high)})


def budgets(found: list[Arm]) -> list[str]:
    """Which arms train more or fewer samples than the first."""
    first = found[0]
    return [
        f"{arm.name} trains {arm.schedule.budget / first.schedule.budget:.4g} times as many samples as "
        f"{first.name}"
        for arm in found[1:]
        if arm.schedule.budget != first.schedule.budget
    ]
