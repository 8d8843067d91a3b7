"""SGD over flat vectors, and which parameters weight decay applies to.

torch.optim's first use imports torch._dynamo, 4 to 6 s at the start of every run; its SGD is these five
lines. It is the reference in tests/test_optim.py, bit for bit. Any other optimizer comes by
`optimizer._target_`.
"""

import torch
from torch import nn

from adabatch.errors import UserError


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
        index = -1
        for group in self.param_groups:
            for p in group["params"]:
                index += 1
                d = p.grad.add(p, alpha=group["weight_decay"]) if group["weight_decay"] else p.grad
                if group["momentum"]:
                    v = self.buffers[index]
                    v = d.clone() if v is None else v.mul_(group["momentum"]).add_(d)
                    self.buffers[index] = v
                    d = d.add(v, alpha=group["momentum"]) if group["nesterov"] else v
                p.add_(d, alpha=-group["lr"])

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


def decayed(model: nn.Module, norm_and_bias: bool) -> list[list[tuple[str, nn.Parameter]]]:
    """Trainable parameters in two lists: with weight decay, without. Norms and biases are the parameters of
    at most one dimension; with `norm_and_bias` they are decayed like all others (as torch and NVlabs do) and
    the second list is empty."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if norm_and_bias:
        return [named, []]
    return [[(n, p) for n, p in named if p.dim() > 1], [(n, p) for n, p in named if p.dim() <= 1]]
