"""What a user should know of a plan before the run. One sentence each: what, where, what to do."""

from adabatch import plan
from adabatch.phases import Phase
from adabatch.planning import power
from adabatch.schedules.core import Schedule
from adabatch.schedules.factors import Constant, Steps


def warnings(config: dict, schedule, found: list[Phase], curve: list) -> list[str]:
    """All of them, the schedule's own first. found: the phases (of a closed loop: as if it never decided);
    curve: see `phases.curve`."""
    told = list(schedule.warnings())
    closed = bool(schedule.needs) or schedule.growth.closed
    if isinstance(schedule, Schedule):
        told += [beyond_the_data(schedule, found), warm_up(schedule)]
    told.append(few_updates(schedule, found))
    if not closed:
        told.append(above_the_rule(config, schedule, curve))
    told += [evaluation(config), *never(schedule)]
    return [sentence for sentence in told if sentence]


def beyond_the_data(schedule: Schedule, found: list[Phase]) -> str | None:
    """A batch that the schedule wants and the data set cannot fill. A cap by max_batch is nobody's
    mistake."""
    if schedule.cap <= schedule.samples - schedule.frame.multiple:
        return None
    if schedule.base_batch > schedule.cap and isinstance(schedule.growth, Constant):
        return None  # the schedule says so itself
    for position in (p for phase in found for p in (phase.start, phase.last)):
        growth = schedule.growth(position / schedule.stretch)
        planned = schedule.frame.planned(schedule.base_batch * growth, schedule.growth.rounding)
        if planned > schedule.samples:
            return (
                f"from epoch {position / schedule.samples:.4g} the schedule wants batches of {planned:,}, "
                f"more than the {schedule.samples:,} training samples: they stay {schedule.cap:,} and the "
                "learning rate falls instead; set schedule.max_batch to choose where growth ends"
            )
    return None


def few_updates(schedule, found: list[Phase]) -> str | None:
    """Fewer than one whole update per epoch, or a single one. Such a batch is more than half of the data."""
    for phase in found:
        if schedule.samples // phase.batch_size <= 1:
            return (
                f"from epoch {phase.start / schedule.samples:.4g} there is one update per epoch or fewer: "
                f"a batch of {phase.batch_size:,} takes {phase.batch_size / schedule.samples:.0%} of the "
                f"{schedule.samples:,} training samples; lower schedule.max_batch or the growth"
            )
    return None


def warm_up(schedule: Schedule) -> str | None:
    """A schedule that steps before the warm-up is over."""
    end = schedule.warmup_epochs * schedule.samples
    stops = schedule.decay.milestones()
    if isinstance(schedule.growth, Steps):  # a ramp has no phases to be longer than
        stops = stops + schedule.growth.milestones()
    if not stops or end <= min(stops):
        return None
    return (
        f"the warm-up of {schedule.warmup_epochs:g} epochs is longer than the first phase, which ends at "
        f"epoch {min(stops) / schedule.samples:.4g}: batch or learning rate step before it is through; "
        "lower schedule.warmup_epochs"
    )


def above_the_rule(config: dict, schedule, curve: list) -> str | None:
    """A learning rate above base_lr * (batch / lr_batch)^p, p = 1 for SGD (Goyal et al. 2017, arXiv
    1706.02677) and 1/2 for Adam-type optimizers (Malladi et al. 2022, arXiv 2205.10287)."""
    if "base_lr" not in config["schedule"]:  # a recorded run: its learning rates follow from nothing here
        return None
    exponent = plan.noise_exponent(config["optimizer"]["_target_"])
    worst = max(curve, key=lambda p: p[2] / p[1] ** exponent)
    position, batch, lr = worst
    most = schedule.base_lr * (batch / schedule.lr_batch) ** exponent
    if lr <= most * (1 + 1e-9):
        return None
    name = "linear" if exponent == 1 else "square-root"
    return (
        f"at epoch {position / schedule.samples:.4g} lr {lr:.4g} is {lr / most:.3g} times what {name} "
        f"scaling gives for a batch of {batch:,}: {schedule.base_lr:g} x ({batch:,} / {schedule.lr_batch:,})"
        f"{'' if exponent == 1 else '^0.5'} = {most:.4g}; it may diverge"
    )


def evaluation(config: dict) -> str | None:
    """Arms are compared on the test set, else on what is held out; unknown sizes are not judged. A comparison
    is judged as a whole (`times.resolution`)."""
    if (config.get("compare") or {}).get("arm"):
        return None
    dataset = config["dataset"]
    for split, samples in (("test", dataset.get("test_samples")), ("validation", dataset.get("validation"))):
        if samples:
            return power.too_small(samples, split)
    return None


def never(schedule) -> list[str]:
    """Settings of a closed loop that leave it nothing to decide."""
    told, loop = [], getattr(schedule, "measuring", None)
    if not (schedule.needs or schedule.growth.closed):
        return told
    dwell = getattr(schedule.growth, "dwell", 0)
    if dwell >= schedule.budget:
        told.append(
            f"schedule.dwell={dwell:,} is as long as the run of {schedule.budget:,} samples: the batch "
            "changes once at the most"
        )
    every = loop.every if loop and loop.every != "auto" else 0
    if every >= schedule.budget and schedule.needs - {"validation"}:
        told.append(
            f"schedule.measure_every={every:,} is as long as the run of {schedule.budget:,} samples: "
            "nothing is measured in time to be used"
        )
    return told
