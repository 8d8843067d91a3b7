"""SGD over flat vectors, block-normalised gradients, which parameters weight decay applies to, and what may
be held while the batch grows.

torch.optim's first use imports torch._dynamo, 4 to 6 s at the start of every run; its fused SGD is one call
of a kernel. It is the reference in tests/test_optim.py, bit for bit. Any other optimizer comes by
`optimizer._target_`.
"""

import torch
from torch import nn

from adabatch.errors import UserError, suggest

BASES, BLOCKS = ("sgd", "adam"), ("layer", "tensor")


class SGD:
    """SGD with momentum as torch.optim.SGD defines it (the learning rate outside the buffer):

        d = g + weight_decay * w;   v = momentum * v + d  (v = d at the first step)
        w -= lr * (d + momentum * v  if nesterov  else  v)

    params: a list of groups (dicts), as torch.optim takes them. Nesterov: Sutskever et al. 2013.
    """

    def __init__(self, params, lr: float, momentum: float = 0.0, weight_decay: float = 0.0, nesterov=False):
        if nesterov and not momentum:
            raise UserError("optimizer.nesterov=true looks ahead along the momentum, and momentum is 0")
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "nesterov": nesterov}
        self.param_groups = [defaults | group for group in params]
        self.buffers: list = [None] * sum(len(group["params"]) for group in self.param_groups)

    @torch.no_grad()
    def step(self) -> None:
        start = 0
        for group in self.param_groups:
            params = group["params"]
            stop = start + len(params)
            first = self.buffers[start] is None
            if group["momentum"] and first:
                self.buffers[start:stop] = [torch.empty_like(p) for p in params]
            buffers = self.buffers[start:stop] if group["momentum"] else []
            # One pass over memory; the five lines above take up to eleven.
            torch._fused_sgd_(
                params, [p.grad for p in params], buffers, weight_decay=group["weight_decay"],
                momentum=group["momentum"], lr=group["lr"], dampening=0.0, nesterov=group["nesterov"],
                maximize=False, is_first_step=first,
            )  # fmt: skip
            start = stop

    def state_dict(self) -> dict:
        return {"buffers": list(self.buffers)}

    def load_state_dict(self, state: dict) -> None:
        for i, (group_p, saved) in enumerate(zip(self._params(), state["buffers"], strict=True)):
            if saved is not None and saved.shape != group_p.shape:
                shapes = f"{tuple(saved.shape)} does not fit parameters of {tuple(group_p.shape)}"
                raise ValueError(f"momentum of {shapes}")
            self.buffers[i] = None if saved is None else saved.to(group_p.device, group_p.dtype).clone()

    def _params(self):
        return [p for group in self.param_groups for p in group["params"]]


