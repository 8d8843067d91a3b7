"""The sections of the page: each takes a run's facts and gives markup, or None with nothing to say."""

import math
import shlex

from adabatch import suggestions
from adabatch.files import number
from adabatch.report import facts, svg
from adabatch.report.facts import Facts, text
from adabatch.report.markup import Markup, el, table
from adabatch.report.series import UPDATES, Panel
from adabatch.report.words import duration, figure, fixed, percent, plain, short

MOST = 60  # rows of any table


def cards(run: Facts) -> Markup:
    """The headline figures. For a run that has not ended: as far as its last row."""
    done = number(run.summary.get("epochs"))
    planned = number(run.config.get("epochs"))
    reached = done if done is not None else number(run.last.get("epoch"))
    steps = number(run.of("steps")) or number(run.last.get("step"))
    seconds = number(run.summary.get("train_seconds")) or number(run.last.get("seconds"))
    speed = number(run.summary.get("images_per_second"))
    position = number(run.last.get("position"))
    if speed is None and position and seconds:
        speed = position / seconds
    early = planned is not None and reached is not None and reached < planned
    found = [
        *_errors(run),
        ("Epochs", short(reached), f"of {plain(planned)} planned" if early else None),
        ("Updates", plain(steps), None),
        ("Training time", duration(seconds), "evaluation and saving excluded"),
        *_devices(run, seconds),
        ("Images per second", short(speed, 3), None),
        ("Device", device(run) or "not recorded", None),
    ]
    shown = []
    for name, value, note in found:
        figure = el("dd", value, el("small", note) if note else None)
        shown.append(el("div", el("dt", name), figure, class_="long" if len(value) > 14 else None))
    return el("dl", *shown, class_="cards")


def _devices(run: Facts, seconds: float | None) -> list[tuple]:
    """The time of all processes together, where there were several."""
    (few, most), held = run.worlds, number(run.summary.get("device_seconds"))
    if most == 1 or held is None or seconds is None:
        return []
    if few == most:
        return [("Device time", duration(held), f"{most} processes")]
    same = f"{most} throughout the same time: {duration(most * seconds)}"
    return [("Device time", duration(held), f"{few} to {most} processes; {same}")]


def _errors(run: Facts) -> list[tuple]:
    """(label, value, note) of the test error, and of the validation error where there is such a split."""
    found = []
    for split, label in (("test", "Test error"), ("validation", "Validation error")):
        final, best = (number(run.summary.get(f"{kind}_{split}_error")) for kind in ("final", "best"))
        rows = run.evaluations(split, "raw")
        if final is None and rows:
            final = number(rows[-1].get("eval_error"))
        if final is not None:
            found.append((label, percent(final), None if best is None else f"lowest {percent(best)}"))
    if not found:
        loss = number(run.summary.get("final_train_loss"))
        loss = number(run.last.get("train_loss")) if loss is None else loss
        found.append(("Training loss", plain(loss), "no evaluation yet" if not run.evals else None))
    return found


def device(run: Facts) -> str | None:
    """The device's name as environment.json gives it: the GPU if there was one to use, else the processor."""
    hardware = run.config.get("hardware")
    wanted = hardware.get("device") if isinstance(hardware, dict) else None
    gpus = run.environment.get("gpus")
    used_gpu = isinstance(gpus, list) and gpus and wanted != "cpu"
    name = gpus[0] if used_gpu else run.environment.get("cpu")
    if not isinstance(name, str) or not name:
        return None
    world = number(run.last.get("world_size")) or 1
    return f"{plain(world)} \u00d7 {text(name, 60)}" if world > 1 else text(name, 60)


def curves(run: Facts, panels: list[Panel]) -> Markup:
    """The plots, each with what to see in it and how it was thinned."""
    figures = []
    for panel in panels:
        scale = {"linear": "", "log": ", logarithmic axis", "log2": ", axis in powers of two"}[panel.scale]
        title = f"{panel.name}{f' in {panel.unit}' if panel.unit else ''}{scale}"
        thinned = el("p", "; ".join(panel.notes).capitalize() + ".") if panel.notes else None
        caption = el("figcaption", el("p", see(panel)), thinned)
        figures.append(el("figure", el("h3", title), svg.plot(panel), caption))
    return el("div", *figures, class_="plots")


