"""What a sample costs, whatever the device: floating-point operations, bytes kept for the backward pass, and
operations that a device starts one by one."""

import statistics
import time

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from adabatch import memory


class Calls(TorchDispatchMode):
    """Counts the operations that torch dispatches; views move nothing and start nothing."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += not getattr(function, "is_view", False)
        return function(*args, **(kwargs or {}))


def cost(step, samples: int) -> dict:
    """Of one forward and backward pass over so many samples. Nothing is changed by it."""
    with FlopCounterMode(display=False) as flops:
        memory.passes(step, samples, 0)
    with Calls() as calls:
        memory.passes(step, samples, 0)
    return {
        "flops_per_sample": flops.get_total_flops() / samples,
        "activation_bytes_per_sample": memory.activation_bytes(step, samples) / samples,
        "operations_per_pass": calls.count,
        "parameter_bytes": sum(p.numel() * p.element_size() for p in step.model.parameters()),
        "dispatch_seconds": dispatch(),
    }


def dispatch(count: int = 1000) -> float:
    """Seconds that this host takes to start an operation and its backward one, each: of additions that take
    no time themselves."""
    took, one = [], torch.ones(1)
    for _ in range(5):
        began, value = time.perf_counter(), torch.ones(1, requires_grad=True)
        for _ in range(count):
            value = value + one
        value.sum().backward()
        took.append((time.perf_counter() - began) / (2 * count))
    return statistics.median(took)
