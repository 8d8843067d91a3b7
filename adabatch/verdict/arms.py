"""What a comparison is made of and what comes out of it, as plain values."""

import math
from dataclasses import dataclass, field

from adabatch.statistics import Clauses, Estimate, Margins
from adabatch.verdict.search import Search
from adabatch.verdict.traces import Traces

LOOKS = (5, 10, 20)  # runs of each arm at which a verdict may be given
SEEDS = (10, 20)  # what a new comparison could have, where no planned look is left
TURNING = ("reversed", "batch_twin")  # controls whose batch may change: in neither class


@dataclass(frozen=True)
class Run:
    """One run. None: it does not say. Errors are fractions, times seconds of training.

    key: {what its speed depends on: value}. alone: None, or why its times enter no verdict. target: seconds
    to the target, infinite for a miss. weights: a hash of the final weights. traces: what is drawn of it.
    """

    seed: int
    state: str = "finished"
    error: float | None = None
    seconds: float | None = None
    key: dict = field(default_factory=dict)
    alone: str | None = None
    best: float | None = None
    validation: float | None = None
    updates: float | None = None
    speed: float | None = None  # samples per second
    device_seconds: float | None = None
    target: float | None = None
    weights: str | None = None
    folder: str = ""
    traces: Traces = field(default=Traces(), repr=False, compare=False)

    @property
    def counted(self) -> bool:
        """It has ended with an error that can be compared."""
        return self.state == "finished" and self.error is not None

    @property
    def over(self) -> bool:
        """It has ended in a way that a verdict knows."""
        return self.counted or self.state in ("diverged", "out_of_memory")


@dataclass(frozen=True)
class Arm:
    """One schedule. adaptive: its class; None: neither, it is shown beside them and held against nobody.
    outside: None, or why it is in no comparison (another budget, nothing to replay). partial: None, or why
    seeds that it lacks are not to come: it is a rival with those that it has, and no candidate. budget: of a
    table's, how many times the samples of most runs it trained, where these are others."""

    name: str
    adaptive: bool | None
    runs: tuple[Run, ...]
    outside: str | None = None
    partial: str | None = None
    budget: float | None = None

    @property
    def counted(self) -> dict[int, Run]:
        """{seed: run} of those that finished."""
        return {run.seed: run for run in self.runs if run.counted}

    @property
    def errors(self) -> list[float]:
        return [run.error for run in self.counted.values()]

    @property
    def seeds(self) -> set[int]:
        return {run.seed for run in self.runs}

    @property
    def infeasible(self) -> bool:
        return any(run.state == "out_of_memory" for run in self.runs)

    @property
    def diverged(self) -> int:
        return sum(run.state == "diverged" for run in self.runs)

    @property
    def gone(self) -> bool:
        """So many of its runs diverged that it counts as beaten."""
        return self.diverged >= 0.6 * len(self.runs) > 0


@dataclass(frozen=True)
class Declared:
    """An arm as compare.yaml declares it. adaptive: its class, None where that is not said. control: what it
    is of the arm `of`. replayed: it is made of the runs of that arm, so it has no search of its own.
    identity: of its run with seed 0, before any search. search: for its learning rate, None where there was
    none or nothing tells of it."""

    name: str
    adaptive: bool | None = None
    control: str | None = None
    of: str | None = None
    replayed: bool = False
    identity: str | None = None
    search: Search | None = None

    @property
    def beside(self) -> bool:
        """It is in neither class: a control whose batch may change is no fixed arm, and no candidate."""
        return self.control in TURNING


@dataclass(frozen=True)
class Plan:
    """What was declared before the first run, or is assumed. delta: a fraction. evaluated: samples of the
    evaluation set. tuned: every arm had the same search for its learning rate. arms: how many were declared.
    declared: what was said of each, where every one has a name.
    chosen: there is a validation split to choose on. remark: how this differs from what was declared.
    assumed: the looks are the defaults, neither declared nor named with the command. chance: the error of
    guessing, of classes that are equally frequent. table: the arms are shown side by side and differ in more
    than their schedule, so that there is no verdict on them."""

    delta: float = 0.01
    r0: float = 1.05
    alpha: float = 0.05
    looks: tuple[int, ...] = LOOKS
    split: str = "test"
    evaluated: int | None = None
    tuned: bool = False
    chosen: bool = True
    arms: int | None = None
    declared: tuple[Declared, ...] = ()
    samples: int | None = None
    target: float | None = None
    remark: str | None = None
    assumed: bool = False
    chance: float | None = None
    table: bool = False

    @property
    def named(self) -> dict[str, Declared]:
        """{name: declared arm}"""
        return {arm.name: arm for arm in self.declared}

    @property
    def margins(self) -> Margins:
        return Margins(self.delta, self.r0, self.alpha / len(self.looks))


@dataclass(frozen=True)
class Comparison:
    """A candidate against a rival of the other class.

    difference: of errors, candidate less rival. speed: of log(T_rival / T_candidate), by pairs. why: what
    took the place of the clauses (divergence), or why there is no speed. correlation: of the errors by seed.
    """

    candidate: str
    rival: str
    beats: bool
    difference: Estimate | None = None
    speed: Estimate | None = None
    clauses: Clauses | None = None
    equal: float | None = None  # p of TOST
    correlation: float | None = None
    why: str | None = None
    no_time: str | None = None
    target: tuple | None = None  # limits of the ratio of times to the target, None on a side without

    def json(self, plan: Plan) -> dict:
        found = {"candidate": self.candidate, "rival": self.rival, "beats": self.beats, "why": self.why}
        if self.difference is None:
            return found
        made, d = self.clauses, self.difference
        found |= {
            "error_difference": float(d.mean), "error_ci90": limits(d, 0.90), "error_ci95": limits(d, 0.95),
            "not_worse": {"holds": bool(made.not_worse), "limit": float(made.limit), "below": plan.delta},
            "rival_worse": {"holds": bool(made.worse), "limit": float(made.worse_limit), "above": plan.delta},
            "tost_p": float(self.equal), "equal_within_margin": bool(self.equal < 0.05),
            "correlation": self.correlation, "speed": None, "no_time": self.no_time,
            "target_ratio_ci95": self.target and list(self.target),
        }  # fmt: skip
        if self.speed is not None:
            found["speed"] = {
                "ratio": math.exp(self.speed.mean), "ci95": [math.exp(x) for x in limits(self.speed, 0.95)],
                "fast": bool(made.fast), "limit": math.exp(made.fast_limit),
            }  # fmt: skip
        return found


def limits(estimate: Estimate, level: float) -> list[float]:
    return [float(x) for x in estimate.interval(level)]


@dataclass(frozen=True)
class Verdict:
    """decision: adaptive, fixed, undecided, interim, "not resolvable" or table. seeds: how many would
    decide."""

    decision: str
    sentence: str
    arms: tuple[Arm, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    winner: str | None = None
    seeds: int | None = None
    notes: tuple[str, ...] = ()
