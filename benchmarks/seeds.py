"""Seconds of several seeds: a command for each, a multirun of processes, and a multirun in one process.

    python benchmarks/seeds.py [--seeds 4] [--rounds 5] [--out seeds.json] [key=value ...]

The three take turns, in an order that alternates; each in a folder of its own, from the start of the command
to its end, data and reports included. A round before them, which is not counted, fills the caches on disk.
The weights of each seed must be the same bits in all three, or it ends with code 1. Overrides are those of
`adabatch`, e.g. model=resnet dataset=cifar10 dataset.limit=2000 hardware.compile=true.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WAYS = {
    "a command each": None,
    "multirun": "hardware.own_process=true",
    "multirun in one process": "hardware.own_process=false",
}


def commands(way: str, seeds: int, overrides: list[str]) -> list[list[str]]:
    """The command lines of a contender, without the program."""
    fixed = ["trackers.wandb.mode=disabled", *overrides]
    if WAYS[way] is None:
        return [[*fixed, f"seed={seed}", f"hydra.run.dir=runs/{seed}"] for seed in range(seeds)]
    every = ",".join(map(str, range(seeds)))
    return [["-m", *fixed, WAYS[way], f"seed={every}", "hydra.sweep.dir=runs"]]


def measured(lines: list[list[str]]) -> tuple[float, dict]:
    """(seconds of all command lines, {seed: SHA-256 of the weights})."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        for line in lines:
            asked = [sys.executable, "-m", "adabatch", *line]
            done = subprocess.run(
                asked, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
            if done.returncode:
                sys.exit(f"adabatch {' '.join(line)}\n{done.stdout}")
        seconds = time.perf_counter() - began
        found = [json.loads(path.read_text()) for path in Path(folder).glob("runs/*/summary.json")]
    return seconds, {summary["seed"]: summary["weights_sha256"] for summary in found}


def spread(values: list[float]) -> dict:
    low, _, high = statistics.quantiles(values, n=4)
    return {"median": statistics.median(values), "quartiles": [low, high], "rounds": values}


def rounds(asked) -> tuple[dict, dict]:
    """({way: seconds in each round}, {way: {seed: SHA-256}})."""
    seconds, weights = {way: [] for way in WAYS}, {}
    for index in range(asked.rounds + 1):
        for way in sorted(WAYS, reverse=index % 2):
            took, weights[way] = measured(commands(way, asked.seeds, asked.overrides))
            seconds[way] += [took] if index else []
    return seconds, weights


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5, help="at least 2")
    parser.add_argument("--out", help="JSON file")
    parser.add_argument("overrides", nargs="*")
    asked = parser.parse_args()
    if asked.rounds < 2 or asked.seeds < 2:
        parser.error("--rounds and --seeds are at least 2")
    report = {
        "machine": platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "torch": importlib.metadata.version("torch"),
        "seeds": asked.seeds,
        "overrides": asked.overrides,
        "load before": os.getloadavg(),
    }
    seconds, weights = rounds(asked)
    first = seconds["a command each"]
    report["seconds"] = {way: spread(values) for way, values in seconds.items()}
    report["times as fast"] = {
        way: spread([a / b for a, b in zip(first, values)]) for way, values in seconds.items()
    }
    report["same weights"] = len({json.dumps(found, sort_keys=True) for found in weights.values()}) == 1
    for way in WAYS:
        took, ratio = report["seconds"][way], report["times as fast"][way]
        shown = [f"{took['median']:7.1f} s ({took['quartiles'][0]:.1f} to {took['quartiles'][1]:.1f})"]
        shown += [f"{ratio['median']:5.2f} ({ratio['quartiles'][0]:.2f} to {ratio['quartiles'][1]:.2f})"]
        print(f"{way:26} {shown[0]:28} {shown[1]}")
    print("the same weights" if report["same weights"] else f"DIFFERENT WEIGHTS: {weights}")
    if asked.out:
        Path(asked.out).write_text(json.dumps(report, indent=1) + "\n")
    return 0 if report["same weights"] else 1


if __name__ == "__main__":
    sys.exit(main())
