"""Goodput (Pollux: Qiao et al., OSDI 2021, arXiv 2008.12260; code github.com/petuum/adaptdl): the batch at
which a second of training is worth most."""

import bisect
import math

from adabatch.errors import UserError
from adabatch.schedules.closed import Rule, Seen
from adabatch.schedules.setting import Frame


class Goodput(Rule):
    """batch = argmax of throughput(B) (phi + base_batch) / (phi + B), phi = tr(S) / |G|^2: samples per second
    times the share of the progress per sample that base_batch would make.

    profile: [(batch, samples per second), ...], recorded before the run, so that its decisions can be
    repeated: a live timing cannot. Between the points throughput is interpolated linearly in the logarithms
    of both; beyond them a sample takes as long as at the nearest. The source fits a model of the cluster
    instead. candidates: batch sizes that are compared, geometric from base_batch to the cap.
    A change is worth the gain in goodput that it promises (the source asks for 5 %: schedule.hysteresis).
    """

    needs = frozenset({"trace", "sq_norm"})
    rounding = "up"

    def __init__(self, profile: list | None = None, candidates: int = 50):
        if not profile:
            raise UserError(
                'goodput needs a recorded profile: schedule.profile=FILE.json with {"format": 1, "points": '
                '[{"batch_size": 32, "samples_per_second": 1000.0}, ...]}, or the folder of a finished run '
                "that trained two batch sizes or more, for example of schedule=adabatch"
            )
        if isinstance(candidates, bool) or not isinstance(candidates, int) or candidates < 2:
            raise UserError(f"schedule.growth.candidates is a whole number from 2, got {candidates!r}")
        self.points = sorted((math.log(batch), math.log(rate)) for batch, rate in profile)
        self.candidates = candidates

    def bind(self, frame: Frame) -> None:
        first, ratio = frame.base_batch, max(1.0, frame.cap / frame.base_batch)
        wanted = (first * ratio ** (i / (self.candidates - 1)) for i in range(self.candidates))
        self.base, self.sizes = first, sorted({min(frame.planned(w, "up"), frame.cap) for w in wanted})

    def throughput(self, batch: float) -> float:
        """Samples per second."""
        where = math.log(batch)
        after = bisect.bisect_left(self.points, (where,))
        if after == 0:
            return math.exp(self.points[0][1])
        if after == len(self.points):
            return math.exp(self.points[-1][1])
        (a, low), (b, high) = self.points[after - 1 : after + 1]
        return math.exp(low + (high - low) * (where - a) / (b - a))

    def efficiency(self, scale: float, batch: float) -> float:
        """EFF: progress per sample, compared with base_batch."""
        return (scale + self.base) / (scale + batch)

    def goodput(self, scale: float, batch: float) -> float:
        """Samples of base_batch's worth per second."""
        return self.throughput(batch) * self.efficiency(scale, batch)

    def wish(self, seen: Seen) -> float | None:
        if seen.scale is None:
            return None
        return max(self.sizes, key=lambda batch: self.goodput(seen.scale, batch))

    def worth(self, seen: Seen, batch: int) -> float:
        return self.goodput(seen.scale, batch) / self.goodput(seen.scale, seen.batch) - 1
