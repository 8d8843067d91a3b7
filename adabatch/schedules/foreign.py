"""Rules from a user's own file: what they return is checked, what they raise is explained, and both at the
start where it can be: each is asked once, on a copy, with made-up measurements."""

import copy
import math
import traceback

from adabatch.errors import UserError
from adabatch.noise import Average, Noise


def ours(rule) -> bool:
    return type(rule).__module__.split(".")[0] == "adabatch"


def answer(rule, seen, when: str) -> float | None:
    """The rule's wish in samples; None: no decision (nan counts as none). UserError: it failed or returned no
    number; when: for the message."""
    name = f"{type(rule).__module__}.{type(rule).__name__}.wish"
    try:
        wish = rule.wish(seen)
    except Exception as error:
        if ours(rule) or isinstance(error, UserError):
            raise
        last = traceback.extract_tb(error.__traceback__)[-1]
        raise UserError(
            f"{name} failed {when}: {type(error).__name__}: {error} ({last.filename}, line {last.lineno})"
        ) from error
    if wish is None:
        return None
    if isinstance(wish, (str, bytes, bool)) or not hasattr(wish, "__float__"):
        raise UserError(
            f"{name} returns a batch size in samples, or None for no decision; it returned {wish!r} {when}"
        )
    wish = wish if isinstance(wish, (int, float)) else float(wish)  # also numbers of numpy and torch
    return None if math.isnan(wish) else wish


def rehearse(rule, frame) -> None:
    """Ask copies of a user's rule before |G|^2 is resolved and after it."""
    from adabatch.schedules.closed import Seen  # which imports this file

    if ours(rule):
        return
    needs, batch, average = frozenset(rule.needs), frame.base_batch, Average(1000 * frame.base_batch)
    extra = dict(halves="cosine", inner="inner", per_sample="per_sample", epoch_sum="diversity")
    figures = {field: 0.5 for need, field in extra.items() if need in needs}
    noise = Noise(2 * batch, 2, trace=4.0 * batch, sq_norm=1.0, **figures)
    measures = bool(needs - {"loss", "validation"})
    loss, validation = 1.0 if "loss" in needs else None, (1.0, 0.5) if "validation" in needs else None
    for number in range(Average.NEEDED):
        if measures:
            average.add(noise, batch)
        if number in (0, Average.NEEDED - 1):
            begin = number * batch
            measured = (noise if measures else None, None if validation else average)
            view = Seen(begin, begin + batch, batch, 0.1, number + 1, frame, *measured, loss, validation)
            try:
                trial = copy.deepcopy(rule)
            except Exception:  # it holds what cannot be copied, and must not be moved: then the run will tell
                return
            answer(trial, view, "on trial, with made-up measurements before the run")
