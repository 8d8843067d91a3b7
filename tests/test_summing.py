"""Adding up: the tree of `ordered` against its definition, the overlap of `fast` against the plain sum."""

import math
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from threads import Threads, together
from torch.utils.checkpoint import checkpoint

from adabatch import summing
from adabatch.errors import UserError
from adabatch.flat import Flat
from adabatch.ranks import Alone

WORDS = 3  # elements of a part


def by_definition(parts, level, index):
    """Node (level, index): the sum of its two children; of the left one alone where there is no right one."""
    if level == 0:
        return parts[index]
    left = by_definition(parts, level - 1, 2 * index)
    right = 2 * index + 1
    if right << (level - 1) >= len(parts):
        return left
    return left + by_definition(parts, level - 1, right)


def parts_of(count, seed=0):
    """float32 parts of very different sizes, so that the order of adding shows in the last bits."""
    generator = torch.Generator().manual_seed(seed)
    scale = 10.0 ** torch.randint(-6, 7, (count, 1), generator=generator)
    return torch.randn(count, WORDS, generator=generator) * scale


def ordered(ranks, parts):
    total, extra = torch.zeros(WORDS), torch.zeros((), dtype=torch.float64)
    how = summing.Ordered(None, ranks)
    count = len(parts)
    start, stop = count * ranks.rank // ranks.world, count * (ranks.rank + 1) // ranks.world
    how.begin([total, extra], start, count)
    for part in parts[start:stop]:
        total.add_(part)
        extra.add_(1)
        how.part()
    assert how.end([False, ranks.rank == 0]) == [0.0, 1.0]
    assert extra == count
    return total


@given(st.integers(1, 70), st.integers(1, 5), st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_ordered_is_the_tree_on_any_number_of_ranks(count, world, seed):
    parts = parts_of(count, seed)
    expected = by_definition(parts, math.ceil(math.log2(count)) if count > 1 else 0, 0)
    found = together(world, lambda ranks: ordered(ranks, parts)) if world > 1 else [ordered(Alone(), parts)]
    assert all(torch.equal(total, expected) for total in found)


def test_a_plain_sum_is_not_the_tree():
    """The parts above do tell orders apart: else the test before could not fail."""
    different = 0
    for seed in range(20):
        parts = parts_of(33, seed)
        plain = parts[0].clone()
        for part in parts[1:]:
            plain += part
        different += not torch.equal(plain, by_definition(parts, 6, 0))
    assert different > 10


@pytest.mark.parametrize(
    "start, stop, expected",
    [
        (0, 8, [(3, 0)]),
        (0, 7, [(2, 0), (1, 2), (0, 6)]),
        (3, 8, [(0, 3), (2, 1)]),
        (1, 7, [(0, 1), (1, 1), (1, 2), (0, 6)]),
        (5, 6, [(0, 5)]),
        (4, 4, []),
    ],
)
def test_subtrees(start, stop, expected):
    assert summing.subtrees(start, stop) == expected


@given(st.integers(0, 300), st.integers(1, 300))
def test_a_rank_keeps_few_subtrees(start, length):
    found = summing.subtrees(start, start + length)
    assert [i for level, index in found for i in range(index << level, (index + 1) << level)] == list(
        range(start, start + length)
    )
    assert len(found) <= max(1, 2 * math.ceil(math.log2(length + 1)))


def test_ordered_adds_nothing_up_when_a_rank_ran_out_of_memory():
    """That rank has fewer parts; the others must not wait for them."""

    def work(ranks):
        total = torch.zeros(WORDS)
        how = summing.Ordered(None, ranks)
        how.begin([total], ranks.rank * 2, 4)
        for _ in range(2 if ranks.rank else 1):  # rank 0 fails at its second part
            total.add_(1)
            how.part()
        return how.end([ranks.rank == 0])

    assert together(2, work) == [[1.0], [1.0]]


def network():
    """The same weights each time, also in several threads at once, which share torch's generator."""
    linear, relu = torch.nn.Linear, torch.nn.ReLU
    model = torch.nn.Sequential(linear(20, 50), relu(), linear(50, 40), relu(), linear(40, 1)).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.rand(p.shape, generator=generator, dtype=p.dtype) - 0.5)
    return model


