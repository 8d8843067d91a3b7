"""Networks: parameter counts of their sources, agreement with torchvision, and the schema in conf/model."""

import importlib
import inspect
import math
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from adabatch import finetune, layers
from adabatch.errors import UserError
from adabatch.layers import Dropout, split_dependent
from adabatch.models import preresnet, resnet, wide_resnet
from adabatch.models.airbench import Airbench
from adabatch.models.alexnet import AlexNet
from adabatch.models.bigbatch import CifarShallow, MnistF1
from adabatch.models.convnet import ConvNet
from adabatch.models.densenet import DenseLayer, DenseNet
from adabatch.models.mobilenet_v2 import MobileNetV2
from adabatch.models.preresnet import PreResNet
from adabatch.models.proxylessnas import ProxylessNasMobile
from adabatch.models.resnet import ResNet
from adabatch.models.resnet9 import ResNet9
from adabatch.models.resnext import Block as ResNeXtBlock
from adabatch.models.resnext import ResNeXt
from adabatch.models.torchvision import Torchvision
from adabatch.models.vgg import Vgg
from adabatch.models.wide_resnet import WideResNet

CONF = Path(__file__).parents[1] / "conf" / "model"
INTERFACE = {"num_classes", "channels", "shape"}  # arguments that come from the data


def build(network, classes=10, channels=3, device="cpu", **keys):
    """The network for images of its own size; tensors on `meta` have no values, so counting is fast."""
    names = inspect.signature(network).parameters
    interface = {"num_classes": classes, "channels": channels}
    if "shape" in names:
        interface["shape"] = (channels, network.size, network.size)
    with torch.device(device):
        return network(**{k: v for k, v in interface.items() if k in names}, **keys)


def count(network, *args, **keys) -> int:
    return sum(p.numel() for p in build(network, *args, device="meta", **keys).parameters())


# Trainable parameters of the sources' own code at 10 and 100 classes.
COUNTS = [
    (AlexNet, {}, 2_472_266, 2_495_396),
    (Vgg, {"depth": 11, "norm": "none"}, 9_225_610, 9_271_780),
    (Vgg, {"depth": 11}, 9_231_114, 9_277_284),
    (Vgg, {"depth": 13, "norm": "none"}, 9_410_122, 9_456_292),
    (Vgg, {"depth": 13}, 9_416_010, 9_462_180),
    (Vgg, {"depth": 16, "norm": "none"}, 14_719_818, 14_765_988),
    (Vgg, {"depth": 16}, 14_728_266, 14_774_436),
    (Vgg, {"depth": 19, "norm": "none"}, 20_029_514, 20_075_684),
    (Vgg, {"depth": 19}, 20_040_522, 20_086_692),
    (ResNet, {"depth": 20}, 272_474, 278_324),
    (ResNet, {"depth": 32}, 466_906, 472_756),
    (ResNet, {"depth": 44}, 661_338, 667_188),  # bigBatch's
    (ResNet, {"depth": 44, "bottleneck": True}, 684_058, 707_188),
    (ResNet, {"depth": 56, "bottleneck": True}, 869_530, 892_660),
    (ResNet, {"depth": 110, "bottleneck": True}, 1_704_154, 1_727_284),
    (PreResNet, {"depth": 20}, 272_282, 278_132),
    (PreResNet, {"depth": 110, "bottleneck": True}, 1_703_258, 1_726_388),
    (WideResNet, {"depth": 28, "width": 10}, 36_479_194, 36_536_884),
    (WideResNet, {"depth": 16, "width": 4}, 2_748_890, 2_772_020),
    (WideResNet, {"depth": 16, "width": 4, "variant": "bigbatch"}, 2_777_674, 2_800_804),
    (DenseNet, {"depth": 100, "growth": 12}, 769_162, 800_032),
    (ResNeXt, {"depth": 29, "cardinality": 8, "group_width": 64}, 34_426_698, 34_518_948),
    (CifarShallow, {}, 1_388_490, 1_405_860),
]


@pytest.mark.parametrize("network, keys, ten, hundred", COUNTS)
def test_parameter_counts_of_the_cifar_networks(network, keys, ten, hundred):
    assert (count(network, 10, **keys), count(network, 100, **keys)) == (ten, hundred)


