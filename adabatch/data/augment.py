"""From stored samples to what the network eats: crop, flip, normalise, enlarge, cutout; whole batches.

Each random number is a function of its sample's key alone, so neither the batch size nor the cut changes a
picture.
"""

from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F

from adabatch import draws
from adabatch.data.boxes import RATIO, crop_boxes
from adabatch.data.keys import SIDE
from adabatch.data.resample import axis, central, resampled
from adabatch.data.windows import Windows, laid_out, padded
from adabatch.errors import UserError, suggest

ROW, COLUMN, FLIP, CUT_ROW, CUT_COLUMN = range(5)  # what a draw of a sample is for


def drawn(keys, counts: dict):
    """{purpose: count}; keys: int64 [n] -> the draws of each purpose, int64 [purposes, n], as NumPy arrays.

    One hash for all: on so few numbers the calls are what costs.
    """
    purposes, limits = (np.array(list(part), dtype=np.int64)[:, None] for part in (counts, counts.values()))
    return draws.array_bits(draws.AUGMENT, (keys.cpu().numpy() & draws.MASK) * 8 + purposes) * limits >> 32


class Augment:
    """Random crop after padding by `pad` pixels, and flip. x: [n, c, h, w] of any dtype -> the same.

    pad_mode: zeros, reflect, or a number to fill with (in the units of x). cutout: side of a square set to
    the mean (DeVries and Taylor 2017, arXiv 1708.04552; wholly inside the picture as in cifar10-fast). flip:
    true = by chance, every second picture; alternate = where the key says so (`keys.py`). scale: instead of
    `pad`, least and largest share of the picture's area that is shown, at a ratio of its sides between those
    of `ratio` (None: 3/4 to 4/3), as torchvision's RandomResizedCrop. `Prepare` applies cutout and scale.
    """

    def __init__(
        self,
        pad: int = 0,
        pad_mode: str | float = "zeros",
        flip: bool | str = False,
        cutout: int = 0,
        scale=None,
        ratio=None,
    ):
        flip = flip or False  # null
        if not isinstance(flip, bool) and flip != "alternate":
            raise UserError(
                f"dataset.augment.flip is true, false or alternate, got {flip!r}."
                f"{suggest(str(flip), ('alternate',))}"
            )
        if not isinstance(pad_mode, (int, float)) and pad_mode not in ("zeros", "reflect"):
            modes = ("zeros", "reflect")
            raise UserError(
                f"dataset.augment.pad_mode is zeros, reflect or a number, got {pad_mode!r}."
                f"{suggest(pad_mode, modes)}"
            )
        if pad < 0 or cutout < 0:
            raise UserError(f"dataset.augment takes pad >= 0 and cutout >= 0, got pad={pad}, cutout={cutout}")
        if ratio if scale is None else pad:
            got = f"pad={pad}, scale={scale}, ratio={ratio}"
            raise UserError(f"dataset.augment takes pad, or scale and with it ratio, got {got}")
        self.pad, self.pad_mode, self.cutout = pad, pad_mode, cutout
        self.flip, self.alternate = bool(flip), flip == "alternate"
        self.scale, self.ratio = scale, ratio or RATIO

    def __call__(self, x, keys, memory_format=torch.contiguous_format):
        """keys: int64 [n] -> the same shape and dtype, in `memory_format`."""
        if self.scale or not (self.pad or self.flip):
            return x
        return self.read(self.windows(x, memory_format), np.arange(len(x)), keys)

    def windows(self, x, memory_format) -> Windows:
        """What `read` takes crops from."""
        pictures = padded(x, self.pad, self.pad_mode, self.flip, memory_format)
        return Windows(pictures, *x.shape[-2:], memory_format)

    def read(self, windows: Windows, indices, keys):
        """indices: int64 [n], a NumPy array; keys: int64 [n] -> crops [n, c, h, w]."""
        shifts = 2 * self.pad + 1
        top, left, flip = drawn(keys, {ROW: shifts, COLUMN: shifts, FLIP: 1 + self.flip})
        if self.alternate:
            flip = keys.cpu().numpy() >> SIDE
        # Mirroring the crop whose first column is `left` = cropping the mirror image from the other side.
        left = np.where(flip, 2 * self.pad - left, left)
        return windows.read(indices + flip * (windows.count // 2), top, left)

    def resized(self, x, keys, side: tuple[int, int]):
        """A random part of each of x [n, c, h, w], floating point, flipped or not -> [n, c, *side]. The box
        of a key is that of `imagenet.py`."""
        height, width = x.shape[-2:]
        own = keys.cpu().numpy()
        random = own & draws.MASK  # without the side

        def draw(i: int, which):
            return draws.bits(random[which], i) / 2**32

        boxes = crop_boxes(height, width, len(x), draw, self.scale, self.ratio)
        flip = own >> SIDE if self.alternate else drawn(keys, {FLIP: 1 + self.flip})[0]
        top, left, h, w = boxes
        rows = axis(top, h / side[0], top, top + h - 1, side[0])
        return resampled(x, rows, axis(left, w / side[1], left, left + w - 1, side[1], flip == 1))

    def cut(self, x, keys) -> None:
        """Multiply a square in each of x [n, c, h, w] by 0, in place; x is dense in a memory format."""
        height, width = x.shape[-2:]
        if self.cutout > min(height, width):
            raise UserError(
                f"dataset.augment.cutout is at most the side of the picture, "
                f"got {self.cutout} for {height}x{width}"
            )
        top, left = drawn(keys, {CUT_ROW: height - self.cutout + 1, CUT_COLUMN: width - self.cutout + 1})
        side, last = np.arange(self.cutout), not x.is_contiguous()
        planes = 1 if last else x.shape[1]  # channels_last has all channels of a pixel in one place
        corners = np.arange(len(x) * planes) * (height * width) + np.repeat(top * width + left, planes)
        pixels = corners[:, None, None] + side[:, None] * width + side
        pixels = torch.from_numpy(pixels.reshape(-1)).to(x.device, non_blocking=True)
        values = (x.permute(0, 2, 3, 1) if last else x).view(-1, x.shape[1] // planes)
        values.index_copy_(0, pixels, values.index_select(0, pixels).mul_(0))


class Prepare:
    """Stored inputs -> network inputs on the network's device, dtype and memory format.

    Images as uint8 [n, c, h, w] become (x / 255 - mean) / std; float images (x - mean) / std; both are
    enlarged bilinearly to `size` where smaller and repeated to `channels` where grey. Integer inputs that are
    no images (tokens) pass unchanged. augment: None for data that is not to be varied. crop_pct: None, or
    what evaluation sees of the shorter side, in the middle.
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
        crop_pct: float | None = None,
    ):
        self.crop_pct = crop_pct
        self.device, self.dtype, self.memory_format = device, dtype, memory_format
        self.size, self.channels, self.augment = size, channels, augment
        self.mean = None if mean is None else torch.tensor(mean, dtype=dtype, device=device).view(-1, 1, 1)
        self.std = None if std is None else torch.tensor(std, dtype=dtype, device=device).view(-1, 1, 1)
        self._scales = lru_cache(maxsize=4)(self._scales_for)

    def __call__(self, x, keys=None):
        """keys: int64 [n], or None in evaluation."""
        x = x.to(self.device, non_blocking=True)
        image = x.dim() == 4
        if not image:
            return x.to(self.dtype) if x.dtype.is_floating_point or x.dtype == torch.uint8 else x
        vary = keys is not None and self.augment is not None
        if vary:
            x = self.augment(x, keys, self.memory_format)
        x = self._normalise(x)
        side = (self.size, self.size) if self.size else tuple(x.shape[-2:])
        if vary and self.augment.scale:
            x = self.augment.resized(x, keys, side)
        elif keys is None and self.crop_pct:
            x = resampled(x, *central(*x.shape[-2:], side, self.crop_pct))
        if vary and self.augment.cutout:
            self.augment.cut(x, keys)
        if self.size and min(x.shape[-2:]) < self.size:
            x = F.interpolate(x, size=(self.size, self.size), mode="bilinear", align_corners=False)
        if self.channels and x.shape[1] == 1 and self.channels > 1:
            x = x.expand(-1, self.channels, -1, -1)
        return x.contiguous(memory_format=self.memory_format)

    def _normalise(self, x):
        out = torch.empty(x.shape, dtype=self.dtype, device=x.device, memory_format=self.memory_format)
        out, scale = laid_out(x, out), 255.0 if x.dtype == torch.uint8 else 1.0
        if self.mean is None:
            return out / scale if scale != 1 else out
        mean, std, factor, shift = self._scales(x.shape[1:], scale)
        return out.mul_(factor).sub_(shift) if scale != 1 else out.sub_(mean).div_(std)

    def _scales_for(self, shape, scale: float):
        """Mean, deviation, and what bytes are multiplied by and lessened by, for every element of a picture:
        operations with one value per channel cost ten times as much in channels_last."""
        found = (self.mean, self.std, 1 / (scale * self.std), self.mean / self.std)
        return [v.expand(shape)[None].clone(memory_format=self.memory_format) for v in found]
