"""Ranks that were given different command lines are told so before they train."""

import pytest
import torch.distributed as dist
from support import SMALL, resolved

from adabatch import alike
from adabatch.errors import UserError


@pytest.fixture
def store():
    return dist.HashStore()


def test_the_same_configuration_passes_and_where_things_lie_may_differ(store):
    config = resolved(*SMALL)
    alike.publish(store, config)
    alike.compare(store, config, "rank 1")
    there = config | {"dataset": config["dataset"] | {"root": "/elsewhere"}, "log": {"every_samples": 7}}
    alike.compare(store, there, "rank 1")


@pytest.mark.parametrize(
    "other, key, own, first",
    [
        ("label_smoothing=0.2", "label_smoothing", 0.2, 0.0),
        ("hardware.micro_batch=16", "hardware.micro_batch", 16, "'auto'"),
        ("schedule.base_lr=0.07", "schedule.base_lr", 0.07, 0.05),
        ("seed=1", "seed", 1, 0),
        ("clip_norm=1.0", "clip_norm", 1.0, None),
    ],
)
def test_a_key_that_differs_is_named(store, other, key, own, first):
    alike.publish(store, resolved(*SMALL))
    words = f"{key} is {own} on rank 1 .* and {first} on rank 0. Give the same overrides"
    with pytest.raises(UserError, match=words):
        alike.compare(store, resolved(*SMALL, other), "rank 1 (process 7 on here)")


def test_a_key_that_only_one_rank_has_is_named(store):
    config = resolved(*SMALL)
    alike.publish(store, config)
    with pytest.raises(UserError, match="model.more is 3 on rank 1 and 'nothing' on rank 0"):
        alike.compare(store, config | {"model": config["model"] | {"more": 3}}, "rank 1")
