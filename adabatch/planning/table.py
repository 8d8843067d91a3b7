"""A plan for people: plain text of at most WIDTH columns."""

import bisect
import math
import textwrap

from adabatch import labels
from adabatch.planning.job import Plan
from adabatch.schedules.measuring import Measuring

WIDTH = 100
ROWS = 24  # phases that are listed one by one; of more, the first and last ROWS / 2
BLOCKS = {True: " ▁▂▃▄▅▆▇█", False: " .:-=+*#%@"[:9]}
BAR_ROWS = 4
DEEP = 1e4  # a learning rate that falls further (a cosine's last step) is drawn on a linear axis


def text(plan: Plan, unicode: bool = True, width: int = WIDTH) -> str:
    """The whole plan: what is run, phases, totals, the learning rate's arithmetic, a plot, warnings."""
    s, width = plan.schedule, min(width, WIDTH)
    options = "  ".join(f"{group}={option}" for group, option in plan.options.items() if group != "hardware")
    size = f"{s.budget / s.samples:g} epochs of {s.samples:,} samples = {s.budget:,} samples"
    parts = [f"{options}\n{size}"]
    parts += closed(plan, width) if plan.closed else [listing(plan, unicode, width), sums(plan, width)]
    parts.append(f"lr         {s.base_lr:g} at batch {s.lr_batch:,}; {s.scaling.words()}")
    if not plan.closed:
        parts.append(plot(plan, unicode, width))
    told = [wrapped(f"warning: {w}", width) for w in plan.warnings]
    told += [wrapped(f"note: {n}", width) for n in plan.notes]
    return "\n\n".join(parts + (["\n".join(told)] if told else []))


def wrapped(sentence: str, width: int) -> str:
    return textwrap.fill(sentence, width, subsequent_indent="  ", break_on_hyphens=False)


def figure(value: float) -> str:
    """ "0.003164", "2.93e-5": four digits, no empty exponent."""
    mantissa, _, exponent = f"{value:.4g}".partition("e")
    return f"{mantissa}e{int(exponent)}" if exponent else mantissa


def pair(a: float, b: float, unicode: bool) -> str:
    """One figure, or two where they differ in what is shown."""
    first, second = figure(a), figure(b)
    return first if first == second else f"{first} {'→' if unicode else '->'} {second}"


def forward(plan: Plan, batch: int) -> str:
    """How a batch is cut: "128 x 4", or who knows."""
    micro, passes = plan.cut(batch)
    if passes:
        world = f"{plan.world} x " if plan.world > 1 else ""
        return f"{world}{micro:,} x {passes:,}"
    return "auto" if plan.micro is None else "the network's"


