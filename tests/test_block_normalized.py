"""Block-normalised gradients (Yu et al. 2017, arXiv 1707.04822) in float64, by hand and by torch's Adam."""

import copy
import math

import pytest
import torch
from support import SMALL, killed, outcome, resolved, run
from test_train import kill_at_step
from torch import nn

from adabatch import build, checkpoint, optim, plan, profiles
from adabatch.errors import UserError
from adabatch.schedules.setting import Setting

BASES = ("sgd", "adam")


def network(dtype=torch.float64):
    """Two layers with weight and bias, one without a bias; one bias of zeros."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(3, 4), nn.Linear(4, 2, bias=False)).to(
        dtype
    )
    nn.init.zeros_(net[2].bias)
    return net


def made(net, split=False, **keys):
    """(Flat, optimizer) as a run has them. split: norms and biases in a group of their own."""
    target = "adabatch.optim.BlockNormalized"
    return build.optimizer({"_target_": target, "decay_norm_and_bias": not split} | keys, net)


def gradient(p, step):
    """Depends on the weights and is of another length in every tensor."""
    return (torch.sin(p.detach() * (step + 1)) + 0.1) * 10.0 ** (p.numel() % 5 - 2)


def train(net, flat, optimizer, steps, start=0):
    for step in range(start, start + steps):
        for p in net.parameters():
            p.grad.copy_(gradient(p, step))
        for group in optimizer.param_groups:
            group["lr"] = 0.1 / (1 + step % 3)
        optimizer.step()


def normalised(w, step, blocks, ratio):
    """{name: n_b} by the paper's lines. w: {name: tensor}."""
    groups = {"layer": [["0.weight", "0.bias"], ["2.weight", "2.bias"], ["3.weight"]],
              "tensor": [[name] for name in w]}[blocks]  # fmt: skip
    found = {}
    for group in groups:
        g = {name: gradient(w[name], step) for name in group}
        length = math.sqrt(sum(float((t**2).sum()) for t in g.values()))
        size = math.sqrt(sum(float((w[name] ** 2).sum()) for name in group)) or 1.0
        found |= {name: t / length * (1.0 if ratio is None else ratio * size) for name, t in g.items()}
    return found


@pytest.mark.parametrize("blocks", ["layer", "tensor"])
@pytest.mark.parametrize("ratio", [None, 0.05])
@pytest.mark.parametrize("split", [False, True])
def test_with_sgd_it_is_the_papers_formula(blocks, ratio, split):
    """Also where a layer's weight and bias stand in different groups of the optimizer. The weight decay is
    added behind the division."""
    net = network()
    w = {name: p.detach().clone() for name, p in net.named_parameters()}
    flat, optimizer = made(net, split, blocks=blocks, ratio=ratio, momentum=0.8, weight_decay=0.01)
    train(net, flat, optimizer, 6)
    v = {}
    for step in range(6):
        n = normalised(w, step, blocks, ratio)
        for name in w:
            decay = 0.0 if split and w[name].dim() == 1 else 0.01
            d = n[name] + decay * w[name]
            v[name] = 0.8 * v[name] + d if name in v else d
        w = {name: w[name] - 0.1 / (1 + step % 3) * v[name] for name in w}
    for name, p in net.named_parameters():
        torch.testing.assert_close(p.detach(), w[name], rtol=1e-11, atol=1e-13)
    assert flat.params.data_ptr() == net[0].weight.data_ptr() or split


@pytest.mark.parametrize("blocks, ratio", [("layer", None), ("tensor", 0.05)])
def test_with_adam_it_is_torchs_adam_on_normalised_gradients(blocks, ratio):
    net, theirs = network(), network()
    flat, optimizer = made(net, base="adam", blocks=blocks, ratio=ratio, betas=[0.8, 0.95], weight_decay=0.01)
    train(net, flat, optimizer, 6)
    adam = torch.optim.Adam(theirs.parameters(), betas=(0.8, 0.95), eps=1e-8, weight_decay=0.01)
    for step in range(6):
        n = normalised({k: p.detach() for k, p in theirs.named_parameters()}, step, blocks, ratio)
        for name, p in theirs.named_parameters():
            p.grad = n[name]
        adam.param_groups[0]["lr"] = 0.1 / (1 + step % 3)
        adam.step()
    for p, q in zip(net.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-12)


def test_a_step_of_sgd_has_the_length_of_the_learning_rate_in_every_block():
    """Whatever the gradient's length, also where its squares are 0 in float32 (below 1e-19 each)."""
    net = network(torch.float32)
    flat, optimizer = made(net, momentum=0.0)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    for scale, layer in zip((1e4, 1e-25, 1.0), (net[0], net[2], net[3])):
        for p in layer.parameters():
            p.grad.copy_(torch.randn_like(p) * scale)
    optimizer.param_groups[0]["lr"] = 0.3
    optimizer.step()
    for layer in "0", "2", "3":
        moved = [(p.detach() - before[n]).double() for n, p in net.named_parameters() if n.startswith(layer)]
        assert torch.cat([m.flatten() for m in moved]).norm().item() == pytest.approx(0.3, rel=1e-5)


@pytest.mark.parametrize("base", BASES)
def test_a_zero_gradient_stays_zero_and_one_that_is_no_number_shows(base):
    net = network()
    flat, optimizer = made(net, base=base, weight_decay=0.0)
    before = [p.detach().clone() for p in net.parameters()]
    optimizer.step()  # all gradients are 0
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), before))
    net[2].bias.grad[0] = math.nan
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    optimizer.step()
    assert not net[2].weight.isfinite().any() and net[0].weight.isfinite().all()


