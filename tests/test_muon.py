"""Muon against torch's on matrices, against the polar factor by NumPy's SVD, and against its formula in
float64; what it does in a run: resume, other cuts, other networks."""

import copy

import numpy as np
import pytest
import torch
from support import SMALL, killed, outcome, resolved, run
from test_train import kill_at_step
from torch import nn

from adabatch import build, fading, muon, optim, runs
from adabatch.errors import UserError

TARGET = "adabatch.muon.Muon"
MUON = (*SMALL, "optimizer=muon", "optimizer.bias_lr=4", "optimizer.head_lr=2", "schedule.base_lr=0.05")


def network(dtype=torch.float64):
    """A wide and a tall weight, two convolutions of one shape, a head; norms' scales and biases."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(8, 24, bias=False),
        nn.Linear(24, 6), nn.Linear(6, 3),
    ).to(dtype)  # fmt: skip


def made(net, **keys):
    """(Flat, optimizer) as a run has them."""
    return build.optimizer({"_target_": TARGET, "weight_decay": 0.1} | keys, net)


def gradient(p, step):
    return torch.sin(p.detach() * (step + 1)) + 0.1 * torch.cos(7 * p.detach())


def train(net, optimizer, steps, start=0):
    for step in range(start, start + steps):
        for p in net.parameters():
            p.grad.copy_(gradient(p, step))
        fading.rates(optimizer.param_groups, 0.1 / (1 + step % 3), 0.0)
        optimizer.step()


@pytest.mark.parametrize("shape", [(16, 40), (40, 16), (12, 12)], ids=str)
def test_the_iteration_turns_singular_values_towards_one_and_leaves_the_vectors(shape):
    """Five steps on a well-conditioned matrix; Jordan's coefficients leave S' within about [0.7, 1.2]."""
    generator = torch.Generator().manual_seed(3)
    g = torch.randn(3, *shape, dtype=torch.float64, generator=generator)
    found = muon.orthogonalised(g, 5).numpy()
    for matrix, turned in zip(g.numpy(), found):
        u, s, vt = np.linalg.svd(matrix, full_matrices=False)
        inner = u.T @ turned @ vt.T
        if s[-1] / s[0] > 0.02:
            assert 0.65 < np.diag(inner).min() and np.diag(inner).max() < 1.25
        assert np.abs(inner - np.diag(np.diag(inner))).max() < 1e-9
        x = s / np.sqrt((s**2).sum())  # the odd polynomial on the singular values alone
        for _ in range(5):
            x = 3.4445 * x - 4.7750 * x**3 + 2.0315 * x**5
        assert np.abs(np.diag(inner) - x).max() < 1e-9
        near = u @ vt
        assert np.linalg.norm(turned - near) < 0.35 * np.linalg.norm(near)


def test_the_scale_of_a_gradient_does_not_matter_and_zero_stays_zero():
    g = torch.randn(2, 5, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = muon.orthogonalised(g, 3)
    assert torch.allclose(muon.orthogonalised(1e-9 * g, 3), found, rtol=1e-9)
    assert not muon.orthogonalised(torch.zeros(2, 5, 9), 3).any()


@pytest.mark.parametrize("nesterov", [True, False])
def test_on_wide_matrices_it_is_torchs(nesterov):
    """torch's buffer is (1 - momentum) times ours, which the iteration divides away; it iterates in bfloat16,
    so single steps agree to some percent only. Decoupled decay; head and norms are not torch.optim.Muon's."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(32, 8, bias=False), nn.Linear(8, 4, bias=False))
    flat, ours = made(net, renormalise=False, nesterov=nesterov, steps=5, momentum=0.9)
    theirs = nn.Parameter(net[0].weight.detach().clone())
    reference = torch.optim.Muon([theirs], lr=0.1, weight_decay=0.1, momentum=0.9, nesterov=nesterov)
    for step in range(4):
        before = theirs.detach().clone()
        g = gradient(before, step)
        theirs.grad = g.clone()
        for p in net.parameters():
            p.grad.zero_()
        net[0].weight.grad.copy_(g)
        fading.rates(ours.param_groups, 0.1, 0.0)
        with torch.no_grad():
            net[0].weight.copy_(before)
        ours.step()
        reference.step()
        moved = theirs.detach() - before
        assert (net[0].weight.detach() - theirs.detach()).norm() < 0.05 * moved.norm()


