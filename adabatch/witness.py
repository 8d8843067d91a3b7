"""What really went through the steps of a rehearsal, written down by every rank for adabatch-verify.

By position: which sample was read, digests of its label and of the bits of its input, its loss. By step: the
setting, the learning rate as the optimizer had it, norms of every tensor's gradient, a part of the gradient
and of the weights after the update (whole ones where that is affordable). One file per step,
`<folder>/rank<r>/<start>.pt`, written before the step is over, so that a killed run has left what it did.
"""

import hashlib
import os
import signal
from pathlib import Path

import torch

from adabatch import draws, layers
from adabatch.data.samples import Samples, Subset

WHOLE = (
    1 << 22
)  # elements of a gradient that is kept whole: of the first step, and of the two from a change on
KEPT = 3  # whole gradients of a process
PART = 1 << 16  # elements that are kept otherwise
PIECES = 64  # samples that are read in several ways before the first step
EVALUATED = 64  # samples of each evaluated split: a rehearsal is about training


def attend(config: dict, step, data) -> None:
    """Have a rehearsal's step watched, and its evaluations cut short."""
    asked = config["rehearsal"]
    watched = step.stream.samples = Watched(step.stream.samples)
    step.witness = Witness(asked.get("witness"), asked.get("kill_after"), step, watched)
    if asked.get("nudge"):
        nudge(step.flat.params)
    for name in ("validation", "test"):
        split = getattr(data, name)
        if split is not None and len(split) > EVALUATED:
            setattr(data, name, Subset(split, torch.arange(EVALUATED)))


def nudge(vector) -> None:
    """Every element off by one rounding, up or down by a hash of its place; zeros stay."""
    signs = draws.integers(draws.key(0, 0), torch.arange(vector.numel()), 2) * 2 - 1
    with torch.no_grad():
        vector.mul_(1 + signs.to(vector) * torch.finfo(vector.dtype).eps)


class Watched(Samples):
    """Samples that remember what was read of them last: what a stream says that it reads may be wrong."""

    def __init__(self, inner: Samples):
        self.inner, self.labels, self.look_ahead = inner, inner.labels, inner.look_ahead
        self.last = None  # int64 [n] on the CPU

    def __len__(self) -> int:
        return len(self.inner)

    def read(self, indices, keys=None):
        self.last = indices.cpu().clone()
        return self.inner.read(indices, keys)

    def expect(self, indices, keys=None) -> None:
        self.inner.expect(indices, keys)

    def close(self) -> None:
        self.inner.close()


def digests(x):
    """int64 [n]: a hash of the bits of each x[i], whatever its layout in memory."""
    rows = x.detach().cpu().contiguous().view(len(x), -1) if len(x) else x.detach().cpu().view(0, 1)
    data = rows.view(torch.uint8).numpy()
    found = [hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in data]
    return torch.tensor([int.from_bytes(f, "little", signed=True) for f in found], dtype=torch.int64)