@pytest.mark.parametrize(
    "network, keys, classes, channels, expected",
    [
        (MnistF1, {}, 10, 1, 1_462_794),
        (MobileNetV2, {"stem": "imagenet"}, 1000, 3, 3_504_872),
        (MobileNetV2, {"stem": "cifar"}, 10, 3, 2_236_682),
        (ProxylessNasMobile, {"stem": "imagenet"}, 1000, 3, 4_080_512),
        (ProxylessNasMobile, {"stem": "cifar"}, 10, 3, 2_812_322),
        (Torchvision, {"name": "alexnet"}, 1000, 3, 61_100_840),
        (Torchvision, {"name": "resnet18"}, 1000, 3, 11_689_512),
        (Torchvision, {"name": "resnet50"}, 1000, 3, 25_557_032),
        (Torchvision, {"name": "vgg19_bn"}, 1000, 3, 143_678_248),
    ],
)
def test_parameter_counts_of_the_others(network, keys, classes, channels, expected):
    assert count(network, classes, channels, **keys) == expected


def residual_count(depth, classes, channels, bottleneck, preactivation):
    """Parameters of a CIFAR ResNet (He et al. 2015, section 4.2) with projections, by arithmetic."""
    n, expansion = (depth - 2) // 6, 4 if bottleneck else 1
    total, before = 9 * channels * 16, 16
    norms = [] if preactivation else [16]  # channels of every norm
    for stage, width in enumerate((16, 32, 64)):
        for i in range(n):
            after = expansion * width
            if bottleneck:
                total += before * width + 9 * width * width + width * after
                norms += [before, width, width] if preactivation else [width, width, after]
            else:
                total += 9 * before * width + 9 * width * width
                norms += [before, width] if preactivation else [width, width]
            if before != after or (stage > 0 and i == 0):
                total += before * after
                norms += [] if preactivation else [after]
            before = after
    norms += [before] if preactivation else []
    return total + 2 * sum(norms) + (before + 1) * classes


@pytest.mark.parametrize("bottleneck", [False, True])
@pytest.mark.parametrize("depth, classes, channels", [(8, 10, 3), (14, 7, 1), (56, 100, 3), (110, 10, 4)])
def test_residual_networks_count_as_arithmetic_says(depth, classes, channels, bottleneck):
    for network, preactivation in ((ResNet, False), (PreResNet, True)):
        expected = residual_count(depth, classes, channels, bottleneck, preactivation)
        assert count(network, classes, channels, depth=depth, bottleneck=bottleneck) == expected


def with_the_weights_of(reference: nn.Module, ours: nn.Module) -> nn.Module:
    """Copies every parameter and buffer over by order, the norms' moved away from their initial values."""
    with torch.no_grad():
        for value in reference.state_dict().values():
            if value.is_floating_point():
                value.copy_(3 * torch.rand_like(value) + 0.5 if value.dim() == 1 else value)
    theirs, mine = reference.state_dict(), ours.state_dict()
    assert [v.shape for v in mine.values()] == [v.shape for v in theirs.values()]
    ours.load_state_dict(dict(zip(mine, theirs.values(), strict=True)))
    return ours


def largest_difference(ours: nn.Module, reference: nn.Module, x: torch.Tensor) -> float:
    """max |a - b| / max |b| of outputs."""
    with torch.no_grad():
        a, b = ours(x), reference(x)
    return ((a - b).abs().max() / b.abs().max()).item()


def test_mobilenet_v2_gives_the_logits_of_torchvisions():
    from torchvision.models import mobilenet_v2

    torch.manual_seed(0)
    reference = mobilenet_v2(weights=None, num_classes=10)
    ours = with_the_weights_of(reference, MobileNetV2(10, 3, stem="imagenet", norm="batch"))
    x = torch.randn(2, 3, 96, 96)
    assert largest_difference(ours.eval(), reference.eval(), x) < 1e-5


