"""How far the weights have gone from where they began: ||w_t - w_0||, L2 over all trainable parameters.

It grows with log t, as in a random walk on a random potential (Hoffer, Hubara, Soudry 2017, arXiv 1705.08741;
their code measures one parameter tensor once an epoch).

w_0 is what a run is built with: drawn from its seed, or those of model.init_from. A resumed run builds the
same ones again before it reads its checkpoint, so no checkpoint holds them.
"""

import logging

import torch

from adabatch import runs

log = logging.getLogger("adabatch")


class Distance:
    """Measures from the weights as they are now. flat: `flat.Flat`; costs one more vector like its `params`,
    and nothing unless asked."""

    def __init__(self, flat, asked: bool):
        self.flat, self.start = flat, flat.params.detach().clone() if asked else None

    @torch.no_grad()
    def __call__(self) -> dict:
        """{"distance": float64 [], still on the device} for the row of a step; {} unless asked."""
        if self.start is None:
            return {}
        moved = self.flat.params - self.start  # room between tensors is 0 in both
        return {"distance": torch.linalg.vector_norm(moved, dtype=torch.float64)}


def fetch(rows: list[dict]) -> None:
    """Numbers in place of what is still on the device. One wait for it, whatever the number of rows."""
    held = [row for row in rows if "distance" in row]
    for row, value in zip(held, torch.stack([r["distance"] for r in held]).tolist() if held else ()):
        row["distance"] = value


def warn_of_a_late_start(run) -> None:
    """Said where a run goes on whose earlier rows have no distance. run: a resumed `Record`."""
    if run.distance.start is None or not run.steps:
        return
    first = next((row for row in runs.read_rows(run.folder) if row.get("event") == "train"), {})
    if "distance" not in first:
        log.warning(
            "log.distance begins only here, at position %s: the rows before have none", f"{run.position:,}"
        )
