"""Every network takes every small dataset: grey 8x8 and 28x28, coloured 32x32, one step each."""

import pytest
import torch
from support import resolved

from adabatch.build import build
from adabatch.data.samples import Subset
from adabatch.evaluation import evaluate

DATA = {
    "digits": ("dataset=digits", "dataset.limit=8"),
    "mnist5k": ("dataset=mnist5k", "dataset.limit=8"),
    "colour": ("dataset=synthetic", "dataset.samples=8", "dataset.test_samples=4"),
}
LIGHT = {
    "convnet": (),
    "alexnet": (),
    "vgg": ("model.depth=11",),
    "resnet": ("model.depth=8",),
    "preresnet": ("model.depth=8",),
    "wide_resnet": ("model.depth=10", "model.width=1"),
    "densenet": ("model.depth=10",),
    "mobilenet_v2": (),
    "mnist_f1": (),
    "resnext": ("model.cardinality=2", "model.group_width=4", "model.widen=1"),
    "cifar10_shallow": (),
    "cifar100_shallow": (),
    "proxylessnas_mobile": (),
    "torchvision": (),
}
DEFAULTS = [name for name, smaller in LIGHT.items() if smaller]  # as their YAMLs say: slow


def one_step(*overrides):
    parts = build(resolved(*overrides))
    before = parts.step.flat.params.clone()
    parts.step.micro_batch = 4
    result = parts.step(0, parts.schedule(0))
    assert torch.isfinite(result.loss) and 0 <= result.wrong <= 4
    assert not torch.equal(parts.step.flat.params, before)
    few = Subset(parts.data.test, torch.arange(4))
    loss, error = evaluate(parts.step.model, parts.hardware, few, parts.prepare, parts.loss, 4)
    assert 0 <= error <= 1 and loss > 0


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("model", LIGHT)
def test_every_network_takes_every_small_dataset(model, data):
    ghost = () if model in ("alexnet", "torchvision") else ("model.ghost=4",)
    one_step(f"model={model}", *LIGHT[model], *ghost, *DATA[data], "schedule.base_batch=4", "epochs=1")


@pytest.mark.slow
@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("model", DEFAULTS)
def test_in_the_size_that_the_yaml_says(model, data):
    one_step(f"model={model}", "model.ghost=4", *DATA[data], "schedule.base_batch=4", "epochs=1")
