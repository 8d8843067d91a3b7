"""Exponential moving average of the weights, with a half-life in samples: the same whatever the batch."""

import contextlib

import torch

from adabatch.errors import UserError


class Average:
    """avg <- d avg + (1 - d) weights after each step, d = 0.5^(batch / half_life). Covers the running
    statistics of ghost norms too; those of torch's batch norms stay the live ones.

    Starts as a copy of the weights. half_life: samples.
    """

    def __init__(self, flat, half_life: float):
        if not half_life > 0:
            raise UserError(f"ema is a half-life in samples, above 0 (null for none); got {half_life}")
        self.live = [flat.params, flat.running]
        self.mean = [tensor.clone() for tensor in self.live]
        self.half_life = half_life

    @torch.no_grad()
    def update(self, batch_size: int) -> None:
        for mean, live in zip(self.mean, self.live, strict=True):
            mean.lerp_(live, 1 - 0.5 ** (batch_size / self.half_life))

    @contextlib.contextmanager
    def in_place(self):
        """The network computes with the average inside this block."""
        kept = [tensor.clone() for tensor in self.live]
        try:
            self._set(self.mean)
            yield
        finally:
            self._set(kept)

    @torch.no_grad()
    def _set(self, values) -> None:
        for live, value in zip(self.live, values, strict=True):
            live.copy_(value)

    def state_dict(self) -> dict:
        return {"mean": list(self.mean)}

    def load_state_dict(self, state: dict) -> None:
        for mean, saved in zip(self.mean, state["mean"], strict=True):
            mean.copy_(saved)
