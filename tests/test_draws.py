"""Counter-based draws: Python and tensors agree, the values never change silently, and they look random.

Statistics are of fixed keys, so a test passes or fails for good. Bounds: p-values above 1e-4, or at most 5.5
standard deviations in the worst of up to 4,000 figures (expected worst: 3.7).
"""

import itertools
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from adabatch import draws

TINY = 1e-4  # a p-value below it is a failure
KEYS = [draws.key(0, draws.ORDER, 0), draws.key(0, draws.ORDER, 1), draws.key(123456789), draws.AUGMENT, 0]
SEVERAL = [0, 1, 2, 1000, 2**31, 2**32 - 1, 2**32, 2**40 + 5, 2**61 + 9]


# A change here reorders the data of every run ever recorded: do not update a value, find out what changed.


@pytest.mark.parametrize(
    "parts, expected",
    [
        ((), 0x7F4A7C159E3779B9),
        ((0,), 0xFC8FB2670D029D0C),
        ((1,), 0x16C37EE034F75D84),
        ((0, 0), 0xE55C609A7D2216FD),
        ((1, 0), 0x62229DD70A4839AC),
        ((0, 1), 0xC3D807641F7EA9D3),
        ((-1,), 0xFD5599E7564BDE76),
        ((1099511627776, 7), 0xBFFC90F8A0E7A75F),
        ((0, 1, 0), 0xBEBECFDF7106DEA4),
        ((0, 1, 1), 0x52D7046E62204E4F),
        ((12345, 3, 678), 0x1C95B3C1F751AEEC),
    ],
)
def test_keys_are_what_they_were(parts, expected):
    assert draws.key(*parts) == expected


@pytest.mark.parametrize(
    "key, expected",
    [
        (
            0xBEBECFDF7106DEA4,
            [
                59125723,
                2461037176,
                2861612136,
                661738907,
                4044892544,
                28951581,
                3254018691,
                3273644705,
                97401747,
            ],
        ),
        (
            0x2,
            [
                3656260607,
                1714541335,
                2540774661,
                2923334290,
                4081937786,
                4028388391,
                3009097155,
                3075738551,
                839443669,
            ],
        ),
    ],
)
def test_bits_are_what_they_were(key, expected):
    assert [draws.bits(key, counter) for counter in SEVERAL] == expected
    assert draws.bits(key, torch.tensor(SEVERAL)).tolist() == expected


def test_numpy_arrays_give_the_same_as_tensors():
    counters = torch.tensor(SEVERAL + list(range(1000))).view(-1, 1) + torch.arange(3)
    for key in KEYS:
        found, before = draws.array_bits(key, counters.numpy()), counters.clone()
        assert found.dtype == np.int64 and np.array_equal(found, draws.bits(key, counters).numpy())
        assert torch.equal(counters, before)


def test_permutations_and_integers_are_what_they_were():
    assert draws.permutation(draws.key(0, draws.ORDER, 0), 12).tolist() == [
        0,
        11,
        8,
        7,
        4,
        10,
        2,
        3,
        1,
        9,
        6,
        5,
    ]
    assert draws.permutation(draws.key(7, draws.ORDER, 3), 12).tolist() == [
        1,
        10,
        6,
        7,
        2,
        0,
        3,
        4,
        8,
        9,
        5,
        11,
    ]
    assert draws.integers(2, torch.arange(12), 9).tolist() == [7, 3, 5, 7, 2, 4, 3, 6, 2, 8, 6, 4]


