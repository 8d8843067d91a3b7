"""One optimizer step over a global batch of any size: micro-batches, one reduction, one update.

The loss of a micro-batch is the sum of its per-sample losses over the size of the *global* batch, so that
micro-batches and ranks add up to the mean whatever the cut (also for uneven ones, which a mean of means gets
wrong).
"""

import contextlib
import logging
from dataclasses import dataclass
from functools import lru_cache

import torch

from adabatch import fading, layers, memory, summing
from adabatch.errors import UserError, is_out_of_memory
from adabatch.flat import Flat
from adabatch.losses import cross_entropy, errors  # noqa: F401 (older run folders name the loss here)
from adabatch.measure import GROUPED, SINGLE, Meter, untouched
from adabatch.noise import Noise

log = logging.getLogger("adabatch")


@dataclass(frozen=True)
class StepResult:
    """Sums over the global batch, left on the device: reading them would wait for it."""

    loss: torch.Tensor  # sum of per-sample losses, float64 scalar
    wrong: torch.Tensor | None  # wrong answers, float64 scalar; None if not a classification
    passes: int  # forward passes of the rank that makes most
    micro_batch: int  # samples of the largest of any rank
    noise: Noise | None = None  # of the gradient, where it was asked for
    # Samples in the groups that the gradient was summed up over; 0 = as the micro-batches fell.
    group: int = 0
    wishes: tuple = ()  # how many ranks wished for each of what was asked


class _Short(Exception):
    """A rank ran out of memory, and all of them know."""