def blocks_of_torchvision():
    """(name, reference block, ours, input channels)."""
    from torchvision.models import densenet as tv_densenet
    from torchvision.models import resnet as tv_resnet

    def down(inputs, outputs, stride):
        return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    return {
        "basic": (tv_resnet.BasicBlock(8, 8), resnet.BasicBlock(8, 8, 1, "batch", 32), 8),
        "basic with projection": (
            tv_resnet.BasicBlock(8, 12, 2, down(8, 12, 2)), resnet.BasicBlock(8, 12, 2, "batch", 32), 8),
        "bottleneck": (
            tv_resnet.Bottleneck(8, 4, 2, down(8, 16, 2)), resnet.Bottleneck(8, 4, 2, "batch", 32), 8),
        "resnext": (
            tv_resnet.Bottleneck(16, 8, 2, down(16, 32, 2), groups=4, base_width=64),
            ResNeXtBlock(16, 32, 32, 2, 4, "batch", 32), 16),
        "dense": (
            nn.Sequential(tv_densenet._DenseLayer(8, 3, 4, 0.0)), DenseLayer(8, 3, 0.0, "batch", 32), 8),
    }  # fmt: skip


@pytest.mark.parametrize("name", ["basic", "basic with projection", "bottleneck", "resnext", "dense"])
def test_blocks_compute_what_torchvisions_blocks_compute(name):
    torch.manual_seed(0)
    reference, ours, channels = blocks_of_torchvision()[name]
    with_the_weights_of(reference, ours)
    x = torch.randn(4, channels, 8, 8)
    expected = _Appended(reference) if name == "dense" else reference
    assert largest_difference(ours, expected, x) < 1e-6  # by the batch's statistics
    assert largest_difference(ours.eval(), expected.eval(), x) < 1e-6


class _Appended(nn.Module):
    """torchvision concatenates outside of its dense layer."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return torch.cat((x, self.layer(x)), 1)


def test_vgg_computes_what_torchvisions_convolutions_compute():
    from torchvision.models import vgg as tv_vgg

    torch.manual_seed(0)
    for norm, letter in (("batch", "A"), ("none", "B")):
        reference = tv_vgg.make_layers(tv_vgg.cfgs[letter], batch_norm=norm == "batch")
        ours = Vgg(10, 3, depth={"A": 11, "B": 13}[letter], norm=norm)
        for layer in reference:  # keep the signal alive through torch's default initialisation
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight)
        with_the_weights_of(reference, ours.body)
        x = torch.randn(2, 3, 32, 32)
        assert largest_difference(ours.body.eval(), reference.eval(), x) < 1e-5


def test_a_wide_block_projects_the_activated_input_and_adds_the_raw_one():
    torch.manual_seed(0)
    x = torch.randn(4, 8, 6, 6)
    for width in (8, 16):
        block = wide_resnet.Block(8, width, 1, "batch", 32, 0.0).eval()
        norms = [m for m in block.modules() if isinstance(m, nn.BatchNorm1d)]
        convs = [m for m in block.modules() if isinstance(m, nn.Conv2d)]
        active = torch.relu(norms[0](x))
        inner = nn.functional.conv2d(active, convs[0].weight, padding=1)
        outer = nn.functional.conv2d(torch.relu(norms[1](inner)), convs[1].weight, padding=1)
        shortcut = x if width == 8 else nn.functional.conv2d(active, convs[2].weight)
        assert torch.allclose(block(x), outer + shortcut, atol=1e-6)


@pytest.mark.parametrize("norm", layers.NORMS)
@pytest.mark.parametrize("bottleneck", [False, True])
def test_a_preactivation_block_adds_the_projection_of_the_raw_input(norm, bottleneck):
    """Without a norm an activation in place would change the input before the shortcut reads it."""
    torch.manual_seed(0)
    kind = preresnet.Bottleneck if bottleneck else preresnet.BasicBlock
    for block in (kind(8, 8, 2, norm, 4), kind(8, 8 // kind.expansion, 1, norm, 4)):
        x = torch.randn(4, 8, 6, 6)
        before = x.clone()
        out = block(x)
        assert torch.equal(x, before)
        assert torch.allclose(out - block.residual(x), block.shortcut(before), atol=1e-5)


# Smallest members of each family, and (slow) what a user gets by default.
SMALL = [
    (ConvNet, {}),
    (AlexNet, {}),
    (Vgg, {"depth": 11}),
    (ResNet, {"depth": 8}),
    (ResNet, {"depth": 8, "bottleneck": True}),
    (PreResNet, {"depth": 8}),
    (PreResNet, {"depth": 8, "bottleneck": True}),
    (WideResNet, {"depth": 10, "width": 1, "dropout": 0.3}),
    (WideResNet, {"depth": 10, "width": 2, "variant": "bigbatch"}),
    (DenseNet, {"depth": 10, "growth": 4, "dropout": 0.2}),
    (ResNeXt, {"depth": 11, "cardinality": 2, "group_width": 4, "widen": 1}),
    (MobileNetV2, {}),
    (ProxylessNasMobile, {}),
    (MnistF1, {}),
    (CifarShallow, {}),
    (Torchvision, {"name": "resnet18"}),
    (ResNet9, {"whiten": True, "celu": 0.3, "pool_first": True}),
    (Airbench, {}),
]
LARGE = [
    (Vgg, {}),
    (ResNet, {"depth": 110, "bottleneck": True}),
    (WideResNet, {}),
    (DenseNet, {}),
    (ResNeXt, {}),
    (MobileNetV2, {"stem": "imagenet"}),
    (ProxylessNasMobile, {"stem": "imagenet"}),
    (Torchvision, {"name": "inception_v3"}),
    (Torchvision, {"name": "googlenet"}),
]


def one_step(network, channels, **keys):
    """Forward and backward of two samples at the network's own size; checks every gradient."""
    torch.manual_seed(0)
    net = build(network, 10, channels, **keys)
    x = torch.randn(2, getattr(net, "needs_channels", channels), net.size, net.size)
    before = x.clone()
    logits = net(x)
    assert logits.shape == (2, 10) and logits.dtype == torch.float32
    nn.functional.cross_entropy(logits, torch.tensor([3, 7])).backward()
    assert torch.equal(x, before)
    trained = {name: p for name, p in net.named_parameters() if p.requires_grad}
    for name, parameter in trained.items():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    first = next(iter(trained.values()))
    assert first.grad.abs().max() > 0


