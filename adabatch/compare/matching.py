"""Which schedules do the same, and which fixed batch makes as many updates.

The batch of as many updates (science: D3) is P / U for P samples in U updates; its learning rate is lr(p)
(B / B(p))^q, q = 1 for SGD and 1/2 for Adam-type optimizers: the noise of the schedule that it is matched to.
"""

import math

from adabatch.schedules.closed import Controller
from adabatch.schedules.core import Schedule, walk

NEAR = 1e-9  # relative: learning rates that differ by rounding are equal


def open_loop(schedule) -> bool:
    """Whether it is a function of position."""
    return isinstance(schedule, Schedule) and not schedule.needs and not schedule.growth.closed


def trajectory(schedule) -> list[tuple[int, int, float]]:
    """(first sample, batch size, learning rate) of every update of an open loop."""
    return [(start, setting.divisor, setting.lr) for start, _, setting in walk(schedule)]


def equal(a: list, b: list) -> bool:
    """Whether two trajectories are the same but for rounding."""
    return len(a) == len(b) and all(
        x[:2] == y[:2] and math.isclose(x[2], y[2], rel_tol=NEAR) for x, y in zip(a, b)
    )


def mean_batch(budget: int, updates: int) -> int:
    return max(1, round(budget / updates))


def follows(fixed: Schedule, path: list, exponent: float) -> bool:
    """Whether a fixed batch has the noise lr / batch^q of a trajectory at each of its positions."""
    batch = fixed(0).divisor
    return all(
        math.isclose(fixed(start).lr, lr * (batch / size) ** exponent, rel_tol=NEAR)
        for start, size, lr in path
    )


def keeps_noise(schedule, fixed: Schedule) -> bool:
    """Whether a closed loop has the noise of a fixed batch wherever its rule leads it, so that its LR twin is
    that fixed batch."""
    if not isinstance(schedule, Schedule) or not isinstance(schedule.growth, Controller):
        return False
    if schedule.scaling.name.startswith("AdaScale") or schedule.decay.needs or schedule.decay.closed:
        return False
    rule, before = schedule.growth, schedule.growth.batch
    path = trajectory(fixed)
    try:
        for batch in (schedule.frame.base_batch, schedule.cap):
            rule.batch = batch
            other = [(start, schedule(start)) for start, _, _ in path]
            q = schedule.noise_exponent
            size = path[0][1]
            if not all(
                math.isclose(lr, found.lr * (size / found.divisor) ** q, rel_tol=NEAR)
                for (_, _, lr), (_, found) in zip(path, other)
            ):
                return False
    finally:
        rule.batch = before
    return True
