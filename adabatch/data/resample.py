"""Parts of pictures in memory, brought to one size bilinearly: two of a picture's rows and two of its columns
for each of the output's, whole rows copied at a time.

Every operation acts on each element alone, so that a picture has the same bits in any batch. A matrix product
or `grid_sample` would be one call, but their last bits go by the kernel that the size of the batch selects.
Where a part is larger than the output, two taps leave pixels out: torchvision's antialias=False.
"""

import numpy as np
import torch


def axis(first, pitch, low, high, count: int, mirrored=None):
    """Where output pixels 0 to count - 1 lie along one side of their pictures: the two stored pixels around
    each (int64 [n, count]) and the share of the second (float64 [n, count]).

    first, pitch: where the part begins, and stored pixels per output pixel; low, high: the first and the last
    stored pixel that may be seen, of each picture: [n]. mirrored: bool [n], whether the order is reversed.
    """
    first, pitch, low, high = (
        np.asarray(part, dtype=np.float64)[:, None] for part in (first, pitch, low, high)
    )
    at = np.clip(first + (np.arange(count) + 0.5) * pitch - 0.5, low, high)
    if mirrored is not None:
        at = np.where(mirrored[:, None], at[:, ::-1], at)
    before = np.floor(at)
    return before.astype(np.int64), np.minimum(before + 1, high).astype(np.int64), at - before


def resampled(x, rows, columns):
    """x: [n, c, h, w], floating point; rows, columns: of `axis`, of n pictures or of one for all -> a dense
    channels_last tensor [n, c, rows, columns]."""
    n, channels, height, width = x.shape
    # The columns first, while there are few rows: a pixel's neighbours are then whole slices [h, c].
    x = _blend(x.permute(0, 3, 2, 1).reshape(n * width, height * channels), width, n, columns)
    x = x.view(n, -1, height, channels).transpose(1, 2)
    out = x.shape[2]
    x = _blend(x.reshape(n * height, out * channels), height, n, rows)
    return x.view(n, -1, out, channels).permute(0, 3, 1, 2)


def _blend(table, each: int, n: int, taps):
    """table: [n * each, k], `each` rows of each of n pictures -> [n * count, k], a mix of two rows each."""
    before, after, share = (np.broadcast_to(part, (n, part.shape[1])) for part in taps)
    own = np.arange(n)[:, None] * each
    a, b = (table.index_select(0, _there(own + part, table.device).view(-1)) for part in (before, after))
    share = _there(share, table.device).to(table.dtype).view(-1, 1)
    return a.add_(b.sub_(a).mul_(share))  # one by one: a fused form may round the ends of a vector otherwise


def _there(array, device):
    return torch.from_numpy(np.array(array, order="C")).to(device, non_blocking=True)


def central(height: int, width: int, out: tuple[int, int], share: float):
    """Rows and columns of the central crop [out] after a resize that makes it `share` of the shorter side, as
    torchvision's Resize and CenterCrop: 224 and 0.875 are Resize(256), CenterCrop(224)."""
    short = int(min(out) / share)
    sides = [short * side // min(height, width) for side in (height, width)]
    found = []
    for stored, whole, count in zip((height, width), sides, out):
        begin = round((whole - count) / 2)
        found.append(axis([begin * stored / whole], [stored / whole], [0], [stored - 1], count))
    return found
