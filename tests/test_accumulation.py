"""A batch of any size on one small device: memory is that of a micro-batch."""

import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
SIDE = 8  # pixels; three channels of float32 are 768 bytes a sample
BOUND = 24 << 20  # bytes; the inputs alone of the larger batch would be 48 MiB
STEP = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from support import resolved

samples, batch, micro = map(int, sys.argv[2:5])
tree = resolved(
    "dataset=synthetic", f"dataset.samples={samples}", "dataset.test_samples=10", "model=convnet",
    "model.width=4", f"schedule.base_batch={batch}", f"hardware.micro_batch={micro}", *sys.argv[5:],
)
from adabatch.build import build
from adabatch.hardware import Hardware

parts = build(tree)
parts.step.micro_batch = micro
before = parts.step.flat.params.clone()
result = parts.step(0, parts.schedule(0))
assert bool((parts.step.flat.params != before).any())
status = Path("/proc/self/status")  # not getrusage: that counts what a process was before exec
peak = 0
if status.exists():
    peak = 1024 * int(status.read_text().partition("VmHWM:")[2].split()[0])
peak = peak or Hardware(device="cpu").peak_memory()
print(peak, result.passes, result.micro_batch, float(result.loss) / batch)
"""


def step_of(samples, batch, micro, *overrides) -> tuple:
    """(peak resident bytes, passes, largest pass, loss) of one step in a process of its own."""
    arguments = [sys.executable, "-c", STEP, str(TESTS), *map(str, (samples, batch, micro)), *overrides]
    done = subprocess.run(arguments, capture_output=True, text=True, cwd=TESTS.parent)
    assert done.returncode == 0, done.stderr
    peak, passes, largest, loss = done.stdout.split()[-4:]
    return int(peak), int(passes), int(largest), float(loss)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_batch():
    """65,536 against 4,096 samples of one data set, in passes of 256. The control, in passes of 16,384, shows
    that the bound is one that memory can break."""
    own = (f"dataset.side={SIDE}",)
    small, *_ = step_of(65_536, 4_096, 256, *own)
    large, passes, largest, loss = step_of(65_536, 65_536, 256, *own)
    assert (passes, largest) == (256, 256) and 2 < loss < 3
    assert large - small < BOUND, f"{(large - small) / 2**20:.1f} MiB more"
    control, passes, *_ = step_of(65_536, 65_536, 16_384, *own)
    assert passes == 4 and control - small > 2 * BOUND


@pytest.mark.slow
def test_a_batch_of_524288_samples_is_one_step():
    """The largest batch of AdaBatch's ImageNet runs, on pictures of 4 x 4."""
    tiny = ("dataset.side=4", "dataset.channels=1", "dataset.mean=[0.5]", "dataset.std=[0.2]")
    _, passes, largest, loss = step_of(524_288, 524_288, 2_048, *tiny)
    assert (passes, largest) == (256, 2_048) and 2 < loss < 3
