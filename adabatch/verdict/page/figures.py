"""The pictures of curves: each a title, a chart, a legend, and a caption that says what to see."""

from dataclasses import dataclass, replace

from adabatch.report import series
from adabatch.report.markup import Markup, el
from adabatch.verdict import table
from adabatch.verdict.arms import Arm, Plan
from adabatch.verdict.page import bands, charts
from adabatch.verdict.page.charts import Chart, Curve
from adabatch.verdict.page.pens import Pen, drawn, legend

UNITS = {"rate": "samples per second", "noise": "noise scale, samples"}
BAND = "Band: 95 % t interval of the mean over seeds, where there are three at least."


@dataclass(frozen=True)
class Sheet:
    """What every picture draws from. no_time: why the arms' times cannot be compared."""

    arms: list[Arm]
    plan: Plan
    pens: dict[str, Pen]
    no_time: str | None

    @property
    def drawn(self) -> list[Arm]:
        return drawn(self.arms)


def figure(title: str, chart: Chart, shown: list[Pen], *caption: str) -> Markup:
    said = [el("p", each) for each in caption if each]
    return el("figure", el("h3", title), charts.draw(chart), legend(shown), el("figcaption", *said))


def _band(found: dict[str, list[bands.Point]]) -> str:
    return BAND if any(p.band for points in found.values() for p in points) else ""


def errors(sheet: Sheet, clock: str) -> Markup | None:
    """The error while training against one of the three clocks."""
    found = {arm.name: points for arm in sheet.drawn if (points := bands.errors(arm, clock))}
    if not found:
        return None
    means = [100 * p.y for points in found.values() for p in points]
    kind = series.scale(means, 4)
    around = max(max(means) - min(means), 1.0) / 3  # a band that reaches further is cut at the edge
    ends = [100 * e for points in found.values() for p in points for e in p.band or ()]
    values = means + [min(max(e, min(means) - around, 0.0), max(means) + around, 100.0) for e in ends]
    if kind == "log":
        values = [max(v, min(means) / 1.5) for v in values]
    splits = {run.traces.split for arm in sheet.drawn for run in arm.runs}
    split = splits.pop() if len(splits) == 1 else sheet.plan.split
    xs = [p.x for points in found.values() for p in points]
    spread = clock == "updates" or sheet.plan.table  # arms of a table may train much longer than others
    x_scale = "log" if spread and min(xs) > 0 and max(xs) > 3 * min(xs) else "linear"
    unit = {"epochs": "epochs", "updates": "updates", "seconds": "seconds of training"}[clock]
    chart = Chart(
        charts.axis(unit + " (logarithmic)" * (x_scale == "log"), xs, x_scale, zero=True, pad=0.02),
        charts.axis(charts.percent(split, kind), values, kind),
        [charts.curve(sheet.pens[name], points, 100, most=100) for name, points in found.items()],
        f"Error against {unit}: {', '.join(found)}",
    )  # fmt: skip
    return figure(f"Error against {clock}", chart, [sheet.pens[name] for name in found],
                  _seen(found, clock, sheet), _band(found))  # fmt: skip


def _seen(found: dict[str, list[bands.Point]], clock: str, sheet: Sheet) -> str:
    last = {name: points[-1] for name, points in found.items()}
    least = min(last, key=lambda name: last[name].y)
    if clock == "epochs":
        end = f"At the end lowest: {least}, {100 * last[least].y:.2f} %."
        return f"{end} At equal epochs every arm has seen the same samples."
    if clock == "updates":
        same = "Curves that lie upon each other learn as much from an update, whatever its batch"
        return f"Each arm ends where its updates do. {same}."
    if sheet.no_time:
        return f"Read no speed-up from this: {sheet.no_time}."
    first = min(last, key=lambda name: last[name].x)
    ends = f"First at its end: {first}, after {table.compact(last[first].x)} s."
    return f"{ends} What counts is which curve ends further left without ending higher."


