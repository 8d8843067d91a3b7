"""The command that holds a run's schedule against fixed batches. No torch."""

from adabatch.files import number

COMMON = tuple(f"schedule.{key}=" for key in ("base_batch", "base_lr", "lr_batch", "max_batch", "multiple"))
OTHERS = ("seed=", "shadow", "restart", "wait=", "schedule.compat=", "schedule.twin=")


def comparison(overrides: list[str], config: dict, summary: dict) -> list[str] | None:
    """Its words; None for a run that is compared already, or that an experiment set up. overrides, config,
    summary: of the run. A schedule whose batch did not change gives its place to AdaBatch."""
    if any(o.startswith(("compare.arm=", "experiment=")) for o in overrides):
        return None
    phases = summary.get("phases")
    sizes = [p.get("batch_size") for p in phases if isinstance(p, dict)] if isinstance(phases, list) else []
    left = OTHERS
    # Keys of one schedule are not another's: where AdaBatch stands in, only what every one has is kept.
    if "schedule=replay" in overrides or all(size == sizes[0] for size in sizes):
        left += ("schedule",)
    kept = [o for o in overrides if not o.lstrip("+").startswith(left) or o.startswith(COMMON)]
    epochs = number(config.get("epochs"))
    if epochs is not None and not any(o.startswith("epochs=") for o in kept):
        kept.append(f"epochs={epochs:g}")
    return ["adabatch", "-m", "experiment=compare", *kept]
