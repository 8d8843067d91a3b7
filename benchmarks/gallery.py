"""One picture of what every schedule does with the batch and the learning rate.

python benchmarks/gallery.py docs/gallery.png dataset=mnist5k epochs=15 [more overrides] -- outputs/RUN...

Open-loop schedules are drawn from the configuration (nothing is trained); closed-loop ones from the finished
runs that are named, one line per run.
"""

import sys
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from adabatch import config, plan, runs
from adabatch.errors import UserError
from adabatch.schedules import walk

BLUE, GREY = "#2a6fbb", "#9a9a9a"


def open_loop(overrides: list[str]) -> dict[str, list]:
    """{option: [[(epoch, batch, lr)]]} of every open-loop option."""
    found = {}
    for file in sorted((config.conf_dir() / "schedule").glob("*.yaml")):
        try:
            with config.composer():
                tree = config.checked(config.load([*overrides, f"schedule={file.stem}"])).config
        except UserError:
            continue  # a replay without a run, a rule without its profile: recorded runs show those
        samples = plan.samples_of(tree["dataset"])
        schedule = plan.schedule(tree, samples)
        if not schedule.needs:
            line = [(start / samples, setting.divisor, setting.lr) for start, _, setting in walk(schedule)]
            found[file.stem] = [line]
    return found


def recorded(folders: list[str]) -> dict[str, list]:
    """The same of finished runs; several runs of one option are several lines."""
    found: dict[str, list] = {}
    for folder in folders:
        run = runs.Run(folder)
        if run.state != "finished":
            continue
        samples = run.summary["samples"] / run.config["epochs"]
        line = [(start / samples, divisor, lr) for start, _, divisor, lr, _ in runs.trajectory(folder)]
        found.setdefault(run.config["options"]["schedule"], []).append(line)
    return found


def draw(lines: dict[str, list], path: Path, columns: int = 5) -> None:
    rows = -(-len(lines) // columns)
    figure = Figure(figsize=(2.6 * columns, 1.9 * rows), dpi=110, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    top = max(batch for group in lines.values() for line in group for _, batch, _ in line)
    for axes, (name, group) in zip(panels, lines.items()):
        other = axes.twinx()
        for line in group:
            epochs, batches, rates = zip(*line)
            other.plot(epochs, rates, color=GREY, linewidth=0.9, drawstyle="steps-post")
            axes.plot(epochs, batches, color=BLUE, linewidth=1.4, drawstyle="steps-post", alpha=0.8)
        axes.set_title(name, fontsize=9, loc="left")
        axes.set_yscale("log", base=2)
        axes.set_ylim(16, 2 * top)
        other.set_ylim(bottom=0)
        axes.set_zorder(other.get_zorder() + 1)
        axes.patch.set_visible(False)
        for each in (axes, other):
            each.tick_params(labelsize=6)
            each.spines["top"].set_visible(False)
        axes.yaxis.label.set_color(BLUE)
    for axes in panels[len(lines) :]:
        axes.set_axis_off()
    figure.supxlabel("epochs", fontsize=8)
    figure.suptitle("batch size (blue, left) and learning rate (grey, right)", fontsize=9)
    figure.savefig(path, metadata={"Software": None})


def main() -> None:
    target, *rest = sys.argv[1:]
    cut = rest.index("--") if "--" in rest else len(rest)
    lines = open_loop(rest[:cut]) | recorded(rest[cut + 1 :])
    draw(lines, Path(target))
    print(f"{target}: {', '.join(lines)}")


if __name__ == "__main__":
    main()