@pytest.mark.parametrize("network, keys", SMALL)
def test_two_samples_give_finite_gradients(network, keys):
    one_step(network, 3, **keys)


@pytest.mark.slow
@pytest.mark.parametrize("network, keys", LARGE)
def test_two_samples_give_finite_gradients_in_the_large_networks(network, keys):
    one_step(network, 3, **keys)


@pytest.mark.parametrize("network, keys", [row for row in SMALL if row[0] is not Torchvision])
def test_grey_images_work(network, keys):
    one_step(network, 1, **keys)


NORMED = [
    row for row in SMALL if "norm" in inspect.signature(row[0]).parameters and row[0] is not Torchvision
]


@pytest.mark.parametrize("norm", ["l1", "group", "none"])
@pytest.mark.parametrize("network, keys", NORMED)
def test_every_norm_works_in_every_network(network, keys, norm):
    one_step(network, 1, norm=norm, **keys)


@pytest.mark.parametrize("network, keys", [row for row in SMALL if row[0] not in (MnistF1, CifarShallow)])
def test_images_larger_than_the_network_was_made_for_work(network, keys):
    net = build(network, 10, 3, "meta", **keys).eval()
    side = net.size + 16
    assert net(torch.empty(2, 3, side, side, device="meta")).shape == (2, 10)


def test_the_sizes_that_the_networks_ask_for():
    assert [build(n, device="meta", **k).size for n, k in SMALL] == [8] + [32] * 12 + [28] + [32] * 4
    assert build(MobileNetV2, device="meta", stem="imagenet").size == 224
    assert build(ProxylessNasMobile, device="meta", stem="imagenet").size == 224


