"""Pictures laid out so that a crop, mirrored or not, is one copy.

Padded pictures in the network's memory format lie one behind another, their mirror images after all of them.
A crop of any of them, anywhere, is then the same pattern of strides with another start: overlapping rows of
one view, which `index_select` copies whole. No index per pixel, no pass of its own for padding or flipping.
"""

import torch

from adabatch.errors import UserError

CHUNK = 256  # pictures laid out at a time: what is between two passes stays in the cache
FEW = 4  # channels are copied one by one into channels_last, up to twice as fast; more are copied at once


def laid_out(x, out):
    """Copy x [n, c, h, w] into `out` of the same shape, any dtypes and layouts."""
    if x.stride() == out.stride() or x.shape[1] > FEW:
        return out.copy_(x)
    for channel in range(x.shape[1]):
        out[:, channel].copy_(x[:, channel])
    return out


def padded(x, pad: int, mode, mirrored: bool, memory_format):
    """x: [n, c, h, w] -> [n or 2n, c, h + 2 pad, w + 2 pad], with the mirror images behind where asked for.

    mode: zeros, reflect, or a number to fill with (in the units of x).
    """
    n, channels, height, width = x.shape
    fill = 0 if isinstance(mode, str) else mode
    if mode == "reflect" and pad >= min(height, width):
        raise UserError(
            f"dataset.augment.pad_mode=reflect needs pad below the side of the picture, "
            f"got pad={pad} for {height}x{width}"
        )
    if pad and x.dtype == torch.uint8 and fill not in range(256):
        raise UserError(f"dataset.augment.pad_mode fills whole pixels of 0 to 255, got {fill}")
    rows, columns = (_reflected(side, pad, x.device) for side in (height, width))
    shape = (n * (1 + mirrored), channels, height + 2 * pad, width + 2 * pad)
    out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=memory_format)
    for start in range(0, n, CHUNK):
        part = x[start : start + CHUNK]
        here = out[start : start + len(part)]
        if mode == "reflect":
            laid_out(part[:, :, rows][..., columns], here)
        else:
            here.fill_(fill)
            laid_out(part, here[:, :, pad : pad + height, pad : pad + width])
        if mirrored:
            out[n + start : n + start + len(part)] = here.flip(3)
    return out


def _reflected(side: int, pad: int, device):
    """The pixels that stand at -pad to side + pad when the outermost ones are not repeated."""
    at = torch.arange(-pad, side + pad, device=device).abs()
    return torch.where(at < side, at, 2 * (side - 1) - at)


class Windows:
    """pictures: [n, c, H, W], dense in `memory_format`. height, width: of what is read from them."""

    def __init__(self, pictures, height: int, width: int, memory_format):
        n, channels, rows, columns = pictures.shape
        last = memory_format == torch.channels_last
        self.count, self.shape, self.columns = n, (channels, height, width), columns
        self.last, self.device = last, pictures.device
        self.step = channels if last else 1  # elements from a column to the next: the unit of starts
        self.picture = channels * rows * columns // self.step
        plane, row = rows * columns, columns * self.step
        if last:
            sizes, strides = (height, width * channels), (row, 1)
        else:
            sizes, strides = (channels, height, width), (plane, row, 1)
        span = sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
        starts = max(0, (pictures.numel() - span - 1) // self.step + 1)
        self.view = pictures.as_strided((starts, *sizes), (self.step, *strides))

    def read(self, picture, top, left):
        """int64 arrays [n] (NumPy): which picture, and its first row and column -> [n, c, height, width]."""
        starts = torch.from_numpy(picture * self.picture + top * self.columns + left)
        found = self.view.index_select(0, starts.to(self.device, non_blocking=True))
        channels, height, width = self.shape
        if self.last:
            return found.view(len(found), height, width, channels).permute(0, 3, 1, 2)
        return found