def settings(sheet: Sheet, name: str) -> Markup | None:
    """Batch size or learning rate over epochs."""
    layers, shown, various = [], [], []
    for arm in sheet.drawn:
        found, kinds = bands.trajectories(arm, name)
        layers += [Curve(sheet.pens[arm.name], points, step=True, faint=len(found) > 1) for points in found]
        shown += [sheet.pens[arm.name]] if found else []
        if kinds > 1:
            various.append(f"{arm.name} ({kinds}{f', {len(found)} drawn' if kinds > len(found) else ''})")
    if not layers:
        return None
    values = [v for layer in layers for _, v in layer.points]
    kind = series.scale(values, 1.9 if name == "batch" else 8)
    kind = "log2" if name == "batch" and kind == "log" else kind
    chart = Chart(
        charts.axis("epochs", [e for layer in layers for e, _ in layer.points], zero=True, pad=0.02),
        charts.axis({"batch": "samples in a batch", "lr": "learning rate"}[name], values, kind, zero=True),
        layers, f"{name} over epochs: {', '.join(pen.name for pen in shown)}",
    )  # fmt: skip
    seeds = f"A line for each different course of the seeds: {'; '.join(various)}." if various else ""
    told = {
        "batch": "What the arms differ in. The last, cut batch of a run is not shown.",
        "lr": "Where the batch grows, the rate is what the rule makes of it: equal lr / batch is equal noise "
        "of the updates (SGD).",
    }[name]  # fmt: skip
    return figure({"batch": "Batch size", "lr": "Learning rate"}[name], chart, shown, told, seeds)


def stretches(sheet: Sheet, name: str) -> Markup | None:
    """Throughput, or the noise scale, averaged over stretches of the run."""
    found = {arm.name: points for arm in sheet.drawn if (points := bands.stretches(arm, name))}
    if not found:
        return None
    values = [p.y for points in found.values() for p in points]
    kind = "log" if name == "noise" else series.scale(values, 8)
    if kind == "linear":
        values += [min(p.band[1], max(values) * 1.3) for points in found.values() for p in points if p.band]
    chart = Chart(
        charts.axis("epochs", [p.x for points in found.values() for p in points], zero=True, pad=0.02),
        charts.axis(UNITS[name], values, kind, zero=True),
        [charts.curve(sheet.pens[arm], points) for arm, points in found.items()],
        f"{name} over epochs: {', '.join(found)}",
    )  # fmt: skip
    if name == "rate":
        title = "Throughput"
        told = (
            "Where the batch grows, a device that was not full gets faster; one that was stays where it is."
        )
        told += f" Not to be compared: {sheet.no_time}." if sheet.no_time else ""
    else:
        title = "Gradient noise scale"
        told = (
            "tr(S) / |G|^2, where a run measured it: a batch far below it loses little by growing, one far "
            "above it wastes samples. Geometric means; stretches in which it was not resolved are left out."
        )
    return figure(title, chart, [sheet.pens[arm] for arm in found], told, _band(found))


def distance(sheet: Sheet) -> Markup | None:
    """||w_t - w_0|| against the logarithm of the updates, where runs logged it."""
    found = {}
    for arm in sheet.drawn:
        if points := bands.stretches(arm, "distance"):
            found[arm.name] = [replace(p, x=10**p.x) for p in points]
    if not found:
        return None
    every = [p for points in found.values() for p in points]
    chart = Chart(
        charts.axis("updates (logarithmic)", [p.x for p in every], "log"),
        charts.axis("L2 distance", [p.y for p in every], zero=True),
        [charts.curve(sheet.pens[arm], points) for arm, points in found.items()],
        f"Distance of the weights from their first ones against updates: {', '.join(found)}",
    )  # fmt: skip
    told = (
        "||w_t - w_0|| over all trainable parameters. Straight lines are growth with log t, and arms whose "
        "lines lie upon each other diffuse alike (Hoffer, Hubara, Soudry 2017, arXiv 1705.08741)."
    )
    return figure("Weight distance", chart, [sheet.pens[arm] for arm in found], told, _band(found))


def target(sheet: Sheet) -> Markup | None:
    """The fraction of runs that have reached the target, over time."""
    if sheet.plan.target is None:
        return None
    found = {arm.name: points for arm in sheet.drawn if (points := bands.reached(arm))}
    if not found:
        return None
    end = max([run.seconds or 0.0 for arm in sheet.drawn for run in arm.runs], default=0.0)
    end = max([end, *(points[-1][0] for points in found.values())]) or 1.0
    layers = [Curve(sheet.pens[name], [*points, (end, points[-1][1])], step=True)
              for name, points in found.items()]  # fmt: skip
    chart = Chart(
        charts.axis("seconds of training", [0.0, end], zero=True, pad=0.02),
        charts.axis("fraction of runs", [0.0, 1.0], zero=True), layers,
        "; ".join(f"{name}: {points[-1][1]:.2f} reached" for name, points in found.items()),
    )  # fmt: skip
    goal = f"{100 * sheet.plan.target:g} %"
    told = (
        f"A step up is a run whose error came down to {goal}, at the first evaluation that showed it; a "
        "curve that stays below 1 has misses. Secondary: the verdict does not rest on it."
    )
    told += f" Not to be compared: {sheet.no_time}." if sheet.no_time else ""
    return figure(f"Time to an error of {goal}", chart, [sheet.pens[name] for name in found], told)
