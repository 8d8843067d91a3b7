"""What a run loads: the default one neither torch._dynamo nor torchvision nor scikit-learn, which cost
seconds each, and what draws its report only once it has trained."""

import subprocess
import sys

PROGRAM = """
import sys
from adabatch.step import Step
from adabatch.__main__ import command

train, early = Step.__call__, []

def watched(*given, **named):
    done = train(*given, **named)
    early.append("matplotlib" in sys.modules)
    return done

Step.__call__ = watched
code = command(["epochs=0.1", "trackers.wandb.mode=disabled", "hardware=cpu"])
heavy = ("torch._dynamo", "torch._inductor", "torchvision", "sklearn", "wandb", "tensorboard", "pandas")
print("LOADED", [name for name in heavy if name in sys.modules], set(early))
sys.exit(code)
"""


def test_the_default_run_loads_nothing_heavy(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=tmp_path, text=True, capture_output=True, timeout=200
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "LOADED [] {False}"
