"""What several network families share: convolution, activation after a norm, initialisation, checks of keys.

Every network here is `Net(num_classes, channels or shape, *, keys of its YAML)`: images [n, c, h, w] float ->
logits [n, num_classes]; `size` is the smallest image side it was made for; its last layer is the nn.Linear
`head`. Pooling before the head is the mean over the whole map: at `size` that is the source's pooling, larger
images work too, and its gradient is deterministic on a GPU (that of torch's adaptive pooling is not).

A network that has to see pictures before it is trained has a `first_look(batches)`, which is called once,
after its weights are drawn and before they move to the device, and not where `model.init_from` gives it
weights. batches: an iterator of [n, c, h, w], float32 on the CPU, the training split in its order, normalised
and not varied; it may stop early. What it finds belongs into its state_dict, and must be the same on every
rank.
"""

import math

import torch
from torch import nn

from adabatch.errors import UserError, suggest
from adabatch.layers import Chain, norm


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """Convolution without bias (a norm follows): [n, inputs, h, w] -> [n, outputs, h/stride, w/stride]."""
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)


def activated(kind: str, channels: int, ghost: int, eps: float = 1e-5, six: bool = False) -> nn.Sequential:
    """Norm, then ReLU (ReLU6 where `six`). x: [n, channels, ...], the same shape out.

    In place saves a copy of every map. A norm returns a tensor of its own that its backward does not need;
    without a norm the input itself would be overwritten, which a pre-activation block still adds at its end.
    """
    inplace = kind != "none"
    return Chain(norm(kind, channels, ghost, eps), nn.ReLU6(inplace) if six else nn.ReLU(inplace))


@torch.no_grad()
def he_normal(network: nn.Module) -> None:
    """Convolutions from N(0, sqrt(2 / (k * k * outputs))), biases 0 (He et al. 2015, arXiv 1502.01852)."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            layer.weight.normal_(0, math.sqrt(2 / (math.prod(layer.kernel_size) * layer.out_channels)))
            if layer.bias is not None:
                layer.bias.zero_()


@torch.no_grad()
def small_normal(head: nn.Linear) -> None:
    """Weights from N(0, 0.01), biases 0: the first logits are almost equal."""
    head.weight.normal_(0, 0.01)
    head.bias.zero_()


def blocks_per_stage(network: str, depth: int, step: int, offset: int) -> int:
    """n of depth = step * n + offset, n >= 1; UserError names the nearest depths that have one."""
    whole = isinstance(depth, int)
    n, rest = divmod(depth - offset, step) if whole else (0, 1)
    if n >= 1 and rest == 0:
        return n
    near = sorted({step * max(k, 1) + offset for k in ((n, n + 1) if whole else (1, 2, 3))})
    options = f"{'Nearest' if whole else 'For example'}: {' or '.join(str(d) for d in near)}."
    raise UserError(f"model.depth of {network} is {step}n+{offset} with n >= 1; got {depth!r}. {options}")


def positive(**keys: int) -> None:
    """UserError unless each key of the model's YAML is a whole number from 1."""
    for name, value in keys.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise UserError(f"model.{name} is a whole number from 1; got {value!r}.")


def number(**keys: float) -> None:
    """UserError unless each key of the model's YAML is a number above 0."""
    for name, value in keys.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
            raise UserError(f"model.{name} is a number above 0; got {value!r}.")


def yes_or_no(**keys: bool) -> None:
    """UserError unless each key of the model's YAML is true or false."""
    for name, value in keys.items():
        if not isinstance(value, bool):
            raise UserError(f"model.{name} is true or false; got {value!r}.")


def one_of(name: str, value, known):
    """`value` if it is one of the `known` ones of the key model.<name>, else UserError with a suggestion."""
    if isinstance(value, bool) or value not in known:
        options = ", ".join(str(k) for k in known)
        raise UserError(f"model.{name} is one of {options}; got {value!r}.{suggest(value, known)}")
    return value