@pytest.mark.parametrize(
    "network, keys, last",
    [
        (ConvNet, {}, (64, 4)),
        (AlexNet, {}, (256, 1)),
        (Vgg, {}, (512, 1)),
        (ResNet, {}, (64, 8)),
        (ResNet, {"bottleneck": True}, (256, 8)),
        (PreResNet, {}, (64, 8)),
        (PreResNet, {"bottleneck": True}, (256, 8)),
        (WideResNet, {}, (640, 8)),
        (WideResNet, {"depth": 16, "width": 4, "variant": "bigbatch"}, (256, 8)),
        (DenseNet, {}, (342, 8)),
        (ResNeXt, {}, (1024, 8)),
        (MobileNetV2, {}, (1280, 4)),
        (MobileNetV2, {"stem": "imagenet"}, (1280, 7)),
        (ProxylessNasMobile, {}, (1280, 4)),
        (ProxylessNasMobile, {"stem": "imagenet"}, (1280, 7)),
        (ResNet9, {}, (512, 4)),
    ],
)
def test_the_map_before_the_pooling_has_the_channels_and_the_side_of_the_source(network, keys, last):
    """Where a source pools 8x8, 4x4 or 7x7, the mean over the whole map is that pooling."""
    net = build(network, device="meta", **keys).eval()
    maps = net.body(torch.empty(1, 3, net.size, net.size, device="meta"))
    assert maps.shape == (1, last[0], last[1], last[1])


def test_shallow_networks_take_the_shape_of_the_data():
    assert MnistF1(3, (5,))(torch.randn(4, 5)).shape == (4, 3)
    assert CifarShallow(3, (1, 40, 36))(torch.randn(2, 1, 40, 36)).shape == (2, 3)
    with pytest.raises(UserError, match=r"from 7 x 7; got \(3, 6, 9\)"):
        CifarShallow(3, (3, 6, 9))


def test_proxylessnas_norms_have_eps_1e_3():
    def eps_of(network):
        return {m.eps for m in build(network, device="meta").modules() if hasattr(m, "eps")}

    assert eps_of(ProxylessNasMobile) == {1e-3}
    assert eps_of(MobileNetV2) == {1e-5}


HE = [Vgg, ResNet, PreResNet, DenseNet, ResNeXt, MobileNetV2, ProxylessNasMobile, ConvNet]


@pytest.mark.parametrize("network", HE)
def test_convolutions_start_from_he_normal_by_fan_out(network):
    keys = {Vgg: {"depth": 11}, DenseNet: {"depth": 22}, ResNeXt: {"depth": 11, "cardinality": 4, "widen": 1}}
    torch.manual_seed(0)
    net = build(network, 10, 3, **keys.get(network, {}))
    convs = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    for m in convs:
        expected = math.sqrt(2 / (math.prod(m.kernel_size) * m.out_channels))
        z = m.weight.detach().flatten() / expected  # N(0, 1); bounds at six standard errors
        assert abs(z.pow(2).mean().item() - 1) < 6 * math.sqrt(2 / len(z)), m
        assert abs(z.mean().item()) < 6 / math.sqrt(len(z)), m
        assert m.bias is None or m.bias.abs().max() == 0


def test_heads_start_as_their_sources_say():
    torch.manual_seed(0)
    for network, keys, deviation in (
        (Vgg, {"depth": 11}, 0.01),
        (MobileNetV2, {}, 0.01),
        (ProxylessNasMobile, {}, 0.01),
        (ResNeXt, {"depth": 11, "cardinality": 1}, math.sqrt(2 / 1024)),
    ):
        head = build(network, 100, 3, **keys).head
        assert head.weight.std().item() == pytest.approx(deviation, rel=0.02)
        assert head.bias.abs().max() == 0
    assert WideResNet(10, 3, depth=10, width=1).head.bias.abs().max() == 0
    assert ResNet(10, 3, depth=8).head.bias.abs().max() > 0


