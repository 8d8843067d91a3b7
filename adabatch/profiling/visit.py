"""One batch under one setting, timed by the run's own step in a process that does nothing else:
`python -m adabatch.profiling.visit` reads {"tree", "batch", "seconds", "parent"} and prints what it found."""

import json
import os
import sys

from adabatch.errors import UserError


def main() -> None:
    from adabatch import targets
    from adabatch.environment import before_torch
    from adabatch.signals import die_with_parent

    given = json.loads(sys.stdin.read())
    die_with_parent(given["parent"])
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    targets.reach_cwd()
    before_torch()
    try:
        found = visited(given["tree"], given["batch"], given["seconds"])
    except UserError as error:
        found = {"error": str(error)}
    print(f"\n{json.dumps(found, allow_nan=False)}")


def visited(tree: dict, batch: int | None, seconds: float) -> dict:
    """tree: the resolved configuration. batch: None = the schedule's first. Seconds of each step (on a GPU:
    mean of each block of them), and what of them went into samples. UserError: the memory does not
    suffice."""
    from adabatch import cutting
    from adabatch.build import build
    from adabatch.ledger import Ledger
    from adabatch.profiling import measure
    from adabatch.profiling.points import Way
    from adabatch.profiling.timing import Timer

    ledger = Ledger()
    parts = build(tree, ledger)
    batch = batch or parts.schedule(0).divisor
    if batch > parts.schedule.samples:
        raise UserError(
            f"a batch is at most the {parts.schedule.samples:,} training samples, got {batch:,} in --batches"
        )
    _, fits = measure.fitting(parts)
    way = Way(batch, min(fits, cutting.longest(batch, parts.step.unit, 1)), True)
    try:
        timed = Timer(parts, ledger, seconds).point(way, seconds)
        if timed is None:
            raise UserError(
                f"a batch of {batch:,} in passes of {way.micro_batch:,} runs out of memory: take a smaller "
                "--batches, or a smaller hardware.micro_batch"
            )
        return {
            "batch_size": batch,
            "micro_batch": way.micro_batch,
            "machine": measure.machine_of(parts, tree, fits),
            "steps": timed.steps,
            "data": timed.data,
            "first_step_seconds": timed.first,
            "peak_memory_bytes": timed.peak,
        }
    finally:
        for split in (parts.data.train, parts.data.test):
            split.close()


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:  # the parent says so
        os._exit(130)
