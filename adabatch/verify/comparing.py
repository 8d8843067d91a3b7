"""Where two runs part first, and by what: trajectory, data, learning rate, forward, gradient, update."""

from dataclasses import dataclass

import torch

from adabatch.verify.recorded import Recorded, Step

# In the order in which one follows from the other within a step.
STAGES = {
    "trajectory": "schedule or budget",
    "order": "data order",
    "labels": "labels",
    "inputs": "augmentation or preparation of inputs",
    "rate": "learning rate",
    "forward": "forward pass",
    "gradient": "gradient",
    "ranks": "ranks disagree",
    "update": "update of weights or statistics",
}
DATA = ("trajectory", "order", "labels", "inputs")  # bitwise always


@dataclass(frozen=True)
class Parted:
    """stage: of STAGES. position: the first that differs, or the step's first. detail: a sentence. tensor:
    with the largest difference."""

    stage: str
    position: int
    detail: str
    tensor: str | None = None

    def __str__(self) -> str:
        where = f" (most in {self.tensor})" if self.tensor else ""
        return f"{STAGES[self.stage]}, first at position {self.position:,}: {self.detail}{where}"


def relative(a, b) -> float:
    """max |a - b| / max |b| of two tensors; inf where one is not finite."""
    if not b.numel():
        return 0.0
    gap, size = float((a.double() - b.double()).abs().max()), float(b.double().abs().max())
    if not gap < float("inf"):
        return float("inf")
    return gap / size if size else (0.0 if gap == 0 else float("inf"))


def difference(a: dict, b: dict) -> tuple[float, str | None]:
    """(max |a - b| over all elements / max |b| over the whole network, the tensor with the largest |a - b|)
    of two state_dicts; (inf, name) where one lacks a tensor or a number is not finite."""
    if a.keys() != b.keys():
        return float("inf"), sorted(a.keys() ^ b.keys())[0]
    gaps, size = {}, 0.0
    for name in b:
        if b[name].numel():
            gap = float((a[name].double() - b[name].double()).abs().max())
            gaps[name] = gap if gap < float("inf") else float("inf")  # nan too
            size = max(size, float(b[name].double().abs().max()))
    worst = max(gaps, key=gaps.get, default=None)
    if worst is None or gaps[worst] == 0:
        return 0.0, None
    return gaps[worst] / size if size else float("inf"), worst


def parting(ours: Recorded, theirs: Recorded, bound: float, data: bool = True) -> Parted | None:
    """Where `theirs` first leaves `ours` by more than `bound` (relative; 0 = any bit), None where nowhere.
    data: whether their data are compared too (not where they run in other precisions)."""
    for a, b in zip(ours.steps, theirs.steps):
        found = of_data(a, b, data) or of_step(ours, a, b, bound)
        if found:
            return found
    return lengths(ours.steps, theirs.steps)


def lengths(ours: list, theirs: list) -> Parted | None:
    if len(ours) == len(theirs):
        return None
    end, other = (steps[-1].stop if steps else 0 for steps in (ours, theirs))
    text = f"{len(theirs)} steps up to position {other:,} instead of {len(ours)} up to {end:,}"
    return Parted("trajectory", min(end, other), text)


def of_data(a: Step, b: Step, inputs: bool = True) -> Parted | None:
    """Setting, order, labels and inputs of a step."""
    if (a.start, a.batch, a.divisor) != (b.start, b.batch, b.divisor):
        names = zip(("start", "batch", "divisor"), (a.start, a.batch, a.divisor))
        text = ", ".join(f"{n} {getattr(b, n)} instead of {v}" for n, v in names if getattr(b, n) != v)
        return Parted("trajectory", a.start, text)
    if bool((b.trained != 1).any()):
        row = int((b.trained != 1).nonzero()[0])
        return Parted("trajectory", b.start + row, f"trained {int(b.trained[row])} times instead of once")
    for stage, name in (("order", "sample"), ("labels", "label"), ("inputs", "input")):
        differs = getattr(a, name) != getattr(b, name)
        if bool(differs.any()) and (inputs or stage == "order"):
            row = int(differs.nonzero()[0])
            text = f"{int(differs.sum())} of {a.batch} samples of the step differ"
            if stage == "order":
                text += f"; sample {int(b.sample[row])} instead of {int(a.sample[row])}"
            return Parted(stage, a.start + row, text)
    return None