@pytest.mark.parametrize(
    "network, keys, message",
    [
        (ResNet, {"depth": 21}, "model.depth of resnet is 6n+2 with n >= 1; got 21. Nearest: 20 or 26."),
        (ResNet, {"depth": 2}, "6n+2 with n >= 1; got 2. Nearest: 8."),
        (ResNet, {"bottleneck": "yes"}, "model.bottleneck is true or false; got 'yes'."),
        (PreResNet, {"depth": 18}, "depth of preresnet is 6n+2 with n >= 1; got 18. Nearest: 14 or 20."),
        (PreResNet, {"depth": "deep"}, "got 'deep'. For example: 8 or 14 or 20."),
        (WideResNet, {"depth": 20}, "6n+4 with n >= 1; got 20. Nearest: 16 or 22."),
        (WideResNet, {"width": 0}, "model.width is a whole number from 1; got 0."),
        (WideResNet, {"variant": "bigbach"}, "got 'bigbach'. Did you mean 'bigbatch'?"),
        (WideResNet, {"variant": "bigbatch", "dropout": 0.3}, "model.dropout is 0 where model.variant"),
        (DenseNet, {"depth": 99}, "6n+4 with n >= 1; got 99. Nearest: 94 or 100."),
        (DenseNet, {"growth": 1.5}, "model.growth is a whole number from 1; got 1.5."),
        (DenseNet, {"dropout": 1.0}, r"[0, 1), got 1.0"),
        (ResNeXt, {"depth": 50}, "9n+2 with n >= 1; got 50. Nearest: 47 or 56."),
        (ResNeXt, {"cardinality": -1}, "model.cardinality is a whole number from 1; got -1."),
        (Vgg, {"depth": 17}, "model.depth is one of 11, 13, 16, 19; got 17."),
        (Vgg, {"norm": "bacth"}, "Did you mean 'batch'?"),
        (MobileNetV2, {"stem": "imagnet"}, "one of cifar, imagenet; got 'imagnet'. Did you mean 'imagenet'?"),
        (ProxylessNasMobile, {"stem": None}, "model.stem is one of cifar, imagenet; got None."),
        (ConvNet, {"width": True}, "model.width is a whole number from 1; got True."),
        (MnistF1, {"layers": 0}, "model.layers is a whole number from 1; got 0."),
        (Torchvision, {"name": "resnet19"}, "got 'resnet19'. Did you mean 'resnet1"),
        (Torchvision, {"name": "Q"}, "got 'Q'. Some of them: alexnet"),
    ],
)
def test_a_wrong_key_is_refused_with_rule_value_and_remedy(network, keys, message):
    with pytest.raises(UserError) as error:
        build(network, device="meta", **keys)
    assert message in str(error.value)


SIDES = {"resnet18": 32, "alexnet": 63, "densenet121": 32}
SIDES |= {"inception_v3": 75, "vit_b_16": 224, "vit_h_14": 224}


@pytest.mark.parametrize("name, size", SIDES.items())
def test_torchvision_networks_ask_for_a_size_that_works(name, size):
    net = build(Torchvision, device="meta", name=name)
    assert (net.size, net.needs_channels) == (size, 3)
    assert net(torch.empty(2, 3, size, size, device="meta")).shape == (2, 10)


@pytest.mark.slow
def test_every_torchvision_classifier_gives_logits_while_training():
    from torchvision import models

    for name in models.list_models(module=models):
        if name.startswith("regnet") and not name.endswith("400mf"):
            continue  # reads values while it is built, so not on meta; all regnets share their code
        with torch.device("cpu" if name.startswith("regnet") else "meta"):
            net = Torchvision(7, name=name).to("meta")
        assert net(torch.empty(2, 3, net.size, net.size, device="meta")).shape == (2, 7), name


@pytest.mark.parametrize("name", ["resnet18", "shufflenet_v2_x0_5"])
def test_with_ghost_norm_a_torchvision_network_is_the_same_function_of_one_group_and_of_no_cut(name):
    """A batch that is one group: torchvision's own logits and gradients. Two groups in one pass or in two:
    equal. Dropout, where there is one, is switched off."""
    plain = Torchvision(5, name=name)
    ours = Torchvision(5, name=name, norm="ghost", ghost=4)
    fitting = {k: v for k, v in plain.state_dict().items() if not k.endswith("num_batches_tracked")}
    ours.load_state_dict(fitting)
    assert split_dependent(plain) and not split_dependent(ours)
    for net in (plain, ours):
        net.double()
        for layer in net.modules():
            if isinstance(layer, (nn.Dropout, Dropout)):
                layer.p = 0.0
    x = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for net in (plain, ours):
        net(x[:4]).square().sum().backward()
    for (key, one), other in zip(plain.named_parameters(), ours.parameters()):
        assert torch.allclose(one.grad, other.grad, rtol=1e-6, atol=1e-9 * one.grad.abs().max()), key
    assert torch.allclose(ours(x), torch.cat([ours(x[:4]), ours(x[4:])]), rtol=1e-10)
    assert not torch.allclose(plain(x), torch.cat([plain(x[:4]), plain(x[4:])]), rtol=1e-3)


