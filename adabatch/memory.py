"""How many samples one forward pass holds: chosen before a run, halved where the memory runs out during it.

hardware.prefer=largest is a rule: the largest power of two of ghost groups whose saved activations (measured
by one forward pass) fit a constant of the device, so that the same command cuts its batches alike whatever
else runs on the machine. On a GPU a real pass must confirm it. prefer=fastest times passes. What was timed or
confirmed is a measurement: it is made once per machine and recorded (`machine.py`), because the last bits of
a run depend on it.
"""

import contextlib
import functools
import gc
import hashlib
import json
import logging
import math
import statistics
import time
from pathlib import Path

from adabatch import __version__, cutting, environment, machine
from adabatch.errors import OutOfMemory, is_out_of_memory
from adabatch.files import write_json
from adabatch.labels import TOLD

RISE = 0.03  # a throughput within this share of another counts as equal
PATIENCE = 2  # sizes in a row that bring no rise, after which no larger one is tried
TIMED = 3  # passes per size, after one that is not counted
LOOKS = 1024  # positions, beside milestones, at which a schedule is asked for its batch

log = logging.getLogger("adabatch")


def choose(step, schedule, config: dict, classes: int, folder=None, attempt=None) -> int:
    """`hardware.micro_batch` in whole ghost groups; where it is auto, the largest or the fastest that fits,
    the same on every rank.

    config: the run's, and classes: of its data, for what a measurement depends on. folder: the run's, where
    rank 0 leaves what was measured; None where no run is to be trained, and then nothing is measured.
    attempt(samples, timed): seconds of so many passes after one that is not counted (None: `passes`).
    OutOfMemory: a single group does not fit.
    """
    hardware, unit = step.hardware, step.unit
    if hardware.micro_batch != "auto":
        return whole_groups(hardware.micro_batch, unit)
    largest = fitting(step, schedule)
    timed = hardware.prefer == "fastest"
    if folder is None or not (timed or attempt or hardware.device.type == "cuda"):
        return largest
    facts = depends_on(step, config, classes, largest)
    found = shared(hardware.ranks, lambda: machine.recall(facts))
    if not found:
        trial = attempt or functools.partial(passes, step)
        found = {**machine.stamp(), **measure(hardware, unit, largest, timed, trial), "depends_on": facts}
        if hardware.ranks.rank == 0:
            machine.record(facts, found)
    if hardware.ranks.rank == 0:
        write_json(Path(folder) / "micro_batch.json", found)
    return found["micro_batch"]


def shared(ranks, look) -> dict:
    """What rank 0 finds by look(), on every rank; empty where it finds nothing."""
    data = json.dumps(look() or {}).encode() if ranks.rank == 0 else None
    return json.loads(ranks.share(data))


def depends_on(step, config: dict, classes: int, largest: int) -> dict:
    """Everything that a measured choice depends on, as plain values."""
    import torch

    hardware = step.hardware
    x, _ = step.stream.batch(0, 1)
    gpu = hardware.device.type == "cuda"
    found = dict(
        model={k: v for k, v in config["model"].items() if k not in TOLD},
        loss=config["loss"],
        layout=hashlib.sha256(json.dumps(step.flat.layout).encode()).hexdigest()[:16],
        shape=list(x.shape[1:]),
        classes=classes,
        precision=hardware.precision,
        memory_format=str(hardware.memory_format).removeprefix("torch."),
        compile=hardware.compile,
        deterministic=hardware.deterministic,
        ghost_norm=hardware.ghost_norm,
        device=torch.cuda.get_device_name(hardware.device) if gpu else environment.cpu(),
        threads=hardware.threads,
        processes=hardware.ranks.world,
        ghost=step.unit,
        prefer=hardware.prefer,
        at_most=largest,
        torch=str(torch.__version__),
        adabatch=__version__,
    )
    if hardware.benchmark is hardware.deterministic:  # otherwise it follows from that
        found["benchmark"] = hardware.benchmark
    return json.loads(json.dumps(found, default=str))


