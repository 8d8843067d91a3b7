"""What changes with the batch size: the quantities of training that are coupled to it (science: Goyal et al.
2017; Smith and Le, arXiv 1710.06451; horizons in samples).

momentum horizon in samples      B / (1 - m)
weight decay per sample, SGD     lr * lambda / (B (1 - m));   decoupled (AdamW)     lr * lambda / B
"""

from adabatch.schedules.setting import Setting


def coupled(
    setting: Setting,
    *,
    lr: float,
    samples: int,
    momentum: float,
    weight_decay: float,
    decoupled: bool,
    ema: float | None,
    horizon: float | None,
    micro_batch: int,
    accumulation: int,
    world: int,
) -> dict:
    """Every coupled quantity under one setting. ema: half-life in samples; horizon: of running statistics, in
    samples (None where there are none). micro_batch, accumulation: largest forward pass, and how many."""
    batch = setting.divisor
    per_sample = lr * weight_decay / batch / (1.0 if decoupled else 1 - momentum)
    return {
        "batch_size": batch,
        "lr": lr,
        "steps_per_epoch": samples / batch,
        "momentum": momentum or None,
        "momentum_horizon_samples": batch / (1 - momentum) if momentum else None,
        "weight_decay_per_sample": per_sample if weight_decay else None,
        "ema_half_life_samples": ema,
        "running_statistics_horizon_samples": horizon,
        "micro_batch": micro_batch,
        "accumulation": accumulation,
        "world_size": world,
    }


def differences(before: dict, after: dict) -> dict:
    """{name: [before, after]}, all quantities, changed or held: what was held is also worth knowing."""
    return {name: [before[name], after[name]] for name in after if after[name] is not None}


def rule(before: Setting, after: Setting, scaling: str, held: float = 1.0) -> str:
    """The arithmetic of the learning rate at a change, in words. scaling: which rule it follows; held: factor
    of the learning rate by a momentum that is held."""
    grown, scaled = after.divisor / before.divisor, after.lr_growth / before.lr_growth
    parts, change = [f"x{scaled:.6g} by {scaling}"], f"lr {before.lr:.6g} -> {after.lr:.6g}: "
    if before.lr and after.lr:  # curves may begin or end at 0
        moved = after.lr / before.lr
        change = f"lr x{moved * held:.6g}: "
        if abs(moved / scaled - 1) > 1e-9:
            parts.append(f"x{moved / scaled:.6g} by the rest")
    if abs(held - 1) > 1e-9:
        parts.append(f"x{held:.6g} by the momentum held")
    return f"batch x{grown:.6g}, {change}{'; '.join(parts)}"
