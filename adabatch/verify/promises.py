"""What is promised. The table of docs/verify.md and docs/design.md; verify judges by it and sets no bound of
its own.

Relative difference = max |a - b| over all elements / max |b| over the whole network.
"""

import math
from dataclasses import dataclass

BITWISE = 0.0
PARTED = 1e-3  # relative; where weights part by so much is reported in rows without a promise on weights
UNMEASURED = 1e-3  # float32's own error, where there is no float64 to measure it by
AMPLIFIED = 10.0  # a cut may part weights so many times as far as one rounding of each initial weight does


@dataclass(frozen=True)
class Promise:
    """bound: largest relative difference, 0 = the same bits, None = none is promised."""

    compared: str
    words: str
    bound: float | None


PROMISES = {
    "data": Promise(
        "data order, augmentation, open-loop schedule",
        "the same bits, whatever the split, world, device or resume",
        BITWISE,
    ),
    "same": Promise(
        "the same command twice; killed anywhere and repeated (a CPU, or a GPU with "
        "hardware.deterministic=true)",
        "the same bits: weights, and every row and summary field that is not measured",
        BITWISE,
    ),
    "cut": Promise(
        "another micro-batch, accumulation or number of processes, float64",
        "weights within 1e-10 relative, across a change of batch, or within ten times what a rounding error "
        "in the initial weights comes to at the same step, in a network that amplifies it further",
        1e-10,
    ),
    "gradient": Promise(
        "the same, float32",
        "gradient of one step from equal state within 1e-5 relative, or within twice float32's own error on "
        "this network where that is larger (1e-3 where there is no float64); where weights part by 1e-3 is "
        "reported",
        1e-5,
    ),
    "ordered": Promise(
        "another number of processes, same micro-batch and threads, hardware.reduction=ordered",
        "the same bits: weights",
        BITWISE,
    ),
    "none": Promise(
        "plain batch norm, torch's own dropout, bf16 or tf32 cut otherwise, a GPU without "
        "hardware.deterministic=true",
        "nothing; the layers are named",
        None,
    ),
}


def promised(kind: str, meta: dict) -> tuple[float | None, str | None]:
    """(bound, reason where there is none) of a comparison of `kind` ("same", "resumed", "cut", "gradient" or
    "ordered") for a run as its witness describes it."""
    norms, dropouts = meta["plain_norms"], meta["torch_dropouts"]
    layers = norms + dropouts
    if norms and meta["claims_ghost"]:
        layers = dropouts  # a configuration that says ghost promises what ghost norm keeps
    if kind in ("cut", "gradient", "ordered") and layers:
        return None, f"depends on how a batch is cut: {listed(layers)}"
    if kind == "resumed" and dropouts:
        return None, f"draws from torch's generator, which no checkpoint holds: {listed(dropouts)}"
    if kind == "gradient" and meta["precision"] in ("bf16", "tf32"):
        return None, f"nothing is promised in {meta['precision']}"
    if kind in ("same", "resumed", "ordered") and meta["device"] != "cpu" and not meta["deterministic"]:
        return None, "kernels of this GPU may add in any order: hardware.deterministic=true promises bits"
    return PROMISES["same" if kind == "resumed" else kind].bound, None


def gradient_bound(own: float | None) -> float:
    """Bound of a gradient in float32. own: float32's error on this network, its gradient against that of
    float64 from equal weights (relative); None where there is no float64.

    1e-5 is what sums in another order cost a small network. In a deep one some of millions of activations lie
    so near 0 that rounding decides whether ReLU lets them through: its gradient in float32 is only known to
    1e-3 or 1e-2, whoever computes it. Two cuts have such an error each, and so may be twice as far apart."""
    known = own is not None and math.isfinite(own)
    return max(PROMISES["gradient"].bound, 2 * own if known else UNMEASURED)


def listed(names: list[str]) -> str:
    """The first three, and how many more."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
