"""Fine-tuning: weights of a network whose last layer is another, and which parameters are trained.

The last layer is the nn.Linear `head` of a network, as all of ours have it, else its last nn.Linear in module
order.
"""

import contextlib
import logging

from torch import nn

from adabatch import checkpoint, layers
from adabatch.errors import UserError, suggest
from adabatch.targets import TRAINED

NORMS = (
    layers.GhostNorm, nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm
)  # fmt: skip

log = logging.getLogger("adabatch")


def last_layer(model: nn.Module) -> tuple[str, nn.Linear]:
    """(its name, the layer). UserError: the network has no linear layer."""
    linear = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise UserError(
            f"{type(model).__name__} has no nn.Linear, so that it is not known which layer is the last: take "
            "model.train=all and model.init_head=true, or a network with one"
        )
    head = getattr(model, "head", None)
    return next((pair for pair in linear if pair[1] is head), linear[-1])


def initialise(model: nn.Module, weights: dict, what: str, head: bool = True) -> None:
    """Load weights by name. what: where they come from, for messages. head: the last layer's too; otherwise
    it stays as drawn, whatever its shape was there. UserError: anything else that does not fit."""
    weights = getattr(model, "translated", dict)(weights)
    prefix = getattr(model, "foreign_prefix", "")
    if prefix and not any(name.startswith(prefix) for name in weights):
        weights = {prefix + name: tensor for name, tensor in weights.items()}
    known = model.state_dict()  # a counter of torch's batch norm, which ours has not in its place
    weights = {n: t for n, t in weights.items() if n in known or not n.endswith(".num_batches_tracked")}
    if head:
        try:
            checkpoint.fit(model, weights, what)
        except UserError as error:
            raise UserError(f"{error}{_remedy(model, weights)}") from None
        return
    name, layer = last_layer(model)
    own = tuple(f"{name}.{key}" for key in layer.state_dict())
    checkpoint.fit(model, weights, what, but=own)
    there = "x".join(map(str, weights[own[0]].shape)) if own[0] in weights else "no such layer"
    here = "x".join(map(str, layer.weight.shape))
    log.info("weights   from %s, but for the last layer %s (%s, there %s): as drawn", what, name, here, there)


def _remedy(model: nn.Module, weights: dict) -> str:
    """What to add to an error where the last layer has another shape."""
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    name = last_layer(model)[0] if linear else None
    own, theirs = model.state_dict().get(f"{name}.weight"), weights.get(f"{name}.weight")
    if own is None or theirs is None or own.shape == theirs.shape:
        return ""
    return f". model.init_head=false leaves {name}, the last layer, as drawn"


def freeze(model: nn.Module, train: str) -> None:
    """Leave gradients to what `model.train` names: all, last (the last layer) or norm_last (norms and that).
    What the network's own class has frozen stays so."""
    if train not in TRAINED:
        words = f"model.train is one of {', '.join(TRAINED)}, got {train!r}"
        raise UserError(f"{words}.{suggest(str(train), TRAINED)}")
    if train == "all":
        return
    name, layer = last_layer(model)
    chosen = list(layer.parameters())
    if train == "norm_last":
        norms = [p for m in model.modules() if isinstance(m, NORMS) for p in m.parameters(recurse=False)]
        if not norms:
            raise UserError(
                f"model.train=norm_last trains norms, and {type(model).__name__} has none with weights here: "
                "take model.train=last or all"
            )
        chosen += norms
    kept, count = {id(p) for p in chosen}, 0
    for p in model.parameters():
        p.requires_grad_(p.requires_grad and id(p) in kept)
        count += p.numel() * p.requires_grad
    total = sum(p.numel() for p in model.parameters())
    what = f"the last layer {name}{' and the norms' if train == 'norm_last' else ''}"
    log.info("trained   %s: %s of %s parameters", what, f"{count:,}", f"{total:,}")


@contextlib.contextmanager
def thawed(model: nn.Module):
    """Every parameter asks for a gradient inside; what was frozen is so again behind."""
    frozen = [p for p in model.parameters() if not p.requires_grad and p.is_floating_point()]
    try:
        for p in frozen:
            p.requires_grad_(True)
        yield
    finally:
        for p in frozen:
            p.requires_grad_(False)
