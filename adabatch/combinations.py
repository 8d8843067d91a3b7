"""The jobs of a multirun without running them."""

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra

from adabatch import config
from adabatch.errors import UserError


def combinations(overrides) -> list[list[str]]:
    """The jobs of a multirun, each as its overrides, those of the sweep's own parameters first; of a
    comparison one for each arm that replays no run. Inside `config.composer`."""
    alike = [o.input_line for o in config.parse(overrides) if not o.is_sweep_override()]
    tree = config.load(alike)
    sweeper = tree.hydra.sweeper
    if str(sweeper.get("_target_")).endswith(".CompareSweeper"):
        from adabatch.composed import Composed  # it loads what the verdict computes with

        one = Composed(tree, GlobalHydra.instance().config_loader(), list(overrides))
        return [one.line(arm.name, arm.lines) for arm in one.arms()[0] if arm.source is None]
    if not str(sweeper.get("_target_")).endswith(".BasicSweeper"):
        raise UserError(f"{sweeper.get('_target_')} chooses its jobs as it goes: plan them one by one")
    lines = [f"{k}={v}" for k, v in (sweeper.get("params") or {}).items()] + list(overrides)
    return [list(job) for job in BasicSweeper.split_arguments(config.parse(lines), None)[0]]
