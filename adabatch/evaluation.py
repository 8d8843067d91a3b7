"""Loss and share of wrong answers of a split, the work shared by the ranks."""

import logging

import torch

from adabatch import memory
from adabatch.errors import is_out_of_memory
from adabatch.losses import errors

log = logging.getLogger("adabatch")


def chunk_of(micro_batch: int) -> int:
    """Samples in one forward pass of an evaluation, which keeps no activations: more than in training, but
    tied to it, so that a micro-batch chosen for little memory is heeded here too."""
    return min(4 * micro_batch, max(micro_batch, 256))


@torch.no_grad()
def evaluate(model, hardware, samples, prepare, loss, chunk: int, flip=False) -> tuple[float, float | None]:
    """(mean loss, share of wrong answers or None) over all of `samples`, in passes of `chunk`; of half as
    many where a rank runs out of memory. flip: outputs are the mean over a picture and its mirror image.

    Each pass is one rank's, and has sums of its own, which are added in one order at the end: the figures are
    the same bits on any number of ranks.
    """
    model.eval()
    while True:
        found = _sums(model, hardware, samples, prepare, loss, chunk, flip)
        if found is not None:
            break
        hardware.empty_cache()
        chunk = memory.halved(chunk, 1)
        log.warning("out of memory in an evaluation: repeated in passes of %d samples", chunk)
    model.train()
    sums, counted = found
    loss_sum, wrong_sum = sums.cpu().sum(0).tolist()
    return loss_sum / len(samples), wrong_sum / len(samples) if counted else None


def _sums(model, hardware, samples, prepare, loss, chunk: int, flip: bool) -> tuple | None:
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
            with hardware.autocast():
                outputs = model(x)  # not compiled: each shape would cost a compilation
                mirrored = model(x.flip(-1)) if flip else None
            outputs = outputs.to(hardware.dtype)
            if flip:
                outputs = (outputs + mirrored.to(hardware.dtype)) / 2
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