def see(panel: Panel) -> str:
    """One or two sentences: what the curve does, in figures."""
    if panel.empty:
        return ""
    marks = " Dashed lines: the batch size changes." if panel.marks else ""
    if panel.name in ("Batch size", "Learning rate"):
        return _setting_seen(panel) + marks
    said = []
    if panel.across == UPDATES:
        return _distance_seen(panel)
    for line in panel.lines:
        values = [v for _e, v in line.points]
        unit = f" {panel.unit}" if panel.unit else ""
        low = min(range(len(values)), key=values.__getitem__)
        if line.label == "training" and len(values) == 1:
            said.append(f"Training {panel.name.lower()} {values[0]:.3g}{unit} in the only logged row.")
        elif line.label == "training":
            first, last = (f"{v:.3g}{unit}" for v in (values[0], values[-1]))
            said.append(f"Training {panel.name.lower()} went from {first} to {last}.")
        else:
            lowest = f"{values[low]:.4g}{unit} at epoch {line.points[low][0]:.4g}"
            said.append(f"Lowest on {line.label}: {lowest}; at the end {values[-1]:.4g}{unit}.")
    return " ".join(said) + marks


def _distance_seen(panel: Panel) -> str:
    (first, low), (last, high) = panel.lines[0].points[0], panel.lines[0].points[-1]
    ends = f"{low:.3g} after update {10**first:,.0f}, {high:.3g} after update {10**last:,.0f}."
    said = "||w_t - w_0|| over all trainable parameters. A straight line is growth with log t"
    return f"{said} (Hoffer et al. 2017). {ends}"


def _setting_seen(panel: Panel) -> str:
    values = [v for _e, v in panel.lines[0].points]
    if min(values) == max(values):
        return f"{plain(values[0])} throughout."
    changed = sum(a != b for a, b in zip(values, values[1:], strict=False))
    drawn = f"in {changed} step{'s' if changed > 1 else ''}" if changed <= 20 else "step by step"
    first, last, low, high = (plain(v) for v in (values[0], values[-1], min(values), max(values)))
    return f"From {first} to {last} {drawn}; lowest {low}, highest {high}."


def phases(run: Facts) -> Markup | None:
    """Each stretch of one batch size and learning-rate rule."""
    found = facts.phases(run)
    if not found:
        return None
    rows = []
    for phase in found[:MOST]:
        start, lr, lr_end = (number(phase.get(key)) for key in ("start_position", "lr", "lr_end"))
        epoch = start / run.samples if start is not None and run.samples else None
        lrs = plain(lr) if lr_end is None or lr_end == lr else f"{plain(lr)} to {plain(lr_end)}"
        steps, seconds = number(phase.get("steps")), number(phase.get("seconds"))
        batch = number(phase.get("batch_size"))
        rows.append([short(epoch), plain(start), plain(batch), lrs, plain(steps), fixed(seconds)])
    totals = [math.fsum(number(p.get(key)) or 0 for p in found) for key in ("steps", "seconds")]
    head = ["epoch", "sample", "batch", "learning rate", "updates", "seconds"]
    foot = ["all", "", "", "", plain(totals[0]), fixed(totals[1])]
    about = el("p", "Where each stretch of one batch size and one learning-rate rule begins.", class_="quiet")
    return el("div", about, table(head, rows, foot), _more(len(found), "phases"))


def _more(count: int, what: str) -> Markup | None:
    if count <= MOST:
        return None
    return el("p", f"{count - MOST:,} more {what} are in the folder's files.", class_="quiet")


PLACE = {"epoch": "epoch", "position": "sample", "step": "after update"}
NAMES = {
    "batch_size": "batch size (samples)",
    "lr": "learning rate",
    "steps_per_epoch": "updates per epoch",
    "momentum_horizon_samples": "momentum horizon (samples)",
    "weight_decay_per_sample": "weight decay per sample",
    "ema_half_life_samples": "half-life of the averaged weights (samples)",
    "running_statistics_horizon_samples": "horizon of the running statistics (samples)",
    "micro_batch": "micro-batch (samples)",
    "accumulation": "micro-batches per update",
    "world_size": "processes",
}