def test_zero_weights_move_under_a_ratio_too():
    net = network()
    nn.init.zeros_(net[3].weight)
    flat, optimizer = made(net, ratio=0.1, momentum=0.0)
    net[3].weight.grad.fill_(2.0)
    optimizer.param_groups[0]["lr"] = 1.0
    optimizer.step()
    assert net[3].weight.norm().item() == pytest.approx(0.1, rel=1e-12)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("after", [0, 5])
def test_state_round_trip_goes_on_as_if_nothing_happened(base, after):
    net = network()
    flat, optimizer = made(net, split=True, base=base, weight_decay=0.01)
    train(net, flat, optimizer, after)
    other = copy.deepcopy(net)
    again, resumed = made(other, split=True, base=base, weight_decay=0.01)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(net, flat, optimizer, 4, after)
    train(other, again, resumed, 4, after)
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("base", BASES)
def test_a_state_that_does_not_fit_is_refused(base):
    net, small = network(), nn.Linear(2, 2).double()
    flat, optimizer = made(net, base=base)
    train(net, flat, optimizer, 1)
    for others in ({"base": base}, {"base": "adam" if base == "sgd" else "sgd"}):
        with pytest.raises(ValueError, match="does not fit"):
            made(small, **others)[1].load_state_dict(optimizer.state_dict())


def test_horizons_are_held_by_its_base():
    """Setting of k = 4: momentum 0.9^4 and its factor; betas to the power 4, without one."""
    factors = []
    for base in BASES:
        net = network()
        flat, optimizer = made(net, base=base)
        train(net, flat, optimizer, 1)
        buffer = optimizer.base.buffers[0].clone() if base == "sgd" else None
        held = optim.Held(optimizer, ["momentum"])
        factors.append(held.apply(Setting(32, 0.1, 32, growth=4.0)))
        (group,) = optimizer.param_groups
        if base == "sgd":
            assert group["momentum"] == pytest.approx(0.9**4)
            torch.testing.assert_close(optimizer.base.buffers[0], buffer * 0.1 / (1 - 0.9**4))
        else:
            assert group["betas"] == pytest.approx((0.9**4, 0.999**4))
    assert factors == pytest.approx([(1 - 0.9**4) / 0.1, 1.0])


def test_it_has_no_second_moments_of_the_gradient_to_measure_by():
    net = network()
    flat, optimizer = made(net, base="adam")
    with pytest.raises(UserError, match="preconditioned=false"):
        optim.preconditioner(optimizer, flat)


def test_its_learning_rate_follows_the_root_of_the_batch_and_a_profile_knows_its_base():
    """Where noise rules |g| = sqrt(tr S / B): lr g / |g| is SGD with lr sqrt(B / tr S), whose noise is
    equal where that is proportional to B."""
    keys = (
        "schedule=large_batch",
        "schedule.scaling=auto",
        "schedule.base_batch=128",
        "schedule.lr_batch=32",
    )
    config = resolved("optimizer=block_normalized", *keys)
    plain = plan.schedule(config | {"optimizer": {"_target_": "adabatch.optim.SGD"}}, 1000)(999)
    either = [config | {"optimizer": config["optimizer"] | {"base": base}} for base in BASES]
    for each in either:  # 128 / 32 against its root
        assert plain.lr / plan.schedule(each, 1000)(999).lr == pytest.approx(2.0)
    told = [profiles.configured(each)["optimizer"] for each in either]
    assert told[0] != told[1] and profiles.configured(resolved())["optimizer"] == "adabatch.optim.SGD"


def test_by_its_class_alone_it_has_its_defaults():
    found = resolved("optimizer._target_=adabatch.optim.BlockNormalized")["optimizer"]
    assert "base" not in found and found["momentum"] == 0.9


@pytest.mark.parametrize(
    "overrides, said",
    [
        (["optimizer.base=sdg"], "Did you mean 'sgd'"),
        (["optimizer.blocks=tensors"], "Did you mean 'tensor'"),
        (["optimizer.ratio=0"], "a number above 0, got 0"),
        (["optimizer.betas=[0.5,0.9]"], "a key of base=adam"),
        (["optimizer.base=adam", "optimizer.nesterov=true"], "a key of base=sgd"),
        (["clip_norm=1"], "would do nothing; got clip_norm=1"),
        (
            ["schedule=noise_scale", "schedule.preconditioned=true", "optimizer.base=adam"],
            "no second moments",
        ),
    ],
)
def test_what_it_cannot_do_is_refused_before_the_run(overrides, said):
    with pytest.raises(UserError) as error:
        resolved("optimizer=block_normalized", *overrides)
    assert said in str(error.value)


RUN = (*SMALL, "dataset.samples=128", "dataset.test_samples=16", "epochs=2", "optimizer=block_normalized",
       "schedule=adabatch", "schedule.base_batch=32",
       "schedule.hold=[momentum]", "checkpoint.every_seconds=0")  # fmt: skip


@pytest.mark.parametrize("base", ["sgd", pytest.param("adam", marks=pytest.mark.slow)])
def test_a_killed_run_resumes_bitwise(base, tmp_path):
    keys = (*RUN, f"optimizer.base={base}", "schedule.base_lr=0.01")
    run(tmp_path / "whole", *keys)
    killed(tmp_path / "run", *keys, arrange=kill_at_step(4))
    assert checkpoint.load(tmp_path / "run" / "checkpoint.pt")["optimizer"]["base"] == base
    run(tmp_path / "run", *keys)
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")
