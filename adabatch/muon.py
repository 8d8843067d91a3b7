"""Muon: steps along orthogonalised momentum for weights of two and more dimensions, SGD for the rest.

Jordan et al. 2024 (kellerjordan.github.io/posts/muon), on convolutions as in KellerJordan/cifar10-airbench. A
weight [outputs, ...] is the matrix [outputs, the rest]; with g its gradient,

    v = momentum * v + g;   d = g + momentum * v  if nesterov  else  v
    w = w * sqrt(outputs) / |w|   if renormalise   else   w * (1 - lr * weight_decay)      (w = 0 stays)
    w -= lr * O(d),   O(U S V^T) = U S' V^T,   S' about 1

O is Newton and Schulz's iteration of the fifth order with coefficients for speed: after `steps` of them S' is
not 1 but scattered around it. A zero gradient stays zero.

torch.optim.Muon is the reference in the tests and cannot serve: it takes matrices only, does not renormalise,
costs seconds at the start, and iterates in bfloat16. That rounding makes 5e-3 of a difference in a gradient's
last bit, and how a batch was cut would show in the weights. Here the iteration has the weights' precision
(under hardware.precision=tf32 its products round as all do, and the cut shows).
"""

import torch

from adabatch import finetune, optim
from adabatch.errors import UserError

A, B, C = 3.4445, -4.7750, 2.0315  # of the iteration, x <- A x + (B x x^T + C (x x^T)^2) x


def orthogonalised(matrices, steps: int):
    """matrices: [n, rows, columns] -> the same shape; each with its singular values moved towards 1."""
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    # In float64, as in float32 the square of a small gradient is 0.
    norms = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True, dtype=torch.float64).to(x.dtype)
    x = x / norms.clamp(min=torch.finfo(x.dtype).tiny)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=B, alpha=C), x, beta=A)
    return x.mT if tall else x


class Muon:
    """params: groups as `groups` made them; that of the matrices lists them, the others are vectors for SGD.

    head_lr: the last layer, which Muon leaves to SGD, gets so many times the learning rate, and the weight
    decay divided by it. sgd_momentum, weight_decay, nesterov: of SGD; nesterov of both. What a change of the
    batch couples (rows "change") is told of the matrices.
    """

    decoupled = True

    def __init__(
        self, params, lr: float, momentum: float = 0.6, nesterov: bool = True, steps: int = 3,
        renormalise: bool = True, head_lr: float = 1.0, sgd_momentum: float = 0.85, weight_decay: float = 0.0,
    ):  # fmt: skip
        if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
            raise UserError(f"optimizer.steps is a whole number from 1, got {steps!r}: 3 are airbench's")
        for name, value in dict(momentum=momentum, sgd_momentum=sgd_momentum).items():
            if not 0 <= value < 1:
                raise UserError(f"optimizer.{name} is a number from 0 to below 1, got {value!r}")
        if nesterov and not (momentum and sgd_momentum):
            raise UserError("optimizer.nesterov=true looks ahead along a momentum, and one of the two is 0")
        self.steps, self.renormalise = steps, renormalise
        own = {"lr": lr, "momentum": momentum, "nesterov": nesterov}
        own |= {} if renormalise else {"weight_decay": weight_decay}
        self.turned = [own | group for group in params if "matrices" in group]
        rest = [group for group in params if "matrices" not in group]
        self.sgd = optim.SGD(rest, lr, sgd_momentum, weight_decay, nesterov)
        self.param_groups = [*self.turned, *self.sgd.param_groups]
        self.matrices = [p for group in self.turned for p in group["matrices"]]
        self.buffers = [torch.zeros_like(p) for p in self.matrices]

    @staticmethod
    def groups(model, node: dict) -> list[tuple[list, dict]]:
        """As `optim.groups`, with the matrices apart, which come first, and the last layer's weight."""
        head, factor = last_weight(model), node.get("head_lr", 1.0)
        if turned := [n for n in getattr(model, "trained_for", ()) if model.get_parameter(n).dim() > 1]:
            raise UserError(
                f"{type(model).__name__} trains {turned[0]} for a part of the run, which optimizer=muon can "
                "for vectors only: take optimizer=sgd"
            )
        if not factor > 0:
            raise UserError(f"optimizer.head_lr is a number above 0, got {factor!r}")
        turned, rest = [], []
        for named, own in optim.groups(model, node):
            matrices = [(n, p) for n, p in named if p.dim() > 1 and p is not head]
            if matrices:
                turned.append((matrices, {"matrices": [p for _, p in matrices]}))
            rest.append(([(n, p) for n, p in named if p.dim() <= 1], own))
            last = {"lr_scale": factor, "weight_decay": node.get("weight_decay", 0.0) / factor}
            rest.append(([(n, p) for n, p in named if p is head], own | last))
        if not turned:
            raise UserError(
                "optimizer=muon steps along orthogonalised gradients of weights before the last layer, and "
                "none of them is trained here: take optimizer=sgd, or model.train=all"
            )
        return turned + [(named, own) for named, own in rest if named]

    @torch.no_grad()
    def step(self) -> None:
        start = 0
        for group in self.turned:
            stop = start + len(group["matrices"])
            self._turn(group, self.buffers[start:stop])
            start = stop
        self.sgd.step()

    def _turn(self, group: dict, buffers: list) -> None:
        weights = group["matrices"]
        gradients = optim.gradients(weights)
        torch._foreach_mul_(buffers, group["momentum"])
        torch._foreach_add_(buffers, gradients)
        ahead = buffers
        if group["nesterov"]:
            ahead = torch._foreach_add(gradients, buffers, alpha=group["momentum"])
        if self.renormalise:
            norms = torch._foreach_norm(weights, 2, dtype=torch.float64)
            scales = [torch.where(n == 0, 1.0, len(w) ** 0.5 / n) for w, n in zip(weights, norms)]
            torch._foreach_mul_(weights, [s.to(w.dtype) for w, s in zip(weights, scales)])
        else:
            torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
        for same in alike(weights):
            turned = orthogonalised(torch.stack([ahead[i].flatten(1) for i in same]), self.steps)
            for i, direction in zip(same, turned):
                weights[i].sub_(direction.view(weights[i].shape), alpha=group["lr"])

    def state_dict(self) -> dict:
        return {"buffers": list(self.buffers), "sgd": self.sgd.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        for buffer, saved in zip(self.buffers, state["buffers"], strict=True):
            if saved.shape != buffer.shape:
                shapes = f"{tuple(saved.shape)} does not fit parameters of {tuple(buffer.shape)}"
                raise ValueError(f"momentum of {shapes}")
            buffer.copy_(saved)
        self.sgd.load_state_dict(state["sgd"])


def last_weight(model):
    """The last layer's weight. UserError: it has none that can be told."""
    try:
        return finetune.last_layer(model)[1].weight
    except UserError as error:
        raise UserError(
            f"optimizer=muon leaves the last layer to SGD, and in {type(model).__name__} it cannot be told: "
            f"take optimizer=sgd ({str(error).partition(':')[0]})"
        ) from error


def alike(weights: list) -> list[list[int]]:
    """Which weights are matrices of one shape: they are turned in one product, whose calls cost more than
    their arithmetic on a GPU."""
    found: dict = {}
    for i, w in enumerate(weights):
        found.setdefault((len(w), w[0].numel()), []).append(i)
    return list(found.values())
