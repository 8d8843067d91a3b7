"""When a closed loop measures the gradient, and the averages of what it found."""

import math

from adabatch.cutting import groups_in
from adabatch.errors import UserError
from adabatch.noise import Average
from adabatch.schedules.setting import Observation


class Measuring:
    """When the noise is measured, over which groups, and its averages.

    every: samples between measurements: a step measures if it holds a multiple of it; 0 = every step, "auto"
    = `period`. group: samples in a group, None = half of base_batch in whole ghost groups. horizon: of the
    averages, in samples. differenced: where a batch is a single group, use two successive batches (biased).
    preconditioned: norms in Adam's metric.
    """

    # A step in groups of 32 takes up to 1.2 times as long (docs/performance.md), so that every tenth costs
    # 2 %. Nothing is decided before |G|^2 stands out of its error: at first, and where an average would hold
    # fewer than eight of them, measurements are worth more than that.
    SELDOM, LEAST, DENSE = 16, 8, 32

    def __init__(
        self,
        every: int | str,
        group: int | None,
        horizon: float,
        differenced: bool,
        preconditioned: bool = False,
    ):
        number = type(every) in (int, float) and every >= 0
        whole = group is None or (type(group) is int and group > 0)
        if not (every == "auto" or number) or not whole:
            raise UserError(
                "schedule.measure_every is auto, or 0 or more, and schedule.noise_group a whole number of "
                f"samples, got {every!r} and {group!r}"
            )
        self.every, self.group, self.horizon = every, group, horizon
        self.differenced, self.preconditioned = differenced, preconditioned
        self.average, self.last, self.measured_at = Average(horizon), None, None

    def period(self, start: int, batch: int) -> float:
        """Samples between two measurements around position `start`, in batches of this size; 0: every step.

        "auto" is the largest power of two in `SELDOM` batches, start / `DENSE` and horizon / `LEAST`: every
        step of the first 64, every 8th to 16th from the 1,024th on. Powers of two, because a multiple of one
        is a multiple of all smaller ones: distances that change as the batch does lose no measurement.
        """
        if self.every != "auto":
            return self.every
        most = int(min(self.SELDOM * batch, start / self.DENSE, self.horizon / self.LEAST))
        return 1 << max(1, most).bit_length() - 1

    def due(self, start: int, batch: int) -> bool:
        """Whether the batch holds a multiple of `period`; where a batch is a single group also the next one,
        as two are compared."""
        every = self.period(start, batch)
        if not every:
            return True
        alone = self.differenced and self.group is not None and groups_in(batch, self.group) == 1
        begin = max(0, start - batch) if alone else start
        return (start + batch) // every > begin // every

    def times(self, start: int, batch: int, steps: int) -> int:
        """How many of so many steps of this size from `start` on measure, but for the second ones of two that
        are compared; within one for each doubling of the position."""
        found, position, end = 0.0, start, start + steps * batch
        while position < end:
            every = self.period(position, batch)
            stop = min(end, 1 << position.bit_length()) if self.every == "auto" else end
            found += (stop - position) / max(every, batch)
            position = stop
        return min(steps, math.floor(found + 1e-9))

    def add(self, seen: Observation) -> Average:
        self.last = seen.noise
        if seen.noise is not None:
            end = seen.position + seen.setting.batch_size
            before = seen.position if self.measured_at is None else self.measured_at
            self.average.add(seen.noise, end - before)
            self.measured_at = end
        return self.average

    def figures(self, samples: int) -> dict:
        """Of the last observation: the measurement, the averages, and their ratio where it is resolved."""
        noise, average = self.last, self.average
        if noise is None:
            return {}
        found = dict(
            trace=noise.trace,
            sq_norm=noise.sq_norm,
            sq_norm_full=noise.full(samples),
            trace_average=average.trace,
            sq_norm_average=average.sq_norm,
            noise_scale=average.scale,
        )
        if noise.biased:
            found["biased"] = True
        for name in ("per_sample", "diversity"):
            if getattr(noise, name) is not None:
                found[name] = getattr(noise, name)
        if noise.parts:
            found["noise_parts"] = [list(part) for part in noise.parts]
        return found

    def state_dict(self) -> dict:
        return {"average": self.average.state_dict(), "measured_at": self.measured_at}

    def load_state_dict(self, state: dict) -> None:
        self.average.load_state_dict(state["average"])
        self.measured_at = state["measured_at"]
