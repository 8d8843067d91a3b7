"""What a submission takes along from where it is made, and what not: variables, signals, the terminal."""

import contextlib
import os
import signal
import sys
from pathlib import Path

from adabatch import places

# Of the submitting shell, or of the job from which one submits; in a job they would speak of another one.
# SBATCH_* are the user's own defaults, SLURM_CONF and SLURM_CLUSTERS say which cluster it is,
# and SLURM_JWT who one is (sites with auth/jwt): they stay.
FOREIGN = (
    "SLURM_",
    "SLURMD_",
    "SLURMSTEPD_",
    "SRUN_",
    "SUBMITIT_",
    "PMI",
    "PMIX_",
    "TORCHELASTIC_",
    "ADABATCH_LOCAL",
    "ADABATCH_LISTEN_FD",
)
ALONE = (
    *places.TORCHRUN,
    "LOCAL_WORLD_SIZE",
    "GROUP_RANK",
    "ROLE_RANK",
    "CUDA_VISIBLE_DEVICES",
    "GPU_DEVICE_ORDINAL",
    "ROCR_VISIBLE_DEVICES",
    "HIP_VISIBLE_DEVICES",
)
KEPT = ("SLURM_CONF", "SLURM_CLUSTERS", "SLURM_JWT")


@contextlib.contextmanager
def own_environment():
    """Without what belongs to another job."""
    before = dict(os.environ)
    for name in before:
        if (name.startswith(FOREIGN) and name not in KEPT) or name in ALONE:
            del os.environ[name]
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextlib.contextmanager
def undisturbed():
    """Ctrl-C and a hangup wait meanwhile, and spare sbatch: no job may be submitted without being told of.
    One inside another adds nothing: SIG_IGN, set again, would throw away what waits already."""
    held = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, held)
    if before.issuperset(held) and all(signal.getsignal(number) == signal.SIG_IGN for number in held):
        yield
        return
    # For children: a shell (sbatch is one at many sites) may lift a mask, but not what it finds ignored. A
    # blocked signal waits for this process all the same.
    handlers = {number: signal.signal(number, signal.SIG_IGN) for number in held}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def ended_aloud():
    """SIGTERM and SIGHUP, which would end the program without a word, end it like an error meanwhile, so that
    what was submitted can be told."""

    def end(number, _):
        sys.exit(128 + number)

    deadly = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) == signal.SIG_DFL]
    for number in deadly:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in deadly:
            signal.signal(number, signal.SIG_DFL)


@contextlib.contextmanager
def apart(log: Path):
    """What is started meanwhile outlives this terminal. It ignores Ctrl-C and a hangup, and writes into
    `log`: a pipe that it held would keep its reader waiting."""
    sys.stdout.flush()
    sys.stderr.flush()
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGHUP)}
    kept = [os.dup(number) for number in (0, 1, 2)]
    nothing = os.open(os.devnull, os.O_RDONLY)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    for number, source in enumerate((nothing, file, file)):
        os.dup2(source, number)
    try:
        yield
    finally:
        for number, source in enumerate(kept):
            os.dup2(source, number)
        for number in (*kept, nothing, file):
            os.close(number)
        for number, handler in before.items():
            signal.signal(number, handler)