def test_a_step_is_its_formula_for_every_kind_of_parameter():
    """Written out in float64, with torch's SGD for what Muon leaves to it."""
    net = network()
    theirs = copy.deepcopy(net)
    flat, ours = made(net, bias_lr=4, head_lr=2, momentum=0.6, sgd_momentum=0.85)
    named = dict(theirs.named_parameters())
    turned = ["0.weight", "2.weight", "4.weight", "5.weight"]
    biases = [n for n in named if n.endswith("bias")]
    kinds = {"4": biases, "2": ["6.weight"], "1": ["1.weight"]}
    reference = torch.optim.SGD(
        [{"params": [named[n] for n in ns], "weight_decay": 0.1 / float(k)} for k, ns in kinds.items()],
        lr=0.1, momentum=0.85, nesterov=True,
    )  # fmt: skip
    buffers = {n: np.zeros(named[n].shape) for n in turned}
    for step in range(4):
        lr = 0.1 / (1 + step % 3)
        train(net, ours, 1, step)
        for p in theirs.parameters():
            p.grad = gradient(p, step)
        for group, factor in zip(reference.param_groups, kinds):
            group["lr"] = lr * float(factor)
        reference.step()
        for n in turned:
            w, g = named[n].detach().numpy(), named[n].grad.numpy()
            buffers[n] = 0.6 * buffers[n] + g
            d = (g + 0.6 * buffers[n]).reshape(len(w), -1)
            u, s, vt = np.linalg.svd(d, full_matrices=False)
            s = s / np.sqrt((s**2).sum())
            for _ in range(3):
                s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
            w *= np.sqrt(len(w)) / np.sqrt((w**2).sum())
            w -= lr * ((u * s) @ vt).reshape(w.shape)
    for (n, p), q in zip(net.named_parameters(), theirs.parameters()):
        assert torch.allclose(p, q, rtol=0, atol=1e-11), n


def test_groups_are_the_matrices_then_what_sgd_has_with_rates_of_its_own():
    found = muon.Muon.groups(network(), {"weight_decay": 0.1, "bias_lr": 4, "head_lr": 2,
                                         "decay_norm_and_bias": False})  # fmt: skip
    names = [[n for n, _ in named] for named, _ in found]
    assert names == [["0.weight", "2.weight", "4.weight", "5.weight"], ["6.weight"], ["1.weight"],
                     ["0.bias", "1.bias", "2.bias", "5.bias", "6.bias"]]  # fmt: skip
    rates = [(own.get("lr_scale"), own.get("weight_decay")) for _, own in found]
    assert rates == [(None, None), (2, 0.05), (None, 0.0), (4, 0.0)]


def test_state_round_trip_goes_on_as_if_nothing_happened():
    net = network()
    _, chosen = made(net)
    train(net, chosen, 3)
    other = copy.deepcopy(net)
    for p in other.parameters():
        p.grad = None
    _, again = made(other)
    again.load_state_dict(chosen.state_dict())
    train(net, chosen, 3, 3)
    train(other, again, 3, 3)
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), other.parameters()))
    with pytest.raises(ValueError, match=r"momentum of .* does not fit parameters of"):
        state = chosen.state_dict()
        again.load_state_dict(state | {"buffers": [b[:1] for b in state["buffers"]]})


@pytest.mark.slow
def test_a_run_killed_between_checkpoints_ends_in_the_same_bits(tmp_path):
    words = (*MUON, "epochs=2", "checkpoint.every_seconds=0", "dataset.samples=96", "dataset.test_samples=16")
    run(tmp_path / "whole", *words)
    killed(tmp_path / "killed", *words, arrange=kill_at_step(4))
    run(tmp_path / "killed", *words)
    assert outcome(tmp_path / "whole") == outcome(tmp_path / "killed")


