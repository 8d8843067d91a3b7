"""ResNet-9: the counts of its sources, its graph written out with torch's functions, and the whitening layer
against NumPy's eigenvectors."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support import resolved, run
from torch import nn

from adabatch import checkpoint, layers, runs
from adabatch.build import build
from adabatch.errors import UserError
from adabatch.models import resnet9
from adabatch.models.resnet9 import ResNet9

WHITENED = dict(whiten=True, celu=0.3, pool_first=True, norm_scale=False, logit_scale=1 / 16)
KEYS = ("whiten=true", "celu=0.3", "pool_first=true", "norm_scale=false", "logit_scale=0.0625", "ghost=8")
RUN = (
    "dataset=synthetic", "dataset.samples=40", "dataset.test_samples=10", "model=resnet9",
    *(f"model.{key}" for key in KEYS), "schedule.base_batch=16", "epochs=1",
)  # fmt: skip


@pytest.fixture
def narrow(monkeypatch):
    monkeypatch.setattr(resnet9, "WIDTHS", (4, 6, 8, 10))


def counts(net) -> tuple[int, int]:
    """(trained, frozen) parameters, those of norms' frozen scales apart."""
    scales = {id(norm.weight) for norm in layers.ghost_layers(net)}
    trained = sum(p.numel() for p in net.parameters() if p.requires_grad)
    return trained, sum(p.numel() for p in net.parameters() if not p.requires_grad and id(p) not in scales)


def test_the_parameters_are_those_of_the_sources():
    assert counts(ResNet9(10, 3)) == (6_573_120, 0)
    assert counts(ResNet9(10, 3, **WHITENED)) == (6_570_880, 729)


def written_out(net, x, whitened: bool):
    """The sources' graphs, one line a layer; all of x is one group of the norms."""
    convs = iter([m.weight for m in net.modules() if isinstance(m, nn.Conv2d)])
    norms = iter(layers.ghost_layers(net))

    def act(y):
        return torch.where(y > 0, y, 0.3 * (torch.exp(y / 0.3) - 1)) if whitened else y.clamp(min=0)

    def normed(y):
        norm, axes = next(norms), (0, 2, 3)
        y = (y - y.mean(axes, keepdim=True)) / (y.var(axes, keepdim=True, correction=0) + 1e-5).sqrt()
        return act(y * norm.weight.view(1, -1, 1, 1) + norm.bias.view(1, -1, 1, 1))

    def block(y, pool):
        y = F.conv2d(y, next(convs), padding=1)
        if not pool:
            return normed(y)
        return normed(F.max_pool2d(y, 2)) if whitened else F.max_pool2d(normed(y), 2)

    if whitened:
        x = normed(F.conv2d(F.conv2d(x, next(convs), padding=1), next(convs)))
    else:
        x = block(x, False)
    x = block(x, True)
    x = x + block(block(x, False), False)
    x = block(x, True)
    x = block(x, True)
    x = x + block(block(x, False), False)
    return F.max_pool2d(x, 4).flatten(1) @ net.head.weight.t() * (1 / 16 if whitened else 0.125)


@pytest.mark.parametrize("keys", [{}, WHITENED])
def test_the_graph_is_that_of_the_sources(narrow, keys):
    torch.manual_seed(0)
    net = ResNet9(5, 3, ghost=12, **keys).double()
    for norm in layers.ghost_layers(net):
        nn.init.normal_(norm.bias)
        if not keys:
            nn.init.normal_(norm.weight)
    x = torch.randn(12, 3, 32, 32, dtype=torch.float64)
    net.first_look(iter([x.float()]))
    found, expected = net(x), written_out(net, x, bool(keys))
    assert (found - expected).abs().max() < 1e-12 * expected.abs().max()


