"""Any classifier of torchvision.models by its name, untrained: with torchvision's own norms and dropout, or
with ours, by which no cut of a batch changes a result."""

from torch import nn

from adabatch.errors import UserError, suggest
from adabatch.layers import Dropout, GhostBatchNorm, split_dependent
from adabatch.models.parts import one_of

SMALLEST = 32  # pixels: many networks run on fewer, none was made for them
# Auxiliary heads would make the output a tuple while training; torchvision warns unless told to initialise.
WITH_AUXILIARY = {"googlenet", "inception_v3"}


class Torchvision(nn.Module):
    """x: [n, 3, size, size] -> logits [n, num_classes]. Nothing is downloaded: weights are drawn.

    size: the side that the architecture is fixed to, else the smallest that torchvision states, at least 32.
    """

    needs_channels = 3
    foreign_prefix = "network."  # what the names in torchvision's own weights files lack

    def __init__(self, num_classes: int, *, name: str = "resnet18", norm: str = "own", ghost: int = 32):
        super().__init__()
        one_of("norm", norm, ("own", "ghost"))
        from torchvision import models  # slow to import: only for those who ask for it

        known = models.list_models(module=models)
        if name not in known:
            remedy = suggest(name, known) or f" Some of them: {', '.join(known[:: len(known) // 8])}."
            raise UserError(f"model.name is a classifier of torchvision.models; got {name!r}.{remedy}")
        extra = {"aux_logits": False, "init_weights": True} if name in WITH_AUXILIARY else {}
        self.network = models.get_model(name, weights=None, num_classes=num_classes, **extra)
        stated = models.get_model_weights(name).DEFAULT.meta.get("min_size", (SMALLEST,))
        if norm == "ghost":
            invariant(self.network, ghost)
            if left := split_dependent(self.network):
                raise UserError(
                    "model.norm=ghost makes a network whose result does not depend on how a batch is cut, "
                    f"and {name} has layers without such a form, got {left[0]}: take model.norm=own"
                )
        # A vision transformer keeps its side in image_size; its published weights may be for another one.
        self.size = getattr(self.network, "image_size", max(SMALLEST, *stated))

    def forward(self, x):
        return self.network(x)


def invariant(module: nn.Module, ghost: int) -> None:
    """Puts ghost norm in the place of every batch norm, with its weights and their names, and dropout by
    position in that of torch's."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            ours = GhostBatchNorm(child.num_features, ghost, child.eps)
            ours.load_state_dict({k: v for k, v in child.state_dict().items() if k != "num_batches_tracked"})
            setattr(module, name, ours)
        elif type(child) is nn.Dropout:
            setattr(module, name, Dropout(child.p))
        else:
            invariant(child, ghost)