class Noting(Threads):
    """Notes what is sent while a backward pass goes on."""

    def __init__(self, *args):
        super().__init__(*args)
        self.started = []

    def start(self, tensor):
        self.started.append(tensor.numel())
        return super().start(tensor)


@pytest.mark.parametrize("passes", [(2, 2), (1, 3), (0, 2), (0, 0)], ids=str)
@pytest.mark.parametrize("bucket", [1, 8000, 1 << 20])
def test_fast_is_the_sum_over_ranks_whatever_overlaps(monkeypatch, passes, bucket):
    """Ranks with different numbers of passes, also none, send the same buckets in the same order."""
    monkeypatch.setattr(summing, "BUCKET", bucket)
    inputs = torch.randn(8, 5, 20, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    mine = [list(range(passes[0])), list(range(4, 4 + passes[1]))]

    def gradient(ranks, indices):
        model = network()
        flat = Flat(model, [list(model.named_parameters())])
        how, totals = summing.Fast(flat, ranks), torch.zeros(2, dtype=torch.float64)
        how.begin([flat.grads, totals], 0, 1)
        for index in indices:
            with how.last() if index == indices[-1] else torch.enable_grad():
                model(inputs[index]).square().sum().backward()
            totals[0] += 1
        agreed = how.end([ranks.rank == 1])
        return flat.grads, totals[0], agreed, getattr(ranks, "started", None), len(how.buckets)

    expected, *_ = gradient(Alone(), mine[0] + mine[1])
    monkeypatch.setattr("threads.Threads", Noting)
    found = together(2, lambda ranks: gradient(ranks, mine[ranks.rank]))
    for total, count, agreed, started, buckets in found:
        assert torch.allclose(total, expected, rtol=1e-13, atol=1e-13 * float(expected.abs().max()))
        assert count == sum(passes) and agreed == [1.0]
        assert len(started) == buckets and sum(started) == len(total)
        assert buckets == {1: 6, 8000: 2, 1 << 20: 1}[bucket]


class Shared(torch.nn.Module):
    """One block that is used twice; recomputed at each use, it gets its gradient twice."""

    def __init__(self, again):
        super().__init__()
        self.block, self.again = torch.nn.Linear(4, 4).double(), again

    def forward(self, x):
        for _ in range(2):
            x = checkpoint(self.block, x, use_reentrant=True) if self.again else self.block(x)
        return x.square().sum()


@pytest.mark.parametrize("again", [False, True])
def test_a_gradient_that_comes_in_two_parts_is_refused_where_a_bucket_could_leave_early(again):
    model = Shared(again)
    flat = Flat(model, [list(model.named_parameters())])
    how = summing.Fast(flat, Noting(0, 1, [None], threading.Barrier(1)))
    assert how.buckets == []  # alone nothing leaves

    def work(ranks):
        model = Shared(again)
        flat = Flat(model, [list(model.named_parameters())])
        how = summing.Fast(flat, ranks)
        how.begin([flat.grads], 0, 1)
        with how.last():
            model(torch.ones(2, 4, dtype=torch.float64, requires_grad=True)).backward()
        how.end()

    if again:
        with pytest.raises(UserError, match="use_reentrant=False"):
            together(2, work)
    else:
        together(2, work)


def test_buckets_cover_the_gradient_once_from_its_end():
    model = network()
    flat = Flat(model, [list(model.named_parameters())])
    pieces = flat.buckets(4000)
    assert pieces[0][1] == len(flat.grads) and pieces[-1][0] == 0
    assert all(a[0] == b[1] for a, b in zip(pieces, pieces[1:]))
    members = [p for *_, ps in pieces for p in ps]
    assert members == list(reversed(flat.members))
    for start, stop, ps in pieces:
        inside = [(p.grad.data_ptr() - flat.grads.data_ptr()) // 8 for p in ps]
        assert all(start <= at < stop for at in inside)


def test_alone_there_is_nothing_to_send():
    model = network()
    how = summing.Fast(Flat(model, [list(model.named_parameters())]), Alone())
    assert how.buckets == [] and not any(p._post_accumulate_grad_hooks for p in model.parameters())
