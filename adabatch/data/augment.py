"""From stored samples to what the network eats: crop, flip, cutout, normalise, enlarge; whole batches.

Each random number is a function of its sample's key alone, so neither the batch size nor the cut changes a
picture.
"""

import torch
import torch.nn.functional as F

from adabatch import draws
from adabatch.errors import UserError, suggest

ROW, COLUMN, FLIP, CUT_ROW, CUT_COLUMN = range(5)  # what a draw of a sample is for


def draw(keys, purpose: int, count: int):
    """keys: int64 [n] -> uniform integers [n] in [0, count)."""
    return draws.integers(draws.AUGMENT, keys * 8 + purpose, count)


class Augment:
    """Random crop after padding by `pad` pixels, and flip. x: [n, c, h, w] of any dtype -> the same.

    pad_mode: zeros, reflect, or a number to fill with (in the units of x). cutout: side of a square set to
    the mean (DeVries and Taylor 2017, arXiv 1708.04552; wholly inside the picture as in cifar10-fast); it is
    applied by `Prepare`.
    """

    def __init__(self, pad: int = 0, pad_mode: str | float = "zeros", flip: bool = False, cutout: int = 0):
        if not isinstance(pad_mode, (int, float)) and pad_mode not in ("zeros", "reflect"):
            modes = ("zeros", "reflect")
            raise UserError(
                f"dataset.augment.pad_mode is zeros, reflect or a number, got {pad_mode!r}."
                f"{suggest(pad_mode, modes)}"
            )
        if pad < 0 or cutout < 0:
            raise UserError(f"dataset.augment takes pad >= 0 and cutout >= 0, got pad={pad}, cutout={cutout}")
        self.pad, self.pad_mode, self.flip, self.cutout = pad, pad_mode, flip, cutout

    def __call__(self, x, keys):
        """keys: int64 [n] on x's device."""
        if not (self.pad or self.flip):
            return x
        height, width = x.shape[-2:]
        rows, columns = (torch.arange(side, device=x.device)[None] for side in (height, width))
        if self.flip:
            columns = torch.where(draw(keys, FLIP, 2)[:, None] == 1, width - 1 - columns, columns)
        if self.pad:
            rows = rows + draw(keys, ROW, 2 * self.pad + 1)[:, None]
            columns = columns + draw(keys, COLUMN, 2 * self.pad + 1)[:, None]
            x = self._padded(x)
        # One gather by flat pixel index crops and flips: the fastest simple way, see benchmarks/data_path.py.
        pixels = (rows[:, :, None] * x.shape[3] + columns[:, None, :]).view(-1, 1, height * width)
        n, channels = x.shape[:2]
        return x.flatten(2).gather(2, pixels.expand(n, channels, -1)).view(n, channels, height, width)

    def _padded(self, x):
        if self.pad_mode != "reflect":
            fill = 0 if self.pad_mode == "zeros" else self.pad_mode
            if x.dtype == torch.uint8 and fill not in range(256):
                raise UserError(f"dataset.augment.pad_mode fills whole pixels of 0 to 255, got {fill}")
            return F.pad(x, (self.pad,) * 4, value=fill)
        if self.pad >= min(x.shape[-2:]):
            raise UserError(
                f"dataset.augment.pad_mode=reflect needs pad below the side of the picture, "
                f"got pad={self.pad} for {x.shape[-2]}x{x.shape[-1]}"
            )
        if x.dtype.is_floating_point:
            return F.pad(x, (self.pad,) * 4, mode="reflect")
        # torch pads integers by reflection on no device; float32 holds uint8 exactly.
        return F.pad(x.float(), (self.pad,) * 4, mode="reflect").to(x.dtype)

    def keep(self, shape, keys):
        """0 where the cutout is, else 1: bool [n, 1, h, w]."""
        height, width = shape[-2:]
        if self.cutout > min(height, width):
            raise UserError(
                f"dataset.augment.cutout is at most the side of the picture, "
                f"got {self.cutout} for {height}x{width}"
            )
        top = draw(keys, CUT_ROW, height - self.cutout + 1)
        left = draw(keys, CUT_COLUMN, width - self.cutout + 1)
        row, column = torch.arange(height, device=keys.device), torch.arange(width, device=keys.device)
        in_rows = (row >= top[:, None]) & (row < top[:, None] + self.cutout)
        in_columns = (column >= left[:, None]) & (column < left[:, None] + self.cutout)
        return ~(in_rows[:, None, :, None] & in_columns[:, None, None, :])


class Prepare:
    """Stored inputs -> network inputs on the network's device, dtype and memory format.

    Images as uint8 [n, c, h, w] become (x / 255 - mean) / std; float images (x - mean) / std; both are
    enlarged bilinearly to `size` where smaller and repeated to `channels` where grey. Integer inputs that are
    no images (tokens) pass unchanged. augment: None for data that is not to be varied.
    """

    def __init__(
        self,
        device,
        dtype=torch.float32,
        memory_format=torch.contiguous_format,
        mean=None,  # per channel, in units of pixel / 255
        std=None,
        size: int | None = None,
        channels: int | None = None,
        augment: Augment | None = None,
    ):
        self.device, self.dtype, self.memory_format = device, dtype, memory_format
        self.size, self.channels, self.augment = size, channels, augment
        self.mean = None if mean is None else torch.tensor(mean, dtype=dtype, device=device).view(1, -1, 1, 1)
        self.std = None if std is None else torch.tensor(std, dtype=dtype, device=device).view(1, -1, 1, 1)

    def __call__(self, x, keys=None):
        """keys: int64 [n], or None in evaluation."""
        x = x.to(self.device, non_blocking=True)
        image = x.dim() == 4
        if not image:
            return x.to(self.dtype) if x.dtype.is_floating_point or x.dtype == torch.uint8 else x
        vary = keys is not None and self.augment is not None
        if vary:
            keys = keys.to(self.device, non_blocking=True)
            x = self.augment(x, keys)
        x = self._normalise(x)
        if vary and self.augment.cutout:
            x = x * self.augment.keep(x.shape, keys)
        if self.size and min(x.shape[-2:]) < self.size:
            x = F.interpolate(x, size=(self.size, self.size), mode="bilinear", align_corners=False)
        if self.channels and x.shape[1] == 1 and self.channels > 1:
            x = x.expand(-1, self.channels, -1, -1)
        return x.contiguous(memory_format=self.memory_format)

    def _normalise(self, x):
        scale = 255.0 if x.dtype == torch.uint8 else 1.0
        x = x.to(self.dtype, memory_format=self.memory_format)
        if self.mean is None:
            return x / scale if scale != 1 else x
        if scale == 1:  # x may be the dataset's own memory
            return (x - self.mean) / self.std
        return x.mul_(1 / (scale * self.std)).sub_(self.mean / self.std)
