"""Every option of `model`, made small, through adabatch-verify: one row each.

python benchmarks/zoo.py [--at-once 1] [--models vgg,resnet] [--verify "--steps 6 --processes 2"]

Networks keep their layers and lose depth and width. Pictures are synthetic, so no data are needed. The exit
code is 1 if a promise was broken anywhere.
"""

import argparse
import concurrent.futures
import json
import subprocess
import sys
import time

RGB = "dataset=synthetic dataset.samples=400 dataset.test_samples=40"
SMALL = {
    "airbench": f"{RGB} model.ghost=8 optimizer=muon",
    "alexnet": RGB,
    "cifar10_shallow": f"{RGB} model.ghost=8",
    "cifar100_shallow": f"{RGB} model.ghost=8",
    "convnet": f"{RGB} model.ghost=8",
    "densenet": f"{RGB} model.ghost=8 model.depth=10",
    "mnist_f1": f"{RGB} model.ghost=8",
    "mobilenet_v2": f"{RGB} model.ghost=8",
    "preresnet": f"{RGB} model.ghost=8 model.depth=8",
    "proxylessnas_mobile": f"{RGB} model.ghost=8",
    "resnet": f"{RGB} model.ghost=8 model.depth=8",
    "resnet9": f"{RGB} model.ghost=8 model.whiten=true model.celu=0.3 model.norm_scale=false",
    "resnext": f"{RGB} model.ghost=8 model.cardinality=2 model.group_width=4 model.widen=1",
    "torchvision": RGB,
    "vgg": f"{RGB} model.ghost=8 model.depth=11",
    "wide_resnet": f"{RGB} model.ghost=8 model.depth=10 model.width=1",
}
RUN = "schedule=adabatch schedule.base_batch=16 hardware.device=cpu hardware.threads=1"


def overrides(model: str) -> list[str]:
    """Those of one small network and a short run."""
    return [f"model={model}", *SMALL[model].split(), *RUN.split()]


def verified(model: str, options: list[str]) -> tuple[dict, float]:
    """({name: check}, seconds); RuntimeError with what it said where it printed no verdict."""
    command = [sys.executable, "-m", "adabatch.verify", *overrides(model), "--json", *options]
    begun = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    if not done.stdout:
        raise RuntimeError(f"{model}: {done.stderr.strip() or done.returncode}")
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    return checks, time.perf_counter() - begun


def worst(checks: dict, *words: str) -> str:
    """Largest difference among the rows whose name holds all of `words`, and what was promised."""
    found = [c for name, c in checks.items() if all(w in name for w in words)]
    found = [c for c in found if c["max_relative_difference"] is not None]
    if not found:
        return "-"
    row = max(found, key=lambda c: c["max_relative_difference"])
    far, bound = row["max_relative_difference"], row["promised"]
    far = "same bits" if far == 0 else f"{far:.1e}"
    return far if not bound else f"{far} ({bound:.0e})" if bound != 1e-10 else far


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--at-once", type=int, default=1, help="networks at the same time")
    p.add_argument("--models", default=",".join(SMALL))
    p.add_argument("--verify", default="--steps 6 --processes 2", help="options of adabatch-verify")
    asked = p.parse_args()
    print("| model | twice, killed | other micro-batches, 2 processes, resumed elsewhere: float64 |", end="")
    print(" float32, a gradient (promised) | promises kept | seconds |\n|---|---|---|---|---|---|")
    broken = 0
    with concurrent.futures.ThreadPoolExecutor(asked.at_once) as pool:
        names = asked.models.split(",")
        for name, (checks, seconds) in zip(
            names, pool.map(lambda m: verified(m, asked.verify.split()), names)
        ):
            promised = [c for c in checks.values() if c["promised"] is not None]
            kept = sum(c["passed"] for c in promised)
            broken += len(promised) - kept
            again = {n: c for n, c in checks.items() if n.startswith(("the same command", "killed twice"))}
            exact = {n: c for n, c in checks.items() if "fp64" in n or "resumed with" in n}
            line = (worst(again), worst(exact), worst(checks, "gradient"), f"{kept} of {len(promised)}")
            print(f"| {name} | {' | '.join(line)} | {seconds:.0f} |", flush=True)
            for c in promised:
                if not c["passed"]:
                    print(f"broken: {c['name']}: {c['reason']}", file=sys.stderr, flush=True)
    sys.exit(broken > 0)


if __name__ == "__main__":
    main()
