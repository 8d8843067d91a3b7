"""What a network is shown: stored samples in the shape and scale that it was made for, and its first look."""

import logging
from types import SimpleNamespace

import torch

from adabatch.data.augment import Augment, Prepare
from adabatch.errors import UserError

log = logging.getLogger("adabatch")
CHUNK = 250  # samples of a first look that are prepared at once


def seen_as(shape: tuple, size: int | None, network) -> tuple:
    """Shape of one sample as the network sees it. network: the class, or an instance where only that knows
    its size."""
    if len(shape) != 3:
        return shape
    needed, channels = getattr(network, "size", None), getattr(network, "needs_channels", None) or shape[0]
    if channels != shape[0] and shape[0] != 1:
        name = getattr(network, "__name__", type(network).__name__)
        raise UserError(
            f"{name} takes {channels} channels, the dataset has {shape[0]}: only grey pictures are repeated"
        )
    side = size or (needed if isinstance(needed, int) else 0)
    return (channels, side, side) if side > min(shape[1:]) else (channels, *shape[1:])


def preparation(node: dict, stored: tuple, model, hardware) -> Prepare:
    """Stored samples -> network inputs. node: dataset. stored: shape of one. Pictures smaller than the
    network was made for are enlarged, which `tell` says."""
    seen = seen_as(stored, node.get("size"), model)
    image, varied = len(stored) == 3, dict(node.get("augment") or {})
    for key in ("mean", "std"):
        if image and node.get(key) is not None and len(node[key]) not in (1, stored[0]):
            raise UserError(
                f"dataset.{key} has one value, or one for each channel: got {len(node[key])} for pictures of "
                f"{stored[0]}"
            )
    parts = {"crop_pct": node.get("crop_pct"), "augment.scale": varied.get("scale")}
    if asked := [key for key, value in parts.items() if value is not None and not image]:
        raise UserError(
            f"dataset.{asked[0]} takes parts of pictures [c, h, w], and a sample here is {list(stored)}: "
            f"dataset.{asked[0]}=null"
        )
    return Prepare(
        hardware.device, hardware.dtype, hardware.memory_format, mean=node.get("mean"), std=node.get("std"),
        size=seen[1] if image and seen[1:] != stored[1:] else None, channels=seen[0] if image else None,
        augment=Augment(**varied) if varied and image else None, crop_pct=node.get("crop_pct"),
    )  # fmt: skip


def tell(node: dict, stored: tuple, model) -> None:
    """Says that pictures are enlarged or repeated, where they are."""
    if (seen := seen_as(stored, node.get("size"), model)) == stored:
        return
    why = "dataset.size" if node.get("size") else f"what {type(model).__name__} asks for"
    sides = ("x".join(map(str, shape)) for shape in (stored, seen))
    log.info("pictures  %s are shown to the network as %s (%s)", *sides, why)


def first_look(node: dict, stored: tuple, samples, model) -> None:
    """Shows `samples` to a network that asks to see them before it is trained (`models/parts.py`)."""
    if not hasattr(model, "first_look"):
        return
    cpu = SimpleNamespace(
        device=torch.device("cpu"), dtype=torch.float32, memory_format=torch.contiguous_format
    )
    prepare = preparation({**node, "augment": None, "crop_pct": None}, stored, model, cpu)
    parts = torch.arange(len(samples)).split(CHUNK)
    model.first_look(prepare(samples.read(indices)[0]) for indices in parts)
