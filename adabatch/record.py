"""What a run knows of itself while it trains: its position, its rows, its phases, and how they are saved."""

import contextlib
import dataclasses
import math
from pathlib import Path

import torch

from adabatch import __version__, checkpoint, distance, evaluation, layers, throughput, trackers
from adabatch.agreement import agree
from adabatch.build import Parts
from adabatch.console import Progress
from adabatch.errors import Diverged
from adabatch.figures import warn_of_idle_ranks
from adabatch.ledger import Ledger
from adabatch.schedules.coupled import coupled, differences, rule
from adabatch.schedules.setting import Setting


def made_by(hardware) -> dict:
    """What the bits of a run depend on beside its configuration."""
    versions = {"adabatch": __version__, "torch": str(torch.__version__)}
    found = versions | {"device": hardware.device.type, "threads": hardware.threads}
    found |= {"ghost_norm": hardware.ghost_norm}
    return found if hardware.ordered else found | {"processes": hardware.ranks.world}


def in_last_epoch(sums: list, row: dict, schedule) -> list:
    """[sum of losses, samples] with those of a training row, if it belongs to the last epoch of the budget;
    under `stop: gained`, whose end is not known before, to the last epoch of the original schedule."""
    gained = schedule.scaling.ends_early
    clock, budget = ("gained", schedule.frame.budget) if gained else ("position", schedule.budget)
    if row["event"] != "train" or row[clock] <= budget - schedule.samples:
        return sums
    return [sums[0] + row["train_loss"] * row["batch_size"], sums[1] + row["batch_size"]]


