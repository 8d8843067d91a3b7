"""One optimizer step over a global batch of any size: micro-batches, one reduction, one update. And
evaluation.

The loss of a micro-batch is the sum of its per-sample losses over the size of the *global* batch, so that
micro-batches and ranks add up to the mean whatever the cut (also for uneven ones, which a mean of means gets
wrong).
"""

import contextlib
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F

from adabatch import layers
from adabatch.errors import UserError
from adabatch.flat import Flat
from adabatch.measure import GROUPED, SINGLE, Meter, untouched
from adabatch.noise import Noise


def cross_entropy(outputs, labels, label_smoothing: float = 0.0):
    """Per-sample cross entropy [n]. outputs: [n, classes]; or [n, tokens, classes] with labels [n, tokens],
    averaged over the tokens (a sample is a sequence)."""
    if outputs.dim() == 3:
        losses = F.cross_entropy(
            outputs.transpose(1, 2), labels, reduction="none", label_smoothing=label_smoothing
        )
        return losses.mean(1)
    return F.cross_entropy(outputs, labels, reduction="none", label_smoothing=label_smoothing)


def errors(outputs, labels):
    """Wrong answers as a float64 scalar (a sequence counts by its share of wrong tokens); None where labels
    are no classes."""
    if labels.dtype.is_floating_point or outputs.shape[:-1] != labels.shape:
        return None
    wrong = (outputs.argmax(-1) != labels).double()
    return wrong.flatten(1).mean(1).sum() if wrong.dim() > 1 else wrong.sum()


@dataclass(frozen=True)
class StepResult:
    """Sums over the global batch, left on the device: reading them would wait for it."""

    loss: torch.Tensor  # sum of per-sample losses, float64 scalar
    wrong: torch.Tensor | None  # wrong answers, float64 scalar; None if not a classification
    passes: int  # forward passes on this rank
    micro_batch: int  # samples of the largest of them
    noise: Noise | None = None  # of the gradient, where it was asked for
    group: int = (
        0  # samples in the groups that the gradient was summed up over; 0 = as the micro-batches fell
    )


