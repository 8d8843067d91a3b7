"""What shadows of a run said, against the runs that their rules drove themselves: median batch by epoch.

python benchmarks/shadows.py OUT.png WATCHED_RUN... -- REAL_RUN...

Watched runs have `shadow.NAME.batch_size` in their rows (dashed lines); real runs are drawn solid in
the panel of their schedule. Prints a table: geometric mean of the batch over samples, shadow and real.
"""

import math
import sys
from collections import defaultdict

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from adabatch import runs


def rows(folder) -> tuple[runs.Run, float, list]:
    run = runs.Run(folder)
    samples = run.summary["samples"] / run.config["epochs"]
    return run, samples, [row for row in run.rows if row["event"] == "train"]


def watched(folders) -> dict:
    """{rule: {driver: [line]}}; a line is [(epoch, batch, samples)]."""
    found = defaultdict(lambda: defaultdict(list))
    for folder in folders:
        run, samples, train = rows(folder)
        names = {key.split(".")[1] for row in train for key in row if key.startswith("shadow.")}
        for name in names:
            key = f"shadow.{name}.batch_size"
            line = [(r["position"] / samples, r[key], r["batch_size"]) for r in train if key in r]
            found[name][run.config["options"]["schedule"]].append(line)
    return found


def real(folders) -> dict:
    found = defaultdict(list)
    for folder in folders:
        if runs.Run(folder).state == "finished":
            run, samples, train = rows(folder)
            line = [
                (r["position"] / samples, r.get("divisor", r["batch_size"]), r["batch_size"]) for r in train
            ]
            found[run.config["options"]["schedule"]].append(line)
    return found


def typical(lines) -> str:
    """Geometric mean of the batch over samples, run by run."""
    means = []
    for line in lines:
        total = sum(weight for *_, weight in line)
        means.append(math.exp(sum(weight * math.log(batch) for _, batch, weight in line) / total))
    return f"{sum(means) / len(means):.0f} ({min(means):.0f} to {max(means):.0f})" if means else "none"


def draw(shadows: dict, actual: dict, path: str) -> None:
    figure = Figure(figsize=(12, 5), dpi=110, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    colours = {"adabatch": "#c2571a", "fixed": "#7a7a7a"}
    panels = list(figure.subplots(2, -(-len(shadows) // 2), sharey=True).flat)
    for axes in panels[len(shadows) :]:
        axes.set_axis_off()
    for axes, name in zip(panels, sorted(shadows)):
        for driver, lines in shadows[name].items():
            for i, line in enumerate(lines):
                label = f"shadow along {driver}" if not i else None
                axes.plot(
                    *zip(*[p[:2] for p in line]), "--", color=colours[driver], linewidth=0.9, label=label
                )
        for i, line in enumerate(actual[name]):
            label = "the rule's own runs" if not i else None
            axes.plot(*zip(*[p[:2] for p in line]), color="#2a6fbb", linewidth=1.1, alpha=0.8, label=label)
        axes.set_title(name, fontsize=9, loc="left")
        axes.set_yscale("log", base=2)
        axes.tick_params(labelsize=7)
    figure.axes[0].legend(fontsize=7, frameon=False)
    figure.supxlabel("epochs", fontsize=8)
    figure.savefig(path, metadata={"Software": None})


def main() -> None:
    target, *rest = sys.argv[1:]
    cut = rest.index("--")
    shadows, actual = watched(rest[:cut]), real(rest[cut + 1 :])
    drivers = sorted({driver for by in shadows.values() for driver in by})
    print("| rule | its own runs | " + " | ".join(f"shadow along {d}" for d in drivers) + " |")
    print("|---|---|" + "---|" * len(drivers))
    for name in sorted(shadows):
        cells = [typical(actual[name])] + [typical(shadows[name][d]) for d in drivers]
        print(f"| {name} | " + " | ".join(cells) + " |")
    draw(shadows, actual, target)


if __name__ == "__main__":
    main()
