"""What a run says of itself: before its first step, and in summary.json."""

import logging

from adabatch import audit, checkpoint, environment, layers
from adabatch.cutting import groups_in

log = logging.getLogger("adabatch")


def announce(run) -> None:
    """The run in a few lines, and what a user should know of it. run: a `Record`."""
    parts, hardware = run.parts, run.parts.hardware
    count = sum(p.numel() for p in run.model.parameters())
    name, samples = parts.data.evaluated()
    log.info("network   %s, %s parameters", type(run.model).__name__, f"{count:,}")
    log.info(
        "data      %s training samples, %s %s, %d classes",
        f"{run.samples:,}",
        f"{len(samples):,}",
        name,
        parts.data.classes,
    )
    first = parts.schedule(0)
    log.info(
        "schedule  batch %d, lr %g at the start; %g epochs, %s samples; %s",
        first.divisor,
        first.lr,
        parts.schedule.budget / run.samples,
        f"{parts.schedule.budget:,}",
        parts.schedule.scaling.words(),
    )
    if parts.schedule.needs:
        log.info("measured  %s", ", ".join(sorted(parts.schedule.needs)))
    world = hardware.ranks.world
    log.info("hardware  %s%s, %s, %d thread%s%s, micro-batch %d", f"{world} x " if world > 1 else "",
             hardware.device, hardware.precision, hardware.threads, "" if hardware.threads == 1 else "s",
             " each" if world > 1 else "", parts.step.micro_batch)  # fmt: skip
    if (hardware.device.type, hardware.precision) == ("cpu", "bf16"):
        if environment.slow_in_bf16(*map(environment.processor, ("vendor_id", "flags"))):
            log.warning("hardware.precision=bf16 on an Intel processor without AMX; on one fp32 was faster "
                        "(docs/performance.md): compare the two by adabatch-profile")  # fmt: skip
    for text in parts.schedule.warnings():
        log.warning("%s", text)
    if not parts.schedule.done(run.position):
        warn_of_idle_ranks(run, parts.schedule(parts.schedule.start(run.position)).divisor)
    audit.begin(run)
    broken = layers.split_dependent(run.model)
    if broken:
        more = f" and {len(broken) - 3} more" if len(broken) > 3 else ""
        log.warning("the result depends on how a batch is cut: %s%s (model.norm=ghost does not)",
                    ", ".join(broken[:3]), more)  # fmt: skip


def warn_of_idle_ranks(run, batch: int) -> None:
    """Said of each batch size that leaves ranks without work: a ghost group is never cut."""
    hardware, unit = run.parts.hardware, run.parts.step.unit
    world, groups = hardware.ranks.world, groups_in(batch, unit)
    if hardware.ordered:
        groups = hardware.parts(batch, unit, run.parts.step.micro_batch).count
    if groups < world:
        what = "micro-batch" if hardware.ordered else "ghost group" if unit > 1 else "sample"
        log.warning(
            "a batch of %d is %d %s%s%s, which leaves %d of %d processes without work (a larger batch, a "
            "smaller "
            "model.ghost%s or fewer processes)",
            batch,
            groups,
            what,
            "" if groups == 1 else "es" if hardware.ordered else "s",
            f" of {unit}" if what == "ghost group" else "",
            world - groups,
            world,
            ", hardware.micro_batch" if hardware.ordered else "",
        )


def summary(run, errors: dict) -> dict:
    """The fields of summary.json. errors: the final error of each evaluated split."""
    run.trackers.sync()
    # The sums belong together: phases end here, and nothing slow lies between the readings of the clock.
    weights, node = checkpoint.sha256(run.model), run.config
    seconds, spent, wall = run.book(), run.ledger.read(), run.ledger.wall()
    (peak,) = run.parts.hardware.ranks.spread([run.parts.hardware.peak_memory()])[1]
    return dict(
        **{group: node["options"][group] for group in ("model", "dataset", "schedule")},
        seed=node["seed"],
        epochs=node["epochs"],
        steps=run.steps,
        samples=run.trained,
        epochs_trained=run.position / run.samples,
        parameters=sum(p.numel() for p in run.model.parameters()),
        final_test_error=errors.get("test"),
        best_test_error=None if "validation" in errors or errors["test"] is None else run.best["test"],
        final_validation_error=errors.get("validation"),
        best_validation_error=None if errors.get("validation") is None else run.best["validation"],
        final_train_loss=run.last_epoch[0] / run.last_epoch[1],
        train_seconds=seconds,
        device_seconds=run.device_seconds,
        wall_seconds=wall,
        images_per_second=run.trained / seconds,
        weights_sha256=weights,
        peak_memory_bytes=peak,  # of the rank that took most
        phases=run.phases,
        ledger=spent,
        **({"forecast": found} if (found := audit.finished(run)) else {}),
    )