class Step:
    """model: the network, on its device, in training dtype. forward: the same, perhaps compiled. loss:
    (outputs, labels) -> per-sample losses [n]. witness: sees what passes through (`witness.py`), or None."""

    def __init__(
        self,
        model,
        forward,
        flat: Flat,
        optimizer,
        loss,
        stream,
        hardware,
        micro: layers.MicroBatch,
        micro_batch: int,
        clip_norm: float | None = None,
        ledger=None,
        meter: Meter | None = None,
        held=None,
        witness=None,
    ):
        self.model, self.forward, self.flat, self.optimizer, self.loss = model, forward, flat, optimizer, loss
        self.stream, self.hardware, self.micro = stream, hardware, micro
        self.unit, self.micro_batch, self.clip_norm = layers.ghost_size(model), micro_batch, clip_norm
        self.ledger, self.meter = ledger or (lambda cause: contextlib.nullcontext()), meter
        self.held, self.witness = held, witness
        self.summing = (summing.Ordered if hardware.ordered else summing.Fast)(flat, hardware.ranks)
        self._weights = lru_cache(maxsize=8)(self._group_weights)
        self._foreign = layers.foreign_buffers(model)
        self._kept = [b.clone() for b in self._foreign]

    def _group_weights(self, batch_size: int):
        sizes = layers.group_sizes(batch_size, self.unit)
        weights, kept = layers.group_weights(sizes)
        return sizes, torch.tensor(weights, dtype=self.hardware.dtype, device=self.hardware.device), kept

    def __call__(self, start: int, setting, needs: frozenset = frozenset(), wishes=lambda: ()) -> StepResult:
        """Train on positions start <= p < start + setting.batch_size; measure what `needs` names. wishes:
        called shortly before the reduction; its flags are counted over the ranks."""
        meter = self.meter if needs & GROUPED else None
        if setting.group and not meter:
            meter = Meter(self.flat, setting.group, self.unit)  # adds up as the recorded step did

        def attempt():
            if self.witness:
                self.witness.begin(start, setting)
            self.flat.pending.zero_()
            totals, counted, agreed = self._gradient(start, setting, meter, needs, wishes)
            noise = self._measured(start, setting, self.meter, needs) if needs & (GROUPED | SINGLE) else None
            return totals, counted, agreed, noise

        totals, counted, agreed, noise = self._fitting(attempt, start, setting, meter)
        self._update(start, setting)
        passes, largest = self.share(setting.batch_size, meter)
        wrong, group = totals[1] if counted else None, meter.size if meter else 0
        return StepResult(totals[0], wrong, passes, largest, noise, group, agreed)

    def probe(self, start: int, setting, needs: frozenset, meter: Meter) -> Noise | None:
        """Measure the batch at `start` under the present weights and change nothing: passes of their own,
        gradients thrown away."""

        def attempt():
            with untouched(self.model):
                if needs & GROUPED:
                    self._gradient(start, setting, meter, needs, record=False)
                return self._measured(start, setting, meter, needs)

        return self._fitting(attempt, start, setting, meter)

    def _fitting(self, attempt, start: int, setting, meter):
        """attempt(), again with half the micro-batch while a rank runs out of memory. Nothing of a failed one
        remains: the update comes later, and what a forward pass moves is put back."""
        fading.thaw(self.model, start / len(self.stream))
        generator = self.hardware.generator_state()
        if self._foreign:
            torch._foreach_copy_(self._kept, self._foreign)
        while True:
            try:
                return attempt()
            except _Short:
                pass  # the traceback, which holds the activations, is let go before the next attempt
            if self._foreign:
                torch._foreach_copy_(self._foreign, self._kept)
            self.hardware.restore_generator(generator)
            before, longest = self.micro_batch, self.share(setting.batch_size, meter)[1]
            self.micro_batch = memory.halved(before, self.unit, longest)
            log.warning(
                "out of memory: the micro-batch goes from %d to %d and the step is repeated; from here on "
                "the run is no longer bit for bit what it would have been", before, self.micro_batch,
            )  # fmt: skip
            self.hardware.empty_cache()

    def parts(self, batch: int, meter: Meter | None = None):
        """This rank's share of a batch, which is measured if there is a meter."""
        return self.hardware.parts(batch, self.unit, self.micro_batch, meter.size if meter else None)

    def share(self, batch: int, meter: Meter | None = None) -> tuple[int, int]:
        """(the most forward passes of a rank, samples in the largest of any)."""
        return self.hardware.share(batch, self.unit, self.micro_batch, meter.size if meter else None)

    def _gradient(self, start: int, setting, meter, needs, wishes=lambda: (), record: bool = True) -> tuple:
        """The gradient of the batch into flat.grads, summed over ranks: (sums of loss and wrong answers,
        whether those were counted, wishes)."""
        parts, counted = self.parts(setting.batch_size, meter), True
        if parts.passes:
            first, last = parts.passes[0].start, parts.passes[-1].stop
            self.stream.share(start + first, start + last, setting.batch_size)
        totals = torch.zeros(2, dtype=torch.float64, device=self.hardware.device)
        self.flat.grads.zero_()
        if meter:
            meter.begin(setting, needs)
        sums = meter.sums() if meter else [self.flat.grads]
        self.summing.begin([*sums, self.flat.pending, totals], parts.first, parts.count)
        final = parts.passes[-1:] if not meter else []

        def add(part: list) -> None:
            nonlocal counted
            for rows in part:
                with self.summing.last() if [rows] == final else contextlib.nullcontext():
                    counted &= self._accumulate(start, rows, setting, totals, record)
            if meter:
                with self.ledger("measuring"):
                    meter.group(part[-1].stop, part[-1].stop - part[0].start)
            self.summing.part()

        short = self._run(add, parts.parts)
        with self.ledger("exposed_communication"):
            agreed = self.summing.end([short, not counted, *wishes()])
        if agreed[0]:
            raise _Short
        if meter:
            meter.end()
        if record and self.witness:
            self.witness.gradient(self.flat, self.optimizer)
        return totals, not agreed[1], tuple(agreed[2:])

    def _run(self, work, parts: list) -> bool:
        """work(part) for each; True if memory did not suffice, which the other ranks must hear of."""
        try:
            for part in parts:
                work(part)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            return True
        return False

    def _measured(self, start: int, setting, meter: Meter, needs: frozenset) -> Noise | None:
        """The measurement, once the batch's gradient stands in flat.grads; by a second pass where it needs
        one, which leaves gradients, statistics and generator as they were."""
        with self.ledger("measuring"):
            if needs & GROUPED and meter.second_pass:
                self._project(start, setting, meter)
            singles = self._sample_by_sample(start, setting, meter) if needs & SINGLE else None
            # Only now does the meter move on: a measurement that ran out of memory can be repeated.
            noise = meter.finish(start) if needs & GROUPED else None
            return singles.finish(start, setting, needs, noise) if singles else noise

    def _project(self, start: int, setting, meter: Meter) -> None:
        """A second pass over the groups, now that the batch's gradient is known."""
        unused = torch.zeros(2, dtype=torch.float64, device=self.hardware.device)

        def project(part: list) -> None:
            for rows in part:
                self._accumulate(start, rows, setting, unused, record=False)
            meter.project(part[-1].stop)

        with untouched(self.model):
            meter.along()
            short = self._run(project, self.parts(setting.batch_size, meter).parts)
            # Each group's product is one rank's own, so any order of adding gives the same bits.
            (agreed,) = self.hardware.ranks.reduce(meter.restore(), flags=[short])
        if agreed:
            raise _Short

    def _sample_by_sample(self, start: int, setting, meter: Meter):
        """What single samples say, in passes of their own in evaluation mode."""
        singles, parts = meter.singles, self.parts(setting.batch_size)
        singles.begin()
        self.summing.begin(singles.sums(), parts.first, parts.count)

        def add(part: list) -> None:
            for rows in part:
                x, y = self.stream.batch(start + rows.start, start + rows.stop)
                singles.add(self.model, self.loss, x, y)  # in full precision: vmap and autocast do not mix
            self.summing.part()

        if self.summing.end([self._run(add, parts.parts)])[0]:
            raise _Short
        return singles

    def _accumulate(self, start: int, part: slice, setting, totals, record: bool = True) -> bool:
        """Add the gradients and sums of one micro-batch (rows `part` of the batch); False if it counts no
        errors."""
        with self.ledger("data"):
            x, y = self.stream.batch(start + part.start, start + part.stop)
        self.place(start, part, setting.batch_size, record)
        # One compiled shape: what is longer or shorter, or measured apart, would cost a compilation each.
        usual = record and part.stop - part.start == self.micro_batch
        with self.ledger("forward"), self.hardware.autocast():
            outputs = (self.forward if usual else self.model)(x)
        losses = self.loss(outputs.to(self.hardware.dtype), y)
        if losses.shape != (len(y),):
            raise UserError(
                f"a loss returns one value per sample: expected shape [{len(y)}], got {list(losses.shape)}; "
                'leave out its mean (reduction="none"), sums and counts are taken here'
            )
        total = losses.sum()
        with self.ledger("backward"):
            (total / setting.divisor).backward()
        with torch.no_grad():
            totals[0] += total.double()
            if record and self.witness:
                self.witness.passed(start + part.start, start + part.stop, x, y, losses)
            wrong = errors(outputs, y)
            if wrong is None:
                return False
            totals[1] += wrong
        return True

    def place(self, start: int, part: slice, batch: int, record: bool) -> None:
        """Tell the layers which samples the coming forward pass holds, and whether their statistics count."""
        sizes, weights, _ = self._weights(batch)
        first = part.start // self.unit
        last = len(sizes) if part.stop == batch else part.stop // self.unit
        self.micro.positions = torch.arange(
            start + part.start, start + part.stop, device=self.hardware.device
        )
        self.micro.groups, self.micro.weights = sizes[first:last], weights[first:last]
        self.micro.record = record

    @torch.no_grad()
    def _update(self, start: int, setting) -> None:
        kept = self._weights(setting.batch_size)[2]
        self.flat.running.mul_(kept).add_(self.flat.pending)
        # Plain batch norm has seen this rank's share only: all go by the last rank, which never is without.
        self.hardware.ranks.align(self._foreign, self.hardware.ranks.world - 1)
        if self.clip_norm:
            norm = torch.linalg.vector_norm(self.flat.grads)
            self.flat.grads.mul_((self.clip_norm / (norm + 1e-6)).clamp(max=1.0))
        lr = setting.lr * (self.held.apply(setting) if self.held else 1.0)
        fading.rates(self.optimizer.param_groups, lr, start / len(self.stream))
        self.optimizer.step()
        if self.witness:
            self.witness.updated(self.flat, self.optimizer)