def aligned(rows: list[list[str]], left: tuple = ()) -> list[str]:
    """Rows as lines of columns two spaces apart, right-aligned but for those in `left`."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths))]
        lines.append("  ".join(cells).rstrip())
    return lines


HEAD = ["epochs", "position", "batch", "lr", "lr/batch", "steps", "micro x accum"]


def row(plan: Plan, index: int, unicode: bool) -> list[str]:
    phase, after = plan.found[index], plan.found[index + 1 : index + 2]
    samples, batch = plan.schedule.samples, phase.batch_size
    end = after[0].start if after else plan.schedule.budget
    epochs = f"{phase.start / samples:.4g} to {end / samples:.4g}"
    ratio = pair(phase.lr / batch, phase.lr_end / batch, unicode)
    rates = pair(phase.lr, phase.lr_end, unicode)
    cells = [epochs, f"{phase.start:,}", f"{batch:,}", rates, ratio, f"{phase.steps:,}"]
    return [*cells, forward(plan, batch)]


def listing(plan: Plan, unicode: bool, width: int) -> str:
    """The table of phases; where that is too wide, without lr/batch."""
    count, half = len(plan.found), ROWS // 2
    shown = range(count) if count <= ROWS else [*range(half), *range(count - half, count)]
    rows = [HEAD, *(row(plan, i, unicode) for i in shown)]
    lines = aligned(rows, left=(0, 3, 4))
    if max(map(len, lines)) > width:
        lines = aligned([cells[:4] + cells[5:] for cells in rows], left=(0, 3))
    if count > ROWS:
        sizes = [p.batch_size for p in plan.found[half:-half]]
        said = f"... {len(sizes):,} more phases, batches of {min(sizes):,} to {max(sizes):,} ..."
        lines.insert(1 + half, said)
    return "\n".join(lines)


def sums(plan: Plan, width: int) -> str:
    t = plan.totals
    said = f"in all     {t['updates']:,} updates, {t['samples']:,} samples, mean batch {t['mean_batch']:,.4g}"
    if t["skipped"]:
        said += f"; {t['skipped']:,} samples skipped in the tails of epochs"
    return wrapped(said, width)


def closed(plan: Plan, width: int) -> list[str]:
    """The parts of a closed loop: what is certain, what is measured, and the two ends of its range."""
    c, s, first = plan.closed, plan.schedule, plan.found[0]
    every = f"every {n:,} samples" if (n := c["measure_every"]) and n != "auto" else "at every step"
    if c["measure_every"] == "auto":
        every = f"at every step at first, later at every {Measuring.SELDOM}th or more often"
    every = "at every evaluation" if set(c["needs"]) == {"validation"} else every
    low, high = c["smallest_batch"], c["largest_batch"]
    if s.growth.closed:
        said = f"closed loop  {c['rule']} chooses the batch while training: {low:,} to {high:,}"
    else:
        said = f"closed loop  the learning rate follows what is measured; batches of {low:,} to {high:,}"
    lines = [said]
    lines.append(f"starts with  batch {low:,}, lr {figure(first.lr)}, micro x accum {forward(plan, low)}")
    lines.append(f"measures     {', '.join(c['needs'])}; {every}, memory: {c['memory']}")
    lines += [f"             {name} = {what}" for name, what in c["needs"].items() if what]
    if c["noise_group"] and {"trace", "sq_norm", "halves"} & set(c["needs"]):
        group, horizon = c["noise_group"], c["noise_horizon"]
        lines.append(f"             groups of {group:,} samples, averages over {horizon:,.6g} samples")
    if c["dwell"] is not None:
        shrinks = "may shrink again" if c["shrink"] else "never shrinks"
        worth = f"{c['hysteresis']:.4g}"
        lines.append(f"decides      dwell {c['dwell']:,} samples, hysteresis {worth}, {shrinks}")
    most, least = c["updates_if_it_stays"], c["updates_if_at_the_cap"]
    if s.growth.closed:
        said = f"{most:,} if the batch stays {low:,}, {least:,} if it jumps to {high:,} at once"
    else:
        said = f"{most:,}" + ("" if most == least else f" if the gain stays 1, {least:,} if it is largest")
    lines.append(f"updates      {said}")
    return ["\n".join(textwrap.fill(x, width, subsequent_indent=" " * 15) for x in lines)]


def plot(plan: Plan, unicode: bool, width: int) -> str:
    """Batch and learning rate over the epochs in block characters; both axes logarithmic where a value
    doubles."""
    label, columns = 10, min(width, 80) - 11
    starts = [p[0] for p in plan.curve]
    at = [int(plan.schedule.budget * (x + 0.5) / columns) for x in range(columns)]
    points = [plan.curve[max(0, bisect.bisect_right(starts, a) - 1)] for a in at]
    lines = []
    for name, index in (("batch", 1), ("lr", 2)):
        values = [p[index] for p in points]
        low, high = min(p[index] for p in plan.curve), max(p[index] for p in plan.curve)
        bars = heights(values, low, high)
        for line in range(BAR_ROWS, 0, -1):
            eighths = [min(8, max(0, round(h * 8 * BAR_ROWS) - 8 * (line - 1))) for h in bars]
            labels = {BAR_ROWS: high, 1: low} if high > low else {BAR_ROWS // 2: high}
            said = figure(labels[line]) if line in labels else ""
            if line == BAR_ROWS - 1:
                said = name
            lines.append(f"{said:>{label}} " + "".join(BLOCKS[unicode][e] for e in eighths).rstrip())
        lines.append("")
    end = f"{plan.schedule.budget / plan.schedule.samples:g} epochs"
    lines[-1] = " " * label + " 0" + end.rjust(columns - 1)
    return "\n".join(lines)


def heights(values: list[float], low: float, high: float) -> list[float]:
    """0 to 1 of each value between low and high: high is 1, low a line that can be seen."""
    if high == low:
        return [0.5] * len(values)
    if low > 0 and 2 <= high / low <= DEEP:
        shares = [math.log(v / low) / math.log(high / low) for v in values]
    else:
        shares = [(v - low) / (high - low) for v in values]
    floor = 1 / (8 * BAR_ROWS)
    return [floor + (1 - floor) * share for share in shares]


def differing(plans: list[Plan]) -> list[str]:
    """Each plan's name: its arm's in a comparison, else the overrides that not all of them have."""
    arms = [labels.named(plan.overrides) for plan in plans]
    if all(arms):
        return arms
    common = set.intersection(*(set(plan.overrides) for plan in plans))
    if len(plans) == 1:
        common = set()
    return [" ".join(o for o in plan.overrides if o not in common) or "(defaults)" for plan in plans]


COMPARED = ["arm", "updates", "mean batch", "largest", "final lr", "samples"]


def comparison(plans: list[Plan], width: int = WIDTH) -> str:
    """A line per arm, then each warning once, with the arms that it is for."""
    names = differing(plans)
    common = [o for o in plans[0].overrides if all(o in p.overrides for p in plans)]
    rows = [COMPARED] + [compared(name, plan) for name, plan in zip(names, plans)]
    longest = max(width - sum(2 + max(len(r[i]) for r in rows) for i in range(1, 6)), 16)
    legend = []
    if max(map(len, names)) > longest:  # numbers in the table, names below it
        legend = [f"{number}  {name}" for number, name in enumerate(names, 1)]
        for number, each in enumerate(rows[1:], 1):
            each[0] = str(number)
    head = f"{len(plans)} arms" + (f", all with {' '.join(common)}" if common and len(plans) > 1 else "")
    parts = [textwrap.fill(head, width), "\n".join(aligned(rows, left=(0,)))]
    parts += ["\n".join(legend)] if legend else []
    arms: dict[str, list[str]] = {}
    for name, plan in zip(names, plans):
        for said in [f"warning: {w}" for w in plan.warnings] + [f"note: {n}" for n in plan.notes]:
            arms.setdefault(said, []).append(name)
    told = []
    for said, whose in arms.items():
        kind, _, rest = said.partition(": ")
        of = "" if len(whose) == len(plans) else f" ({', '.join(whose)})"
        told.append(wrapped(f"{kind}{of}: {rest}", width))
    return "\n\n".join(parts + (["\n".join(told)] if told else []))


def compared(name: str, plan: Plan) -> list[str]:
    s, t, c = plan.schedule, plan.totals, plan.closed
    if c is None:
        figures = [f"{t['updates']:,}", f"{t['mean_batch']:,.4g}", f"{t['largest_batch']:,}"]
        return [name, *figures, figure(t["final_lr"]), f"{t['samples']:,}"]
    most, least = c["updates_if_it_stays"], c["updates_if_at_the_cap"]
    low, high = c["smallest_batch"], c["largest_batch"]
    updates = f"{most:,}" if most == least else f"{least:,} to {most:,}"
    mean = f"{low:,}" if low == high else f"{low:,} to {high:,}"
    return [name, updates, mean, f"{high:,}", "measured", f"{s.budget:,}"]
