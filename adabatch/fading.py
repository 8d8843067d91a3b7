"""Parameters that are trained for the first epochs of a run only, at a learning rate that falls to 0 over
them: a function of position, so a resumed run needs no state for it."""


def apart(kept: list[tuple[list, dict]], model) -> list[tuple[list, dict]]:
    """An optimizer's groups, (named parameters, what they have of their own), with those in groups of their
    own that the network's `trained_for`, {name: epochs}, names."""
    times = getattr(model, "trained_for", {})
    stay = [([(n, p) for n, p in named if n not in times], own) for named, own in kept]
    for named, own in kept:
        for n, p in named:
            if n in times:
                stay.append(([(n, p)], own | {"until": times[n]}))
                p.until = times[n]  # not in the group: torch's optimizers would save it, and load a copy
    return [(named, own) for named, own in stay if named]


def thaw(model, epoch: float) -> None:
    """Parameters that `apart` has found ask for a gradient while their time lasts: behind it nothing goes
    backward through them."""
    for name in getattr(model, "trained_for", ()):
        p = model.get_parameter(name)
        if (until := getattr(p, "until", None)) is not None:
            p.requires_grad_(epoch < until)


def rates(groups: list[dict], lr: float, epoch: float) -> None:
    """Sets the groups' learning rates: lr, times what a group has of its own, times 1 - epoch / until while
    its time lasts, then 0."""
    for group in groups:
        left = max(0.0, 1 - epoch / group["until"]) if "until" in group else 1.0
        group["lr"] = lr * group.get("lr_scale", 1.0) * left
