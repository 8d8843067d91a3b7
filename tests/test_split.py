"""Splits: which samples are held out and kept, as properties and written out."""

from collections import Counter

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from adabatch.data import split
from adabatch.data.samples import MapSamples, Subset, TensorSamples
from adabatch.errors import UserError


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=80), st.data())
def test_stratified_holds_out_each_class_in_proportion(labels, data):
    count = data.draw(st.integers(0, len(labels)))
    rest, held = split.stratified(torch.tensor(labels), count, split.TEST)
    assert sorted([*rest.tolist(), *held.tolist()]) == list(range(len(labels)))
    assert len(held) == count and held.tolist() == sorted(held.tolist())
    taken = Counter(torch.tensor(labels)[held].tolist())
    for label, size in Counter(labels).items():
        assert abs(taken[label] - size * count / len(labels)) < 1


@settings(deadline=None, max_examples=60)
@given(st.integers(2, 60), st.data())
def test_validation_comes_first_and_limits_are_nested(total, data):
    labels = torch.arange(total) % 3
    validation = data.draw(st.integers(0, total - 1))
    limit = data.draw(st.integers(1, total - validation))
    train, held = split.split_indices(total, labels, limit, validation)
    whole, same = split.split_indices(total, labels, None, validation)
    smaller, _ = split.split_indices(total, labels, max(1, limit - 1), validation)
    assert (held is None) == (validation == 0)
    held = set() if held is None else set(held.tolist())
    assert held == (set() if same is None else set(same.tolist()))  # whatever the limit
    assert len(held) == validation and len(train) == limit
    assert not held & set(train.tolist())
    assert set(whole.tolist()) == set(range(total)) - held
    assert set(smaller.tolist()) <= set(train.tolist()) <= set(whole.tolist())


def test_the_kept_samples_are_written_out():
    labels = torch.arange(20) % 2
    assert split.split_indices(20, labels, limit=5)[0].tolist() == [0, 3, 11, 15, 19]
    train, held = split.split_indices(20, labels, limit=5, validation=4)
    assert held.tolist() == [2, 8, 15, 17]
    assert train.tolist() == [0, 3, 5, 11, 19]


def test_splits_of_tensors_and_of_map_style_datasets():
    inputs, labels = torch.arange(30).view(10, 3), torch.arange(10) % 2
    train, held = split.split_train(TensorSamples(inputs, labels), limit=4, validation=2)
    assert isinstance(train, TensorSamples) and isinstance(held, TensorSamples)
    indices, other = split.split_indices(10, labels, 4, 2)
    assert torch.equal(train.inputs, inputs[indices]) and torch.equal(held.labels, labels[other])

    mapped = MapSamples([(inputs[i], labels[i]) for i in range(10)])
    train, held = split.split_train(mapped, limit=4, validation=2)
    assert isinstance(train, Subset) and (len(train), len(held)) == (4, 2)
    seen = [samples.read(torch.arange(len(samples)))[0][:, 0].tolist() for samples in (train, held)]
    assert not set(seen[0]) & set(seen[1])

    whole = TensorSamples(inputs, labels)
    assert split.split_train(whole) == (whole, None)
    regression = TensorSamples(inputs, torch.rand(10))  # nothing to stratify by
    assert len(split.split_train(regression, validation=3)[1]) == 3


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"validation": 10}, ["dataset.validation", "10 of 10", "0 to 9"]),
        ({"validation": -1}, ["dataset.validation", "-1"]),
        ({"limit": 0}, ["dataset.limit", "1 to 10", "0"]),
        ({"limit": 11}, ["dataset.limit", "1 to 10", "11"]),
        ({"limit": 9, "validation": 2}, ["dataset.limit", "1 to 8", "after 2 for validation"]),
        ({"limit": 0.5}, ["dataset.limit", "whole number", "0.5"]),
        ({"validation": True}, ["dataset.validation", "whole number", "True"]),
    ],
)
def test_a_split_that_cannot_be_is_refused(arguments, words):
    with pytest.raises(UserError) as caught:
        split.split_indices(10, torch.arange(10), **arguments)
    assert all(word in str(caught.value) for word in words), caught.value
