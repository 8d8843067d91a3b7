"""Forecast against measured: three networks are profiled, trained, and held against what was forecast.

ADABATCH_DATA=DIR python benchmarks/forecast.py [--repeats 3] [--networks convnet,resnet,alexnet] [--out DIR]

Each network is profiled once (adabatch-profile), then trained `--repeats` times under a fixed batch and under
AdaBatch, a few dozen seconds each; a run's forecast is made before its first step and its audit is in its
summary.json. Printed: forecast, interval, measured, measured / forecast of every run, and of its phases the
worst. Training time alone (`train_seconds`): evaluation, saving and the start are no part of either. The
machine should have nothing else to do. CIFAR-10 lies in $ADABATCH_DATA (torchvision's layout).
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from adabatch import environment, files

CIFAR = ["dataset=cifar10", "dataset.augment.pad=4", "dataset.augment.flip=true"]
NETWORKS = {  # overrides; epochs so that a run takes a few dozen seconds on two cores
    "convnet": ["model=convnet", "dataset=digits", "epochs=100"],
    "resnet": ["model=resnet", *CIFAR, "dataset.limit=5000", "epochs=5"],
    "alexnet": ["model=alexnet", *CIFAR, "dataset.limit=10000", "epochs=10"],
}
# On a shared machine two threads wait for each other: the same step takes up to four times as long.
ONE = "hardware.threads=1"
QUIET = ["trackers.wandb.mode=disabled", "evaluate.every=5", "checkpoint.every_seconds=600"]


def command(module: str, line: list[str], folder: Path) -> None:
    done = subprocess.run([sys.executable, "-m", module, *line], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{module} {' '.join(line)} ended with code {done.returncode}:\n{done.stderr[-2000:]}")


def audits(name: str, asked, folder: Path) -> list[float]:
    """measured / forecast of every run of a network; prints a line for each."""
    overrides = [*NETWORKS[name], ONE, *asked.overrides]
    command("adabatch.profiling", [*overrides, "--seconds", str(asked.seconds)], folder)
    ratios = []
    for schedule in ("fixed", "adabatch"):
        for seed in range(asked.repeats):
            run = folder / f"{name}-{schedule}-{seed}"
            line = [*overrides, *QUIET, f"schedule={schedule}", f"seed={seed}", f"hydra.run.dir={run}"]
            command("adabatch", line, folder)
            told = files.read_json(run / "summary.json").get("forecast")
            if not told:
                sys.exit(f"{run} made no forecast: was the profile of another configuration?")
            worst = max(
                (p["seconds"] / p["forecast_seconds"] for p in told["phases"]),
                key=lambda r: abs(r - 1),
            )
            ratio = told["measured"] / told["seconds"]
            ratios.append(ratio)
            inside = "in" if told["low"] <= told["measured"] <= told["high"] else "OUT"
            print(
                f"{name:8s} {schedule:9s} seed {seed}  forecast {told['seconds']:7.1f} s "
                f"({told['low']:.1f} to {told['high']:.1f})  measured {told['measured']:7.1f} s {inside:3s}  "
                f"ratio {ratio:.3f}  worst phase {worst:.3f}",
                flush=True,
            )
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--seconds", type=float, default=2.0, help="of each point of the profile")
    parser.add_argument("--out", help="a new folder for the runs (default: temporary)")
    parser.add_argument("overrides", nargs="*")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(asked.out or temporary).resolve()
        (folder / "outputs").mkdir(parents=True, exist_ok=True)
        print(f"{environment.cpu()}, {environment.cores()} cores, {' '.join(asked.overrides)}", flush=True)
        for name in asked.networks.split(","):
            ratios = audits(name, asked, folder)
            print(
                f"{name:8s} measured / forecast: median {statistics.median(ratios):.3f}, "
                f"{min(ratios):.3f} to {max(ratios):.3f}, n = {len(ratios)}",
                flush=True,
            )


if __name__ == "__main__":
    main()
