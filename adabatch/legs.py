"""Batch-phase jobs: a run as a chain of jobs, each on as many processes as its batches can fill.

A leg is a stretch of a run on one number of processes. It ends before the first batch that another number
suits; what is computed does not depend on that number, so the joins leave no trace but rounding. No torch.
"""

from dataclasses import dataclass, replace

from adabatch import profiles
from adabatch.errors import UserError
from adabatch.phases import phases
from adabatch.throughput import knee

MOST = 24  # jobs of a chain


@dataclass(frozen=True)
class Rule:
    """How many processes a batch gets. samples: of a batch for each process. most: processes at the most.
    node: processes of a whole node; what exceeds a node takes whole ones."""

    samples: int
    most: int
    node: int

    def processes(self, batch: int) -> int:
        """From 1 to `most`, so that each has at least `samples` of the batch."""
        count = max(1, min(self.most, batch // self.samples))
        return count if count <= self.node else count - count % self.node

    def plain(self, closed: bool) -> dict:
        """For a job's payload; `suiting` reads it."""
        return {"samples": self.samples, "most": self.most, "node": self.node, "closed": closed}

    def next(self, batch: int, now: int, closed: bool) -> int:
        """For a run on `now` processes that comes to a batch of this size. A closed loop's batch may go up
        and down from decision to decision, and each change waits in a queue: there only growth counts."""
        suits = self.processes(batch)
        return max(now, suits) if closed else suits


def rule(config: dict, most: int, node: int) -> Rule | None:
    """The rule of `hardware.phases`; None where the run keeps its number.

    auto = a process for each `schedule.base_batch` samples; a number = for each so many; a profile = for as
    many as keep one busy. most, node: processes that were asked for.
    """
    asked = config["hardware"].get("phases")
    if asked is None:
        return None
    if asked == "auto":
        asked = config["schedule"].get("base_batch") or 1
    return Rule(asked if isinstance(asked, int) else filling(config, asked), most, node)


def filling(config: dict, source: str) -> int:
    """Samples of a batch for each process with which it reaches 95 % of the highest throughput in the profile
    of this network; the largest that was measured where throughput was still rising. UserError: there is no
    such profile, or there are several."""
    found, threads = profiles.read(source), config["hardware"].get("threads")
    match = [p for p in found if p.configuration == profiles.configured(config)]
    match = [p for p in match if threads in (None, p.machine["threads"])]
    if len(match) == 1:
        batch, _ = knee({p.batch_size: p.samples_per_second for p in match[0].plain()})
        return -(-batch // match[0].world)
    if not match:
        raise UserError(
            f"hardware.phases={source} was measured with another network, other settings or other threads: "
            "adabatch-profile with the overrides of this run measures this one"
        )
    held = "; ".join(f"@{p.key} ({p.words()})" for p in match)
    raise UserError(f"hardware.phases={source} holds {len(match)} profiles of this network, name one: {held}")


@dataclass(frozen=True)
class Leg:
    """start: its first sample. batch: its largest batch size."""

    start: int
    processes: int
    batch: int


def legs(schedule, by: Rule) -> list[Leg]:
    """The legs of an open-loop schedule; of a closed loop the first, since nobody knows the others.
    UserError: they are too many."""
    parts = phases(schedule)[: 1 if is_closed(schedule) else None]
    if len(found := _cut(parts, by)) <= MOST:
        return found
    samples = by.samples
    while len(_cut(parts, replace(by, samples=samples))) > MOST:
        samples *= 2
    raise UserError(
        f"hardware.phases makes at most {MOST} jobs of a run, since each of them waits in the queue and "
        f"starts anew; with a process for each {by.samples} samples of a batch this schedule makes "
        f"{len(found)}. Take hardware.phases={samples}, a growth in larger steps, or one job: "
        "hardware.phases=null"
    )


def _cut(parts, by: Rule) -> list[Leg]:
    """The legs of these phases, neighbours of one number of processes joined."""
    found: list[Leg] = []
    for phase in parts:
        suits = by.processes(phase.batch_size)
        if found and found[-1].processes == suits:
            found[-1] = Leg(found[-1].start, suits, max(found[-1].batch, phase.batch_size))
        else:
            found.append(Leg(phase.start, suits, phase.batch_size))
    return found


def remaining(cut: list[Leg], position: int) -> list[Leg]:
    """The legs of which something is left to train at this position; the last one always."""
    ends = [leg.start for leg in cut[1:]]
    return [leg for leg, end in zip(cut, ends) if end > position] + cut[-1:]


def suiting(leg: dict | None, world: int):
    """What `train` asks before a batch: a function of its size, to the number of processes that suits it
    better than `world`, or None. leg: `Rule.plain`."""
    if leg is None:
        return None
    by, closed = Rule(leg["samples"], leg["most"], leg["node"]), leg["closed"]

    def better(batch: int) -> int | None:
        suits = by.next(batch, world, closed)
        return suits if suits != world else None

    return better


def is_closed(schedule) -> bool:
    """Whether batches follow from what is measured on the way."""
    return bool(schedule.needs or schedule.growth.closed)
