"""The whole plan of one configuration."""

from dataclasses import dataclass

from adabatch import cutting, plan, sanity
from adabatch.errors import UserError
from adabatch.phases import Phase, curve, phases, totals
from adabatch.planning import bounds
from adabatch.planning.warnings import warnings


@dataclass(frozen=True)
class Plan:
    """found: the phases; of a closed loop as if it never decided, and only the first is certain. closed: what
    is known of a closed loop, None for an open one. curve: see `phases.curve`. micro, unit: samples of a
    forward pass as asked for (None: auto) and of a ghost group (None: only the network knows). hardware: the
    configuration's. config: the whole of it. forecast: `times.forecast_of`, once it was asked for."""

    overrides: tuple
    options: dict
    schedule: object
    found: list[Phase]
    totals: dict
    closed: dict | None
    curve: list
    warnings: list[str]
    notes: list[str]
    micro: int | None
    unit: int | None
    hardware: dict
    config: dict
    forecast: dict | None = None

    @property
    def world(self) -> int:
        """Processes, as far as the configuration says."""
        return self.hardware.get("processes") or 1

    def cut(self, batch: int) -> tuple[int | None, int | None]:
        """(largest forward pass, most forward passes of a process) of a batch; None where it is not known in
        advance."""
        if self.micro is None or self.unit is None:
            return None, None
        grid = self.hardware.get("reduction") == "ordered"
        passes, largest = cutting.share(batch, self.unit, self.micro, self.world, grid=grid)
        return largest, passes

    def json(self) -> dict:
        """The contract: phases, warnings, forecast; beside it what the table shows too."""
        rows = [self._row(phase) for phase in self.found]
        if self.closed:
            rows = [rows[0] | {"lr_end": None, "steps": None, "closed_loop": True}]
        return {
            "phases": rows,
            "warnings": self.warnings,
            "forecast": self.forecast,
            "closed_loop": self.closed is not None,
            "measuring": self.closed,
            "totals": None if self.closed else self.totals,
            "epochs": self.schedule.budget / self.schedule.samples,
            "training_samples": self.schedule.samples,
            "scaling": self.schedule.scaling.words(),
            "overrides": list(self.overrides),
        }

    def _row(self, phase: Phase) -> dict:
        micro, passes = self.cut(phase.batch_size)
        return {
            "start_position": phase.start,
            "start_epoch": phase.start / self.schedule.samples,
            "batch_size": phase.batch_size,
            "lr": phase.lr,
            "lr_end": phase.lr_end,
            "steps": phase.steps,
            "micro_batch": micro,
            "accumulation": passes,
        }


def samples_of(dataset: dict) -> int:
    """Training samples per epoch. UserError where only the loader could tell."""
    samples = plan.samples_of(dataset)
    if samples is None:
        raise UserError(
            f"{dataset['_target_']} alone knows how many training samples there are: set dataset.samples=N"
        )
    if samples < 1:
        raise UserError(
            f"no training sample is left: dataset.samples={dataset['samples']}, "
            f"dataset.validation={dataset.get('validation')}"
        )
    return samples


def ghost_group(model: dict) -> int | None:
    """Samples in a ghost group, from the keys of a network of ours; None for another's, which alone knows."""
    if not model["_target_"].startswith("adabatch."):
        return None
    return model["ghost"] if model.get("norm") in sanity.GHOST else 1


def planned(config: dict, overrides=(), notes=()) -> Plan:
    """From the checked configuration. UserError: what no run can have."""
    samples = samples_of(config["dataset"])
    schedule = plan.schedule(config, samples)
    plan.refuse_blind(schedule, config["dataset"].get("validation"))  # a schedule of the user's own too
    found = phases(schedule)
    if not found:
        epochs, stretch = config["epochs"], schedule.stretch
        raise UserError(f"the run is over before its first batch: epochs={epochs}, stretch={stretch}")
    drawn = curve(schedule, found)
    unit, micro = ghost_group(config["model"]), config["hardware"].get("micro_batch")
    return Plan(
        overrides=tuple(overrides),
        options=config["options"],
        schedule=schedule,
        found=found,
        totals=totals(schedule, found),
        closed=bounds.measuring(schedule, unit) if schedule.needs or schedule.growth.closed else None,
        curve=drawn,
        warnings=warnings(config, schedule, found, drawn),
        notes=list(notes),
        micro=micro if isinstance(micro, int) else None,
        unit=unit,
        hardware=config["hardware"],
        config=config,
    )