def of_step(ours: Recorded, a: Step, b: Step, bound: float) -> Parted | None:
    """Learning rate, losses, gradient and update of a step."""
    if a.lr != b.lr:
        return Parted("rate", a.start, f"{b.lr[0]:.9g} instead of {a.lr[0]:.9g}")
    if parted(a.loss, b.loss, bound):
        row = int((a.loss - b.loss).abs().argmax())
        text = f"per-sample losses differ by up to {relative(b.loss, a.loss):.1e} though all before it agrees"
        return Parted("forward", a.start + row, text)
    found = of_gradient(ours, a, b, bound)
    if found:
        return found
    if b.disagree:
        return Parted("ranks", b.start, b.disagree)
    for name in ("weights", "running"):
        x, y = getattr(a, name), getattr(b, name)
        if x["values"].shape == y["values"].shape and parted(x["values"], y["values"], bound):
            index = int((x["values"] - y["values"]).abs().argmax()) * x["stride"]
            tensor = ours.tensor(index) if name == "weights" else "running statistics"
            text = f"{relative(y['values'], x['values']):.1e} after the update"
            return Parted("update", a.stop, text, tensor)
    return None


def of_gradient(ours: Recorded, a: Step, b: Step, bound: float) -> Parted | None:
    far = gradient_difference(a, b)
    norms = parted(a.norms, b.norms, bound)
    if not norms and (far is None or far <= bound):
        return None
    worst = int((a.norms - b.norms).abs().argmax())
    size = float(a.norms.square().sum().sqrt()), float(b.norms.square().sum().sqrt())
    text = f"{max(far or 0.0, relative(b.norms, a.norms)):.1e} although per-sample losses agree"
    text += f" (normalisation or reduction: its norm is {size[1] / size[0]:.4g} times what it should be)" if (
        size[0] and abs(size[1] / size[0] - 1) > 1e-3
    ) else " (normalisation or reduction)"  # fmt: skip
    return Parted("gradient", a.start, text, ours.meta["names"][worst])


def gradient_difference(a: Step, b: Step) -> float | None:
    """Relative, of the elements that both kept; None where they kept different ones."""
    x, y = a.gradient, b.gradient
    if x["stride"] != y["stride"] or x["values"].shape != y["values"].shape:
        return None
    return relative(y["values"], x["values"])


def parted(a, b, bound: float) -> bool:
    """Whether two tensors differ by more than `bound`; with bound 0, in any value (nan is equal to nan)."""
    if bound == 0:
        return not bool(((a == b) | (a.isnan() & b.isnan())).all())
    return relative(b, a) > bound


def weights_part(ours: Recorded, theirs: Recorded, bound: float) -> int | None:
    """The first position at whose step the kept part of the weights differs by more than `bound`."""
    for a, b in zip(ours.steps, theirs.steps):
        if parted(a.weights["values"], b.weights["values"], bound):
            return a.stop
    return None


def within(ours: Recorded, theirs: Recorded, nudged: Recorded, bound: float, factor: float) -> bool:
    """Whether the kept part of the weights differs, after every step, by no more than `bound` or `factor`
    times what it differs in the run that began from nudged weights."""
    for a, b, c in zip(ours.steps, theirs.steps, nudged.steps):
        kept = a.weights["values"]
        own = relative(c.weights["values"], kept)
        if not relative(b.weights["values"], kept) <= max(bound, factor * own):
            return False
    return len(ours.steps) == len(theirs.steps) == len(nudged.steps)


def worst_gradient(ours: Recorded, a: Step, b: Step) -> tuple[float | None, str | None]:
    """(relative difference of a step's gradient, the tensor with the largest |difference|)."""
    far = gradient_difference(a, b)
    if not far:
        return far, None
    gap = (a.gradient["values"] - b.gradient["values"]).abs()
    return far, ours.tensor(int(torch.argmax(gap)) * a.gradient["stride"])