def part(vector, most: int = PART) -> dict:
    """{"values", "stride"}: every stride-th element of a flat vector, at most `most` of them, on the CPU."""
    stride = max(1, -(-vector.numel() // most))
    return {"values": vector.detach()[::stride].cpu().clone(), "stride": stride}


def generator_digest(device) -> bytes:
    state = [torch.get_rng_state()]
    if device.type == "cuda":
        state.append(torch.cuda.get_rng_state(device))
    return b"".join(hashlib.blake2b(s.numpy().tobytes()).digest() for s in state)


class Witness:
    """folder: None = nothing is written. kill_after: after so many steps of this process, a SIGKILL to it."""

    def __init__(self, folder: str | None, kill_after: int | None, step, watched: Watched):
        self.step, self.watched, self.kill_after = step, watched, kill_after
        self.folder = Path(folder) / f"rank{step.hardware.ranks.rank}" if folder else None
        self.done, self.divisor, self.changes, self.left = 0, None, 2, KEPT
        self.seen: dict = {}

    def begin(self, start: int, setting) -> None:
        """A step begins, or begins again: what an attempt that failed had left is forgotten."""
        if self.done == self.kill_after:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.folder and not self.done and not self.seen:
            self._introduce()
        if self.divisor is not None and self.divisor != setting.divisor:
            self.changes = 0  # steps since the last change of batch
        self.divisor = setting.divisor
        self.generator = generator_digest(self.step.hardware.device)
        self.seen = dict(
            start=start, batch=setting.batch_size, divisor=setting.divisor, planned_lr=setting.lr,
            micro_batch=self.step.micro_batch, passes=[], sample=[], label=[], input=[], loss=[],
        )  # fmt: skip

    def passed(self, first: int, last: int, x, y, losses) -> None:
        """A forward pass over positions first <= p < last. x: [n, ...] (padded rows behind are left out)."""
        n, seen = last - first, self.seen
        seen["passes"].append((first, last))
        seen["sample"].append(self.watched.last[:n])
        seen["label"].append(digests(y[:n]))
        seen["input"].append(digests(x[:n]))
        seen["loss"].append(losses[:n].detach().double().cpu())

    def gradient(self, flat, optimizer) -> None:
        """The gradient of the whole batch, summed over ranks, before clipping."""
        whole = (self.done == 0 or self.changes < 2) and self.left > 0 and flat.grads.numel() <= WHOLE
        self.left -= whole
        self.seen["gradient"] = part(flat.grads, WHOLE if whole else PART)
        norms = [torch.linalg.vector_norm(v, dtype=torch.float64) for v in flat.views(flat.grads)]
        self.seen["norms"] = torch.stack(norms).cpu()

    def updated(self, flat, optimizer) -> None:
        """After the update: the step is written down."""
        seen = self.seen
        for name in ("sample", "label", "input"):
            seen[name] = torch.cat([*seen[name], torch.zeros(0, dtype=torch.int64)])
        seen["loss"] = torch.cat([*seen["loss"], torch.zeros(0, dtype=torch.float64)])
        lasting = [group for group in optimizer.param_groups if "until" not in group]
        seen["lr"] = [group["lr"] / group.get("lr_scale", 1.0) for group in lasting]
        seen["weights"], seen["running"] = part(flat.params), part(flat.running)
        seen["drew"] = self.generator != generator_digest(self.step.hardware.device)
        self.done, self.changes = self.done + 1, self.changes + 1
        self._write(f"{seen['start']:015d}.pt", seen)

    def _write(self, name: str, value: dict) -> None:
        if not self.folder:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.folder / f"{name}.tmp"
        torch.save(value, temporary)
        os.replace(temporary, self.folder / name)

    def _introduce(self) -> None:
        """What the process is, once, and whether the stream gives the same inputs in other pieces."""
        step, model = self.step, self.step.model
        kinds = {True: [], False: []}  # norms, and what draws from torch's generator
        for text in layers.split_dependent(model):
            layer = model.get_submodule(text.rpartition(" (")[0])
            kinds[isinstance(layer, torch.nn.modules.batchnorm._NormBase)].append(text)
        self._write("meta.pt", dict(
            rank=step.hardware.ranks.rank, world=step.hardware.ranks.world, device=str(step.hardware.device),
            deterministic=step.hardware.deterministic and not step.hardware.benchmark,
            threads=step.hardware.threads,
            precision=step.hardware.precision, unit=step.unit, micro_batch=step.micro_batch,
            samples=len(self.watched), plain_norms=kinds[True], torch_dropouts=kinds[False],
            names=[name for name, *_ in step.flat.layout],
            offsets=[view.storage_offset() for view in step.flat.views(step.flat.params)],
            pieces=self._pieces(),
        ))  # fmt: skip

    def _pieces(self) -> int | None:
        """The first position whose input depends on what else is read with it; None: there is none."""
        state = torch.get_rng_state()
        try:
            whole = digests(self.step.stream.batch(0, PIECES)[0])
            for size in (PIECES // 2, 1):
                parts = [self.step.stream.batch(p, p + size)[0] for p in range(0, PIECES, size)]
                differs = torch.cat([digests(x) for x in parts]) != whole
                if bool(differs.any()):
                    return int(differs.nonzero()[0])
        finally:
            torch.set_rng_state(state)
        return None