def changes(run: Facts) -> Markup | None:
    """One table per change event: every quantity that changed, before and after, and the rule that did it."""
    found = []
    for change in run.changes[:MOST]:
        named = [(label, number(change.get(key))) for key, label in PLACE.items()]
        place = [f"{label} {short(value, 6)}" for label, value in named if value is not None]
        rows = []
        for name, values in list(change["changes"].items())[:20]:
            before, after = values if isinstance(values, list) and len(values) == 2 else (None, values)
            shown = NAMES.get(name, text(name, 60))
            rows.append([shown, figure(before), figure(after), ratio(before, after)])
        rule = el("p", "Rule: ", text(change["rule"], 300)) if change.get("rule") else None
        values = table(["", "before", "after", "factor"], rows, numbers=1)
        found.append(el("div", el("h3", ", ".join(place) or "change"), rule, values))
    if not found:
        return None
    if len(found) > 3:
        rest = el("details", el("summary", f"{len(found) - 2} more changes"), *found[2:])
        found = [*found[:2], rest]
    return el("div", *found, _more(len(run.changes), "changes"))


def ratio(before, after) -> str:
    """ "x 2" where both are numbers that differ."""
    before, after = number(before), number(after)
    if not before or after is None:
        return ""
    return "same" if after == before else f"\u00d7 {after / before:.4g}"


CAUSES = {
    "compute": "forward, backward, update",
    "forward": "forward passes",
    "backward": "backward passes",
    "data": "waiting for data",
    "exposed_communication": "waiting for other processes",
    "resize": "changing the batch",
    "first_compile": "first compilation",
    "recompile": "compiling again after a change",
    "measuring": "measuring the gradient noise",
    "evaluation": "evaluating",
    "checkpoint": "saving",
    "redone": "work repeated after a stop",
    "other": "set-up and everything else",
}


def ledger(run: Facts) -> Markup | None:
    """Wall time by cause: a bar and a table with its sum."""
    given = run.summary.get("ledger")
    if not isinstance(given, dict):
        return None
    counted = [(text(name, 40), number(value)) for name, value in list(given.items())[:MOST]]
    parts = sorted([(n, v) for n, v in counted if v is not None and v > 0], key=lambda part: -part[1])
    if not parts:
        return None
    total = math.fsum(v for _n, v in parts)
    rows = []
    for i, (name, value) in enumerate(parts):
        chip = el("span", class_="chip", style=f"background:{svg.share_colour(i)}")
        what = el("span", f": {CAUSES[name]}", class_="quiet") if name in CAUSES else None
        rows.append([el("span", chip, name.replace("_", " "), what), fixed(value), f"{value / total:.1%}"])
    idle = ", ".join(n.replace("_", " ") for n, v in counted if v == 0)
    note = el("p", f"No time went into: {idle}.", class_="quiet") if idle else None
    foot = ["wall time", fixed(total), "100.0%"]
    return el("div", svg.bar(parts), table(["cause", "seconds", "share"], rows, foot, numbers=1), note)


NEXT = {
    "finished": "The run is finished: the same command prints its summary, and restart=true trains it anew.",
    "diverged": "The last good checkpoint is kept, but the same command would diverge at the same place: try "
    "a lower schedule.base_lr, clip_norm, or a later growth of the batch, as a run of its own.",
}
OTHERWISE = "To resume, give the same command again: it goes on from the last checkpoint, exactly."


def commands(run: Facts) -> Markup:
    """How to go on with the run, evaluate it and set another beside it."""
    words = suggestions.comparison(run.overrides, run.config, run.summary)
    shown = words and " ".join(shlex.quote(text(word, 300)) for word in words[:60])
    return el(
        "div",
        el("p", NEXT.get(run.state, OTHERWISE)),
        el("pre", run.command()),
        el("p", "Evaluate its weights again:") if run.train else None,
        el("pre", f"adabatch-evaluate {run.path}") if run.train else None,
        el("p", "Compare with fixed batches; all else, the order of the data included, stays equal:")
        if shown
        else None,
        el("pre", shown) if shown else None,
    )


def pairs(values: dict, depth: int = 2) -> Markup:
    """A table of names and values; dictionaries inside are written as name.name."""
    rows = []

    def add(prefix: str, value, left: int):
        if isinstance(value, dict) and left:
            for key, inner in list(value.items())[:MOST]:
                add(f"{prefix}.{text(key, 60)}" if prefix else text(key, 60), inner, left - 1)
        elif len(rows) < 4 * MOST:
            rows.append([prefix, figure(value)])

    add("", values, depth)
    return table(["", ""], rows, numbers=2)
