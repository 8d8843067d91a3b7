"""A batch in pieces that stay near the cache."""

PIECE = 16 << 20  # bytes at once: memory does not grow with the batch either


def pieces(n: int, each: int) -> list[slice]:
    """Slices of n samples, `each` bytes a sample, of at most PIECE bytes."""
    step = max(1, PIECE // each)
    return [slice(start, min(n, start + step)) for start in range(0, n, step)]
