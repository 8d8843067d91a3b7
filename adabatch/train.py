"""Train one network under one schedule. Position (samples seen) is the only clock.

build -> resume -> until the budget: setting = schedule(position); one step; log; evaluate; save -> summary.
"""

import hashlib
import logging
import math
from pathlib import Path

import torch

from adabatch import __version__, checkpoint, layers, runs, trackers
from adabatch.build import Parts, build
from adabatch.console import Progress
from adabatch.errors import Diverged, Interrupted, UserError
from adabatch.ledger import Ledger
from adabatch.resume import earlier, restore
from adabatch.schedules.core import Observation, Setting
from adabatch.schedules.coupled import coupled, differences, rule

log = logging.getLogger("adabatch")


class Run:
    """The state of a training run beside its parts: everything that a checkpoint holds."""

    def __init__(self, config: dict, folder: Path, parts: Parts, ledger: Ledger):
        self.config, self.folder, self.parts, self.ledger = config, Path(folder), parts, ledger
        self.position, self.steps, self.trained, self.evaluated, self.micro_batch = 0, 0, 0, 0, 0
        self.setting: Setting | None = None  # of the last batch
        self.seconds = 0.0  # of training, up to the last step
        self.phases: list[dict] = []
        self.best: dict = {}  # smallest error by split
        self.pending: list[dict] = []  # rows whose figures are still on the device
        self.model, self.samples = parts.step.model, parts.schedule.samples
        self.progress = Progress(parts.schedule.budget, config["epochs"] * parts.schedule.stretch)
        self.trackers = trackers.build(config, self.folder, extra=(self.progress,))

    # -- rows --------------------------------------------------------------------------------------

    def stamp(self, event: str, position: int) -> dict:
        return {"event": event, "position": position, "epoch": position / self.samples, "step": self.steps}

    def note_change(self, start: int, setting: Setting) -> None:
        """Record a new stage: a phase of the summary, and what changed with the batch size."""
        before, self.setting = self.setting, setting
        if before is None or before.stage != setting.stage:
            self.phases.append(
                dict(
                    start_position=start,
                    batch_size=setting.divisor,
                    lr=setting.lr,
                    lr_end=setting.lr,
                    steps=0,
                    seconds=0.0,
                )
            )
        if before is None or before.divisor == setting.divisor:
            return
        group = self.parts.step.optimizer.param_groups[0]
        known = dict(
            samples=self.samples,
            momentum=group.get("momentum", 0.0) or 0.0,
            weight_decay=group.get("weight_decay", 0.0),
            decoupled="AdamW" in type(self.parts.step.optimizer).__name__,
            ema=self.config["ema"],
            micro_batch=self.micro_batch,
            horizon=layers.HORIZON if layers.ghost_layers(self.model) else None,
            world=self.parts.hardware.world,
        )
        changes = differences(coupled(before, **known), coupled(setting, **known))
        text = rule(before, setting, self.parts.schedule.exponent)
        self.fetch()
        self.trackers.log(self.stamp("change", start) | {"changes": changes, "rule": text})

    def note_step(self, start: int, skipped: int, setting: Setting, result) -> None:
        """Queue the row of a finished step; its sums stay on the device until `fetch`."""
        self.steps, self.trained = self.steps + 1, self.trained + setting.batch_size
        self.position = start + setting.batch_size
        seconds, phase = self.ledger.training(), self.phases[-1]
        phase["steps"] += 1
        phase["lr_end"] = setting.lr
        phase["seconds"] += seconds - self.seconds
        self.seconds = seconds
        row = self.stamp("train", self.position) | dict(
            batch_size=setting.batch_size,
            micro_batch=result.micro_batch,
            accumulation=result.passes,
            world_size=self.parts.hardware.world,
            lr=setting.lr,
            train_loss=result.loss,
            train_error=result.wrong,
            seconds=seconds,
        )
        self.pending.append(row | ({"skipped": skipped} if skipped else {}))

    def fetch(self) -> None:
        """Read the queued sums (one wait for the device), log the rows, and stop at the first that is not
        finite."""
        if not self.pending:
            return
        rows, self.pending = self.pending, []
        with self.ledger("compute"):  # a GPU may still be at it
            losses = torch.stack([row["train_loss"] for row in rows]).tolist()
            counted = rows[0]["train_error"] is not None
            wrong = torch.stack([row["train_error"] for row in rows]).tolist() if counted else None
        for i, row in enumerate(rows):
            row["train_loss"] = losses[i] / row["batch_size"]
            row["train_error"] = wrong[i] / row["batch_size"] if wrong else None
            self.trackers.log(row)
            if not math.isfinite(losses[i]):
                raise self.diverged(
                    f"the training loss is {losses[i]}", row["position"], row["lr"], row["batch_size"]
                )

    def diverged(self, what: str, position: int, lr: float, batch_size: int) -> Diverged:
        return Diverged(
            f"{what} at position {position} (epoch {position / self.samples:.3f}) under batch size "
            f"{batch_size}, "
            f"lr {lr:.6g}: lower schedule.base_lr, add schedule.warmup_epochs or clip_norm. The last good "
            "checkpoint is kept."
        )

    # -- marks -------------------------------------------------------------------------------------

    def evaluate(self, name: str, samples) -> dict:
        """Rows of one evaluation, raw weights and average; returns the figures of the weights that count."""
        self.fetch()
        self.evaluated = self.position
        step, average = self.parts.step, self.parts.average
        chunk = max(self.micro_batch, 256)
        with self.ledger("evaluation"):
            for weights in ("raw", "ema") if average else ("raw",):
                if weights == "ema":
                    with average.in_place():
                        loss, error = step.evaluate(samples, self.parts.prepare, self.parts.loss, chunk)
                else:
                    loss, error = step.evaluate(samples, self.parts.prepare, self.parts.loss, chunk)
                seconds = self.ledger.training()
                self.trackers.log(
                    self.stamp("eval", self.position)
                    | dict(split=name, weights=weights, eval_loss=loss, eval_error=error, seconds=seconds)
                )
            if error is not None and error < self.best.get(name, math.inf):
                self.best[name] = error
                if self.config["checkpoint"]["best"]:
                    self.save_weights("best.pt")
        return {"loss": loss, "error": error}

    def state(self) -> dict:
        setting = self.setting and [
            self.setting.batch_size,
            self.setting.lr,
            self.setting.divisor,
            list(self.setting.stage),
        ]
        average = self.parts.average
        return dict(
            position=self.position,
            step=self.steps,
            trained=self.trained,
            evaluated=self.evaluated,
            rows=self.trackers.rows,
            micro_batch=self.micro_batch,
            setting=setting,
            phases=self.phases,
            best=self.best,
            ledger=self.ledger.read(),
            model=self.model.state_dict(),
            optimizer=self.parts.step.optimizer.state_dict(),
            layout=self.parts.step.flat.layout,
            schedule=self.parts.schedule.state_dict(),
            average=average.state_dict() if average else None,
        )

    def save(self) -> None:
        """Rows to disk first, then the checkpoint that counts them; nothing that is not finite is ever
        saved."""
        with self.ledger("checkpoint"):
            self.fetch()
            if not bool(torch.isfinite(self.parts.step.flat.params).all()):
                s = self.setting
                raise self.diverged(
                    "a weight is not finite", self.position, s.lr if s else math.nan, s.divisor if s else 0
                )
            self.trackers.sync()
            checkpoint.save(self.folder / "checkpoint.pt", self.state())
            self.saved_at = self.ledger.clock()

    def save_weights(self, name: str) -> None:
        """A plain state_dict of the weights that are evaluated (the average where there is one)."""
        if self.parts.average:
            with self.parts.average.in_place():
                checkpoint.save_weights(self.folder / name, self.model)
        else:
            checkpoint.save_weights(self.folder / name, self.model)


