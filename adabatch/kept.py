"""What the runs of one process read alike, kept from one to the next (hardware.own_process=false): the splits
of one data set on their device, and its pictures laid out for cropping.

Only data sets of ours in memory: they are the same every time, and nothing closes them. Another one takes the
place of the one before. What is kept is what would be made again, so no bit depends on it.
"""

import json
from dataclasses import replace

from adabatch.data.samples import TensorSamples

OURS = "adabatch.data.datasets."
_kept: dict = {}  # {"key", "splits", "sources": {memory format: samples}}; empty where nothing is


def splits(config: dict, device, load):
    """load(), a dataclass of the splits; or what it returned for the run before, if that had the same."""
    wanted = (config.get("hardware") or {}).get("own_process") is False
    key = json.dumps([config["dataset"], str(device)], sort_keys=True, default=str)
    if _kept.get("key") != key or not wanted:
        _kept.clear()
        found = load()
        if not wanted or not lasting(config, found):
            return found
        _kept.update(key=key, splits=found, sources={})
    return replace(_kept["splits"])


def lasting(config: dict, found) -> bool:
    """Whether the splits are tensors, from a loader that returns the same every time."""
    each = (found.train, found.validation, found.test)
    ours = str(config["dataset"].get("_target_")).startswith(OURS)
    return ours and all(isinstance(split, TensorSamples) for split in each if split is not None)


def source(samples, memory_format):
    """What a stream reads its samples from: that of the run before, whose pictures are laid out already."""
    return _kept["sources"].setdefault(memory_format, samples) if _kept else samples
