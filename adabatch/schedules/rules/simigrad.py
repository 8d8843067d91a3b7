"""SimiGrad (Qin, Rajbhandari, Ruwase, Yan, Yang, He, NeurIPS 2021, github.com/HeyangQin/SimiGrad): the batch
follows the cosine of the gradients of its two halves."""

from adabatch.errors import UserError
from adabatch.noise import Noise
from adabatch.schedules.closed import Rule, Seen
from adabatch.schedules.setting import Frame


def expected(trace: float, sq_norm: float, batch: int) -> float | None:
    """Cosine of the gradients of two halves of `batch` samples, by their moments."""
    norm = sq_norm + 2 * trace / batch
    return sq_norm / norm if norm > 0 else None


class SimiGrad(Rule):
    """Cosine below `target`: the batch times 1.1, one sample at least; above: times 0.9, one sample less at
    least; cut to whole samples as the source does, after every step. One sample is one `multiple` here.

    The source's halves are the even and the odd ranks; here the first and the second half of the groups.
    A batch of one group has no halves: two successive batches a, b stand in, with the cosine that their
    half would have, <a, b> / (<a, b> + |a - b|^2). Where the measurement is of another batch than the rule's
    (a shadow), it is the expected cosine at the rule's batch, |G|^2 / (|G|^2 + 2 tr(S) / B), of averages; no
    decision while they are unresolved.
    """

    needs = frozenset({"trace", "sq_norm", "halves"})
    memory = "the gradient of half a batch, on measuring steps"
    rounding = "down"
    GROWN, SHRUNK = 1.1, 0.9

    def __init__(self, target: float):
        if not -1 < target < 1:
            raise UserError(f"schedule.growth.target is a cosine between -1 and 1, got {target}")
        self.target, self.least = target, 1

    def bind(self, frame: Frame) -> None:
        self.least = frame.multiple

    def wish(self, seen: Seen) -> float | None:
        cosine, batch = self.cosine(seen), seen.batch
        if cosine is None:
            return None
        if cosine < self.target:
            return max(batch + self.least, int(batch * self.GROWN))
        if cosine > self.target:
            return max(1, min(batch - self.least, int(batch * self.SHRUNK)))
        return None

    @staticmethod
    def cosine(seen: Seen) -> float | None:
        """Of two halves of the rule's batch."""
        noise: Noise = seen.noise
        if noise.batch == seen.batch:
            return expected(noise.trace, noise.sq_norm, seen.batch) if noise.cosine is None else noise.cosine
        return expected(seen.trace, seen.sq_norm, seen.batch) if seen.resolved else None
