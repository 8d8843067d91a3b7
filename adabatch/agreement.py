"""Whether all ranks still hold the same run: asked at the start and at every checkpoint."""

import hashlib

import torch

SAMPLES = 64  # whose bits are compared


def tensors(value, name: str) -> list:
    """(name, tensor) of every tensor in nested dicts and lists."""
    if torch.is_tensor(value):
        return [(name, value)]
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, item in inner for found in tensors(item, f"{name} {key}")]


def agree(run) -> None:
    """RuntimeError, with the name of what differs, unless every rank has the same
    weights, statistics and optimizer, the same schedule and the same data before it. run: a `Record`."""
    parts, ranks = run.parts, run.parts.hardware.ranks
    if ranks.world == 1:
        return
    named = [(f"weights {name}", t) for name, t in run.model.state_dict().items()]
    named += tensors(parts.step.optimizer.state_dict(), "optimizer")
    start, stream = parts.schedule.start(run.position), parts.step.stream
    x, y = stream.batch(start, start + SAMPLES)
    named += [
        ("data: number of samples", torch.tensor([len(stream)])),
        ("data: order", stream.indices(start, start + SAMPLES)),
        ("data: inputs", x),
        ("data: labels", y),
    ]
    text = repr((run.position, run.steps, parts.schedule.state_dict())).encode()
    digest = hashlib.blake2b(text, digest_size=8).digest()  # of one length, whatever is written there
    named.append(("schedule", torch.frombuffer(bytearray(digest), dtype=torch.uint8)))
    try:
        ranks.same(named)
    except RuntimeError as error:
        if "data: " not in str(error):
            raise
        what = str(error).split(" has not")[0]
        raise RuntimeError(
            f"{what}: the ranks do not have the same. A loader returns the same samples in the same order in "
            "every process: seed what it draws, and see that all hosts have the same files"
        ) from None
