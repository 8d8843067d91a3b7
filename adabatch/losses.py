"""Per-sample losses and wrong answers: what is summed over a batch or a split, never averaged before."""

import torch.nn.functional as F


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
