"""Student's t without scipy, whose import takes longer than a plan."""

import math


def probability(value: float, freedom: int) -> float:
    """P(T <= value) for whole degrees of freedom, by the finite series (Abramowitz and Stegun 1964, 26.7.3
    and 26.7.4)."""
    angle = math.atan2(value, math.sqrt(freedom))
    cosine, sine = math.cos(angle), math.sin(angle)
    odd = freedom % 2
    term = total = (cosine if odd else 1.0) if freedom > 1 else 0.0
    for k in range(2 + odd, freedom, 2):
        term *= cosine * cosine * (k - 1) / k
        total += term
    within = 2 / math.pi * (angle + sine * total) if odd else sine * total
    return (1 + within) / 2


def quantile(share: float, freedom: int) -> float:
    """The value that T stays below with probability `share`, 0 < share < 1."""
    low, high = -math.pi / 2, math.pi / 2
    for _ in range(200):
        middle = (low + high) / 2
        if probability(math.tan(middle) * math.sqrt(freedom), freedom) < share:
            low = middle
        else:
            high = middle
        if high - low < 1e-15:
            break
    return math.tan((low + high) / 2) * math.sqrt(freedom)
