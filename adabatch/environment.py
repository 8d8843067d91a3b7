"""What a run ran on: versions, processor, GPUs, commit. For people and for comparisons; only speed depends on
it."""

import ctypes
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

LIBRARIES = (
    "adabatch",
    "torch",
    "torchvision",
    "numpy",
    "hydra-core",
    "omegaconf",
    "wandb",
    "scikit-learn",
    "submitit",
)

# Turns of libgomp's threads around an empty loop, under crowding.py's eyes; no number that a user would type,
# so that a rank knows it for ours when it inherits it.
SPINS = "100003"
FEW = 32  # cores, above which that many threads to sleep would be too many
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)


def before_torch() -> None:
    """What must be set before torch is imported; a value that the user set stays (docs/performance.md).

    Idle OpenMP threads spin long before they sleep where crowding.py can see that others want the cores, else
    for a hundredth of it: unwatched beside other work, spinning made small steps several times slower. Freed
    memory is kept for the next step instead of given back to the system: else each activation of a step on a
    CPU is paged in anew. The price is a resident size that stays at its peak.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        watched = cores() <= FEW and counts_waiting()
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS if watched else "1000")
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch asks for huge pages
    if not any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        keep_memory()


def counts_waiting(source: str = "/proc/self/schedstat") -> bool:
    """Whether Linux counts how long threads wait for a core; some kernels have the file with zeros in it."""
    try:
        return Path(source).read_text().split()[:1] not in ([], ["0"])
    except OSError:
        return False


def keep_memory() -> bool:
    """Tells glibc's allocator to keep what is freed; False where there is no glibc. Another allocator that
    was preloaded is not reached."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # macOS, musl, Windows
        return False
    return all(mallopt(option, 2**31 - 1) == 1 for option in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD))


def describe(config: dict) -> dict:
    """The environment as plain values. Call it after torch was imported: then torch's own account is in
    it."""
    found = {
        "python": platform.python_version(),
        "executable": sys.executable,
        "platform": platform.platform(),
        "host": platform.node(),
        "cpu": cpu(),
        "cores": cores(),
        "versions": {name: version for name in LIBRARIES if (version := _version(name))},
        "commit": commit(Path.cwd()),
        "argv": sys.argv,
        "cwd": os.getcwd(),
        "slurm_job": os.environ.get("SLURM_JOB_ID"),
    }
    if (torch := sys.modules.get("torch")) is not None and hasattr(torch, "version"):
        found["versions"]["torch"] = str(torch.__version__)
        found["versions"]["cuda"] = torch.version.cuda
        found["gpus"] = []
        # Asking for names starts CUDA in this process; a run on the CPU leaves it alone.
        if (config.get("hardware") or {}).get("device") != "cpu" and torch.cuda.is_available():
            found["gpus"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return found


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def cores() -> int:
    """Processors that this process may use: a batch system may have given it fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu() -> str:
    """The processor's model name."""
    return processor("model name") or platform.processor() or platform.machine()


def processor(field: str, source: str = "/proc/cpuinfo") -> str:
    """What Linux says of the first processor, such as its "flags"; "" where it does not."""
    try:
        lines = Path(source).read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(field)), "")


def slow_in_bf16(vendor: str, flags: str) -> bool:
    """Whether it is a processor of Intel's without tiles for bf16 (AMX). On the one that was tried bf16
    products took twice as long as float32's, although AVX-512 has instructions for them
    (docs/performance.md)."""
    return vendor == "GenuineIntel" and "amx_bf16" not in flags.split()


def commit(folder: Path) -> dict | None:
    """{"sha": ..., "changed": bool} of the checkout that `folder` lies in; None outside one or without
    git."""

    def git(*arguments):
        answer = subprocess.run(
            ["git", *arguments],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=5,
            stdin=subprocess.DEVNULL,
        )
        return answer.stdout.strip() if answer.returncode == 0 else None

    try:
        sha = git("rev-parse", "HEAD")
        return (
            {"sha": sha, "changed": bool(git("status", "--porcelain", "--untracked-files=no"))}
            if sha
            else None
        )
    except (OSError, subprocess.SubprocessError):
        return None
