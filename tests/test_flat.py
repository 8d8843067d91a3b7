"""Flat vectors: every parameter keeps its values, shape and layout, and is the vector's memory."""

import torch
from torch import nn

from adabatch.flat import Flat


def build(*tensors):
    net = nn.Module()
    for i, t in enumerate(tensors):
        net.register_parameter(f"p{i}", nn.Parameter(t))
    return net, Flat(net, [list(net.named_parameters())])


def test_values_layout_and_memory():
    conv = torch.randn(4, 3, 3, 3).contiguous(memory_format=torch.channels_last)
    sliced = torch.arange(64.0).view(8, 8)[:, :4]  # not dense: reaches over its neighbours
    expanded = torch.tensor([[1.0], [2.0]]).expand(2, 5)
    before = [conv, sliced, expanded, torch.tensor(3.0), torch.ones(7)]
    kept = [t.clone() for t in before]
    net, flat = build(*before)
    for p, t in zip(net.parameters(), kept):
        assert torch.equal(p, t)
    assert net.p0.is_contiguous(memory_format=torch.channels_last)
    flat.params.zero_()
    assert all(not p.any() for p in net.parameters())
    with torch.no_grad():
        for value, p in enumerate(net.parameters(), 1):
            p.fill_(value)  # no two share memory
    assert [p.unique().tolist() for p in net.parameters()] == [[1.0], [2.0], [3.0], [4.0], [5.0]]


def test_gradients_are_added_into_the_vector():
    net, flat = build(torch.randn(3, 4), torch.randn(4))
    for _ in range(2):
        (net.p0.sum() * 2 + (net.p1 * 3).sum()).backward()
    assert torch.equal(net.p0.grad, torch.full((3, 4), 4.0)) and torch.equal(
        net.p1.grad, torch.full((4,), 6.0)
    )
    assert flat.grads.sum().item() == 12 * 4 + 4 * 6
    (vector,) = flat.vectors()
    assert vector.grad.data_ptr() == flat.grads.data_ptr() and vector.data_ptr() == flat.params.data_ptr()
