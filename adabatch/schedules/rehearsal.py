"""A rehearsal: a few steps of a schedule with a change of batch among them (`rehearsal.steps`,
adabatch-verify).

Open loop: the schedule's own first steps for one half, and for the other its steps from the first other batch
size on, found by walking its real epochs. They are replayed as a recorded trajectory is (`replay.py`), so
that everything that a run does with a schedule is done here too, and are a function of position. A schedule
that never changes is given a doubled batch, with the learning rate that its own scaling gives that batch;
where scaling changes nothing, three quarters of it, so that a learning rate which stays behind shows. A
closed loop keeps its rule, and is doubled half-way unless the rule has changed the batch by then.

The budget ends inside a batch: the last one is cut, to no multiple of a ghost group. Epochs do not bound a
rehearsal, and compat=nvlabs, which drops the tail of each, has no say in it.
"""

from adabatch.errors import UserError
from adabatch.schedules.closed import Controller
from adabatch.schedules.replay import Batches, replay

STEPS = 12
LOWER = 0.75  # of the learning rate, where its scaling would leave it alone
FAR = 10_000  # steps that are walked one by one; a later change is looked for at milestones only


def rehearse(planned, steps: int = STEPS, ghost: int | None = None):
    """The schedule of a rehearsal of `planned` over `steps` steps (4 at least; of a closed loop about so
    many). ghost: samples in a ghost group, None where only the network knows. UserError: a closed loop that
    is no Schedule of ours."""
    closed = planned.needs or getattr(getattr(planned, "growth", None), "closed", False)
    if closed:
        return _closed(planned, steps, ghost)
    settings = steps_of(planned, steps)
    last = settings[-1][0]
    sizes = [size for size, *_ in settings[:-1]] + [cut(last, ghost)]
    trajectory, start = [], 0
    for (divisor, lr, fields), size in zip(settings, sizes):
        trajectory.append((start, size, divisor, lr, fields))
        start += size
    return replay(
        samples=planned.samples,
        epochs=start / planned.samples,
        trajectory=trajectory,
        noise_exponent=getattr(planned, "noise_exponent", 1.0),
    )


def cut(batch: int, ghost: int | None) -> int:
    """Samples of the last batch: about two thirds, odd, and no multiple of the ghost group."""
    size = batch * 2 // 3
    while size > 1 and (size % 2 == 0 or (ghost or 2) > 1 and size % (ghost or 2) == 0):
        size -= 1
    return max(1, size)


def steps_of(planned, steps: int) -> list[tuple]:
    """(batch size, lr, fields of the setting) of each step of an open loop's rehearsal."""
    half = steps // 2
    first = walked(planned, 0, steps)
    if any(size != first[0][0] for size, *_ in first[: half + 1]):
        return first  # a ramp: its own first steps change
    change = changed(planned)
    if change is not None:
        return first[:half] + walked(planned, change, steps - half)
    return first[:half] + [doubled(planned, *first[half])] * (steps - half)


def walked(planned, position: int, count: int) -> list[tuple]:
    """The settings of `count` steps from a position on; where the run ends sooner, its last one again."""
    found = []
    while len(found) < count and (start := planned.start(position)) < planned.budget:
        setting = planned(start)
        fields = {"growth": setting.growth, "lr_growth": setting.lr_growth}
        found.append((setting.divisor, setting.lr, fields))
        position = start + setting.batch_size
    return found + found[-1:] * (count - len(found))


def changed(planned) -> int | None:
    """The position of the first batch of another size than the first one has; None: there is none."""
    size, position = planned(planned.start(0)).divisor, 0
    for _ in range(FAR):
        if (start := planned.start(position)) >= planned.budget:
            return None
        setting = planned(start)
        if setting.divisor != size:
            return start
        position = start + setting.batch_size
    stretch, growth = getattr(planned, "stretch", 1), getattr(planned, "growth", None)
    marks = sorted(round(mark * stretch) for mark in growth.milestones()) if growth else []
    later = [planned.start(mark) for mark in marks if mark > position]
    return next((p for p in later if p < planned.budget and planned(p).divisor != size), None)


def other(batch: int, largest: int) -> int:
    """The batch that one which never changes is given: twice as large, or half where that is too large."""
    return 2 * batch if 2 * batch <= largest else max(1, batch // 2)


def doubled(planned, batch: int, lr: float, fields: dict) -> tuple:
    size, scaling = other(batch, planned.samples), getattr(planned, "scaling", None)
    ratio = scaling(size, size)[0] / scaling(batch, batch)[0] if scaling else 1.0
    if ratio == 1:
        return size, lr * LOWER, fields | {"growth": fields["growth"] * size / batch}
    grown = {"growth": fields["growth"] * size / batch, "lr_growth": fields["lr_growth"] * ratio}
    return size, lr * ratio, grown


class Nudged(Controller):
    """A rule's growth that changes the batch at `mark` (a position in samples) if the rule has not."""

    def __init__(self, growth: Controller, mark: int, batch: int):
        self.__dict__.update(growth.__dict__)
        self.first, self.mark, self.nudge = growth.batch, mark, batch

    def observe(self, seen, average, updates: int) -> None:
        super().observe(seen, average, updates)
        end = seen.position + seen.setting.batch_size
        if end >= self.mark and self.batch == self.first:
            self.batch, self.changed = self.nudge, end


def _closed(planned, steps: int, ghost: int | None):
    if not all(hasattr(planned, name) for name in ("frame", "growth", "scaling", "budget")):
        raise UserError(
            "a rehearsal of a schedule that measures needs one made of adabatch.schedules.Schedule "
            "(closed_loop), "
            f"got {type(planned).__name__}: take another schedule, or rehearsal=null"
        )
    first, half = planned(0).divisor, steps // 2
    changed = other(first, planned.cap)
    if isinstance(planned.growth, Controller):
        planned.growth = Nudged(planned.growth, half * first, changed)
    else:
        planned.growth = Batches([0, half * first], [first, changed])
    planned.budget = half * first + (steps - half - 1) * changed + cut(changed, ghost)
    if planned.scaling.ends_early:
        planned.scaling.stop = "samples"  # the original schedule's end lies far behind a rehearsal's
    return planned