def test_a_change_of_the_batch_tells_the_matrices_decay_which_no_momentum_multiplies(tmp_path):
    """lr * weight_decay / B before and after 8 -> 16; where the matrices are renormalised nothing decays."""
    words = (*MUON, "schedule=adabatch", "schedule.base_batch=8", "schedule.growth.every=1", "epochs=2")
    words += (
        "schedule.decay.factor=0.5",
        "schedule.decay.every=1",
        "schedule.base_lr=0.1",
        "schedule.scaling=linear",
    )
    words += ("dataset.samples=32", "dataset.test_samples=8")
    for renormalise, told in (("false", [0.1 * 0.02 / 8, 0.1 * 0.02 / 16]), ("true", None)):
        folder = tmp_path / renormalise
        run(folder, *words, "optimizer.weight_decay=0.02", f"optimizer.renormalise={renormalise}")
        (row,) = [row for row in runs.read_rows(folder) if row["event"] == "change"]
        found = row["changes"].get("weight_decay_per_sample")
        assert found == (told and pytest.approx(told, rel=1e-12)), row


def test_another_micro_batch_is_the_same_run_in_float64(tmp_path):
    found = []
    for size in (32, 8):
        words = ("hardware.precision=fp64", f"hardware.micro_batch={size}", "epochs=3", "model.ghost=8",
                 "dataset.samples=96", "dataset.test_samples=16")  # fmt: skip
        run(tmp_path / str(size), *MUON, *words)
        found.append(torch.load(tmp_path / str(size) / "weights.pt", weights_only=True))
    assert all(torch.allclose(a, b, rtol=0, atol=1e-10) for a, b in zip(*(f.values() for f in found)))


@pytest.mark.parametrize(
    "line, message",
    [
        ("optimizer.steps=0", "optimizer.steps is a whole number from 1"),
        ("optimizer.head_lr=-1", "optimizer.head_lr is a number above 0, got -1"),
        ("optimizer.momentum=1", "optimizer.momentum is a number from 0 to below 1, got 1"),
        ("schedule.hold=[momentum]", "a step of optimizer=muon is as long with any"),
    ],
)
def test_what_no_run_can_have_is_refused(line, message):
    with pytest.raises(UserError) as error:
        resolved("optimizer=muon", line)
    assert message in str(error.value)


def test_a_weight_that_is_0_and_a_gradient_whose_square_is_0_make_numbers():
    """In float32, 1e-24 squared is 0, and so is 0 scaled to any norm."""
    net = network(torch.float32)
    _, optimizer = made(net)
    with torch.no_grad():
        net[2].weight.zero_()
    for p in net.parameters():
        p.grad.fill_(1e-24)
    fading.rates(optimizer.param_groups, 0.1, 0.0)
    optimizer.step()
    assert all(p.isfinite().all() for p in net.parameters())
    assert 0.65 < -12 * net[2].weight.mean() / 0.1 < 1.25, "one direction, [4, 36] equal entries of 1 / 12"


def test_what_muon_cannot_train_is_told_with_the_way_out():
    with pytest.raises(UserError, match="it cannot be told: take optimizer=sgd"):
        made(nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)))
    net = network()
    net.trained_for = {"0.weight": 2}
    with pytest.raises(UserError, match="0.weight for a part of the run, which optimizer=muon can"):
        made(net)


def test_nesterov_without_one_of_the_momenta_and_a_network_without_matrices_are_refused():
    with pytest.raises(UserError, match="one of the two is 0"):
        made(network(), sgd_momentum=0.0)
    with pytest.raises(UserError, match="take optimizer=sgd, or model.train=all"):
        made(nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2)))


def test_parameters_trained_for_some_epochs_fade_and_then_stand_and_ask_for_no_gradient():
    """At lr 0.5 and until epoch 2: 0.5, 0.25 at epoch 1, 0 from epoch 2 on; others keep their rate."""
    net = nn.Linear(3, 2)
    net.trained_for = {"bias": 2}
    groups = fading.apart(optim.groups(net, {"bias_lr": 8, "weight_decay": 0.1}), net)
    assert [[n for n, _ in named] for named, _ in groups] == [["weight"], ["bias"]]
    groups = [dict(own) for _, own in groups]
    expected = {0: (0.5, 4.0), 0.5: (0.5, 3.0), 1: (0.5, 2.0), 2: (0.5, 0.0), 3: (0.5, 0.0)}
    for epoch, rates in expected.items():
        fading.rates(groups, 0.5, epoch)
        fading.thaw(net, epoch)
        assert tuple(g["lr"] for g in groups) == pytest.approx(rates)
        assert net.bias.requires_grad == (epoch < 2) and net.weight.requires_grad
