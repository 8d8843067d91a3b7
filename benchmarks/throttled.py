"""Fixed against adaptive batches on two nodes, over a link as it is and over a slow one.

sudo python benchmarks/throttled.py [--rates off,200mbit] [--seeds 0,1,2] [model=alexnet epochs=3 ...]

Starts a sandbox (launch/sandbox: a SLURM of namespaces on this machine), submits every arm at every rate
there, one job at a time, on two nodes of one process each, and reads the run folders. The arms: a fixed
batch, the same four times as large at the learning rate of the linear rule, and AdaBatch, which doubles the
batch every fifth of the run. Fewer, larger steps pay where a sum over the ranks is expensive: "exposed" is
the time that rank 0 waited for one, or for the other rank. Medians over the seeds with their range.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

SANDBOX = Path(__file__).resolve().parent.parent / "launch/sandbox/sandbox.py"
BASE = 64  # a ghost group of 32 for each of the two processes
ARMS = {
    f"fixed {BASE}": [f"schedule.base_batch={BASE}"],
    f"fixed {4 * BASE}": [f"schedule.base_batch={4 * BASE}", f"schedule.lr_batch={BASE}"],
    f"adabatch from {BASE}": ["schedule=adabatch", f"schedule.base_batch={BASE}"],
}
RUN = (
    "model=mnist_f1", "dataset=mnist5k", "epochs=5", "hardware=slurm", "hardware.nodes=2",
    "hardware.threads=1", "wait=true", "hydra.launcher.array_parallelism=1",
    "trackers.wandb.mode=disabled", "evaluate.every=5",
)  # fmt: skip


def called(*words, **given) -> None:
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, **given)
    if done.returncode:
        sys.exit(
            f"{' '.join(map(str, words))}: {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
        )


def measured(folder: Path, overrides: list[str], seeds: str, environment: dict) -> list[dict]:
    """The summaries of one arm's runs, one for each seed."""
    line = [*overrides, f"seed={seeds}", f"hydra.sweep.dir={folder}"]
    called(sys.executable, "-m", "adabatch", "-m", *line, cwd=folder.parent, env=environment, timeout=3000)
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*/summary.json"))]


def middle(values, digits: int = 1) -> str:
    values = list(values)
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def row(rate: str, arm: str, found: list[dict], base: float) -> str:
    seconds = [one["train_seconds"] for one in found]
    exposed = middle(one["ledger"]["exposed_communication"] for one in found)
    error = middle((100 * one["final_test_error"] for one in found), 2)
    ratio = base / statistics.median(seconds)
    return f"| {rate} | {arm} | {found[0]['steps']} | {middle(seconds)} | {exposed} | {ratio:.2f} | {error} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rates", default="off,200mbit")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("overrides", nargs="*")
    asked = parser.parse_args()
    common = [*(r for r in RUN if not any(o.split("=")[0] == r.split("=")[0] for o in asked.overrides))]
    print(f"torch {torch.__version__}, {os.cpu_count()} cores, {' '.join([*common, *asked.overrides])}")
    print("| link | arm | updates | training, s | exposed communication, s | speed | test error, % |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="throttled-") as place:
        cluster, work = Path(place) / "cluster", Path(place) / "work"
        work.mkdir()
        called(sys.executable, SANDBOX, "up", cluster, "--nodes", "2")
        path = os.pathsep.join([f"{cluster}/bin", str(Path(sys.executable).parent), os.environ["PATH"]])
        environment = {**os.environ, "PATH": path, "SLURM_CONF": f"{cluster}/etc/slurm.conf"}
        try:
            for rate in asked.rates.split(","):
                called(sys.executable, SANDBOX, "throttle", cluster, "all", rate)
                base = None
                for arm, overrides in ARMS.items():
                    folder = work / f"{rate}-{arm.replace(' ', '-')}"
                    line = [*common, *asked.overrides, *overrides]
                    found = measured(folder, line, asked.seeds, environment)
                    base = base or statistics.median(one["train_seconds"] for one in found)
                    print(row(rate, arm, found, base), flush=True)
        finally:
            called(sys.executable, SANDBOX, "down", cluster, "--purge")


if __name__ == "__main__":
    main()