def pictures(count=300, seed=0):
    """Smooth noise, whose patches have a spectrum as those of photographs: neighbours are alike."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 3, 14, 14, generator=generator)
    x[:, 1] += 0.7 * x[:, 0]
    return F.avg_pool2d(x, 3, stride=1) + 0.1 * torch.randn(count, 3, 12, 12, generator=generator)


def test_whitening_is_pca_of_patches():
    """NumPy in float64: patches in rows, eigenvectors of their second moment, and what comes out of them."""
    x, layer = pictures(), resnet9.Whitening(3)
    layer.measure(iter(x.split(64)))
    rows = np.lib.stride_tricks.sliding_window_view(x.double().numpy(), (3, 3), axis=(2, 3))
    rows = rows.transpose(0, 2, 3, 1, 4, 5).reshape(-1, 27)
    values, vectors = np.linalg.eigh(rows.T @ rows / (len(rows) - 1))
    expected = (vectors / np.sqrt(values + 1e-2)).T[::-1]
    found = layer.weight.double().numpy().reshape(27, 27)
    signs = np.sign((found * expected).sum(1, keepdims=True))
    assert np.abs(found - signs * expected).max() < 1e-4 * np.abs(expected).max()
    assert (np.take_along_axis(found, np.abs(found).argmax(1)[:, None], 1) > 0).all(), "the rule of signs"
    out = rows @ found.T
    moment = out.T @ out / (len(rows) - 1)
    assert np.abs(moment - np.diag(values[::-1] / (values[::-1] + 1e-2))).max() < 1e-4


def test_whitening_takes_the_first_ten_thousand_pictures_and_no_more(monkeypatch):
    monkeypatch.setattr(resnet9, "LOOK", 100)
    x, layers_of = pictures(), [resnet9.Whitening(3) for _ in range(3)]
    taken = []

    def batches(size):
        for part in x.split(size):
            taken.append(len(part))
            yield part

    layers_of[0].measure(batches(64))
    assert taken == [64, 64], "the third is not asked for"
    layers_of[1].measure(iter([x[:100]]))
    layers_of[2].measure(iter([x[:101][1:]]))
    assert torch.allclose(layers_of[0].weight, layers_of[1].weight, atol=1e-5)
    assert not torch.allclose(layers_of[0].weight, layers_of[2].weight, atol=1e-3)


def test_whitening_is_the_same_bits_with_any_number_of_threads():
    found, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            layer = resnet9.Whitening(3)
            layer.measure(iter(pictures().split(50)))
            found.append(layer.weight.clone())
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_the_first_look_is_at_the_training_split_normalised_in_order_and_not_varied(narrow):
    config = resolved(*RUN, "dataset.augment.pad=2", "dataset.augment.flip=true", "dataset.limit=24")
    parts = build(config)
    raw, _ = parts.data.train.read(torch.arange(24))
    mean, std = (torch.tensor(config["dataset"][k]).view(-1, 1, 1) for k in ("mean", "std"))
    expected = resnet9.Whitening(3)
    expected.measure(iter([(raw.float() / 255 - mean) / std]))
    found = parts.step.model.body[0][0].weight
    assert torch.allclose(found, expected.weight, atol=1e-5 * float(expected.weight.abs().max()))
    trained = {id(p) for p in parts.step.flat.members}
    assert id(found) not in trained and not any(id(n.weight) in trained for n in
                                                layers.ghost_layers(parts.step.model))  # fmt: skip


def test_the_filter_travels_with_the_weights_and_weights_of_ones_own_take_its_place(narrow, tmp_path):
    from adabatch import evaluate

    summary = run(tmp_path / "run", *RUN)
    kept = checkpoint.weights_of(tmp_path / "run")
    name = "body.0.0.weight"
    other = torch.zeros_like(kept[name])
    torch.save(kept | {name: other}, tmp_path / "other.pt")
    model = build(resolved(*RUN, f"model.init_from={tmp_path}/other.pt")).step.model
    assert torch.equal(model.body[0][0].weight, other)
    config = runs.Run(tmp_path / "run").config
    config["dataset"]["limit"] = 20  # what would be measured now differs from what was kept
    assert not torch.equal(build(config).step.model.body[0][0].weight.contiguous(), kept[name])
    found = evaluate.evaluate(tmp_path / "run", config)
    assert found["error"] == summary["final_test_error"]


@pytest.mark.parametrize(
    "keys, message",
    [
        ({"whiten": "yes"}, "model.whiten is true or false; got 'yes'."),
        ({"celu": 0}, "model.celu is a number above 0; got 0."),
        ({"logit_scale": -1.0}, "model.logit_scale is a number above 0; got -1.0."),
        ({"norm": "none", "norm_scale": False}, "model.norm=none has none"),
    ],
)
def test_a_wrong_key_is_refused(keys, message):
    with pytest.raises(UserError) as error:
        ResNet9(10, 3, **keys)
    assert message in str(error.value)