class Step:
    """model: the network, on its device, in training dtype. loss: (outputs, labels) -> per-sample losses
    [n]."""

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
    ):
        self.model, self.forward, self.flat, self.optimizer, self.loss = model, forward, flat, optimizer, loss
        self.stream, self.hardware, self.micro = stream, hardware, micro
        self.unit, self.micro_batch, self.clip_norm = layers.ghost_size(model), micro_batch, clip_norm
        self.ledger, self.meter = ledger or (lambda cause: contextlib.nullcontext()), meter
        self.held = held
        self._weights = lru_cache(maxsize=8)(self._group_weights)

    def _group_weights(self, batch_size: int):
        sizes = layers.group_sizes(batch_size, self.unit)
        weights, kept = layers.group_weights(sizes)
        return sizes, torch.tensor(weights, dtype=self.hardware.dtype, device=self.hardware.device), kept

    def __call__(self, start: int, setting, needs: frozenset = frozenset()) -> StepResult:
        """Train on positions start <= p < start + setting.batch_size; measure what `needs` names."""
        self.flat.pending.zero_()
        totals = torch.zeros(2, dtype=torch.float64, device=self.hardware.device)
        meter = self.meter if needs & GROUPED else None
        if setting.group and not meter:
            # Adds up as the recorded step did.
            meter = Meter(self.flat, self.hardware, setting.group, self.unit)
        passes, counted = self._gradient(start, setting, totals, meter, needs)
        noise = None
        if needs & (GROUPED | SINGLE):
            with self.ledger("measuring"):
                noise = self._measured(start, setting, self.meter, needs)
        self._update(setting)
        largest = max((p.stop - p.start for p in passes), default=0)
        wrong, group = totals[1] if counted else None, meter.size if meter else 0
        return StepResult(totals[0], wrong, len(passes), largest, noise, group)

    def _gradient(self, start: int, setting, totals, meter, needs, record: bool = True) -> tuple[list, bool]:
        """The gradient of the batch into flat.grads, summed over ranks; (forward passes, errors counted)."""
        batch, counted, extra, done = setting.batch_size, True, [], 0
        self.flat.grads.zero_()
        passes, ends = meter.cut(batch, self.micro_batch) if meter else (self.cut(batch), set())
        if meter:
            meter.begin(setting, needs)
            done = passes[0].start if passes else 0
        for part in passes:
            counted &= self._accumulate(start, part, setting, totals, record)
            if part.stop in ends:
                with self.ledger("measuring"):
                    meter.group(part.stop, part.stop - done)
                done = part.stop
        if meter:
            extra = meter.end()
        self.hardware.all_reduce(self.flat.grads, self.flat.pending, totals, *extra)
        return passes, counted

    def probe(self, start: int, setting, needs: frozenset, meter: Meter) -> Noise | None:
        """Measure the batch at `start` under the present weights and change nothing: passes of their own,
        gradients thrown away."""
        totals = torch.zeros(2, dtype=torch.float64, device=self.hardware.device)
        with untouched(self.model):
            if needs & GROUPED:
                self._gradient(start, setting, totals, meter, needs, record=False)
            return self._measured(start, setting, meter, needs)

    def _measured(self, start: int, setting, meter: Meter, needs: frozenset) -> Noise | None:
        """The measurement, once the batch's gradient stands in flat.grads; by a second pass where it needs
        one, which leaves gradients, statistics and generator as they were."""
        if needs & GROUPED and meter.second_pass:
            unused = torch.zeros(2, dtype=torch.float64, device=self.hardware.device)
            passes, ends = meter.cut(setting.batch_size, self.micro_batch)
            with untouched(self.model):
                meter.along()
                for part in passes:
                    self._accumulate(start, part, setting, unused, record=False)
                    if part.stop in ends:
                        meter.project(part.stop)
                self.hardware.all_reduce(meter.restore())
        noise = meter.finish(start) if needs & GROUPED else None
        return self._sample_by_sample(start, setting, meter, needs, noise) if needs & SINGLE else noise

    def _sample_by_sample(self, start: int, setting, meter: Meter, needs, noise: Noise | None) -> Noise:
        """The same with what single samples say, in passes of their own in evaluation mode."""
        singles = meter.singles
        singles.begin()
        for part in self.cut(setting.batch_size):
            x, y = self.stream.batch(start + part.start, start + part.stop)
            singles.add(self.model, self.loss, x, y)  # in full precision: vmap and autocast do not mix
        self.hardware.all_reduce(*singles.sums())
        return singles.finish(start, setting, needs, noise)

    def cut(self, batch: int) -> list[slice]:
        """This rank's forward passes over a batch, as rows of it."""
        rows = self.hardware.rows(batch, self.unit)
        return self.hardware.micro_batches(rows, batch, self.unit, self.micro_batch)

    def _accumulate(self, start: int, part: slice, setting, totals, record: bool = True) -> bool:
        """Add the gradients and sums of one micro-batch (rows `part` of the batch); False if it counts no
        errors."""
        with self.ledger("data"):
            x, y = self.stream.batch(start + part.start, start + part.stop)
        self._place(start, part, setting.batch_size, record)
        with self.hardware.autocast():
            outputs = self.forward(x)
        losses = self.loss(outputs.to(self.hardware.dtype), y)
        if losses.shape != (len(y),):
            raise UserError(
                f"a loss returns one value per sample: expected shape [{len(y)}], got {list(losses.shape)}; "
                'leave out its mean (reduction="none"), sums and counts are taken here'
            )
        total = losses.sum()
        (total / setting.divisor).backward()
        with torch.no_grad():
            totals[0] += total.double()
            wrong = errors(outputs, y)
            if wrong is None:
                return False
            totals[1] += wrong
        return True

    def _place(self, start: int, part: slice, batch: int, record: bool) -> None:
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
    def _update(self, setting) -> None:
        kept = self._weights(setting.batch_size)[2]
        self.flat.running.mul_(kept).add_(self.flat.pending)
        if self.clip_norm:
            norm = torch.linalg.vector_norm(self.flat.grads)
            self.flat.grads.mul_((self.clip_norm / (norm + 1e-6)).clamp(max=1.0))
        lr = setting.lr * (self.held.apply(setting) if self.held else 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        self.optimizer.step()

    def activation_bytes(self, samples: int) -> int:
        """Bytes that autograd keeps of a forward pass over the run's first `samples` samples; nothing is
        moved by it."""
        x, _ = self.stream.batch(0, samples)
        self._place(0, slice(0, samples), samples, record=False)
        seen = {}
        weights = {p.untyped_storage().data_ptr() for p in self.model.parameters()}

        def note(t):
            storage = t.untyped_storage()
            if storage.data_ptr() not in weights:
                seen[storage.data_ptr()] = storage.nbytes()
            return t

        with (
            untouched(self.model),
            torch.autograd.graph.saved_tensors_hooks(note, lambda t: t),
            self.hardware.autocast(),
        ):
            outputs = self.model(x)
        del outputs
        return sum(seen.values())

    @torch.no_grad()
    def evaluate(self, samples, prepare, loss, chunk: int) -> tuple[float, float | None]:
        """(mean loss, share of wrong answers or None) over all of `samples`, in order, with exact counts."""
        self.model.eval()
        sums, counted = torch.zeros(2, dtype=torch.float64, device=self.hardware.device), True
        for start in range(0, len(samples), chunk):
            indices = torch.arange(start, min(start + chunk, len(samples)))
            inputs, labels = samples.read(indices)
            labels = labels.to(self.hardware.device)
            with self.hardware.autocast():
                outputs = self.model(prepare(inputs))  # not compiled: each shape would cost a compilation
            outputs = outputs.to(self.hardware.dtype)
            sums[0] += loss(outputs, labels).sum().double()
            wrong = errors(outputs, labels)
            counted = counted and wrong is not None
            sums[1] += wrong if counted else 0
        self.model.train()
        loss_sum, wrong_sum = sums.tolist()
        return loss_sum / len(samples), wrong_sum / len(samples) if counted else None
