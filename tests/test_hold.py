"""Horizons held in samples while the batch grows (science: momentum m -> m^k, weight decay per sample)."""

import math

import pytest
import torch
from support import SMALL, killed, outcome, run
from test_train import kill_at_step

from adabatch import optim, plan, runs
from adabatch.errors import UserError
from adabatch.schedules.setting import Setting


def group(optimizer, hold, growth, lr_growth=1.0):
    held = optim.Held(optimizer, hold)
    factor = held.apply(Setting(32, 0.1, 32, growth=growth, lr_growth=lr_growth))
    return factor, optimizer.param_groups[0]


def sgd(momentum=0.9, weight_decay=5e-4):
    p = torch.ones(3)
    p.grad = torch.full((3,), 0.5)
    return optim.SGD([{"params": [p]}], lr=0.1, momentum=momentum, weight_decay=weight_decay)


def test_nothing_is_held_unless_asked():
    factor, found = group(sgd(), (), growth=4.0, lr_growth=2.0)
    assert (factor, found["momentum"], found["weight_decay"]) == (1.0, 0.9, 5e-4)


def test_momentum_horizon_in_samples():
    """k = 2, m = 0.9: m' = 0.81, and with linear scaling lr x 2 x 0.19 / 0.1 = 3.8."""
    optimizer = sgd(weight_decay=0.0)
    optimizer.step()
    assert torch.equal(optimizer.buffers[0], torch.full((3,), 0.5))
    factor, found = group(optimizer, ["momentum"], growth=2.0)
    assert found["momentum"] == pytest.approx(0.81) and 2 * factor == pytest.approx(3.8)
    # The step in progress stays as long: lr v / (1 - m) in units of the schedule's lr.
    assert optimizer.buffers[0].tolist() == pytest.approx([0.5 * 0.1 / 0.19] * 3)
    # B / (1 - m^k) is close to k times B / (1 - m) only for m near 1; what is held is -B / ln m, exactly.
    assert 1 / -math.log(0.9) == pytest.approx(2 / -math.log(found["momentum"]))


def test_the_buffer_is_rescaled_once_per_change():
    optimizer = sgd(weight_decay=0.0)
    optimizer.step()
    held = optim.Held(optimizer, ["momentum"])
    for _ in range(3):
        held.apply(Setting(64, 0.1, 64, growth=2.0))
    assert optimizer.buffers[0].tolist() == pytest.approx([0.5 * 0.1 / 0.19] * 3)


def test_weight_decay_per_sample():
    """lambda k / s: under linear scaling s = k and nothing moves, under the square root it grows by
    sqrt(k)."""
    assert group(sgd(), ["weight_decay"], growth=4.0, lr_growth=4.0)[1]["weight_decay"] == 5e-4
    assert group(sgd(), ["weight_decay"], growth=4.0, lr_growth=2.0)[1]["weight_decay"] == pytest.approx(1e-3)


def test_adam_raises_both_betas_to_the_power():
    adam = torch.optim.AdamW([torch.zeros(2, requires_grad=True)], lr=0.1, betas=(0.9, 0.999))
    factor, found = group(adam, ["momentum"], growth=4.0)
    assert factor == 1.0 and found["betas"] == pytest.approx((0.9**4, 0.999**4))


@pytest.mark.parametrize("k", [4.0, 2.0])
def test_adam_keeps_its_stride_when_the_betas_change(k):
    """Under a constant gradient Adam moves by lr at every step; a change of betas must not be felt."""
    p = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([p], lr=0.1, betas=(0.9, 0.999), eps=0.0)
    held = optim.Held(adam, ["momentum"])
    for step in range(120):
        held.apply(Setting(32, 0.1, 32, growth=k if step >= 50 else 1.0))
        before = p.item()
        p.grad = torch.ones_like(p)
        adam.step()
        assert before - p.item() == pytest.approx(0.1, rel=1e-9), step


@pytest.mark.parametrize("twin", ["lr", "batch"])
def test_a_twin_holds_the_weight_decay_of_what_it_is(twin):
    """adabatch's lr twin is the fixed baseline, and the batch twin of that is don't-decay: lambda stays."""
    from adabatch.schedules import Constant, Schedule, Steps

    growth = Steps(2, every=2) if twin == "lr" else Constant()
    schedule = Schedule(
        samples=1000,
        epochs=10,
        growth=growth,
        decay=Steps(0.5, every=2),
        base_batch=32,
        base_lr=0.1,
        twin=twin,
    )
    for position in range(0, 10_000, 1000):
        setting = schedule(position)
        assert setting.growth == pytest.approx(setting.lr_growth)


def test_refusals():
    with pytest.raises(UserError, match="Did you mean 'momentum'"):
        plan.hold({"hold": ["momentun"]})
    with pytest.raises(UserError, match="does not have"):
        optim.Held(sgd(momentum=0.0), ["momentum"])


HELD = (
    *SMALL, "epochs=4", "schedule=adabatch", "schedule.base_batch=16", "schedule.scaling=sqrt",
    "schedule.hold=[momentum,weight_decay]", "checkpoint.every_seconds=0",
)  # fmt: skip


@pytest.mark.slow
def test_a_run_that_holds_resumes_bitwise_and_says_what_it_held(tmp_path):
    run(tmp_path / "whole", *HELD)
    (first, *_) = [row["changes"] for row in runs.read_rows(tmp_path / "whole") if row["event"] == "change"]
    assert first["momentum"] == pytest.approx([0.9, 0.81])
    assert first["weight_decay_per_sample"][1] == pytest.approx(first["weight_decay_per_sample"][0] * 0.375)
    rows = [r for r in runs.read_rows(tmp_path / "whole") if r["event"] == "train"]
    at = next(k for k in range(1, len(rows)) if rows[k]["batch_size"] != rows[k - 1]["batch_size"])
    for step in (at, at + 1, at + 2):
        killed(tmp_path / str(step), *HELD, arrange=kill_at_step(step))
        run(tmp_path / str(step), *HELD)
        assert outcome(tmp_path / str(step)) == outcome(tmp_path / "whole")
