"""Random numbers addressed by counters: draw = hash(seed, what for, position, element). No state.

The hash is the finaliser of MurmurHash3 (32 bit) in three rounds with a key of 64 bits, written with integer
operations whose result is defined alike in Python, on a CPU and on a GPU. Torch lacks unsigned 32-bit
multiplication on every device, so tensors hold 32-bit values in int64: a product may wrap in the upper half,
and only the lower half is kept.

Not for cryptography; for masks, shifts and permutations the quality is tested in tests/test_draws.py.
"""

from functools import cache

MASK = 0xFFFFFFFF
ORDER, AUGMENT, DROPOUT, INIT, SIDE = 1, 2, 3, 4, 5  # what a draw is for: streams that never share a key


def _mix(h):
    """One bijection of the 32-bit values held in `h` (an int or an int64 tensor)."""
    h = h ^ (h >> 16)
    h = (h * 0x85EBCA6B) & MASK
    h = h ^ (h >> 13)
    h = (h * 0xC2B2AE35) & MASK
    return h ^ (h >> 16)


def key(*parts: int) -> int:
    """A key of 64 bits from any integers (negative or large ones too), e.g. key(seed, ORDER, epoch)."""
    low, high = 0x9E3779B9, 0x7F4A7C15
    for part in parts:
        words = [part & MASK, (part >> 32) & MASK]
        for word in words:
            low = _mix((low ^ word) + 0x9E3779B9 & MASK)
            high = _mix((high + low ^ word) & MASK)
    return high << 32 | low


def bits(key: int, counters):
    """32 random bits for each counter: an int, or an int64 tensor of any shape; 0 <= counter < 2^62."""
    low, high = key & MASK, key >> 32
    h = _mix(((counters & MASK) + low) & MASK)
    h = _mix((h ^ high ^ (((counters >> 32) * 0x9E3779B9) & MASK)) & MASK)
    return _mix((h + low) & MASK)


@cache
def _words() -> list:
    """The constants of `_mix` as NumPy's 32-bit numbers: making them anew would double the time."""
    import numpy as np

    return [np.uint32(value) for value in (16, 0x85EBCA6B, 13, 0xC2B2AE35, 0x9E3779B9)]


def array_bits(key: int, counters):
    """`bits` of an int64 NumPy array, as one. For few numbers, where calls are what costs: a fifth of the
    time of tensors, since NumPy's calls cost less and its 32 bits wrap by themselves."""
    s16, first, s13, second, golden = _words()
    word = type(s16)

    def mix(h):
        h ^= h >> s16
        h *= first
        h ^= h >> s13
        h *= second
        h ^= h >> s16
        return h

    low, high = word(key & MASK), word(key >> 32)
    h = mix(counters.astype(word) + low) ^ high
    h ^= (counters >> 32).astype(word) * golden
    h = mix(h)
    h += low
    return mix(h).astype(counters.dtype)


def integers(key: int, counters, count: int):
    """Uniform integers 0 <= draw < count <= 2^16 (bias below count / 2^32). int64, shaped as counters."""
    return (bits(key, counters) * count) >> 32


def permutation(key: int, count: int):
    """A random permutation of `count` elements: int64 tensor [count] on the CPU.

    Sorted by 62 random bits, ties by index (stable): the same on every version of torch, unlike its own.
    """
    import numpy as np
    import torch

    counters = np.arange(2 * count, dtype=np.int64)
    high, low = (array_bits(key, counters) >> 1).reshape(-1, 2).T
    return torch.argsort(torch.from_numpy(high << 31 | low), stable=True)
