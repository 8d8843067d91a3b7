"""Wide ResNet for CIFAR (Zagoruyko & Komodakis 2016, arXiv 1605.07146), and what bigBatch calls by that name.

`variant="wrn"`: pre-activation blocks, as in NVlabs/AdaBatch (models/cifar/wrn). `variant="bigbatch"`: the
post-activation ResNet of eladhoffer/bigBatch (models/wide_resnet; Hoffer et al. 2017, arXiv 1705.08741) with
all widths multiplied, that of the first convolution too; its "16" has two blocks per stage, so 14 layers.
"""

from torch import nn

from adabatch.errors import UserError
from adabatch.layers import Dropout
from adabatch.models import resnet
from adabatch.models.parts import activated, blocks_per_stage, conv, he_normal, one_of, positive


class Block(nn.Module):
    """x: [n, inputs, h, w] -> [n, width, h/stride, w/stride].

    A projection takes the activated input, an identity shortcut the raw one.
    """

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int, norm: str, ghost: int, dropout: float):
        super().__init__()
        self.activated = activated(norm, inputs, ghost)
        self.residual = nn.Sequential(
            conv(inputs, width, 3, stride), activated(norm, width, ghost),
            Dropout(dropout), conv(width, width, 3),
        )  # fmt: skip
        self.projection = conv(inputs, width, 1, stride) if inputs != width else None

    def forward(self, x):
        active = self.activated(x)
        return self.residual(active) + (x if self.projection is None else self.projection(active))


class WideResNet(nn.Module):
    """x: [n, channels, 32, 32] -> logits [n, num_classes].

    depth: 6n+4. width: the stages have 16, 32 and 64 times this many channels.
    """

    size = 32

    def __init__(
        self,
        num_classes: int,
        channels: int,
        *,
        depth: int = 28,
        width: int = 10,
        variant: str = "wrn",
        dropout: float = 0.0,
        norm: str = "ghost",
        ghost: int = 32,
    ):
        super().__init__()
        positive(width=width)
        one_of("variant", variant, ("wrn", "bigbatch"))
        count = blocks_per_stage("wide_resnet", depth, 6, 4)
        widths, keys = (16 * width, 32 * width, 64 * width), {"norm": norm, "ghost": ghost}
        if variant == "bigbatch":
            if dropout:
                raise UserError(f"model.dropout is 0 where model.variant is bigbatch; got {dropout}.")
            stem = [conv(channels, widths[0], 3), activated(norm, widths[0], ghost)]
            layers = stem + resnet.stages(resnet.BasicBlock, count, widths[0], widths, **keys)
        else:
            blocks = resnet.stages(Block, count, 16, widths, dropout=dropout, **keys)
            layers = [conv(channels, 16, 3), *blocks, activated(norm, widths[-1], ghost)]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(widths[-1], num_classes)
        he_normal(self)
        if variant == "wrn":
            nn.init.zeros_(self.head.bias)

    def forward(self, x):
        return self.head(self.body(x).mean((2, 3)))