class Record:
    """The state of a training run beside its parts: everything that a checkpoint holds, and the rows on their
    way. Every rank has one; that of rank 0 `writes`."""

    def __init__(self, config: dict, folder: Path, parts: Parts, ledger: Ledger):
        self.config, self.folder, self.parts, self.ledger = config, Path(folder), parts, ledger
        self.position, self.steps, self.trained, self.evaluated = 0, 0, 0, 0
        self.writes, self.compiled = parts.hardware.ranks.rank == 0, set()
        self.setting: Setting | None = None  # of the last batch
        self.seconds = 0.0  # of training, up to the last step
        self.device_seconds = 0.0  # the same, of every process
        self.phases: list[dict] = []
        self.best: dict = {}  # smallest error by split
        self.last_epoch = [0.0, 0]  # sum of the training losses, and samples, of the last epoch of the budget
        self.pending: list[dict] = []  # rows whose figures are still on the device
        self.fetched_at = self.saved_at = ledger.clock()
        self.model, self.samples = parts.step.model, parts.schedule.samples
        self.micro_batch, self.writer = None, checkpoint.Writer()  # micro_batch: that rows were last told of
        asked = self.writes and config["log"].get("distance")
        self.distance = distance.Distance(parts.step.flat, asked)
        if not self.writes:
            self.trackers = trackers.Silent()
            return
        shown = Progress(parts.schedule.budget, parts.schedule.budget / parts.schedule.samples)
        self.trackers = trackers.build(config, self.folder, extra=(shown,))
        if config["schedule"].get("profile"):
            throughput.keep(config["schedule"]["profile"], self.folder)

    def due(self) -> tuple[bool, bool]:
        """Whether rank 0's clock says that it is time to save, and to fetch the rows."""
        now, every = self.ledger.clock(), self.config["checkpoint"]["every_seconds"]
        return self.writes and now - self.saved_at >= every, self.writes and now - self.fetched_at > 2

    # -- rows --------------------------------------------------------------------------------------

    def stamp(self, event: str, position: int) -> dict:
        return {"event": event, "position": position, "epoch": position / self.samples, "step": self.steps}

    def note_change(self, start: int, setting: Setting) -> None:
        """Record a new stage: a phase of the summary, and what changed with the batch size."""
        before, self.setting = self.setting, setting
        self.micro_batch = self.parts.step.micro_batch
        if before is not None and before.stage != setting.stage:
            self.fetch()
            self.book()
        if before is None or before.stage != setting.stage:
            phase = dict(start_position=start, batch_size=setting.divisor, lr=setting.lr, lr_end=setting.lr)
            self.phases.append(phase | dict(steps=0, seconds=0.0))
        if before is None or before.divisor == setting.divisor:
            return
        known = dict(
            samples=self.samples,
            decoupled=self.parts.step.held.decoupled,
            ema=self.config["ema"],
            horizon=layers.HORIZON if layers.ghost_layers(self.model) else None,
            world=self.parts.hardware.ranks.world,
        )
        warn_of_idle_ranks(self, setting.divisor)
        changes = differences(
            *(coupled(s, **known, **self.cut(s), **self.horizons(s)) for s in (before, setting))
        )
        factors = [self.parts.step.held.values(s)["factor"] for s in (before, setting)]
        text = rule(before, setting, self.parts.schedule.scaling.name, factors[1] / factors[0])
        self.log(self.stamp("change", start) | {"changes": changes, "rule": text})

    def cut(self, setting: Setting) -> dict:
        accumulation, micro_batch = self.parts.step.share(setting.divisor)
        return dict(micro_batch=micro_batch, accumulation=accumulation)

    def cause(self, setting: Setting) -> str:
        """What a step's time is booked under: a micro-batch that is trained for the first time compiles, if
        anything is compiled."""
        step = self.parts.step
        new = step.micro_batch not in self.compiled and setting.batch_size >= step.micro_batch
        if not self.parts.hardware.compile or not new:
            return "compute"
        self.compiled.add(step.micro_batch)
        return "first_compile" if len(self.compiled) == 1 else "recompile"

    def horizons(self, setting: Setting) -> dict:
        """Momentum (Adam-type: beta1), weight decay and learning rate as the optimizer has them."""
        found = self.parts.step.held.values(setting)
        momentum = found["betas"][0] if "betas" in found else found.get("momentum") or 0.0
        decay = found.get("weight_decay") or 0.0
        return dict(momentum=momentum, weight_decay=decay, lr=setting.lr * found["factor"])

    def log(self, row: dict) -> None:
        with self.ledger("other"):  # a tracker's time is no training
            self.trackers.log(row)

    def book(self) -> float:
        """Training seconds up to now; what has passed since the last call belongs to the phase in
        progress."""
        seconds = self.ledger.training()
        self.phases[-1]["seconds"] += seconds - self.seconds
        self.device_seconds += (seconds - self.seconds) * self.parts.hardware.ranks.world
        self.seconds = seconds
        return seconds

    def note_step(self, start: int, skipped: int, setting: Setting, result, figures: dict) -> None:
        """Queue the row of a finished step; its sums stay on the device until `fetch`. figures: what else the
        schedule wants logged."""
        self.steps, self.trained = self.steps + 1, self.trained + setting.batch_size
        self.position = start + setting.batch_size
        seconds, phase = self.book(), self.phases[-1]
        phase["steps"] += 1
        phase["lr_end"] = setting.lr
        row = self.stamp("train", self.position) | dict(
            batch_size=setting.batch_size,
            micro_batch=result.micro_batch,
            accumulation=result.passes,
            world_size=self.parts.hardware.ranks.world,
            lr=setting.lr,
            train_loss=result.loss,
            train_error=result.wrong,
            seconds=seconds,
        )
        if setting.divisor != setting.batch_size:
            row["divisor"] = setting.divisor
        if self.parts.step.held.hold:  # a replay must hold as this run does
            row |= {"growth": setting.growth, "lr_growth": setting.lr_growth}
            row["lr_applied"] = self.horizons(setting)["lr"]
        if result.group:
            row["noise_group"] = result.group
        self.pending.append(row | figures | self.distance() | ({"skipped": skipped} if skipped else {}))
        if (now := self.parts.step.micro_batch) != self.micro_batch:
            self.fetch()
            change = {"changes": {"micro_batch": [self.micro_batch, now]}, "rule": "out of memory"}
            self.log(self.stamp("change", start) | change)
            self.micro_batch = now

    def fetch(self) -> None:
        """Read the queued sums (one wait for the device), log the rows, and stop at the first that is not
        finite."""
        self.fetched_at = self.ledger.clock()
        if not self.pending:
            return
        rows, self.pending = self.pending, []
        with self.ledger("compute"):  # a GPU may still be at it
            losses = torch.stack([row["train_loss"] for row in rows]).tolist()
            counted = rows[0]["train_error"] is not None
            wrong = torch.stack([row["train_error"] for row in rows]).tolist() if counted else None
            distance.fetch(rows)
        for i, row in enumerate(rows):
            row["train_loss"] = losses[i] / row["batch_size"]
            row["train_error"] = wrong[i] / row["batch_size"] if wrong else None
            self.log(row)
            self.last_epoch = in_last_epoch(self.last_epoch, row, self.parts.schedule)
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
        self.evaluated = self.parts.schedule.start(self.position)
        average = self.parts.average
        with self.ledger("evaluation"):
            for weights in ("raw", "ema") if average else ("raw",):
                if weights == "ema":
                    with average.in_place():
                        loss, error = self._evaluated(samples)
                else:
                    loss, error = self._evaluated(samples)
                seconds = self.ledger.training()
                self.log(
                    self.stamp("eval", self.position)
                    | dict(split=name, weights=weights, eval_loss=loss, eval_error=error, seconds=seconds)
                )
            score = loss if error is None else error
            better = score < self.best.get(name, math.inf)
            if better:
                self.best[name] = score
            wanted = self.config["checkpoint"]["best"] and name == "validation"
            if wanted and (better or not (self.folder / "best.pt").exists()):
                self.save_weights("best.pt")
        return {"loss": loss, "error": error}

    def _evaluated(self, samples) -> tuple:
        parts, chunk = self.parts, evaluation.chunk_of(self.parts.step.micro_batch)
        shown = samples, parts.prepare, parts.loss, chunk, parts.views
        return evaluation.evaluate(self.model, parts.hardware, *shown)

    def state(self) -> dict:
        setting = self.setting and dataclasses.asdict(self.setting) | {"stage": list(self.setting.stage)}
        average = self.parts.average
        return dict(
            position=self.position,
            step=self.steps,
            trained=self.trained,
            evaluated=self.evaluated,
            rows=self.trackers.rows,
            micro_batch=self.parts.step.micro_batch,
            asked_micro_batch=self.parts.hardware.micro_batch,
            setting=setting,
            phases=self.phases,
            best=self.best,
            last_epoch=self.last_epoch,
            made_by=made_by(self.parts.hardware),
            ledger=self.ledger.read(),
            wall=self.ledger.wall(),
            device_seconds=self.device_seconds,
            model=self.model.state_dict(),
            optimizer=self.parts.step.optimizer.state_dict(),
            layout=self.parts.step.flat.layout,
            schedule=self.parts.schedule.state_dict(),
            shadows=self.parts.shadows.state_dict(),
            held=self.parts.step.held.state_dict(),
            meter=self.parts.step.meter.state_dict() if self.parts.step.meter else None,
            average=average.state_dict() if average else None,
        )

    def save(self, wait: bool = True) -> None:
        """Rows to disk first, then the checkpoint that counts them; nothing that is not finite is ever
        saved. wait: until it is on the disk; else a thread writes it."""
        with self.ledger("checkpoint"):
            self.fetch()
            flat = self.parts.step.flat
            if not bool(torch.isfinite(flat.params).all() and torch.isfinite(flat.running).all()):
                s = self.setting
                raise self.diverged(
                    "a weight or a running statistic is not finite",
                    self.position,
                    s.lr if s else math.nan,
                    s.divisor if s else 0,
                )
            agree(self)
            if self.writes:
                self.trackers.sync()
                self.writer.save(self.folder / "checkpoint.pt", self.state())
                if wait:
                    self.writer.wait()
            self.saved_at = self.ledger.clock()

    def close(self, code: int) -> None:
        """The end of this sitting; code: its exit code, for trackers."""
        with contextlib.suppress(Exception):  # what ended the run counts; where nothing did, all is written
            self.writer.wait()
        self.trackers.close(code)
        if code != 1:  # of ranks that ended by an error one may hang, and closing would wait for it
            self.parts.hardware.ranks.close()

    def save_weights(self, name: str) -> None:
        """A plain state_dict of the weights that are evaluated (the average where there is one)."""
        if not self.writes:
            return
        if self.parts.average:
            with self.parts.average.in_place():
                checkpoint.save_weights(self.folder / name, self.model)
        else:
            checkpoint.save_weights(self.folder / name, self.model)