def test_torchvisions_weights_fit_its_network_with_ghost_norm():
    from torchvision.models import resnet18

    reference = resnet18(num_classes=5)
    for parameter in reference.parameters():
        parameter.data.normal_()
    ours = Torchvision(5, norm="ghost")
    finetune.initialise(ours, reference.state_dict(), "a file")
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(reference.eval()(x), ours.eval()(x))


def test_a_torchvision_network_that_draws_by_forward_pass_is_refused_with_ghost_norm_and_named_without():
    with pytest.raises(UserError, match=r"efficientnet_b0 has layers .*StochasticDepth.*norm=own"):
        Torchvision(5, name="efficientnet_b0", norm="ghost")
    with torch.device("meta"):
        plain = Torchvision(5, name="convnext_tiny")  # layer norms, and nothing else that a cut would change
    assert split_dependent(plain) and all("StochasticDepth" in name for name in split_dependent(plain))


def test_dropout_of_a_torchvision_network_becomes_dropout_by_position():
    ours = Torchvision(5, name="alexnet", norm="ghost")
    kinds = [type(m) for m in ours.modules() if "Dropout" in type(m).__name__]
    assert kinds == [Dropout, Dropout]


def target_of(option: dict):
    module, _, name = option["_target_"].rpartition(".")
    return getattr(importlib.import_module(module), name)


OPTIONS = sorted(path.stem for path in CONF.glob("*.yaml"))


def test_the_options_are_those_promised():
    assert OPTIONS == [
        "airbench", "alexnet", "cifar100_shallow", "cifar10_shallow", "convnet", "densenet", "mnist_f1",
        "mobilenet_v2", "preresnet", "proxylessnas_mobile", "resnet", "resnet9", "resnext", "torchvision",
        "vgg", "wide_resnet",
    ]  # fmt: skip


@pytest.mark.parametrize("option", OPTIONS)
def test_a_yaml_lists_every_key_of_its_network_with_its_default_and_a_comment(option):
    text = (CONF / f"{option}.yaml").read_text()
    keys = yaml.safe_load(text)
    for ours in ("base_lr", "regime", "input_transform"):  # read by schedules and experiments
        keys.pop(ours, None)
    parameters = inspect.signature(target_of(keys)).parameters
    defaults = {name: p.default for name, p in parameters.items() if name not in INTERFACE}
    del keys["_target_"]
    assert keys == defaults
    lines = text.splitlines()
    assert lines[0].startswith("# ")
    for line in lines:
        assert "#" in line or line.startswith("_target_"), line
        assert len(line) <= 120


@pytest.mark.parametrize("option", OPTIONS)
def test_ghost_norm_is_the_default_wherever_there_is_a_norm(option):
    keys = yaml.safe_load((CONF / f"{option}.yaml").read_text())
    if option == "torchvision":
        assert (keys["norm"], keys["ghost"]) == ("own", 32)
    elif option == "alexnet":
        assert "norm" not in keys
    else:
        assert (keys["norm"], keys["ghost"]) == ("ghost", 32)


@pytest.mark.slow
def test_the_default_network_learns_digits():
    """98.5 % of held-out digits within 20 epochs: what the first command of a newcomer shows."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = torch.randperm(len(digits.target), generator=torch.Generator().manual_seed(0))
    x = torch.tensor(digits.images, dtype=torch.float32)[order, None] / 8 - 0.6
    y = torch.tensor(digits.target)[order]
    torch.manual_seed(0)
    net = ConvNet(10, 1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    decay = torch.optim.lr_scheduler.MultiStepLR(optimizer, [10, 15], 0.2)
    for _ in range(20):
        for batch in torch.randperm(1437).split(64):
            loss = nn.functional.cross_entropy(net(x[batch]), y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        decay.step()
    with torch.no_grad():
        right = (net.eval()(x[1437:]).argmax(1) == y[1437:]).float().mean().item()
    assert right >= 0.985
