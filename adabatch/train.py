"""Train one network under one schedule. Position (samples seen) is the only clock.

build -> resume -> until the budget: setting = schedule(position); one step; log; evaluate; save -> summary.
"""

import logging
from pathlib import Path

from adabatch import __version__, checkpoint, layers, runs
from adabatch.build import Parts, build, choose_micro_batch
from adabatch.errors import Interrupted, Lost
from adabatch.ledger import Ledger
from adabatch.record import Record, made_by
from adabatch.resume import earlier, restore
from adabatch.schedules.setting import Observation, Setting

log = logging.getLogger("adabatch")


def crossed(before: int, after: int, every: float) -> bool:
    """Whether a multiple of `every` samples lies in (before, after]: true at the first step boundary at or
    after a mark."""
    return after // every > before // every


def announce(run: Record) -> None:
    parts = run.parts
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
    log.info("schedule  batch %d, lr %g at the start; %g epochs, %s samples; %s", first.divisor, first.lr,
             parts.schedule.budget / run.samples, f"{parts.schedule.budget:,}",
             parts.schedule.scaling.words())  # fmt: skip
    if parts.schedule.needs:
        log.info("measured  %s", ", ".join(sorted(parts.schedule.needs)))
    log.info("hardware  %s, %s, %d thread%s, micro-batch %d", parts.hardware.device, parts.hardware.precision,
             parts.hardware.threads, "" if parts.hardware.threads == 1 else "s", run.micro_batch)  # fmt: skip
    for text in parts.schedule.warnings():
        log.warning("%s", text)
    broken = layers.split_dependent(run.model)
    if broken:
        more = f" and {len(broken) - 3} more" if len(broken) > 3 else ""
        log.warning(
            "the result depends on how a batch is cut: %s%s (model.norm=ghost does not)",
            ", ".join(broken[:3]),
            more,
        )


def train(config: dict, folder: Path, stop=lambda: None) -> dict:
    """Train the run of `config` in `folder` and return its summary. stop(): a reason to stop, or None; read
    at every step. Raises UserError, Diverged, Interrupted (state saved), MemoryError or
    torch.OutOfMemoryError, OSError."""
    ledger = Ledger()
    parts = build(config, ledger)
    run = Record(config, folder, parts, ledger)
    code = 1
    try:
        state = (
            checkpoint.load(run.folder / "checkpoint.pt")
            if (run.folder / "checkpoint.pt").exists()
            else None
            if config["restart"]
            else earlier(config, run, made_by(parts.hardware))
        )
        if state:
            restore(run, state, made_by(parts.hardware))
            log.info("resumed at position %s (epoch %.2f)", f"{run.position:,}", run.position / run.samples)
        else:
            run.trackers.resume(0, 0)
            run.micro_batch = choose_micro_batch(parts)
        parts.step.micro_batch = run.micro_batch
        announce(run)
        run.save()  # after a resume too: a second kill must not forget what the first one cost
        if not state:
            checkpoint.load(run.folder / "checkpoint.pt")  # what cannot be read back should be known now
        loop(run, stop)
        summary = finish(run)
        code = 0
    except Interrupted:
        code = 130
        raise
    except Lost:
        run.trackers.forget()
        raise
    finally:
        parts.data.train.close()
        parts.data.test.close()
        run.trackers.close(code)
    return summary


def loop(run: Record, stop) -> None:
    """From the run's position to its budget."""
    parts, config, ledger = run.parts, run.config, run.ledger
    schedule, step = parts.schedule, parts.step
    eval_every = config["evaluate"]["every"] * run.samples
    log_every = config["log"]["every_samples"] or max(1, run.samples // 10)
    seconds = config["checkpoint"]["every_seconds"]
    shapes = set()
    while not schedule.done(run.position):
        if crossed(run.evaluated, schedule.start(run.position), eval_every) or first_look(run):
            look(run)
            if schedule.done(run.position):
                break  # a rule made the batch larger than what is left of the last epoch
        before = run.position
        start = schedule.start(before)
        setting = schedule(start)
        with ledger("resize"):
            run.note_change(start, setting)
        needs = schedule.measures(start, setting)
        with ledger("measuring"):
            looked = parts.shadows.measure(start, setting, needs)
        with ledger(compute_cause(parts, setting, bool(needs), shapes)):
            result = step(start, setting, needs)
            if parts.average:
                parts.average.update(setting.batch_size)
            # Reading the loss waits for the device: only where a rule asked for it.
            asked = "loss" in needs or parts.shadows.needs(start, setting)
            loss = float(result.loss) / setting.batch_size if asked else None
        schedule.observe(Observation(start, setting, loss if "loss" in needs else None, result.noise))
        shadowed = parts.shadows.observe(start, setting, loss, result.noise, looked)
        run.note_step(start, start - before, setting, result, schedule.figures() | shadowed)
        if crossed(before, run.position, log_every) or ledger.clock() - run.fetched_at > 2:
            run.fetch()
        if reason := stop():
            run.save()
            raise Interrupted(reason)
        if ledger.clock() - run.saved_at >= seconds:
            run.save()


def look(run: Record) -> None:
    """Evaluate; what validation says, and never test, the schedules hear."""
    parts = run.parts
    found = run.evaluate(*parts.data.evaluated())
    if parts.data.validation is not None:
        parts.schedule.evaluated(run.position, found["loss"], found["error"])
        parts.shadows.evaluated(run.position, found["loss"], found["error"])


def first_look(run: Record) -> bool:
    """Whether a rule compares with the validation loss before training: then that is evaluated too."""
    schedules = (run.parts.schedule, *run.parts.shadows.schedules.values())
    return run.position == 0 and any("validation" in s.needs for s in schedules)


def compute_cause(parts: Parts, setting: Setting, measured: bool, shapes: set) -> str:
    """What a step's time is booked under: a shape seen for the first time compiles, if anything is
    compiled."""
    shape = (min(parts.step.micro_batch, setting.batch_size), measured)
    if not parts.hardware.compile or shape in shapes:
        return "compute"
    shapes.add(shape)
    return "first_compile" if len(shapes) == 1 else "recompile"


def finish(run: Record) -> dict:
    """Final checkpoint, evaluation, weights and summary of a run that has reached its budget."""
    parts, keep = run.parts, run.config["checkpoint"]["keep"] != "none"
    run.save()  # before the evaluation: more epochs may go on from here as if they had been asked for at once
    split, samples = parts.data.evaluated()
    last = run.evaluate(split, samples)
    errors = {split: last["error"]}
    if split == "validation":
        errors["test"] = run.evaluate("test", parts.data.test)["error"]
    if keep:
        run.save_weights("weights.pt")
    figures = summary_figures(run, errors)
    run.trackers.log(
        run.stamp("end", run.position) | {k: v for k, v in figures.items() if k not in ("phases", "ledger")}
    )
    run.trackers.sync()
    summary = {"format": runs.FORMAT, "version": __version__} | figures
    runs.write_json(run.folder / "summary.json", summary)
    return summary


def summary_figures(run: Record, errors: dict) -> dict:
    """The fields of summary.json. errors: the final error of each evaluated split."""
    run.trackers.sync()
    seconds, node = run.ledger.training(), run.config
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
        wall_seconds=run.ledger.wall(),
        images_per_second=run.trained / seconds,
        weights_sha256=checkpoint.sha256(run.model),
        peak_memory_bytes=run.parts.hardware.peak_memory(),
        phases=run.phases,
        ledger=run.ledger.read(),
    )
