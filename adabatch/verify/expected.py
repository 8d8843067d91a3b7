"""What a rehearsal should do, from its configuration alone: python -m adabatch.verify.expected CONFIG SAMPLES
OUT

In a process of its own, which imports nothing that the configuration names but the schedule's parts: what a
module of the user's does to adabatch when it is imported shows in the run and not here.
"""

import json
import sys

from adabatch import files, plan

WALKED = 500_000  # steps of the user's whole schedule that are walked at most


def expected(config: dict, samples: int) -> dict:
    """{"budget": samples of the rehearsal, "steps": [start, batch, divisor, lr] of each of its steps (None: a
    closed loop), "whole": what is wrong with the user's whole schedule, or None}."""
    from adabatch.schedules.core import walk

    rehearsal = plan.schedule(config, samples)
    closed = rehearsal.needs or rehearsal.growth.closed
    steps = None
    if not closed:
        steps = [(start, s.batch_size, s.divisor, s.lr) for start, _, s in walk(rehearsal)]
    whole = None if closed else uncovered(plan.schedule(config | {"rehearsal": None}, samples), config)
    return {"budget": rehearsal.budget, "steps": steps, "whole": whole}


def uncovered(schedule, config: dict) -> str | None:
    """Whether the user's schedule ends anywhere but at epochs x samples x stretch, as training walks it."""
    if getattr(schedule, "compat", None):
        return None  # which drops the tail of each epoch, as was asked for
    position = 0
    for _ in range(WALKED):
        if schedule.done(position):
            break
        position = schedule.start(position) + schedule(schedule.start(position)).batch_size
    else:
        return None
    budget = round(config["epochs"] * schedule.samples * getattr(schedule, "stretch", 1))
    if position == budget:
        return None
    return f"the whole run would end at position {position:,}, its budget is {budget:,} samples"


def order(samples: int, seed: int, stop: int):
    """Which sample stands at each position below `stop`: int64 [stop], from (seed, position) alone."""
    from adabatch.data.stream import Order

    return Order(samples, seed).indices(0, stop)


def main() -> None:
    from adabatch import targets

    targets.reach_cwd()
    config, samples, out = sys.argv[1:]
    config = files.read_json(config)
    found = expected(config, int(samples))
    found["order"] = order(int(samples), config["seed"], found["budget"]).tolist()
    with open(out, "w") as file:
        json.dump(found, file)


if __name__ == "__main__":
    main()
