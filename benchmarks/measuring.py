"""What measuring the noise of a gradient costs: seconds of a measuring step over those of an ordinary one.

python benchmarks/measuring.py [model=resnet dataset=synthetic ...]

Each pair is timed back to back, in alternation, `--pairs` times; median of the ratios with quartiles. A rule
that measures every k-th batch pays (ratio - 1) / k.
"""

import argparse
import statistics
import time

from adabatch import config, memory
from adabatch.build import build

BATCHES = (32, 64, 128, 256)
NEEDS = {
    "tr(S), |G|^2": {"trace", "sq_norm"},
    "+ halves": {"trace", "sq_norm", "halves"},
    "+ inner": {"trace", "sq_norm", "inner"},
}


def timed(step, start, setting, needs, repeats: int) -> float:
    began = time.perf_counter()
    for _ in range(repeats):
        step(start, setting, needs)
    return (time.perf_counter() - began) / repeats


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument(
        "--group", type=int, default=None, help="schedule.noise_group; default: half of batch 32"
    )
    parser.add_argument("overrides", nargs="*")
    asked = parser.parse_args()
    group = [f"schedule.noise_group={asked.group}"] if asked.group else []
    with config.composer():
        lines = ["dataset=synthetic", "model=resnet", "trackers.wandb.mode=disabled", "schedule=noise_scale"]
        tree = config.checked(config.load([*lines, *group, *asked.overrides])).config
    parts = build(tree)
    step = parts.step
    step.micro_batch = memory.choose(step, parts.schedule, tree, parts.data.classes)
    threads = parts.hardware.threads
    print(
        f"{type(step.model).__name__}, groups of {step.meter.size}, {threads} thread(s), {asked.pairs} "
        "pairs\n"
    )
    print("| batch | seconds of a step | " + " | ".join(NEEDS) + " |")
    print("|---|---|" + "---|" * len(NEEDS))
    for batch in (b for b in BATCHES if b <= parts.schedule.samples):
        setting = type(parts.schedule(0))(batch, 1e-6, batch)
        repeats = max(1, 256 // batch)
        timed(step, 0, setting, frozenset(NEEDS["+ halves"]), 1)
        seconds, ratios = [], {name: [] for name in NEEDS}
        for _ in range(asked.pairs):
            for name, needs in NEEDS.items():
                plain = timed(step, 0, setting, frozenset(), repeats)
                ratios[name].append(timed(step, 0, setting, frozenset(needs), repeats) / plain)
                seconds.append(plain)
        cells = []
        for found in ratios.values():
            low, _, high = statistics.quantiles(found, n=4)
            cells.append(f"{statistics.median(found):.2f} ({low:.2f} to {high:.2f})")
        print(f"| {batch} | {statistics.median(seconds):.4f} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
