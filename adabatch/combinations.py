"""The jobs of a multirun without running them."""

from dataclasses import dataclass

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra

from adabatch import config
from adabatch.errors import UserError


@dataclass(frozen=True)
class Compared:
    """What a comparison makes of its jobs. seeds: runs of each arm. looks: how many. margin: of an error
    rate. adaptive: candidates. searches: runs that tune each job's learning rate, at least. replayed: (name,
    control, number of its source's job) of each arm that has no job. notes: which arms there are not, why."""

    seeds: int
    looks: int
    margin: float
    adaptive: int
    searches: tuple[int, ...]
    replayed: tuple[tuple[str, str, int], ...]
    notes: tuple[str, ...] = ()


def compared(asked, arms, notes) -> Compared:
    from adabatch.compare import tuning

    own = [arm for arm in arms if arm.source is None]
    names = [arm.name for arm in own]
    return Compared(
        seeds=asked.seeds,
        looks=len(asked.looks),
        margin=asked.delta / 100,
        adaptive=sum(arm.adaptive for arm in arms),
        searches=tuple(len(tuning.first(arm)) if asked.tune_lr else 0 for arm in own),
        replayed=tuple((arm.name, arm.control, names.index(arm.source)) for arm in arms if arm.source),
        notes=tuple(notes),
    )


def combinations(overrides) -> tuple[list[list[str]], Compared | None]:
    """The jobs of a multirun, each as its overrides, those of the sweep's own parameters first; of a
    comparison one for each arm that replays no run, and what it makes of them. Inside `config.composer`."""
    alike = [o.input_line for o in config.parse(overrides) if not o.is_sweep_override()]
    tree = config.load(alike)
    sweeper = tree.hydra.sweeper
    if str(sweeper.get("_target_")).endswith(".CompareSweeper"):
        from adabatch.composed import Composed  # it loads what the verdict computes with

        one = Composed(tree, GlobalHydra.instance().config_loader(), list(overrides))
        arms, notes = one.arms()
        jobs = [one.line(arm.name, arm.lines) for arm in arms if arm.source is None]
        return jobs, compared(one.asked, arms, notes)
    if not str(sweeper.get("_target_")).endswith(".BasicSweeper"):
        raise UserError(f"{sweeper.get('_target_')} chooses its jobs as it goes: plan them one by one")
    lines = [f"{k}={v}" for k, v in (sweeper.get("params") or {}).items()] + list(overrides)
    return [list(job) for job in BasicSweeper.split_arguments(config.parse(lines), None)[0]], None