def fitting(step, schedule) -> int:
    """The rule without any trial: what the device's constant allows, and no more than the run can use."""
    return min(affordable(step, schedule.samples), limit(step, schedule))


def affordable(step, samples: int) -> int:
    """Whole ghost groups whose activations fit the device's constant on every rank. samples: of an epoch."""
    hardware, unit = step.hardware, step.unit
    samples = min(max(unit, 4), samples)
    try:
        per_sample = activation_bytes(step, samples) / samples
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        halved(unit, unit)  # raises, with a remedy
    fits = hardware.activation_budget() / max(per_sample, 1) / unit
    (groups,), _ = hardware.ranks.spread([2 ** max(0, math.floor(math.log2(max(fits, 1))))])
    return unit * groups


def limit(step, schedule) -> int:
    """The samples beyond which a forward pass cannot grow in this run: `cutting.longest`."""
    from adabatch.measure import GROUPED

    hardware = step.hardware
    first = hardware.compile or hardware.ordered
    batch = schedule(0).divisor if first else largest_batch(schedule)
    group = step.meter.size if hardware.compile and schedule.needs & GROUPED else None
    return cutting.longest(batch, step.unit, hardware.ranks.world, hardware.ordered, hardware.compile, group)


def largest_batch(schedule) -> int:
    """Of all batches of a run; the cap where they are not known before."""
    factors = (schedule.growth, schedule.decay)  # a twin's batch follows the decay
    if any(factor.closed for factor in factors):
        return schedule.cap
    positions = {schedule.budget * i // LOOKS for i in range(LOOKS)} | {schedule.budget - 1}
    positions |= {round(m * schedule.stretch) for factor in factors for m in factor.milestones()}
    return max(schedule(position).divisor for position in positions)


def whole_groups(micro_batch: int, unit: int) -> int:
    """A forward pass holds whole ghost groups of `unit` samples, one at the least: what that makes of a
    wish."""
    rounded = cutting.whole_groups(micro_batch, unit)
    if rounded != micro_batch:
        log.info("hardware.micro_batch=%d becomes %d, whole ghost groups of %d", micro_batch, rounded, unit)
    return rounded


def halved(micro_batch: int, unit: int, longest: int | None = None) -> int:
    """The micro-batch to go on with after the memory ran out: half the ghost groups of `unit` samples.
    longest: samples of the longest pass that was tried, on any rank (None: micro_batch); a micro-batch above
    it would only repeat that pass. OutOfMemory: it was a single group."""
    groups = cutting.whole_groups(min(micro_batch, longest or micro_batch), unit) // unit
    if groups > 1:
        return groups // 2 * unit
    what = f"one ghost group of {unit} samples" if unit > 1 else "a single sample"
    smaller = "a smaller model.ghost, " if unit > 1 else ""
    raise OutOfMemory(
        f"out of memory: a forward pass holds whole ghost groups, and the smallest, {what}, does not fit; "
        f"got hardware.micro_batch={micro_batch}. Take {smaller}a smaller network or smaller inputs, "
        "hardware.precision=bf16, or another device"
    )


# -- measuring -------------------------------------------------------------------------------------


def activation_bytes(step, samples: int) -> int:
    """Bytes that autograd keeps of a forward pass over the run's first `samples` samples; nothing is moved by
    it. Frozen layers count as if they were trained: they keep nothing, but their outputs exist too."""
    import torch

    from adabatch.finetune import thawed
    from adabatch.measure import untouched

    x, _ = step.stream.batch(0, samples)
    step.place(0, slice(0, samples), samples, record=False)
    seen = {}
    weights = {p.untyped_storage().data_ptr() for p in step.model.parameters()}

    def note(t):
        storage = t.untyped_storage()
        if storage.data_ptr() not in weights:
            seen[storage.data_ptr()] = storage.nbytes()
        return t

    saved = torch.autograd.graph.saved_tensors_hooks(note, lambda t: t)
    with untouched(step.model), thawed(step.model), saved, step.hardware.autocast():
        outputs = step.model(x)
    del outputs
    return sum(seen.values())


def passes(step, samples: int, timed: int) -> list[float]:
    """Seconds of `timed` forward and backward passes over the run's first `samples` samples, after one that
    is not counted. Weights, gradients, statistics and torch's generator stay as they were.

    Not compiled, as each size would cost a compilation. torch.OutOfMemoryError also where the allocator got
    through only by giving back what it kept: every step would wait for that.
    """
    import torch

    from adabatch.measure import untouched

    hardware, seconds, troubles = step.hardware, [], []
    x, y = step.stream.batch(0, samples)
    with untouched(step.model), zeroed(step.flat.grads):
        for _ in range(1 + timed):
            step.place(0, slice(0, samples), samples, record=False)
            hardware.synchronize()
            began = time.perf_counter()
            with hardware.autocast():
                outputs = step.model(x)
            (step.loss(outputs.to(hardware.dtype), y).sum() / samples).backward()
            del outputs
            hardware.synchronize()
            seconds.append(time.perf_counter() - began)
            troubles.append(trouble(hardware.device))
    if troubles[-1] > troubles[0]:  # the first pass may try algorithms that need too much
        raise torch.OutOfMemoryError(f"out of memory but for the allocator's cache, {samples} samples")
    return seconds[1:]


@contextlib.contextmanager
def zeroed(gradients):
    try:
        yield
    finally:
        gradients.zero_()


def trouble(device) -> int:
    """How often the allocator of a GPU failed at first; 0 on a CPU."""
    if device.type != "cuda":
        return 0
    import torch

    counts = torch.cuda.memory_stats(device)
    return counts.get("num_alloc_retries", 0) + counts.get("num_ooms", 0)


def measure(hardware, unit: int, largest: int, timed: bool, attempt) -> dict:
    """{"micro_batch", "curve"}: by trials that all ranks make together."""

    def confirmed(samples: int) -> bool:
        return together(hardware, lambda: attempt(samples, 1)) is not None

    if hardware.device.type == "cuda" or not timed:
        while not confirmed(largest):
            smaller = halved(largest, unit)
            log.info("micro-batch %d does not fit, %d is tried", largest, smaller)
            largest = smaller
    if not timed:
        return {"micro_batch": largest, "curve": []}
    log.info("micro-batch  forward and backward passes of up to %d samples are timed, once", largest)
    return fastest(unit, largest, lambda samples: together(hardware, lambda: attempt(samples, TIMED)))


def fastest(unit: int, largest: int, seconds) -> dict:
    """The smallest size within 3 % of the best throughput, and the measured curve. Sizes: unit * 2^k below
    `largest`, and that, until throughput stops rising. seconds(samples): of a pass; None: out of memory."""
    sizes = [unit << k for k in range(math.ceil(math.log2(max(1, largest / unit))))] + [largest]
    curve, best, flat = [], 0.0, 0
    for samples in sizes:
        took = seconds(samples)
        if took is None:
            break
        rate = samples / max(took, 1e-9)
        curve.append({"micro_batch": samples, "samples_per_second": rate})
        flat = 0 if rate > best * (1 + RISE) else flat + 1
        best = max(best, rate)
        if flat == PATIENCE:
            break
    if not curve:
        halved(unit, unit)  # raises: not one group fits
    near = [point["micro_batch"] for point in curve if point["samples_per_second"] >= (1 - RISE) * best]
    return {"micro_batch": min(near), "curve": curve}


def together(hardware, run) -> float | None:
    """The median of the seconds that run() returns, of the slowest rank; None where any rank ran out of
    memory. One collective on every rank, whatever happened there."""
    hardware.empty_cache()
    try:
        took = statistics.median(run())
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        took = None
    # Only now has the error let go of the frames that hold the activations.
    gc.collect()
    hardware.empty_cache()
    _, (slowest, full) = hardware.ranks.spread([round((took or 0.0) * 1e9), int(took is None)])
    return None if full else slowest / 1e9
