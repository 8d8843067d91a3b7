"""Where a run's wall time went: seconds by cause, each second counted once."""

import contextlib
import time

CAUSES = (
    "compute", "data", "exposed_communication", "resize", "first_compile", "recompile", "measuring",
    "evaluation", "checkpoint", "redone", "other",
)  # fmt: skip
PASSES = ("forward", "backward")  # parts of "compute" under `timing=phases`
NOT_TRAINING = ("first_compile", "evaluation", "checkpoint", "redone", "other")  # not in `train_seconds`


class Ledger:
    """`with ledger("evaluation"): ...`; an inner cause takes its time out of the outer one. What stands under
    no cause is "other". State is a dict of floats, so a resumed run goes on counting.

    passes: whether the forward and backward passes of a step are counted apart; "compute" is then what is
    left: losses, sums, the update. wait(): called at both ends of each of them, so that a GPU's time is its
    own; what it does meanwhile is no longer overlapped with anything.
    """

    def __init__(self, clock=time.perf_counter, passes: bool = False):
        self.clock, self.seconds, self.stack = clock, dict.fromkeys(CAUSES, 0.0), ["other"]
        self.passes, self.wait = passes, lambda: None
        if passes:
            self.seconds |= dict.fromkeys(PASSES, 0.0)
        self.mark = self.begun = clock()
        self.earlier = 0.0  # wall seconds of earlier sittings

    def _charge(self) -> None:
        now = self.clock()
        self.seconds[self.stack[-1]] += now - self.mark
        self.mark = now

    @contextlib.contextmanager
    def __call__(self, cause: str):
        apart = cause in PASSES
        if apart and not (self.passes and self.stack[-1] == "compute"):
            yield  # a pass that compiles or measures is booked as that
            return
        if cause not in self.seconds:
            raise KeyError(f"{cause!r} is no cause of the ledger: {', '.join(CAUSES)}")
        if apart:
            self.wait()
        self._charge()
        self.stack.append(cause)
        try:
            yield
            if apart:
                self.wait()
        finally:
            self._charge()
            self.stack.pop()

    def read(self) -> dict:
        """Seconds by cause up to now; they add up to the wall time since the start."""
        self._charge()
        return dict(self.seconds)

    def wall(self) -> float:
        """Wall seconds of all sittings, told by the clock alone: what the causes must add up to."""
        return self.earlier + self.clock() - self.begun

    def training(self) -> float:
        """Training wall time in seconds: evaluation, saving, the first compilation and set-up excluded."""
        return sum(seconds for cause, seconds in self.read().items() if cause not in NOT_TRAINING)

    def state_dict(self) -> dict:
        return self.read()

    def load_state_dict(self, state: dict) -> None:
        """Add what earlier sittings spent."""
        for cause, seconds in state.items():
            self.seconds[cause] = self.seconds.get(cause, 0.0) + seconds