def murmur3(h):
    """The published finaliser of MurmurHash3, 32 bit, step by step."""
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        h ^= h >> shift
        h = h * factor % 2**32
    return h ^ h >> 16


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**62 - 1))
def test_python_tensors_and_the_written_formula_agree(key, counter):
    low, high = key % 2**32, key // 2**32
    first = murmur3((counter + low) % 2**32)
    second = murmur3(first ^ high ^ counter // 2**32 * 0x9E3779B9 % 2**32)
    expected = murmur3((second + low) % 2**32)
    assert draws.bits(key, counter) == expected
    assert draws.bits(key, torch.tensor([[counter]])).tolist() == [[expected]]
    assert draws.integers(key, torch.tensor(counter), 1000).item() == expected * 1000 // 2**32


@pytest.mark.needs_gpu
def test_gpu_draws_are_the_same():
    counters = torch.tensor(SEVERAL)
    for key in KEYS:
        assert torch.equal(draws.bits(key, counters.cuda()).cpu(), draws.bits(key, counters))


def test_keys_of_different_parts_differ():
    small = range(-3, 12)
    parts = [p for n in range(1, 4) for p in itertools.product(small, repeat=n)]
    parts += [(2**k + d,) for k in range(8, 63) for d in (0, 1)] + [()]
    assert len({draws.key(*p) for p in parts}) == len(set(parts))
    assert (
        len({draws.key(seed, what, epoch) for seed in range(40) for what in range(5) for epoch in range(100)})
        == 20_000
    )


def binary(values):
    """int64 [n] of 32 bits -> float [n, 32], -1 or 1."""
    return ((values[:, None] >> torch.arange(32)) & 1) * 2.0 - 1


@pytest.mark.parametrize("key", KEYS)
def test_bits_are_balanced_and_uncorrelated(key):
    n = 1 << 16
    counters = torch.arange(n) + 7
    bits = binary(draws.bits(key, counters))
    assert bits.mean(0).abs().max() * n**0.5 < 5.5
    pairs = bits.T @ bits / n - torch.eye(32)  # within one number
    following = bits.T @ binary(draws.bits(key, counters + 1)) / n  # of neighbouring counters
    neighbour = bits.T @ binary(draws.bits(key + 1, counters)) / n  # of neighbouring keys
    for correlation in (pairs, following, neighbour):
        assert correlation.abs().max() * n**0.5 < 5.5


@pytest.mark.parametrize("start", [0, 2**31, 2**40 + 3, 2**61])
def test_numbers_are_uniform_at_any_counter(start):
    for part in (0, 24):  # the high and the low byte
        drawn = draws.bits(draws.key(3), torch.arange(start, start + 51_200)) >> part & 255
        assert stats.chisquare(torch.bincount(drawn, minlength=256).numpy()).pvalue > TINY


@pytest.mark.parametrize("small", [True, False])
def test_flipping_a_bit_of_the_counter_flips_half_of_the_bits(small):
    n, generator = 4096, random.Random(1)
    counters = torch.tensor([i if small else generator.getrandbits(62) for i in range(n)])
    before = draws.bits(draws.key(5), counters)
    for bit in range(62):
        flipped = binary(before ^ draws.bits(draws.key(5), counters ^ (1 << bit)))
        # A pair of counters that differ in the bit may be met twice: half as many independent figures.
        assert flipped.mean(0).abs().max() * (n / 2) ** 0.5 < 5.5


def test_flipping_a_bit_of_a_part_flips_half_of_the_key():
    generator, n = random.Random(2), 1000
    for place, bit in itertools.product(range(3), (0, 1, 5, 31, 32, 63)):
        ones = torch.zeros(64)
        for _ in range(n):
            parts = [generator.randrange(1000), generator.randrange(5), generator.randrange(1000)]
            before = draws.key(*parts)
            parts[place] ^= 1 << bit
            changed = before ^ draws.key(*parts)
            ones += torch.tensor([changed >> i & 1 for i in range(64)])
        assert (ones / n - 0.5).abs().max() * 2 * n**0.5 < 5.5, (place, bit)


@pytest.mark.parametrize("count", [2, 3, 9, 33, 1000, 2**16])
def test_integers_are_uniform(count):
    drawn = draws.integers(draws.key(11), torch.arange(max(40_000, 8 * count)), count)
    assert 0 <= drawn.min() and drawn.max() < count
    assert stats.chisquare(torch.bincount(drawn, minlength=count).numpy()).pvalue > TINY


@settings(deadline=None)
@given(st.integers(0, 2**64 - 1), st.integers(0, 500))
def test_a_permutation_holds_every_element_once_and_repeats(key, count):
    order = draws.permutation(key, count)
    assert order.dtype == torch.int64 and sorted(order.tolist()) == list(range(count))
    assert torch.equal(order, draws.permutation(key, count))


def test_permutations_differ_by_seed_and_epoch():
    keys = [(seed, epoch) for seed in range(8) for epoch in range(8)]
    orders = [draws.permutation(draws.key(seed, draws.ORDER, epoch), 1000) for seed, epoch in keys]
    assert len({tuple(order.tolist()) for order in orders}) == len(keys)
    kept = [(a == b).sum().item() for a, b in itertools.combinations(orders, 2)]  # elements at the same place
    expected = stats.poisson(1).pmf(range(6)) * len(kept)
    counts = [kept.count(i) for i in range(6)]
    assert (
        stats.chisquare([*counts, len(kept) - sum(counts)], [*expected, len(kept) - sum(expected)]).pvalue
        > TINY
    )


def many_permutations(count, keys):
    return torch.stack([draws.permutation(key, count) for key in keys])


@pytest.mark.parametrize("by", ["epoch", "seed"])
def test_permutations_are_uniform(by):
    """Every one of the 4! = 24 orders, and every place of an element of a longer one, is equally frequent."""
    times = 2400
    keys = [
        draws.key(0, draws.ORDER, i) if by == "epoch" else draws.key(i, draws.ORDER, 0) for i in range(times)
    ]
    _, counts = torch.unique(many_permutations(4, keys) @ torch.tensor([64, 16, 4, 1]), return_counts=True)
    assert len(counts) == 24 and stats.chisquare(counts.numpy()).pvalue > TINY
    orders = many_permutations(20, keys)
    table = torch.stack([torch.bincount(orders[:, place], minlength=20) for place in range(20)])
    chi = ((table - times / 20) ** 2 / (times / 20)).sum().item()
    # Rows and columns both add up: (n - 1)^2 degrees of freedom, and the mean is n (n - 1).
    assert TINY < stats.chi2.sf(chi * 19 / 20, 19 * 19) < 1 - TINY
    first = (orders.argsort(1)[:, :, None] < orders.argsort(1)[:, None, :]).float().mean(0)  # i before j
    off = first[~torch.eye(20, dtype=torch.bool)]
    assert (off - 0.5).abs().max() * 2 * times**0.5 < 5.5


def test_a_permutation_is_the_order_of_its_62_bits():
    """So many elements that their first 31 bits tie; an order by these alone would favour small indices."""
    key, count = draws.key(1, draws.ORDER, 2), 200_000
    counters = torch.arange(count)
    first, second = ((draws.bits(key, 2 * counters + i) >> 1).numpy() for i in (0, 1))
    assert len(np.unique(first)) < count
    assert draws.permutation(key, count).tolist() == np.lexsort((second, first)).tolist()
