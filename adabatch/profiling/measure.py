"""A whole profile: the points, what a sample costs, how it holds under load."""

import time

from adabatch import evaluation, machine, memory, profiles
from adabatch.build import build
from adabatch.errors import UserError
from adabatch.ledger import Ledger
from adabatch.measure import GROUPED, SINGLE
from adabatch.profiling import points
from adabatch.profiling.cost import cost
from adabatch.profiling.timing import Timer

COUNTED = 8  # samples, or one ghost group, over which operations and bytes are counted
EVALUATED = 20_000  # a larger test set is not evaluated to see how long that takes


def measure(tree: dict, wanted: dict, meeting, tell, began: float) -> dict:
    """As the file has it (`profiles.py`). tree: the resolved configuration; wanted: of the command line;
    began: when the set-up did."""
    ledger = Ledger()
    parts = build(tree, ledger, meeting)
    setup = time.perf_counter() - began
    step, hardware = parts.step, parts.hardware
    samples, fits = fitting(parts)
    ways = chosen(parts, wanted, fits)
    machine_facts = machine_of(parts, tree, fits)
    tell(f"profile   {type(step.model).__name__} on {machine_facts['device']}, {len(ways)} points")
    timer = Timer(parts, ledger, wanted["seconds"], tell)
    rows, reference = timer.all(ways)
    if not reference:
        raise UserError(
            f"no point could be timed: a batch of {ways[0].batch_size:,} runs out of memory. Name smaller "
            "ones (--batches), or a smaller hardware.micro_batch"
        )
    ran = [row for row in rows if not row.get("out_of_memory")]
    fits = min(fits, max(row["micro_batch"] for row in ran)) if len(ran) < len(rows) else fits
    configuration = profiles.configured(tree)
    found = {
        "key": profiles.key_of(configuration, machine_facts),
        "configuration": configuration,
        "machine": machine_facts,
        "measured": machine.stamp()["measured"],
        "unit": step.unit,
        "fits": fits,
        "training_samples": parts.schedule.samples,
        "points": rows,
        "reference": reference,
        **gradients(timer, parts, ways, rows, tell),
        **held(timer, ways, wanted["sustained"], tell),
        **cost(step, samples),
        "evaluation_samples_per_second": evaluating(parts, step),
        "setup_seconds": setup,
    }
    for split in (parts.data.train, parts.data.test):
        split.close()
    hardware.ranks.close()
    return found


def fitting(parts) -> tuple[int, int]:
    """(samples over which operations are counted, the largest pass that a run takes)."""
    step, asked = parts.step, parts.hardware.micro_batch
    samples = max(1, min(max(step.unit, COUNTED), parts.schedule.samples))
    fits = memory.affordable(step, samples) if asked == "auto" else memory.whole_groups(asked, step.unit)
    return samples, fits


def machine_of(parts, tree: dict, fits: int) -> dict:
    """What a time depends on beside the configuration."""
    facts = memory.depends_on(parts.step, tree, parts.data.classes, fits)
    return {
        "device": facts["device"],
        "threads": parts.hardware.threads,
        "processes": parts.hardware.ranks.world,
        "adabatch": facts["adabatch"],
        "torch": facts["torch"],
    }


def chosen(parts, wanted: dict, fits: int) -> list[points.Way]:
    """The ways of taking a step that are timed. UserError: a batch that no run can have."""
    schedule, step = parts.schedule, parts.step
    batches = wanted["batches"]
    if not batches:
        first, open_loop = schedule(0).divisor, not (schedule.growth.closed or schedule.decay.closed)
        known = open_loop or schedule.cap < schedule.samples // 2
        largest = wanted["largest"] or (memory.largest_batch(schedule) if known else first)
        cap = min(schedule.samples, wanted["largest"] or schedule.samples)
        batches = points.sizes(first, largest, cap)
    if max(batches) > schedule.samples:
        raise UserError(
            f"a batch is at most the {schedule.samples:,} training samples, got {max(batches):,} in --batches"
        )
    return points.ways(batches, fits, step.unit, parts.hardware.ranks.world, wanted["counts"])


def gradients(timer: Timer, parts, ways, rows: list[dict], tell) -> dict:
    """For a schedule that measures gradients: what that costs at the smallest, the middle and the largest
    batch. Empty for any other."""
    needs = parts.schedule.needs & (GROUPED | SINGLE)
    if not needs or parts.step.meter is None:
        return {}
    plain = [way for way in ways if way.plain]
    chosen = {w.batch_size: w for w in (plain[0], plain[len(plain) // 2], plain[-1])}
    tell(f"measuring {', '.join(sorted(needs))}, {len(chosen)} batches")
    points = timer.measuring(list(chosen.values()), rows, needs)
    return {"measuring": {"needs": sorted(needs), "group": parts.step.meter.size, "points": points}}


def held(timer: Timer, ways, seconds: float, tell) -> dict:
    """The sustained run, of the reference point."""
    if not seconds:
        return {"sustained_seconds": 0.0, "sustained_ratio": 1.0}
    tell(f"sustained {seconds:g} s without a pause")
    plain = [way for way in ways if way.plain]
    ratio = timer.sustained(plain[len(plain) // 2], seconds)
    return {"sustained_seconds": seconds, "sustained_ratio": ratio}


def evaluating(parts, step) -> float | None:
    """Samples per second of an evaluation; None where the split is large."""
    _, samples = parts.data.evaluated()
    if len(samples) > EVALUATED:
        return None
    began = time.perf_counter()
    chunk = evaluation.chunk_of(step.micro_batch)
    evaluation.evaluate(step.model, parts.hardware, samples, parts.prepare, parts.loss, chunk, parts.views)
    return len(samples) / (time.perf_counter() - began)
