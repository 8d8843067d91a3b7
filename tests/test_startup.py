"""What a run loads: the default one neither torch._dynamo nor torchvision nor scikit-learn, which cost
seconds each."""

import subprocess
import sys

PROGRAM = """
import sys
from adabatch.__main__ import command
code = command(["epochs=0.1", "trackers.wandb.mode=disabled", "hardware=cpu"])
heavy = ("torch._dynamo", "torch._inductor", "torchvision", "sklearn", "wandb", "tensorboard", "pandas")
print("LOADED", [name for name in heavy if name in sys.modules])
sys.exit(code)
"""


def test_the_default_run_loads_nothing_heavy(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=tmp_path, text=True, capture_output=True, timeout=200
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "LOADED []"