class BlockNormalized:
    """Block-normalised gradient (Yu et al. 2017, arXiv 1707.04822, Algorithm 1): each block b of the gradient
    is divided by its norm, and a base method with its own step sizes runs on the result:

        n_b = g_b / |g_b|  (0 where g_b is 0);  with `ratio` ("NG", section 4.2) n_b = ratio |w_b| g_b / |g_b|

    A block of weights that are all 0 counts as |w_b| = 1: it would never move. Weight decay is the base's own
    and adds lambda w to n, behind the division.

    params: groups of flat vectors. named: the (name, parameter) that lie in them, whose gradients are views
    of the vectors' gradients; they are divided in place. blocks: "layer" = the parameters that one module
    holds itself, its weight and bias, as in the paper; "tensor" = each by itself. base: "sgd" (`SGD`) or
    "adam" (torch.optim.Adam).
    """

    def __init__(
        self, params, lr: float, named: list, base: str = "sgd", blocks: str = "layer",
        ratio: float | None = None, momentum: float = 0.9, nesterov: bool = False, betas=(0.9, 0.999),
        eps: float = 1e-8, weight_decay: float = 0.0,
    ):  # fmt: skip
        for key, value, known in (("base", base, BASES), ("blocks", blocks, BLOCKS)):
            if value not in known:
                words = f"optimizer.{key} is one of {', '.join(known)}, got {value!r}"
                raise UserError(f"{words}.{suggest(str(value), known)}")
        if ratio is not None and not ratio > 0:
            raise UserError(f"optimizer.ratio is null or a number above 0, got {ratio!r}")
        self.kind, self.ratio, self.members = base, ratio, [p for _, p in named]
        owners = [name.rpartition(".")[0] if blocks == "layer" else name for name, _ in named]
        order = {owner: block for block, owner in enumerate(dict.fromkeys(owners))}
        self.block = torch.tensor([order[owner] for owner in owners], device=self.members[0].device)
        # [blocks, most tensors of one]: which tensors a block has, filled up with one that does not exist.
        rows = [(self.block == block).nonzero()[:, 0] for block in range(len(order))]
        self.table = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=len(named))
        if base == "sgd":
            self.base = SGD(params, lr, momentum, weight_decay, nesterov)
        else:
            from torch.optim import Adam  # seconds: only for those who ask for it

            self.base = Adam(params, lr=lr, betas=tuple(betas), eps=eps, weight_decay=weight_decay)

    @property
    def param_groups(self) -> list:
        return self.base.param_groups

    def _norms(self, tensors) -> torch.Tensor:
        """Of each tensor's whole block, float64 [tensors]: in float32 the square of a small gradient is 0."""
        norms = torch._foreach_norm(tensors, 2, dtype=torch.float64)
        squares = torch.stack([*norms, torch.zeros_like(norms[0])]).square()
        return squares[self.table].sum(1).sqrt()[self.block]

    @torch.no_grad()
    def step(self) -> None:
        gradients = [p.grad for p in self.members]
        norms = self._norms(gradients)
        divisors = torch.where(norms == 0, 1.0, norms)
        if self.ratio is not None:
            lengths = self._norms(self.members)
            divisors = divisors / (self.ratio * torch.where(lengths == 0, 1.0, lengths))
        torch._foreach_div_(gradients, list(divisors.to(gradients[0].dtype).unbind()))
        self.base.step()

    def state_dict(self) -> dict:
        return {"base": self.kind, "state": self.base.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        if state["base"] != self.kind:
            raise ValueError(f"state of base={state['base']} does not fit base={self.kind}")
        params = [p for group in self.param_groups for p in group["params"]]
        if self.kind == "adam":  # torch's own takes any shape
            for i, saved in state["state"]["state"].items():
                for name in ("exp_avg", "exp_avg_sq"):
                    if saved[name].shape != params[i].shape:
                        shapes = f"{tuple(saved[name].shape)} does not fit parameters of"
                        raise ValueError(f"{name} of {shapes} {tuple(params[i].shape)}")
        self.base.load_state_dict(state["state"])


def decayed(model: nn.Module, norm_and_bias: bool) -> list[list[tuple[str, nn.Parameter]]]:
    """Trainable parameters in two lists: with weight decay, without. Norms and biases are the parameters of
    at most one dimension; with `norm_and_bias` they are decayed like all others (as torch and NVlabs do) and
    the second list is empty."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if norm_and_bias:
        return [named, []]
    return [[(n, p) for n, p in named if p.dim() > 1], [(n, p) for n, p in named if p.dim() <= 1]]


def groups(model: nn.Module, node: dict) -> list[tuple[list, dict]]:
    """The optimizer's groups that are not empty: (named parameters, what they have of their own). node: the
    optimizer's keys.

    bias_lr: biases (all parameters of that name, those of norms too) get bias_lr times the learning rate and
    1 / bias_lr of the weight decay, which leaves lr * weight_decay what it is (davidcpage/cifar10-fast).
    """
    scale, found = node.get("bias_lr", 1), []
    if scale != 1 and "weight_decay" not in node:
        raise UserError(
            f"optimizer.bias_lr={scale:g} divides optimizer.weight_decay for the biases, and "
            f"{node.get('_target_')} is given none: add +optimizer.weight_decay=0, or what it shall be"
        )
    for named, own in zip(decayed(model, node.get("decay_norm_and_bias", True)), ({}, {"weight_decay": 0.0})):
        biases = [(n, p) for n, p in named if p.dim() == 1 and n.endswith("bias")] if scale != 1 else []
        decay = {} if own or scale == 1 else {"weight_decay": node["weight_decay"] / scale}
        apart = {id(p) for _, p in biases}
        found.append(([(n, p) for n, p in named if id(p) not in apart], own))
        found.append((biases, own | decay | {"lr_scale": float(scale)}))
    if scale != 1 and not any(named for named, own in found if "lr_scale" in own):
        raise UserError(
            f"optimizer.bias_lr={scale:g} is for biases, and this network has none that is trained: bias_lr=1"
        )
    return [(named, own) for named, own in found if named]


def gradients(params) -> list:
    """For optimizers of ours in other files: only few touch gradients."""
    return [p.grad for p in params]


class Held:
    """Horizons that are kept constant in samples while the batch grows from B0 to k B0 (off unless asked
    for).

    momentum      m -> m^k, and the learning rate times (1 - m^k) / (1 - m), so that the noise level
                  lr / (B (1 - m)) stays that of the schedule; the buffer times (1 - m) / (1 - m^k) at a
                  change, so that the step in progress stays as long. Adam-type: both betas to the power k, no
                  more. weight_decay  per sample: lambda -> lambda k / s, s = the part of the learning rate
                  that follows the batch. Under linear scaling s = k: nothing to hold.
    """

    def __init__(self, optimizer, hold):
        self.optimizer = optimizer.base if isinstance(optimizer, BlockNormalized) else optimizer
        self.hold = frozenset(hold)
        names = ("momentum", "betas", "weight_decay")
        self.base = [{n: g[n] for n in names if n in g} for g in optimizer.param_groups]
        if "momentum" in self.hold and not any(g.get("momentum") or g.get("betas") for g in self.base):
            raise UserError("schedule.hold=[momentum] holds a horizon that this optimizer does not have")

    @property
    def decoupled(self) -> bool:
        """Whether weight decay stays outside the momentum, in the first groups."""
        return getattr(self.optimizer, "decoupled", "AdamW" in type(self.optimizer).__name__)

    def values(self, setting, index: int = 0) -> dict:
        """What an optimizer group has under a setting: momentum (or betas), weight_decay, and the factor of
        the learning rate."""
        base, k = dict(self.base[index]), setting.growth
        found = base | {"factor": 1.0}
        if "weight_decay" in self.hold and base.get("weight_decay"):
            found["weight_decay"] = base["weight_decay"] * k / setting.lr_growth
        if "momentum" in self.hold and "betas" in base:
            found["betas"] = tuple(beta**k for beta in base["betas"])
        elif "momentum" in self.hold and base.get("momentum"):
            found["momentum"] = base["momentum"] ** k
            found["factor"] = (1 - found["momentum"]) / (1 - base["momentum"])
        return found

    def apply(self, setting) -> float:
        """Sets the optimizer for a batch; returns the factor of its learning rate."""
        if not self.hold:
            return 1.0
        for index, group in enumerate(self.optimizer.param_groups):
            before, found = group.get("momentum"), self.values(setting, index)
            factor, betas = found.pop("factor"), group.get("betas")
            group.update(found)
            if betas and betas != group["betas"]:
                self._rebase(group, betas, group["betas"])
            if before and before != group["momentum"]:
                self._rescale(group, (1 - before) / (1 - group["momentum"]))
        return factor

    def _rebase(self, group, before, after) -> None:
        """Adam divides its moments by 1 - beta^t as if beta had always been the present one: after a change
        they are scaled so that the quotient stays."""
        for p in group["params"]:
            state = self.optimizer.state.get(p) or {}
            steps = float(state.get("step", 0))
            for name, old, new in zip(("exp_avg", "exp_avg_sq"), before, after):
                if steps and name in state:
                    state[name].mul_((1 - new**steps) / (1 - old**steps))

    def _rescale(self, group, factor: float) -> None:
        if isinstance(self.optimizer, SGD):
            own = {id(p) for p in group["params"]}
            buffers = [b for p, b in zip(self.optimizer._params(), self.optimizer.buffers) if id(p) in own]
        else:
            buffers = [self.optimizer.state[p].get("momentum_buffer") for p in group["params"]]
        for buffer in buffers:
            if buffer is not None:
                buffer.mul_(factor)

    def state_dict(self) -> list:
        """The momentum in force, so that a resumed buffer is not rescaled again."""
        return [
            {
                name: list(g[name]) if name == "betas" else g[name]
                for name in ("momentum", "betas")
                if name in g
            }
            for g in self.optimizer.param_groups
        ]

    def load_state_dict(self, state: list) -> None:
        for group, kept in zip(self.optimizer.param_groups, state):
            group.update({name: tuple(v) if name == "betas" else v for name, v in kept.items()})


def preconditioner(optimizer, flat):
    """A function that returns Adam's 1 / (sqrt(v / (1 - beta2^t)) + eps) for every element of `flat.params`,
    or None before the first step. Gradients times it are what the optimizer steps along (as AdaptDL
    measures)."""
    adam = all("betas" in group and "eps" in group for group in optimizer.param_groups)
    if not adam or isinstance(optimizer, BlockNormalized):  # whose second moments are of other gradients
        raise UserError(
            "schedule.preconditioned=true measures in Adam's metric, and this optimizer has no second "
            "moments of the gradient: take optimizer=adamw or preconditioned=false"
        )

    def metric():
        vector = torch.zeros_like(flat.params)
        params = [p for group in optimizer.param_groups for p in group["params"]]
        groups = [group for group in optimizer.param_groups for _ in group["params"]]
        for p, view, group in zip(params, flat.views(vector), groups):
            state = optimizer.state.get(p)
            if not state:
                return None
            unbiased = 1 - group["betas"][1] ** float(state["step"])
            view.copy_(1 / ((state["exp_avg_sq"] / unbiased).sqrt() + group["eps"]))
        return vector

    return metric
