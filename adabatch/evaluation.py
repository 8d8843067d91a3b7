"""Loss and share of wrong answers of a split, the work shared by the ranks."""

import logging

import torch
import torch.nn.functional as F

from adabatch import memory
from adabatch.errors import is_out_of_memory
from adabatch.losses import errors

log = logging.getLogger("adabatch")


def chunk_of(micro_batch: int) -> int:
    """Samples in one forward pass of an evaluation, which keeps no activations: more than in training, but
    tied to it, so that a micro-batch chosen for little memory is heeded here too."""
    return min(4 * micro_batch, max(micro_batch, 256))


def views(flip: bool, translate: int) -> tuple:
    """How a picture is shown: (weight, pixels down and right, whether mirrored) of each view, () = as it is.

    translate: half of the weight goes, in equal parts, to the picture moved by so many pixels up and left,
    and down and right. flip: each of these once more as its mirror image, of equal weight. Both, with one
    pixel: the six views of KellerJordan/cifar10-airbench (Jordan 2024, arXiv 2404.00498).
    """
    moved = [(0.5, 0), (0.25, -translate), (0.25, translate)] if translate else [(1.0, 0)]
    found = [(weight / (1 + flip), by, side) for weight, by in moved for side in (False, True)[: 1 + flip]]
    return tuple(found) if len(found) > 1 else ()


def seen(x, by: int, mirrored: bool):
    """x [n, c, h, w] moved down and right by `by` pixels, its border reflected, and perhaps mirrored."""
    if by:
        height, width = x.shape[-2:]
        start = abs(by) - by
        x = F.pad(x, (abs(by),) * 4, mode="reflect")[..., start : start + height, start : start + width]
    return x.flip(-1) if mirrored else x


@torch.no_grad()
def evaluate(model, hardware, samples, prepare, loss, chunk: int, shown=()) -> tuple[float, float | None]:
    """(mean loss, share of wrong answers or None) over all of `samples`, in passes of `chunk`; of half as
    many where a rank runs out of memory. shown: of `views`, over which outputs are averaged.

    Each pass is one rank's, and has sums of its own, which are added in one order at the end: the figures are
    the same bits on any number of ranks.
    """
    model.eval()
    while True:
        found = _sums(model, hardware, samples, prepare, loss, chunk, shown)
        if found is not None:
            break
        hardware.empty_cache()
        chunk = memory.halved(chunk, 1)
        log.warning("out of memory in an evaluation: repeated in passes of %d samples", chunk)
    model.train()
    sums, counted = found
    loss_sum, wrong_sum = sums.cpu().sum(0).tolist()
    return loss_sum / len(samples), wrong_sum / len(samples) if counted else None


def _sums(model, hardware, samples, prepare, loss, chunk: int, shown: tuple) -> tuple | None:
    """(sums of loss and wrong answers by pass [passes, 2], whether answers can be wrong); None on all ranks
    where one ran out of memory."""
    ranks, starts = hardware.ranks, range(0, len(samples), chunk)
    sums = torch.zeros(len(starts), 2, dtype=torch.float64, device=hardware.device)
    counted, short = True, False
    try:
        for index in range(ranks.rank, len(starts), ranks.world):
            start = starts[index]
            inputs, labels = samples.read(torch.arange(start, min(start + chunk, len(samples))))
            labels = labels.to(hardware.device)
            x = prepare(inputs)
            with hardware.autocast():  # not compiled: each shape would cost a compilation
                found = [model(seen(x, by, side)) for _, by, side in shown] if shown else [model(x)]
            outputs = found[0].to(hardware.dtype)
            if shown:
                outputs = sum(w * out.to(hardware.dtype) for (w, *_), out in zip(shown, found))
            sums[index, 0] = loss(outputs, labels).sum().double()
            wrong = errors(outputs, labels)
            counted = counted and wrong is not None
            sums[index, 1] = wrong if counted else 0
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        short = True
    uncounted, short = ranks.reduce(sums, flags=[not counted, short])
    return None if short else (sums, not uncounted)
