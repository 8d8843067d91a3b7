"""Phases: maximal stretches of one batch size and one rule of the learning rate (equal `Setting.stage`)."""

import math
from dataclasses import dataclass, replace

from adabatch.schedules.core import Schedule
from adabatch.schedules.factors import Constant, Steps
from adabatch.schedules.setting import Setting

# Learning rates whose stage is a count of what has passed: it never goes back.
OURS = ("adabatch.schedules.factors", "adabatch.schedules.curves")


@dataclass(frozen=True)
class Phase:
    """start: the first sample trained under it; last: the first sample of its last batch; end: the position
    after it. lr, lr_end: of the first and last batch. trained: samples; skipped: samples left out before
    its batches (compat=nvlabs)."""

    start: int
    last: int
    end: int
    batch_size: int
    lr: float
    lr_end: float
    steps: int
    trained: int
    skipped: int


def phases(schedule) -> list[Phase]:
    """All phases of a run. A closed loop is read as if it never decided. Cost: a few readings per phase where
    batch and stage can only step, else one per batch (5 microseconds each)."""
    found: list[tuple[tuple, Phase]] = []
    position, jumps = 0, only_steps(schedule)
    while (start := schedule.start(position)) < schedule.budget:
        first = schedule(start)
        steps = alike(schedule, start, first) if jumps else 1
        last = start + (steps - 1) * first.divisor
        setting = schedule(last) if steps > 1 else first
        end = last + setting.batch_size
        part = Phase(
            start, last, end, first.divisor, first.lr, setting.lr, steps, end - start, start - position
        )
        if found and found[-1][0] == first.stage:
            found[-1] = (first.stage, joined(found[-1][1], part))
        else:
            found.append((first.stage, part))
        position = end
    return [phase for _, phase in found]


def joined(a: Phase, b: Phase) -> Phase:
    """One phase out of two that follow each other."""
    sums = dict(steps=a.steps + b.steps, trained=a.trained + b.trained, skipped=a.skipped + b.skipped)
    return replace(a, last=b.last, end=b.end, lr_end=b.lr_end, **sums)


def only_steps(schedule) -> bool:
    """Whether the stage only ever moves on, so that a phase's end can be found by halving."""
    if not isinstance(schedule, Schedule) or schedule.twin == "batch":
        return False
    return type(schedule.decay).__module__ in OURS and isinstance(schedule.growth, Constant | Steps)


def alike(schedule: Schedule, start: int, first: Setting) -> int:
    """Batches from `start` on under the stage of `first`, without a skip between them."""
    stop = schedule.budget
    most = math.ceil((stop - start) / first.divisor)
    if schedule.compat:  # up to the tail of the epoch
        whole = schedule.samples - start % schedule.samples
        most = min(most, whole // first.divisor)
    low, high = 1, max(1, most)
    while low < high:
        middle = (low + high + 1) // 2
        if schedule(start + (middle - 1) * first.divisor).stage == first.stage:
            low = middle
        else:
            high = middle - 1
    return low


def totals(schedule, found: list[Phase]) -> dict:
    """Of the whole run. mean_batch: samples / updates, the fixed batch of as many updates."""
    updates, trained = sum(p.steps for p in found), sum(p.trained for p in found)
    return {
        "updates": updates,
        "samples": trained,
        "skipped": schedule.budget - trained,
        "epochs": schedule.budget / schedule.samples,
        "mean_batch": trained / updates,
        "largest_batch": max(p.batch_size for p in found),
        "final_lr": found[-1].lr_end,
    }


def curve(schedule, found: list[Phase], points: int = 300) -> list[tuple[int, int, float]]:
    """[(position, batch size, learning rate)] for a drawing: each phase's first and last batch, and about
    `points` more over the run where the learning rate moves within a phase."""
    line = []
    for phase in found:
        line.append((phase.start, phase.batch_size, phase.lr))
        share = (phase.end - phase.start) / schedule.budget
        between = min(round(points * share), phase.steps - 2)
        for i in range(1, between + 1):
            position = phase.start + (phase.last - phase.start) * i // (between + 1)
            line.append((position, phase.batch_size, schedule(position).lr))
        if phase.last > phase.start:
            line.append((phase.last, phase.batch_size, phase.lr_end))
    line.append((found[-1].end, found[-1].batch_size, found[-1].lr_end))
    return line
