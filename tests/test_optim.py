"""Our SGD against torch.optim.SGD bit for bit, and which parameters and optimizers are treated how."""

import copy
import itertools
import types

import pytest
import torch
from torch import nn

from adabatch import build, layers, optim, plan
from adabatch.errors import UserError
from adabatch.ranks import Alone
from adabatch.step import Step

SETTINGS = [
    (momentum, nesterov, decay)
    for momentum, nesterov, decay in itertools.product((0.0, 0.9), (False, True), (0.0, 5e-4))
    if momentum or not nesterov
]


def parameters(dtype):
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(shape, generator=generator, dtype=dtype).requires_grad_()
        for shape in ((40, 3), (17,), (1,))
    ]


def train(optimizer, params, steps, start=0):
    """Gradients that depend on the weights and are written in place, and a learning rate that changes."""
    for p in params:
        p.grad = torch.empty_like(p)
    for step in range(start, start + steps):
        for p in params:
            p.grad.copy_(torch.sin(p.detach() * (step + 1)) + 0.1 * p.detach())
        for group in optimizer.param_groups:
            group["lr"] = 0.1 / (1 + step % 7)
        optimizer.step()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("momentum, nesterov, decay", SETTINGS)
def test_sgd_equals_torch(momentum, nesterov, decay, dtype):
    kwargs = {"lr": 0.1, "momentum": momentum, "nesterov": nesterov, "weight_decay": decay}
    ours, theirs = parameters(dtype), parameters(dtype)
    groups = [
        {"params": ours[:1]},
        {"params": ours[1:], "weight_decay": 0.0},
    ]  # norms and biases without decay
    reference = [{"params": theirs[:1]}, {"params": theirs[1:], "weight_decay": 0.0}]
    train(optim.SGD(groups, **kwargs), ours, 20)
    train(torch.optim.SGD(reference, **kwargs, fused=True), theirs, 20)
    for p, q, start in zip(ours, theirs, parameters(dtype), strict=True):
        assert torch.equal(p, q) and not torch.equal(p, start)


@pytest.mark.parametrize("momentum, nesterov, decay", SETTINGS)
def test_sgd_is_its_formula(momentum, nesterov, decay):
    """The lines of the docstring in float64, over odd sizes: a kernel's tail is not left out."""
    ours, w = parameters(torch.float64), parameters(torch.float64)
    train(optim.SGD([{"params": ours}], 0.1, momentum, decay, nesterov), ours, 20)
    v = [None] * 3
    for step in range(20):
        for i, p in enumerate(w):
            p = p.detach()
            d = torch.sin(p * (step + 1)) + 0.1 * p + decay * p
            v[i] = d.clone() if v[i] is None or not momentum else momentum * v[i] + d
            p -= 0.1 / (1 + step % 7) * (d + momentum * v[i] if nesterov else v[i])
    for p, q in zip(ours, w, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-11, atol=1e-13)


def test_gradients_are_not_changed():
    params = parameters(torch.float32)
    optimizer = optim.SGD([{"params": params}], lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1)
    for _ in range(2):
        for p in params:
            p.grad = torch.ones_like(p)
        optimizer.step()
        assert all(torch.equal(p.grad, torch.ones_like(p)) for p in params)


@pytest.mark.parametrize("after", [0, 7])
def test_state_round_trip_goes_on_as_if_nothing_happened(after):
    def make(params):
        return optim.SGD([{"params": params[:2]}, {"params": params[2:]}], lr=0.1, momentum=0.9)

    straight = parameters(torch.float64)
    optimizer = make(straight)
    train(optimizer, straight, after)
    state = copy.deepcopy(optimizer.state_dict())
    resumed = [p.detach().clone().requires_grad_() for p in straight]
    other = make(resumed)
    other.load_state_dict(state)
    train(optimizer, straight, 13, after)
    train(other, resumed, 13, after)
    assert all(torch.equal(p, q) for p, q in zip(straight, resumed, strict=True))


def test_a_loaded_state_is_a_copy():
    params = parameters(torch.float32)
    optimizer = optim.SGD([{"params": params}], lr=0.1, momentum=0.9)
    state = {"buffers": [torch.ones_like(p) for p in params]}
    optimizer.load_state_dict(state)
    train(optimizer, params, 1)
    assert all(torch.equal(buffer, torch.ones_like(buffer)) for buffer in state["buffers"])


def test_a_state_that_does_not_fit_is_refused():
    optimizer = optim.SGD([{"params": parameters(torch.float32)}], lr=0.1, momentum=0.9)
    with pytest.raises(ValueError, match=r"\(3, 40\) does not fit parameters of \(40, 3\)"):
        optimizer.load_state_dict({"buffers": [torch.zeros(3, 40), None, None]})
    with pytest.raises(ValueError):
        optimizer.load_state_dict({"buffers": [None]})


def test_nesterov_without_momentum_is_refused():
    with pytest.raises(UserError, match="momentum is 0"):
        optim.SGD([{"params": parameters(torch.float32)}], lr=0.1, nesterov=True)


