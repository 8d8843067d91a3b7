"""The timing: the run's own step, ledger and stream, over batches that a schedule would not choose."""

import logging
import math
import random
import statistics
import time
from dataclasses import dataclass

from adabatch.errors import is_out_of_memory
from adabatch.profiling.peak import Peak
from adabatch.profiling.points import Way
from adabatch.schedules.setting import Setting

ROUNDS = 2  # visits of each point, at different times
LEAST, MOST = 3, 20_000  # timed steps of a visit
BLOCK = 0.05  # seconds on a GPU between two waits for it, which a run does not make at every step
REFERENCE = 0.25  # of a point's seconds go into each timing of the reference
CAUSES = ("data", "exposed_communication")

log = logging.getLogger("adabatch")


@dataclass(frozen=True)
class Timed:
    """Seconds of each step (of blocks, on a GPU) of the slowest rank, and shares that went into reading
    samples and into waiting for others. first: the first step at all, compilation included."""

    steps: list[float]
    data: float
    communication: float
    first: float
    peak: int | None

    @property
    def median(self) -> float:
        return statistics.median(self.steps)


class Timer:
    """parts, ledger: of a run (`build`). seconds: spent on a point, warm-up excluded. tell(text): progress.

    Weights stand still (a learning rate of 0), so that no point depends on those before it. Every rank takes
    the same steps: their number follows from times of the slowest.
    """

    def __init__(self, parts, ledger, seconds: float, tell=lambda text: None):
        self.parts, self.ledger, self.seconds, self.tell = parts, ledger, seconds, tell
        self.position, self.peak = 0, Peak(parts.hardware.device)
        self.needs = frozenset()  # what the steps measure of the gradient

    def step(self, batch: int) -> None:
        """One step as the loop takes it (`train.loop`), without its rows."""
        parts = self.parts
        with self.ledger("compute"):
            setting = Setting(batch, 0.0, batch)
            parts.step(self.position, setting, self.needs, wishes=lambda: [False] * 4)
            if parts.average:
                parts.average.update(batch)
        self.position += batch

    def block(self, batch: int, count: int) -> list[float]:
        """[seconds, of them data, communication] of so many steps, on this rank."""
        hardware = self.parts.hardware
        before, began = self.ledger.read(), time.perf_counter()
        for _ in range(count):
            self.step(batch)
        hardware.synchronize()
        took, after = time.perf_counter() - began, self.ledger.read()
        return [took / count, *((after[c] - before[c]) / count for c in CAUSES)]

    def point(self, way: Way, seconds: float) -> Timed | None:
        """None: the memory does not suffice, on some rank."""
        step, hardware = self.parts.step, self.parts.hardware
        step.micro_batch = way.micro_batch
        level = log.level
        log.setLevel(logging.ERROR)  # a step that ran out of memory says that it is repeated
        try:
            found = self._timed(way.batch_size, seconds)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            found = None
        finally:
            log.setLevel(level)
        if found is None or step.micro_batch != way.micro_batch:
            hardware.empty_cache()
            return None
        return found

    def _timed(self, batch: int, seconds: float) -> Timed | None:
        hardware, micro = self.parts.hardware, self.parts.step.micro_batch
        hardware.ranks.barrier()
        self.peak.reset()
        first, second = (self._slowest([self.block(batch, 1)])[0] for _ in range(2))
        if self.parts.step.micro_batch != micro:  # halved on all ranks alike
            return None
        estimate = max(second[0], 1e-6)
        several = hardware.device.type == "cuda"
        size = max(1, math.ceil(BLOCK / estimate)) if several else 1
        if more := size * int(min(0.2 * seconds, 1.0) / (size * estimate)):
            self.block(batch, more)  # warm-up, beside the two steps
        count = min(max(LEAST, round(seconds / (size * estimate))), MOST)
        rows = self._slowest([self.block(batch, size) for _ in range(count)])
        total = sum(row[0] for row in rows)
        data, waiting = (sum(row[i] for row in rows) / total for i in (1, 2))
        peak = self.peak.read()
        (most,) = hardware.ranks.spread([peak or 0])[1]
        return Timed([row[0] for row in rows], data, waiting, first[0], most or None)

    def _slowest(self, rows: list[list[float]]) -> list[list[float]]:
        """The times of the slowest rank; of communication the least of any, which is what the slowest
        waits."""
        flat = [round(1e9 * value) for row in rows for value in row]
        least, most = self.parts.hardware.ranks.spread(flat)
        width = 1 + len(CAUSES)
        found = []
        for i in range(0, len(flat), width):
            found.append([most[i] / 1e9, most[i + 1] / 1e9, least[i + 2] / 1e9])
        return found

    def all(self, ways: list[Way]) -> tuple[list[dict], list[float]]:
        """(the points, seconds of the reference between them). The order is drawn, the same on all ranks; a
        point is timed in ROUNDS visits, each divided by the reference's drift around it."""
        plain = [way for way in ways if way.plain]
        reference = plain[len(plain) // 2]
        generator, visits = random.Random(0), []
        for _ in range(ROUNDS):
            visits += generator.sample(ways, len(ways))
        found, seconds = [], [self.reference(reference)]
        for number, way in enumerate(visits, 1):
            timed = self.point(way, self.seconds / ROUNDS)
            seconds.append(self.reference(reference))
            found.append((way, timed))
            rate = f"{way.batch_size / timed.median:,.0f} samples/s" if timed else "out of memory"
            cut = f"micro-batch {way.micro_batch:,}"
            self.tell(f"{number:3d} of {len(visits)}  batch {way.batch_size:>7,}  {cut:18s}  {rate}")
        usual = statistics.median([s for s in seconds if s] or [1.0])
        drift = [((a or usual) + (b or usual)) / 2 / usual for a, b in zip(seconds, seconds[1:])]
        by: dict[Way, list] = {way: [] for way in ways}
        for (way, timed), moved in zip(found, drift):
            by[way].append((timed, moved))
        rows = [self.row(way, rounds) for way, rounds in by.items()]
        rows.sort(key=lambda row: (row["batch_size"], -row["micro_batch"]))
        return rows, [s for s in seconds if s]

    def reference(self, way: Way) -> float | None:
        """Seconds of a step in a short burst."""
        timed = self.point(way, REFERENCE * self.seconds)
        return timed.median if timed else None

    def row(self, way: Way, rounds: list[tuple]) -> dict:
        """A point as the file has it. rounds: [(Timed or None, drift), ...]."""
        step = self.parts.step
        step.micro_batch = way.micro_batch
        count, _ = step.share(way.batch_size)
        row = {"batch_size": way.batch_size, "micro_batch": way.micro_batch, "accumulation": count}
        ran = [(timed, drift) for timed, drift in rounds if timed is not None]
        if len(ran) < len(rounds):
            return row | {"out_of_memory": True}
        steps = [s / drift for timed, drift in ran for s in timed.steps]
        low, median, high = statistics.quantiles(steps, n=4)
        return row | {
            "seconds": median,
            "low": low,
            "high": high,
            "samples_per_second": way.batch_size / median,
            "data": statistics.fmean(timed.data for timed, _ in ran) * median,
            "communication": statistics.fmean(timed.communication for timed, _ in ran) * median,
            "first_step_seconds": ran[0][0].first,
            "steps": len(steps),
            "rounds": [timed.median / drift for timed, drift in ran],
            "peak_memory_bytes": max((timed.peak for timed, _ in ran if timed.peak), default=None),
        }

    def measuring(self, ways: list[Way], rows: list[dict], needs: frozenset) -> list[dict]:
        """What a step takes longer that measures the gradient for a closed loop, by batch size."""
        known = {(r["batch_size"], r["micro_batch"]): r.get("seconds") for r in rows}
        found, self.needs = [], needs
        for way in ways:
            usual = known[way.batch_size, way.micro_batch]
            if usual and (timed := self.point(way, self.seconds / ROUNDS)):
                extra = max(timed.median - usual, 1e-9)
                found.append({"batch_size": way.batch_size, "seconds": extra})
        self.needs = frozenset()
        return found

    def sustained(self, way: Way, seconds: float) -> float:
        """The mean of the steps of so many seconds without a pause, over the median of short bursts before
        and after: what heat and a clock that cannot be kept up come to, and steps that take much longer than
        most. A run's time is a sum, which follows the mean."""
        before, timed, after = self.reference(way), self.point(way, seconds), self.reference(way)
        if not (before and timed and after):
            return 1.0
        return statistics.fmean(timed.steps[len(timed.steps) // 3 :]) * 2 / (before + after)
