"""Checks over all runs at once: the schedule as planned, the data order, the inputs, the norms."""

import torch

from adabatch.verify.check import Check
from adabatch.verify.promises import BITWISE, listed
from adabatch.verify.recorded import Recorded


def schedule(seen: list[tuple[str, Recorded]], expected: dict, held: bool) -> Check:
    """Every run trained the planned batches at the planned learning rates, each position once, to the budget.
    held: the learning rate is not the schedule's alone (`schedule.hold`)."""
    found = [(name, *wrong) for name, run in seen if (wrong := off_plan(run, expected, held))]
    if expected["whole"]:
        found.append(("the schedule", expected["budget"], f"dropped tail: {expected['whole']}"))
    return row("schedule as planned", found)


def off_plan(run: Recorded, expected: dict, held: bool) -> tuple[int, str] | None:
    """(position, what is not as planned) of a run."""
    position = 0
    for index, step in enumerate(run.steps):
        planned = expected["steps"][index] if index < len(expected["steps"] or ()) else None
        if step.start != position:
            return position, f"a step starts at {step.start:,} instead of {position:,}"
        if planned and [step.batch, step.divisor] != planned[1:3]:
            sizes = f"a batch of {step.batch} divided by {step.divisor}"
            return position, f"schedule: {sizes} instead of {planned[1]} by {planned[2]}"
        if planned and not held and step.lr[0] != planned[3]:
            return position, f"learning rate {step.lr[0]:.9g} instead of {planned[3]:.9g}"
        if bool((step.trained != 1).any()):
            where = int((step.trained != 1).nonzero()[0])
            times = int(step.trained[where])
            return position + where, f"a sample was trained {times} times instead of once"
        position = step.stop
    if position != expected["budget"]:
        left = expected["budget"] - position
        what = f"dropped tail: the last {left:,} samples of the budget" if left > 0 else "beyond the budget"
        return position, f"{what} ({expected['budget']:,}) were {'never ' if left > 0 else ''}trained"
    return None


def order(seen: list[tuple[str, Recorded]], expected: dict) -> Check:
    """Every run read at each position the sample that (seed, position) names."""
    whole = torch.tensor(expected["order"])
    found = []
    for name, run in seen:
        for step in run.steps:
            wanted = whole[step.start : step.stop]
            differs = (step.sample[: len(wanted)] != wanted) & (step.trained[: len(wanted)] > 0)
            if bool(differs.any()):
                at = int(differs.nonzero()[0])
                text = f"sample {int(step.sample[at])} instead of {int(wanted[at])}"
                found.append((name, step.start + at, f"data order: {text}"))
                break
    return row("data order", found)


def inputs(seen: list[tuple[str, Recorded]], references: dict) -> Check:
    """Every run saw at each position the labels and the bits of the input that the reference of its precision
    saw, and inputs do not depend on what is read with them. references: {precision: Recorded}."""
    found = []
    for name, run in seen:
        if (at := run.meta["pieces"]) is not None:
            text = "augmentation: the input depends on which samples are read with it (keyed by batch?)"
            found.append((name, at, text))
        elif (ours := references.get(run.meta["precision"])) and (wrong := unlike(ours, run)):
            found.append((name, *wrong))
    return row("augmentation", found)


def unlike(ours: Recorded, theirs: Recorded) -> tuple[int, str] | None:
    """(first position, what) at which labels or inputs differ, whatever the batches."""
    known = theirs.by_position("trained")
    size = min(len(known), len(ours.by_position("trained")))
    same = ours.by_position("sample")[:size] == theirs.by_position("sample")[:size]
    for name, what in (("label", "labels differ"), ("input", "augmentation or preparation of inputs")):
        differs = (ours.by_position(name)[:size] != theirs.by_position(name)[:size]) & (known[:size] > 0)
        if bool(differs.any()):
            at = int(differs.nonzero()[0])
            of = "" if bool(same[at]) else ", another sample"
            return at, f"{what} ({int(differs.sum())} of {size:,} samples{of})"
    return None


def norms(meta: dict) -> Check:
    """No plain batch norm where the configuration says ghost; a declared one is named, and promises
    nothing."""
    plain = meta["plain_norms"]
    if meta["claims_ghost"] and plain:
        text = f"plain batch norm behind a configuration that says model.norm=ghost or l1: {listed(plain)}"
        return Check("norms as configured", None, BITWISE, False, text)
    layers = plain + meta["torch_dropouts"]
    text = f"declared, its result depends on how a batch is cut: {listed(layers)}" if layers else None
    return Check("norms as configured", None, None if layers else BITWISE, True, text)


def row(name: str, found: list[tuple[str, int, str]]) -> Check:
    """found: (run, position, what is wrong)."""
    if not found:
        return Check(name, None, BITWISE, True)
    who, position, what = found[0]
    more = f" (and {len(found) - 1} more of the runs)" if len(found) > 1 else ""
    return Check(name, None, BITWISE, False, f"{who}: {what}, first at position {position:,}{more}", position)
