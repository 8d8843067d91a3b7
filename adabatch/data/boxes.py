"""Which part of a picture a random resized crop shows: Szegedy et al. 2014, arXiv 1409.4842, section 6, by
the rule of torchvision's RandomResizedCrop.

Try t takes its area, its ratio of sides (uniform in the logarithm), top and left from draws 4t to 4t + 3. If
the box fits in none of the tries: the largest central box with an allowed ratio. Once for a single picture,
where NumPy's calls would cost more than the rest, and once for many of one size.
"""

import math

import numpy as np

AREA, RATIO, TRIES = (0.08, 1.0), (3 / 4, 4 / 3), 10  # torchvision's


def crop_box(height: int, width: int, draw):
    """(top, left, height, width) for one picture. draw(i): number i of its draws, uniform in [0, 1)."""
    for first in range(0, 4 * TRIES, 4):
        w, h = map(round, _sides(math, height * width, draw(first), draw(first + 1), AREA, RATIO))
        if 0 < w <= width and 0 < h <= height:
            return int(draw(first + 2) * (height - h + 1)), int(draw(first + 3) * (width - w + 1)), h, w
    return _central(height, width, RATIO)


def crop_boxes(height: int, width: int, count: int, draw, area=AREA, ratio=RATIO):
    """Top, left, height and width for `count` pictures: int64 [4, count].

    area: least and largest share of the picture's; ratio: of width to height. draw(i, which): number i of the
    draws of the pictures `which` (int64 [n]), uniform in [0, 1).
    """
    found = np.repeat(np.array([_central(height, width, ratio)], dtype=np.int64).T, count, axis=1)
    left = np.arange(count)
    for first in range(0, 4 * TRIES, 4):
        sides = _sides(np, height * width, draw(first, left), draw(first + 1, left), area, ratio)
        w, h = map(np.rint, sides)
        fits = (0 < w) & (w <= width) & (0 < h) & (h <= height)
        chosen, h, w = left[fits], h[fits], w[fits]
        place = draw(first + 2, chosen) * (height - h + 1), draw(first + 3, chosen) * (width - w + 1)
        found[:, chosen] = np.stack([*place, h, w])
        left = left[~fits]
        if not len(left):
            break
    return found


def _sides(lib, pixels: int, first, second, area, ratio):
    """Width and height of a try, not yet whole. lib: math for numbers, numpy for arrays."""
    low, high = map(math.log, ratio)
    pixels = pixels * (area[0] + (area[1] - area[0]) * first)
    shape = lib.exp(low + (high - low) * second)
    return lib.sqrt(pixels * shape), lib.sqrt(pixels / shape)


def _central(height: int, width: int, ratio) -> tuple[int, int, int, int]:
    h, w = height, width
    if width / height < ratio[0]:
        h = round(width / ratio[0])
    elif width / height > ratio[1]:
        w = round(height * ratio[1])
    return (height - h) // 2, (width - w) // 2, h, w
