"""Kernels in C, compiled at their first use on a machine and kept; torch's own take their place where there
is no compiler.

A run-time build needs nothing but `cc` (no torch or Python headers), takes about two seconds once, and suits
the processor that it runs on. What was built is checked against formulas in float64 before it is used.
"""

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

SOURCES = tuple(Path(__file__).with_name(name) for name in ("ghost.c", "mixed.c"))
# No -ffast-math: NaN must stay NaN, and sums their order.
FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-shared", "-fPIC")
BOUND = 120  # seconds

log = logging.getLogger("adabatch")


class Unavailable(RuntimeError):
    """There is no kernel here; the message says why."""


@functools.cache
def kernels() -> ctypes.CDLL:
    """The functions of our C files. Unavailable: no compiler, or it fails."""
    compiler = shutil.which(os.environ.get("CC") or "cc") or shutil.which("gcc")
    if platform.system() != "Linux" or compiler is None:
        raise Unavailable("it needs Linux and a C compiler (cc)")
    try:
        return _loaded(compiler)
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:  # RuntimeError: no home is known
        raise Unavailable(getattr(error, "stderr", None) or str(error)) from error


def _loaded(compiler: str) -> ctypes.CDLL:
    """From the cache, or compiled; what cannot be loaded is compiled anew."""
    kept = _place(compiler)
    if kept.exists():
        try:
            return ctypes.CDLL(str(kept))
        except OSError:
            log.info(f"{kept} is damaged and made anew")
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        folder = tempfile.mkdtemp(dir=kept.parent)
    except OSError:  # a home that nobody may write to: for this process alone
        folder, kept = tempfile.mkdtemp(prefix="adabatch-"), None
    try:
        made = Path(folder) / "kernels.so"
        log.info("compiling kernels in C (once, about 2 s)")
        subprocess.run(
            [compiler, *FLAGS, *map(str, SOURCES), "-o", str(made), "-lm"],
            capture_output=True, text=True, check=True, timeout=BOUND,
        )  # fmt: skip
        if kept:  # ranks that compile at the same time: the last one stays, all are alike
            made = made.replace(kept)
        return ctypes.CDLL(str(made))
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # a library stays loaded without its file


def _place(compiler: str) -> Path:
    """Where the library for this compiler, processor and source is kept."""
    about = subprocess.run([compiler, "--version"], capture_output=True, check=True, timeout=BOUND).stdout
    texts = (source.read_bytes() for source in SOURCES)
    parts = (*texts, " ".join((compiler, *FLAGS)).encode(), about, _processor())
    name = f"kernels-{hashlib.sha256(b'|'.join(parts)).hexdigest()[:16]}.so"
    return Path(os.environ.get("ADABATCH_CACHE") or "~/.cache/adabatch").expanduser() / "native" / name


def _processor() -> bytes:
    """What -march=native asks the processor: its name and flags."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine().encode()
    kinds = ("model name", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(kinds)})).encode()