def test_what_is_decayed():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), layers.norm("ghost", 4), nn.Linear(4, 2), nn.Conv2d(2, 2, 1, bias=False)
    )
    model[3].weight.requires_grad_(False)
    everything = ["0.weight", "0.bias", "1.weight", "1.bias", "2.weight", "2.bias"]

    def names(groups):
        return [[name for name, _ in group] for group in groups]

    assert names(optim.decayed(model, True)) == [everything, []]
    assert names(optim.decayed(model, False)) == [
        ["0.weight", "2.weight"],
        ["0.bias", "1.weight", "1.bias", "2.bias"],
    ]
    assert all(p is dict(model.named_parameters())[name] for name, p in optim.decayed(model, False)[0])


def biased():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), layers.norm("ghost", 4), nn.Flatten(), nn.Linear(4, 2))
    model[1].weight.requires_grad_(False)
    return model


@pytest.mark.parametrize(
    "keys, expected",
    [
        ({}, [("0.weight 0.bias 1.bias 3.weight 3.bias", {})]),
        ({"bias_lr": 1}, [("0.weight 0.bias 1.bias 3.weight 3.bias", {})]),
        (
            {"bias_lr": 64, "weight_decay": 7.5e-4},
            [
                ("0.weight 3.weight", {}),
                ("0.bias 1.bias 3.bias", {"lr_scale": 64.0, "weight_decay": 1.171875e-5}),
            ],
        ),
        (
            {"bias_lr": 64, "weight_decay": 7.5e-4, "decay_norm_and_bias": False},
            [
                ("0.weight 3.weight", {}),
                ("0.bias 1.bias 3.bias", {"lr_scale": 64.0, "weight_decay": 0.0}),
            ],
        ),
        (
            {"bias_lr": 2, "weight_decay": 0},
            [("0.weight 3.weight", {}), ("0.bias 1.bias 3.bias", {"lr_scale": 2.0, "weight_decay": 0})],
        ),
    ],
)  # fmt: skip
def test_biases_have_a_group_of_their_own_and_frozen_scales_none(keys, expected):
    found = optim.groups(biased(), keys)
    assert [(" ".join(name for name, _ in named), own) for named, own in found] == expected


def test_bias_lr_without_a_weight_decay_to_divide_is_refused():
    # A class may have a default of its own, as torch's AdamW: biases would have all of it.
    with pytest.raises(UserError, match=r"bias_lr=2 divides .* my.Own is given none.*weight_decay=0"):
        optim.groups(biased(), {"_target_": "my.Own", "bias_lr": 2})


def test_bias_lr_without_a_bias_is_refused():
    with pytest.raises(UserError, match="bias_lr=64 is for biases, and this network has none"):
        optim.groups(nn.Linear(3, 2, bias=False), {"bias_lr": 64, "weight_decay": 0.1})


@pytest.mark.parametrize("target", ["adabatch.optim.SGD", "torch.optim.SGD", "torch.optim.AdamW"])
def test_a_step_moves_biases_by_a_rate_of_their_own(target):
    """Through the step: torch's own optimizer with two groups is the reference, weight decay included."""
    common = {"weight_decay": 0.02} | ({} if "Adam" in target else {"momentum": 0.9, "nesterov": True})
    torch.manual_seed(0)
    ours = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    theirs = copy.deepcopy(ours)
    flat, chosen = build.optimizer({"_target_": target, "bias_lr": 8, **common}, ours)
    kind = torch.optim.AdamW if "Adam" in target else torch.optim.SGD
    weights = [p for n, p in theirs.named_parameters() if n.endswith("weight")]
    biases = [p for n, p in theirs.named_parameters() if n.endswith("bias")]
    reference = kind(
        [
            {"params": weights, "lr": 0.1},
            {"params": biases, "lr": 0.8, "weight_decay": 0.0025},
        ],
        **common,
    )
    step = Step.__new__(Step)  # its update alone
    step.flat, step.optimizer, step.clip_norm, step.held, step.witness = flat, chosen, None, None, None
    step.stream, step._foreign, step._weights = range(7), [], lambda batch: ([], None, 1.0)
    step.hardware = types.SimpleNamespace(ranks=Alone())
    x = torch.randn(7, 5, dtype=torch.float64)
    for _ in range(3):
        flat.grads.zero_()
        reference.zero_grad()
        ours(x).square().sum().backward()
        theirs(x).square().sum().backward()
        step._update(0, types.SimpleNamespace(batch_size=7, lr=0.1))
        reference.step()
    for p, q in zip(ours.parameters(), theirs.parameters()):
        assert torch.allclose(p, q, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    "target, exponent",
    [
        ("adabatch.optim.SGD", 1.0),
        ("torch.optim.SGD", 1.0),
        ("adam_tools.Momentum", 1.0),  # the class decides, not its module
        ("mine.LARS", 1.0),
        ("torch.optim.ASGD", 1.0),
        ("torch.optim.Adam", 0.5),
        ("torch.optim.AdamW", 0.5),
        ("torch.optim.NAdam", 0.5),
        ("torch.optim.Adamax", 0.5),
        ("torch.optim.RMSprop", 0.5),
        ("torch.optim.Rprop", 0.5),
        ("torch.optim.Adagrad", 0.5),
        ("torch.optim.Adadelta", 0.5),
        ("torch.optim.Adafactor", 0.5),
        ("mine.LAMB", 0.5),
        ("mine.Lion", 0.5),
        ("mine.SignSGD", 0.5),
        ("mine.AdaBelief", 0.5),
        ("adabatch.muon.Muon", 0.5),
        ("torch.optim.Muon", 0.5),
    ],
)
def test_noise_exponent(target, exponent):
    assert plan.noise_exponent(target) == exponent