def crossed(before: int, after: int, every: float) -> bool:
    """Whether a multiple of `every` samples lies in (before, after]: true at the first step boundary at or
    after a mark."""
    return after // every > before // every


def choose_micro_batch(parts: Parts) -> int:
    """`hardware.micro_batch`, or the largest power of two of ghost groups whose activations fit the memory
    budget."""
    wanted, unit = parts.hardware.micro_batch, parts.step.unit
    if wanted != "auto":
        return wanted
    samples = min(max(unit, 4), parts.schedule.samples)
    per_sample = parts.step.activation_bytes(samples) / samples
    fits = parts.hardware.activation_budget() / max(per_sample, 1) / unit
    return unit * 2 ** max(0, math.floor(math.log2(max(fits, 1))))


def announce(run: Run) -> None:
    parts, config = run.parts, run.config
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
    log.info("schedule  batch %d, lr %g at the start; %g epochs, %s samples", first.divisor, first.lr,
             config["epochs"] * parts.schedule.stretch, f"{parts.schedule.budget:,}")  # fmt: skip
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
    if config["checkpoint"]["best"] and not config["dataset"].get("validation"):
        raise UserError(
            "checkpoint.best=true chooses by evaluation, and nothing may choose by the test set: set "
            "dataset.validation"
        )
    parts = build(config, ledger)
    run = Run(config, folder, parts, ledger)
    code = 1
    try:
        state = (
            checkpoint.load(run.folder / "checkpoint.pt")
            if (run.folder / "checkpoint.pt").exists()
            else earlier(config, run)
        )
        if state:
            restore(run, state)
            log.info("resumed at position %s (epoch %.2f)", f"{run.position:,}", run.position / run.samples)
        else:
            run.trackers.resume(0, 0)
            run.micro_batch = choose_micro_batch(parts)
        parts.step.micro_batch = run.micro_batch
        announce(run)
        if not state:
            run.save()
            checkpoint.load(
                run.folder / "checkpoint.pt"
            )  # what cannot be read back should be known now, not after a kill
        loop(run, stop)
        summary = finish(run)
        code = 0
    except Interrupted:
        code = 130
        raise
    finally:
        parts.data.train.close()
        parts.data.test.close()
        run.trackers.close(code)
    return summary


