"""Device, precision, threads, ranks, and this process's share of a global batch."""

import contextlib
import logging
import os

import torch

from adabatch import crowding, cutting, environment
from adabatch.errors import UserError, suggest
from adabatch.ranks import Alone, Ranks

PRECISIONS = ("fp32", "bf16", "tf32", "fp64")
log = logging.getLogger("adabatch")
ACTIVATIONS = {"cpu": 1 << 30, "cuda": 0.4}  # micro_batch=auto: bytes, or a share of the device's memory


def own_gpu(device: torch.device, local: int, count: int) -> torch.device:
    """The GPU of the process `local` among those of its host, by its number: torch sets no other as current.
    One that was asked for by number stays."""
    return torch.device("cuda", local % count if device.index is None else device.index)


class Hardware:
    """One process's share of the machine.

    device: auto, cpu, cuda or cuda:N. precision: fp32, bf16 (autocast; weights stay fp32), tf32 (GPU), fp64.
    memory_format: auto, contiguous, channels_last. convolution: auto (`convolution.py`), or library.
    ghost_norm: auto (a kernel of ours on a CPU, `ghostnorm.py`), or library. benchmark: whether cuDNN times
    its kernels for every shape, auto = where bits may differ. With deterministic=True the clock then chooses
    among deterministic kernels, and which it took is in no checkpoint.
    threads: per process; None = one per core.
    micro_batch: samples in one forward pass, or auto: prefer=largest that fits, or the fastest. reduction:
    fast, or ordered (`summing.py`). processes: on this machine, null = one, or what torchrun or srun started
    (`spawn.py`). nodes: machines of a submitted job, which its launcher asks for; phases:
    its number of processes by the batch (`legs.py`). parallel_runs: of a multirun on this machine at once
    (`sweep.py`). own_process: whether each of them has one (`sweep.py`, `kept.py`). join_timeout: seconds
    that ranks wait for each other at the start.
    """

    def __init__(
        self,
        device: str = "auto",
        precision: str = "fp32",
        memory_format: str = "auto",
        compile: bool = False,
        convolution: str = "auto",
        ghost_norm: str = "auto",
        deterministic: bool = False,
        benchmark: bool | str = "auto",
        threads: int | None = None,
        micro_batch: int | str = "auto",
        prefer: str = "largest",
        reduction: str = "fast",
        processes: int | None = None,
        nodes: int = 1,
        phases: str | int | None = None,
        parallel_runs: int = 1,
        own_process: bool = True,
        join_timeout: float = 300.0,
    ):
        if precision not in PRECISIONS:
            raise UserError(
                f"hardware.precision is one of {', '.join(PRECISIONS)}, got {precision!r}."
                f"{suggest(precision, PRECISIONS)}"
            )
        formats = ("auto", "contiguous", "channels_last")
        if memory_format not in formats:
            raise UserError(
                f"hardware.memory_format is one of {', '.join(formats)}, got {memory_format!r}."
                f"{suggest(memory_format, formats)}"
            )
        for key, value in (("convolution", convolution), ("ghost_norm", ghost_norm)):
            if value not in ("auto", "library"):
                raise UserError(f"hardware.{key} is auto or library, got {value!r}")
        if micro_batch != "auto" and not (type(micro_batch) is int and micro_batch > 0):
            raise UserError(f"hardware.micro_batch is auto or a positive integer, got {micro_batch!r}")
        if threads is not None and threads < 1:
            raise UserError(f"hardware.threads is a positive integer or null, got {threads}")
        self.device = self._device(device)
        if precision == "tf32" and self.device.type == "cpu":
            raise UserError(
                "hardware.precision=tf32 exists on NVIDIA GPUs only, the device is the CPU: take fp32 or bf16"
            )
        self.precision, self.compile, self.deterministic = precision, compile, deterministic
        if benchmark != "auto" and self.device.type == "cpu":
            raise UserError(
                "hardware.benchmark says whether cuDNN times its kernels, and on a CPU there is none, got "
                f"hardware.benchmark={str(benchmark).lower()}: leave it at auto"
            )
        self.benchmark = not deterministic if benchmark == "auto" else benchmark
        self.products = convolution == "auto" and self.device.type == "cpu"
        self.native = ghost_norm == "auto" and self.device.type == "cpu"
        self.ghost_norm = "library"  # the kernel that a network's norms got
        self.memory_format = torch.contiguous_format if memory_format == "contiguous" else torch.channels_last
        self.threads, self.micro_batch = threads or environment.cores(), micro_batch
        self.prefer, self.ordered, self.ranks = prefer, reduction == "ordered", Alone()

    @staticmethod
    def _device(name: str) -> torch.device:
        if name == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if name == "gpu":
            name = "cuda"
        try:
            device = torch.device(name)
        except (RuntimeError, TypeError):
            raise UserError(f"hardware.device is auto, cpu, cuda or cuda:N, got {name!r}") from None
        if device.type == "mps":
            raise UserError(
                "Apple's mps has no float64 and no deterministic convolutions, which our promises need: "
                "take hardware=cpu"
            )
        if device.type not in ("cpu", "cuda"):
            raise UserError(f"hardware.device is auto, cpu, cuda or cuda:N, got {name!r}")
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if device.type == "cuda" and (device.index or 0) >= count:
            raise UserError(
                f"hardware.device={name} is not here: torch {torch.__version__} sees {count} GPU(s); "
                "take hardware=cpu or hardware=auto"
            )
        return device

    def set_up(self, meeting=None) -> None:
        """Set the process-wide switches of torch, and join the other ranks. Called once, before the network
        is built."""
        if self.device.type == "cuda":
            local = meeting.place.local if meeting else torch.cuda.current_device()
            # A job sees its own GPUs only; where there are fewer than processes they share.
            self.device = own_gpu(self.device, local, torch.cuda.device_count())
            torch.cuda.set_device(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)  # of the run before in this process
        if meeting:
            self.ranks = Ranks(meeting, self.device)
        torch.set_num_threads(self.threads)
        crowding.watch(self.threads)
        tf32 = self.precision == "tf32"
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
        torch.backends.cudnn.benchmark = self.benchmark
        if self.benchmark and self.deterministic:
            log.warning(
                "bits      hardware.benchmark=true lets the clock choose kernels: with deterministic=true "
                "bits are the same again only where it chooses the same ones"
            )
        torch.backends.cudnn.deterministic = self.deterministic
        if self.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        # Only where it changes something: the call imports torch._inductor, 5 s.
        if torch.are_deterministic_algorithms_enabled() != self.deterministic:
            torch.use_deterministic_algorithms(self.deterministic)

    @property
    def dtype(self) -> torch.dtype:
        """Of weights and inputs."""
        return torch.float64 if self.precision == "fp64" else torch.float32

    def autocast(self):
        if self.precision != "bf16":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def parts(self, batch: int, unit: int, micro_batch: int, group=None) -> cutting.Parts:
        """This rank's share of a batch, see `cutting.parts`."""
        ranks = self.ranks
        return cutting.parts(batch, unit, micro_batch, ranks.rank, ranks.world, group, self.ordered)

    def share(self, batch: int, unit: int, micro_batch: int, group=None) -> tuple[int, int]:
        """(the most forward passes of a rank, samples in the largest of any)."""
        return cutting.share(batch, unit, micro_batch, self.ranks.world, group, self.ordered)

    def activation_budget(self) -> float:
        """Bytes that the activations of one micro-batch may take: a constant of the device, not of the
        moment, so that the same command cuts its batches alike every time."""
        if self.device.type == "cpu":
            return ACTIVATIONS["cpu"]
        return ACTIVATIONS["cuda"] * torch.cuda.get_device_properties(self.device).total_memory

    def generator_state(self) -> list:
        """State of torch's generators, on the CPU and on the device."""
        found = [torch.get_rng_state()]
        return found + ([torch.cuda.get_rng_state(self.device)] if self.device.type == "cuda" else [])

    def restore_generator(self, state: list) -> None:
        torch.set_rng_state(state[0])
        for own in state[1:]:
            torch.cuda.set_rng_state(own, self.device)

    def empty_cache(self) -> None:
        """Give back what torch's allocator keeps for itself."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def peak_memory(self) -> int:
        """Bytes: of the device's allocator on a GPU, of the process (resident set) on a CPU."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        import resource
        import sys

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
