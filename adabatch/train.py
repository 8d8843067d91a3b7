"""Train one network under one schedule. Position (samples seen) is the only clock.

build -> resume -> until the budget: setting = schedule(position); one step; log; evaluate; save -> summary.
Every rank runs this alike, on its share of each batch; only rank 0 writes.
"""

import logging
from pathlib import Path

from adabatch import __version__, checkpoint, memory, runs, signals
from adabatch.build import build
from adabatch.errors import HandOver, Interrupted, Lost
from adabatch.figures import announce, summary
from adabatch.ledger import Ledger
from adabatch.record import Record, made_by
from adabatch.resume import find, restore
from adabatch.schedules.setting import Observation

log = logging.getLogger("adabatch")


def crossed(before: int, after: int, every: float) -> bool:
    """Whether a multiple of `every` samples lies in (before, after]: true at the first step boundary at or
    after a mark."""
    return after // every > before // every


def train(config: dict, folder: Path, stop=lambda: None, meeting=None, leg=None) -> dict:
    """Train the run of `config` in `folder` and return its summary. stop(): a reason to stop, or None; read
    at every step. meeting: of several ranks (`meeting.py`), each of which calls this. leg(batch size): the
    number of processes to go on with, None for these. Raises UserError, Diverged, Interrupted and HandOver
    (state saved), MemoryError or torch.OutOfMemoryError, OSError."""
    ledger = Ledger(passes=config.get("timing") == "phases")
    parts = build(config, ledger, meeting)
    run = Record(config, folder, parts, ledger)
    code = 1
    try:
        state = find(config, run)
        if state:
            restore(run, state, made_by(parts.hardware))
            log.info("resumed at position %s (epoch %.2f)", f"{run.position:,}", run.position / run.samples)
        else:
            run.trackers.resume(0, 0)
            parts.step.micro_batch = memory.choose(
                parts.step, parts.schedule, config, parts.data.classes, folder
            )
        announce(run)
        run.save()  # after a resume too: a second kill must not forget what the first one cost
        if not state and run.writes:
            checkpoint.load(run.folder / "checkpoint.pt")  # what cannot be read back should be known now
        loop(run, stop, leg)
        figures = finish(run)
        code = 0
    except Interrupted:
        code = 130
        raise
    except Lost:
        run.trackers.forget()
        raise
    except BaseException:
        if meeting:
            meeting.noticed()  # what comes now takes its time: trackers may have to upload
        raise
    finally:
        parts.data.train.close()
        parts.data.test.close()
        run.close(code)
    return figures


def loop(run: Record, stop, leg=None) -> None:
    """From the run's position to its budget."""
    parts, config, ledger = run.parts, run.config, run.ledger
    schedule, step = parts.schedule, parts.step
    eval_every = config["evaluate"]["every"] * run.samples
    log_every = config["log"]["every_samples"] or max(1, run.samples // 10)
    reason = None

    def wishes() -> list:
        nonlocal reason
        reason = stop()
        # Signals and clocks of one rank: all act on them after this step.
        return [*signals.votes(reason), *run.due()]

    while not schedule.done(run.position):
        if crossed(run.evaluated, schedule.start(run.position), eval_every) or first_look(run):
            look(run)
            if schedule.done(run.position):
                break  # a rule made the batch larger than what is left of the last epoch
        before = run.position
        start = schedule.start(before)
        setting = schedule(start)
        if leg and (processes := leg(setting.divisor)):
            run.save()
            raise HandOver(processes)
        with ledger("resize"):
            run.note_change(start, setting)
        needs = schedule.measures(start, setting)
        with ledger("measuring"):
            looked = parts.shadows.measure(start, setting, needs)
        with ledger(run.cause(setting)):
            result = step(start, setting, needs, wishes)
            if parts.average:
                parts.average.update(setting.batch_size)
            # Reading the loss waits for the device: only where a rule asked for it.
            asked = "loss" in needs or parts.shadows.needs(start, setting)
            loss = float(result.loss) / setting.batch_size if asked else None
        schedule.observe(Observation(start, setting, loss if "loss" in needs else None, result.noise))
        shadowed = parts.shadows.observe(start, setting, loss, result.noise, looked)
        run.note_step(start, start - before, setting, result, schedule.figures() | shadowed)
        *told, save, fetch = result.wishes
        if fetch or crossed(before, run.position, log_every):
            run.fetch()
        if any(told):
            run.save()
            raise Interrupted(signals.agreed(told, reason))
        if save:
            run.save(wait=config["checkpoint"]["every_seconds"] == 0)  # 0: no step is ever lost


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
    figures = summary(run, errors)
    run.trackers.log(
        run.stamp("end", run.position)
        | {k: v for k, v in figures.items() if k not in ("phases", "ledger", "forecast")}
    )
    run.trackers.sync()
    figures = {"format": runs.FORMAT, "version": __version__} | figures
    if run.writes:
        runs.write_json(run.folder / "summary.json", figures)
    return figures
