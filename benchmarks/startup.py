"""Seconds from the command to the first step, in fresh processes, and what was imported that costs seconds.

    python benchmarks/startup.py [--rounds 7] [--out startup.json] [key=value ...]

For each job, after the interpreter was asked for: until `import torch` begins, what that import takes (it
is nobody's to change), from there until our modules are in, until the first line is seen, until the first
step is done; and until the process ends (one more step, the report). Then the commands that train nothing.
Jobs take turns, so that a busy machine slows all alike. A module counts as loaded early where it is there
after the first step.

Compiled Python is kept in a folder of the benchmark's own, as an ordinary installation keeps it beside the
sources. --as-is: as this installation does it (PYTHONDONTWRITEBYTECODE, a site-packages nobody may write to:
every start compiles torch's sources anew).
"""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

JOBS = {
    "digits": [],
    "synthetic": ["dataset=synthetic", "model=resnet"],
}
COMMANDS = {
    "adabatch --help": ["adabatch", "--help"],
    "adabatch --cfg job": ["adabatch", "--cfg", "job"],
    "adabatch-plan": ["adabatch.planning"],
    "python -c 'import torch'": None,
}
WHAT = [*JOBS, "commands"]
HEAVY = (
    "torch._dynamo", "torch._inductor", "torch.onnx", "torchvision", "sklearn", "scipy", "pandas", "sympy",
    "matplotlib", "wandb", "tensorboard", "torch.utils.tensorboard", "triton",
)  # fmt: skip
STEPS = ("import begins", "import torch", "our modules", "first line", "first step", "end", "after torch")


class Clock:
    """Finds a module as everybody does, and notes when it was imported."""

    def __init__(self, marks: dict, modules: dict):
        self.marks, self.modules = marks, dict(modules)

    def find_spec(self, name, path=None, target=None):
        if name not in self.modules:
            return None
        then = self.modules.pop(name)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module

        def timed(module):
            self.marks[f"{name} begins"] = time.monotonic()
            execute(module)
            self.marks[name] = time.monotonic()
            then(module)

        spec.loader.exec_module = timed
        return spec


def child(arguments: list[str]) -> None:
    """The command itself, watched; its last line is what was noted."""
    marks = {}

    def watch(module) -> None:
        inner = module.Step.__call__

        def first(self, *given, **named):
            done = inner(self, *given, **named)
            module.Step.__call__ = inner
            marks["first step"] = time.monotonic()
            marks["heavy"] = [name for name in HEAVY if name in sys.modules]
            return done

        module.Step.__call__ = first

    def nothing(module) -> None:
        pass

    sys.meta_path.insert(
        0, Clock(marks, {"torch": nothing, "adabatch.train": nothing, "adabatch.step": watch})
    )
    from adabatch.__main__ import command

    sys.argv = ["adabatch", *arguments]
    code = command(arguments)
    marks["end"] = time.monotonic()
    print(json.dumps(marks), flush=True)
    sys.exit(code)


def job(overrides: list[str], folder: str, environment: dict) -> dict:
    """Seconds of one run in a process of its own, and the modules it should not have needed."""
    fixed = ["trackers.wandb.mode=disabled", "hydra.run.dir=run", "seed=0", "epochs=0.06"]
    began = time.monotonic()
    asked = [sys.executable, __file__, "--child", *fixed, *overrides]
    process = subprocess.Popen(
        asked, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    lines, line = [], None
    for text in process.stdout:
        line = line or time.monotonic()
        lines.append(text)
    if process.wait():
        sys.exit("".join(lines))
    marks = json.loads(lines[-1])
    return {
        "import begins": marks["torch begins"] - began,
        "import torch": marks["torch"] - marks["torch begins"],
        "our modules": marks["adabatch.train"] - marks["torch"],
        "first line": line - began,
        "first step": marks["first step"] - began,
        "end": marks["end"] - began,
        "after torch": marks["first step"] - marks["torch"],
        "heavy": marks["heavy"],
    }


def seconds(module: list[str] | None, folder: str, environment: dict) -> float:
    """Of a command that trains nothing."""
    asked = ["-m", *module] if module else ["-c", "import torch"]
    began = time.monotonic()
    command = [sys.executable, *asked]
    subprocess.run(command, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - began


def spread(values) -> dict:
    low, middle, high = statistics.quantiles(values, n=4)
    return {"median": middle, "quartiles": [low, high], "rounds": values}


def words(figures: dict) -> str:
    low, high = figures["quartiles"]
    return f"{figures['median']:6.2f} s ({low:.2f} to {high:.2f})"


def rounds(asked, environment: dict) -> tuple[dict, dict, dict]:
    """(job -> step -> seconds, job -> heavy modules loaded, command -> seconds)."""
    runs = {name: {step: [] for step in STEPS} for name in JOBS if name in asked.what}
    heavy = {name: set() for name in runs}
    commands = {name: [] for name in COMMANDS if "commands" in asked.what}
    for index in range(asked.rounds + 1):  # the first warms the caches
        for name in runs:
            with tempfile.TemporaryDirectory() as folder:
                found = job([*JOBS[name], *asked.overrides], folder, environment)
            heavy[name].update(found.pop("heavy"))
            for step, value in found.items() if index else ():
                runs[name][step].append(value)
        for name in commands:
            with tempfile.TemporaryDirectory() as folder:
                value = seconds(COMMANDS[name], folder, environment)
            commands[name] += [value] if index else []
    return runs, heavy, commands


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--what", nargs="+", choices=WHAT, default=WHAT)
    parser.add_argument("--as-is", action="store_true")
    parser.add_argument("--bytecode", help="the folder of compiled Python; default: made and removed")
    parser.add_argument("--out", help="JSON file")
    parser.add_argument("overrides", nargs="*", help="for every job, e.g. hardware.threads=1")
    asked = parser.parse_args()
    report = {
        "machine": platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "torch": importlib.metadata.version("torch"),
        "bytecode kept": "as is" if asked.as_is else True,
        "load before": os.getloadavg(),
    }
    with tempfile.TemporaryDirectory() as temporary:
        environment = dict(os.environ)
        if not asked.as_is:
            environment["PYTHONPYCACHEPREFIX"] = os.path.abspath(asked.bytecode or temporary)
            environment.pop("PYTHONDONTWRITEBYTECODE", None)
        runs, heavy, commands = rounds(asked, environment)
    report["jobs"] = {name: {s: spread(v) for s, v in found.items()} for name, found in runs.items()}
    report["loaded early"] = {name: sorted(found) for name, found in heavy.items()}
    report["commands"] = {name: spread(values) for name, values in commands.items()}
    for name, found in report["jobs"].items():
        print(f"{name}; loaded early: {', '.join(report['loaded early'][name]) or 'nothing heavy'}")
        for step, figures in found.items():
            print(f"  {step:14} {words(figures)}")
    for name, figures in report["commands"].items():
        print(f"{name:26} {words(figures)}")
    if asked.out:
        Path(asked.out).write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2:])
    else:
        main()
