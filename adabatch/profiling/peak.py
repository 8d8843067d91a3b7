"""Memory at the peak of a stretch of work: of the allocator on a GPU, the process's resident set on Linux."""

import contextlib
import ctypes
from pathlib import Path

import torch


class Peak:
    """reset() before, read() after. None where the system cannot say (not Linux): `getrusage` knows the peak
    of the whole process only, which the largest point before would have set."""

    def __init__(self, device):
        self.device = device

    def reset(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)
            return
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)  # glibc: what earlier points freed goes back to the system
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # from here on VmHWM counts anew

    def read(self) -> int | None:
        """Bytes."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        try:
            status = Path("/proc/self/status").read_text()
        except OSError:
            return None
        found = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")]
        return int(found[0]) * 1024 if found else None