def loop(run: Run, stop) -> None:
    """From the run's position to its budget."""
    parts, config, ledger = run.parts, run.config, run.ledger
    schedule, step = parts.schedule, parts.step
    eval_every = config["evaluate"]["every"] * run.samples
    log_every = config["log"]["every_samples"] or max(1, run.samples // 10)
    seconds = config["checkpoint"]["every_seconds"]
    run.saved_at, shapes = ledger.clock(), set()
    while not schedule.done(run.position):
        if crossed(run.evaluated, run.position, eval_every):
            run.evaluate(*parts.data.evaluated())
        before = run.position
        start = schedule.start(before)
        setting = schedule(start)
        with ledger("resize"):
            run.note_change(start, setting)
        with ledger(compute_cause(parts, setting, shapes)):
            result = step(start, setting)
            if parts.average:
                parts.average.update(setting.batch_size)
        schedule.observe(Observation(start, setting))
        run.note_step(start, start - before, setting, result)
        if crossed(before, run.position, log_every):
            run.fetch()
        if reason := stop():
            run.save()
            raise Interrupted(reason)
        if ledger.clock() - run.saved_at >= seconds:
            run.save()


def compute_cause(parts: Parts, setting: Setting, shapes: set) -> str:
    """What a step's time is booked under: a shape seen for the first time compiles, if anything is
    compiled."""
    shape = min(parts.step.micro_batch, setting.batch_size)
    if not parts.hardware.compile or shape in shapes:
        return "compute"
    shapes.add(shape)
    return "first_compile" if len(shapes) == 1 else "recompile"


def finish(run: Run) -> dict:
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
    if not keep:
        (run.folder / "checkpoint.pt").unlink(missing_ok=True)
    return summary


def summary_figures(run: Run, errors: dict) -> dict:
    """The fields of summary.json. errors: the final error of each evaluated split."""
    run.trackers.sync()
    rows = [row for row in runs.read_rows(run.folder) if row["event"] == "train"]
    last = [row for row in rows if row["position"] > run.position - run.samples]  # the last epoch
    seconds, node = run.ledger.training(), run.config
    return dict(
        **{group: node["options"][group] for group in ("model", "dataset", "schedule")},
        seed=node["seed"],
        epochs=node["epochs"],
        steps=run.steps,
        samples=run.trained,
        parameters=sum(p.numel() for p in run.model.parameters()),
        final_test_error=errors.get("test"),
        best_test_error=None if "validation" in errors else run.best.get("test"),
        final_validation_error=errors.get("validation"),
        best_validation_error=run.best.get("validation"),
        final_train_loss=sum(row["train_loss"] * row["batch_size"] for row in last)
        / sum(row["batch_size"] for row in last),
        train_seconds=seconds,
        images_per_second=run.trained / seconds,
        weights_sha256=weights_sha256(run.model),
        peak_memory_bytes=run.parts.hardware.peak_memory(),
        phases=run.phases,
        ledger=run.ledger.read(),
    )


def weights_sha256(model) -> str:
    """Over all parameters and buffers in state_dict order, as little-endian contiguous bytes on the CPU."""
    digest = hashlib.sha256()
    for tensor in model.state_dict().values():
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
