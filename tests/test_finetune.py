"""Fine-tuning: what is trained, what stays to the bit, and weights of a network with another last layer."""

import logging

import pytest
import torch
from support import SMALL, killed, outcome, resolved, run
from test_train import kill_at_step
from torch import nn

from adabatch import build, checkpoint, finetune, layers, memory, profiles, runs
from adabatch.errors import UserError
from adabatch.models.alexnet import AlexNet
from adabatch.models.mobilenet_v2 import MobileNetV2
from adabatch.models.resnet import ResNet
from adabatch.models.torchvision import Torchvision

TINY = (*SMALL, "dataset.samples=128", "dataset.test_samples=16", "epochs=2", "schedule=adabatch",
        "schedule.base_batch=32", "checkpoint.every_seconds=0", "model.norm=l1",
        "model.ghost=16")  # fmt: skip


def trained(model):
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


# Counts by hand. The last layer: (inputs + 1) * outputs. Norms: two numbers for each channel.
# ResNet-8: norms of 16 (stem, two in the first block), of 32 (two, one in the shortcut), of 64 (the same).
# torchvision's MobileNetV2: 32 after the stem; for each block its expanded channels twice (once where the
# expansion is 1: 32), and its output: channels 16, 24 x2, 32 x3, 64 x4, 96 x3, 160 x3, 320; then 1280.
EXPANDED = 32 + 2 * (6 * (16 + 24 + 24 + 3 * 32 + 4 * 64 + 3 * 96 + 3 * 160))
OUTPUTS = 16 + 2 * 24 + 3 * 32 + 4 * 64 + 3 * 96 + 3 * 160 + 320
MOBILENET_NORMS = 2 * (32 + EXPANDED + OUTPUTS + 1280)


@pytest.mark.parametrize(
    "model, last, norms",
    [
        (lambda: ResNet(10, 3, depth=8), 65 * 10, 2 * (3 * 16 + 3 * 32 + 3 * 64)),
        (lambda: ResNet(10, 3, depth=8, norm="l1"), 65 * 10, 2 * (3 * 16 + 3 * 32 + 3 * 64)),
        (lambda: ResNet(10, 3, depth=8, norm="batch"), 65 * 10, 2 * (3 * 16 + 3 * 32 + 3 * 64)),
        (lambda: ResNet(10, 3, depth=8, norm="layer"), 65 * 10, 2 * (3 * 16 + 3 * 32 + 3 * 64)),
        (lambda: MobileNetV2(10, 3, stem="imagenet"), 1281 * 10, MOBILENET_NORMS),
        (lambda: Torchvision(10, name="mobilenet_v2"), 1281 * 10, MOBILENET_NORMS),
        (
            lambda: Torchvision(10, name="vit_b_16"),
            769 * 10,
            2 * 768 * 25,
        ),  # two in each of 12 blocks, one more
    ],
)
def test_the_trained_parameters_are_those_counted_by_hand(model, last, norms):
    with torch.device("meta"):
        networks = [model() for _ in finetune.TRAINED]
    for network, train in zip(networks, finetune.TRAINED):
        finetune.freeze(network, train)
    whole = sum(p.numel() for p in networks[0].parameters())
    assert [trained(network) for network in networks] == [whole, last, last + norms]


def test_the_last_layer_is_the_head_wherever_it_stands():
    class HeadFirst(nn.Module):
        def __init__(self):
            super().__init__()
            self.head, self.body = nn.Linear(4, 2), nn.Linear(4, 4)

    assert finetune.last_layer(HeadFirst())[0] == "head"
    assert finetune.last_layer(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.ReLU()))[0] == "1"
    with pytest.raises(UserError, match=r"has no nn\.Linear"):
        finetune.freeze(nn.Sequential(nn.Conv2d(1, 1, 1)), "last")


def test_what_the_network_itself_froze_stays_frozen():
    model = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3), nn.Linear(3, 2))
    model[1].bias.requires_grad_(False)
    finetune.freeze(model, "norm_last")
    assert [name for name, p in model.named_parameters() if p.requires_grad] == [
        "1.weight",
        "2.weight",
        "2.bias",
    ]


def test_norms_that_do_not_exist_cannot_be_trained():
    with pytest.raises(UserError, match="AlexNet has none with weights"), torch.device("meta"):
        finetune.freeze(AlexNet(10, 3), "norm_last")


