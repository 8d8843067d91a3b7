"""What a run's witnesses wrote, its ranks put together."""

from dataclasses import dataclass
from pathlib import Path

import torch

BY_POSITION = ("sample", "label", "input", "loss")


@dataclass
class Step:
    """One step of a run. by position, [batch]: sample, label, input (int64 digests), loss; `trained`: how
    often each position went through a training step. Of rank 0: the rest."""

    start: int
    batch: int
    divisor: int
    lr: list
    trained: torch.Tensor
    sample: torch.Tensor
    label: torch.Tensor
    input: torch.Tensor
    loss: torch.Tensor
    norms: torch.Tensor
    gradient: dict
    weights: dict
    running: dict
    passes: int
    disagree: str | None  # what is not the same on all ranks
    drew: bool  # whether torch's generator was drawn from

    @property
    def stop(self) -> int:
        return self.start + self.batch


@dataclass
class Recorded:
    """meta: what rank 0 says of itself (`Witness._introduce`). steps: in order."""

    meta: dict
    steps: list

    def tensor(self, index: int) -> str:
        """The tensor to which element `index` of the flat vectors belongs."""
        inside = [n for n, offset in zip(self.meta["names"], self.meta["offsets"]) if offset <= index]
        return inside[-1]

    def by_position(self, name: str):
        """Digests, samples or `trained` of all positions that the steps reach: [last stop]."""
        found = torch.zeros(max((s.stop for s in self.steps), default=0), dtype=torch.int64)
        for step in self.steps:
            found[step.start : step.stop] = getattr(step, name)
        return found

    def after(self, earlier: "Recorded") -> "Recorded":
        """This one, which went on from `earlier`, with its steps before."""
        begin = self.steps[0].start if self.steps else float("inf")
        return Recorded(earlier.meta, [s for s in earlier.steps if s.start < begin] + self.steps)


def read(folder: Path) -> Recorded:
    """The folder that `rehearsal.witness` named. ValueError: nobody has written there."""
    ranks = sorted(Path(folder).glob("rank*"), key=lambda p: int(p.name[4:]))
    files = [{p.name: torch.load(p, weights_only=True) for p in sorted(r.glob("*.pt"))} for r in ranks]
    if not files or "meta.pt" not in files[0]:
        raise ValueError(f"no step was taken: there is nothing in {folder}")
    meta = files[0]["meta.pt"]
    # A killed run: a step counts that every rank has finished.
    common = set.intersection(*(set(f) for f in files)) - {"meta.pt"}
    steps = [joined([f[name] for f in files]) for name in sorted(common)]
    pieces = [f["meta.pt"]["pieces"] for f in files if "meta.pt" in f]
    meta["pieces"] = min((p for p in pieces if p is not None), default=None)
    return Recorded(meta, steps)


def joined(ranks: list[dict]) -> Step:
    """One step from what every rank saw of it."""
    first = ranks[0]
    start, batch = first["start"], first["batch"]
    found = {name: torch.zeros(batch, dtype=first[name].dtype) for name in BY_POSITION}
    trained = torch.zeros(batch, dtype=torch.int64)
    for seen in ranks:
        parts = [torch.arange(a - start, b - start) for a, b in seen["passes"]]
        rows = torch.cat([torch.zeros(0, dtype=torch.int64), *parts])
        kept = (rows >= 0) & (rows < batch)
        trained.index_add_(0, rows[kept], torch.ones_like(rows[kept]))
        for name in BY_POSITION:
            found[name][rows[kept]] = seen[name][kept]
    return Step(
        start=start, batch=batch, divisor=first["divisor"], lr=first["lr"], trained=trained, **found,
        norms=first["norms"], gradient=first["gradient"], weights=first["weights"], running=first["running"],
        passes=sum(len(seen["passes"]) for seen in ranks), disagree=disagreement(ranks),
        drew=any(seen["drew"] for seen in ranks),
    )  # fmt: skip


def disagreement(ranks: list[dict]) -> str | None:
    """What must be the same on all ranks and is not."""
    first = ranks[0]
    for number, other in enumerate(ranks[1:], 1):
        for name in ("start", "batch", "divisor", "lr"):
            if other[name] != first[name]:
                return f"{name} is {other[name]} on rank {number} and {first[name]} on rank 0"
        for name in ("gradient", "weights", "running"):
            if not torch.equal(other[name]["values"], first[name]["values"]):
                return f"the {name} of rank {number} is not that of rank 0"
    return None