@pytest.mark.parametrize(
    "overrides, said",
    [
        (["model.train=lats"], "Did you mean 'last'"),
        (["model.init_head=no"], "model.init_head is true or false"),
        (["model.init_head=false"], "and it names none"),
        (["model.init_from=nothing.pt"], "there is no such file or run"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_the_run(overrides, said):
    with pytest.raises(UserError) as error:
        resolved(*overrides)
    assert said in str(error.value)


@pytest.fixture(scope="module")
def plain():
    return resolved()


def changed(config, **keys):
    return config | {"model": config["model"] | keys}


def older(config):
    """As it was written before there were these keys."""
    return config | {"model": {k: v for k, v in config["model"].items() if k not in ("train", "init_head")}}


def test_the_keys_belong_to_the_run_and_older_runs_keep_their_names(plain, tmp_path):
    assert runs.identity(older(plain)) == runs.identity(plain)
    torch.save({"w": torch.ones(1)}, tmp_path / "w.pt")
    source = {"init_from": str(tmp_path / "w.pt")}
    configs = [plain, changed(plain, train="last"), changed(plain, train="norm_last"),
               changed(plain, **source), changed(plain, **source, init_head=False)]  # fmt: skip
    assert len({runs.identity(config, runs.contents(config)) for config in configs}) == 5


def test_a_profile_tells_what_is_trained_but_not_where_the_weights_came_from(plain):
    whole = profiles.configured(plain)
    assert whole == profiles.configured(older(plain))
    assert whole == profiles.configured(changed(plain, init_head=False, init_from="x"))
    parts = [profiles.configured(changed(plain, train=train)) for train in ("last", "norm_last")]
    assert plain["model"]["train"] == "all" and parts[0] != parts[1] and whole not in parts


def test_frozen_layers_count_in_the_memory_that_a_micro_batch_is_chosen_by():
    """They keep nothing for a backward pass, but their outputs are as large: a pass may not be larger."""
    steps = {train: build.build(resolved(*TINY, f"model.train={train}")).step for train in ("all", "last")}
    found = {train: memory.activation_bytes(step, 16) for train, step in steps.items()}
    assert found["last"] == found["all"] > 16 * 16 * 8 * 8 * 4  # more than the first convolution's output
    assert trained(steps["last"].model) == sum(p.numel() for p in steps["last"].flat.members)
    assert len(steps["last"].flat.members) == 2


# -- weights ---------------------------------------------------------------------------------------


def weights(model):
    return {
        name: torch.randn_like(t) if t.is_floating_point() else t + 3
        for name, t in model.state_dict().items()
    }


def test_torchvisions_own_weights_load_by_name_with_and_without_the_head():
    """A state_dict as torchvision publishes it: 1,000 classes, names without our prefix."""
    from torchvision.models import mobilenet_v2

    torch.manual_seed(0)
    given = weights(mobilenet_v2(num_classes=20))
    whole, other = Torchvision(20, name="mobilenet_v2"), Torchvision(7, name="mobilenet_v2")
    before = {name: t.clone() for name, t in other.state_dict().items()}
    finetune.initialise(whole, given, "file")
    finetune.initialise(other, given, "file", head=False)
    assert all(torch.equal(t, given[name]) for name, t in whole.network.state_dict().items())
    for name, t in other.network.state_dict().items():
        same = before[f"network.{name}"] if name.startswith("classifier") else given[name]
        assert torch.equal(t, same), name
    with pytest.raises(
        UserError, match=r"\[20, 1280\].*model\.init_head=false leaves network\.classifier\.1"
    ):
        finetune.initialise(other, given, "file")


def test_our_mobilenet_reads_torchvisions_weights_and_computes_the_same():
    """In evaluation, in float64: with norms whose statistics are not the first ones. With a head of its own
    the rest is still theirs."""
    from torchvision.models import mobilenet_v2

    torch.manual_seed(0)
    theirs = mobilenet_v2(num_classes=20).double()
    theirs.train()(torch.randn(8, 3, 32, 32, dtype=torch.float64))
    given, x = theirs.eval().state_dict(), torch.randn(2, 3, 64, 64, dtype=torch.float64)
    for norm in ("ghost", "batch"):
        ours = MobileNetV2(20, 3, stem="imagenet", norm=norm).double().eval()
        before = ours(x)
        finetune.initialise(ours, given, "file")
        assert torch.allclose(ours(x), theirs(x), rtol=1e-9, atol=1e-12)
        assert not torch.allclose(ours(x), before)
    other = MobileNetV2(7, 3, stem="imagenet").double().eval()
    finetune.initialise(other, given, "file", head=False)
    assert torch.equal(other.body(x), ours.body(x)) and other.head.weight.shape == (7, 1280)
    with pytest.raises(UserError, match=r"head\.weight is \[20, 1280\].*init_head=false leaves head"):
        finetune.initialise(MobileNetV2(7, 3), given, "file")
    with pytest.raises(UserError, match=r"does not fit this network: missing body"):
        finetune.initialise(MobileNetV2(20, 3, norm="none"), given, "file")


def test_a_head_of_equal_shape_is_left_out_too_and_that_is_said(caplog):
    source, model = ResNet(10, 3, depth=8), ResNet(10, 3, depth=8)
    given, drawn = weights(source), model.head.weight.detach().clone()
    with caplog.at_level(logging.INFO, logger="adabatch"):
        finetune.initialise(model, given, "file", head=False)
    assert torch.equal(model.head.weight, drawn) and torch.equal(model.body[0].weight, given["body.0.weight"])
    assert "but for the last layer head (10x64, there 10x64)" in caplog.text


def test_anything_else_that_does_not_fit_is_still_refused():
    given = weights(ResNet(10, 3, depth=8))
    for wrong in ({"body.0.weight": torch.zeros(1)}, {"other": torch.zeros(1)}):
        with pytest.raises(
            UserError, match=r"file does not fit this network: (body\.0\.weight|unknown other)"
        ):
            finetune.initialise(ResNet(5, 3, depth=8), given | wrong, "file", head=False)
    lacking = {name: t for name, t in given.items() if name != "body.0.weight"}
    with pytest.raises(UserError, match=r"missing body\.0\.weight$"):
        finetune.initialise(ResNet(10, 3, depth=8), lacking, "file")


# -- runs ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Weights of a network of 100 classes."""
    config = resolved(*TINY)
    torch.manual_seed(5)
    model = build.make(config["model"], "model", num_classes=100, channels=3, shape=(3, 8, 8))
    for layer in layers.ghost_layers(model):
        layer.weight.data.uniform_(0.5, 1.5)
    path = tmp_path_factory.mktemp("source") / "weights.pt"
    torch.save(model.state_dict(), path)
    return path


@pytest.mark.parametrize("train", [pytest.param("last", marks=pytest.mark.slow), "norm_last"])
def test_frozen_tensors_do_not_move_by_a_bit_and_a_killed_run_resumes_bitwise(
    train, source, tmp_path, caplog
):
    keys = (*TINY, f"model.train={train}", f"model.init_from='{source}'", "model.init_head=false")
    with caplog.at_level(logging.INFO, logger="adabatch"):
        run(tmp_path / "whole", *keys)
    assert "trained   the last layer head" in caplog.text
    before = torch.load(source, weights_only=True)
    after = torch.load(tmp_path / "whole" / "weights.pt", weights_only=True)
    norms = {name.rpartition(".")[0] for name in before if name.endswith("running_mean")}
    assert norms and after["head.weight"].shape[0] != before["head.weight"].shape[0]
    for name in before:
        owner, _, leaf = name.rpartition(".")
        if owner != "head":
            moves = "running" in leaf or (train == "norm_last" and owner in norms)
            assert torch.equal(before[name], after[name]) is not moves, name
    state = checkpoint.load(tmp_path / "whole" / "checkpoint.pt")
    assert [name for name, *_ in state["layout"]][-2:] == ["head.weight", "head.bias"]
    assert len(state["layout"]) == 2 + 2 * len(norms) * (train == "norm_last")
    killed(tmp_path / "run", *keys, arrange=kill_at_step(4))
    run(tmp_path / "run", *keys)
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")


def test_a_run_whose_head_does_not_fit_names_the_remedy(source, tmp_path):
    with pytest.raises(
        UserError, match=r"head\.weight is \[100, .*init_head=false leaves head, the last layer"
    ):
        run(tmp_path / "run", *TINY, f"model.init_from='{source}'")
