"""The forecast of a plan, or of a sweep's arms, for people."""

from adabatch.combinations import Compared
from adabatch.planning import times
from adabatch.planning.job import Plan
from adabatch.planning.table import aligned, differing, wrapped
from adabatch.report.words import duration


def span(low: float | None, high: float | None) -> str:
    return "" if low is None else f" ({duration(low)} to {duration(high)})"


def factor(row: dict) -> str:
    """ "1.42x (1.30 to 1.55)"."""
    between = "" if row["low"] is None else f" ({row['low']:.2f} to {row['high']:.2f})"
    return f"{row['ratio']:.2f}x{between}"


def versus(row: dict) -> str:
    """ "faster than fixed 32 by 1.42x (1.30 to 1.55)", or "slower": a ratio below 1 is its inverse."""
    if row["ratio"] >= 1:
        return f"faster than {row['arm']} by {factor(row)}"
    low, high = (None if row[end] is None else 1 / row[end] for end in ("high", "low"))
    return f"slower than {row['arm']} by {factor({'ratio': 1 / row['ratio'], 'low': low, 'high': high})}"


def bound(plan: Plan) -> str:
    """What no schedule can exceed, and that a fixed batch attains it."""
    b = plan.forecast["upper_bound"]
    over, best = f"{b['over']:,}", f"{b['batch_size']:,}"
    limit = ""
    if b["measured_to"]:
        limit = f"; larger batches than {b['measured_to']:,} were not measured (adabatch-profile --largest N)"
    if b["ratio"] <= 1:
        return f"at most    1x: no larger batch trains faster here than the fixed batch {over}{limit}"
    return (
        f"at most    {b['ratio']:.2f}x over batch {over} at equal samples, and the fixed batch {best} "
        "attains that: no schedule between them trains as many samples sooner (a target may come sooner)"
        f"{limit}"
    )


def named(row: dict) -> str:
    """ "fixed 512 (extrapolated)"."""
    return row["arm"] + " (extrapolated)" * row["extrapolated"]


def spent(f: dict) -> str:
    """ "0.0034 device-hours, 0.01 EUR"."""
    money = f", {f['eur']:,.3g} EUR" if "eur" in f else ""
    return f"{f['device_hours']:,.3g} device-hours{money}"


def text(plan: Plan, width: int) -> str:
    """One plan."""
    f = plan.forecast
    lines = [wrapped(bound(plan), width)]
    if f["seconds"] is None:
        said = f"between {duration(f['low'])} and {duration(f['high'])} of training, by what is measured"
    else:
        said = f"{duration(f['seconds'])} of training{span(f['low'], f['high'])}"
    label = "" if f["kind"] == "measured" else f"{f['kind']}: "
    lines.append(wrapped(f"forecast   {label}{said}; {spent(f)}", width))
    if f.get("wall_seconds"):
        lines.append(f"           about {duration(f['wall_seconds'])} with the start and evaluations")
    lines.append(wrapped(f"           on {f['machine']}, micro-batch {f['micro_batch']:,}", width))
    lines += [wrapped(f"           {note}", width) for note in notes(f)]
    if rows := f.get("speed_up_over"):
        cells = [[named(r), f"{r['updates']:,}", duration(r["seconds"]), factor(r)] for r in rows]
        lines += [
            "",
            *aligned([["arm", "updates", "training", "speed-up over it"], *cells], left=(0, 3)),
        ]
    return "\n".join([*lines, "", *(wrapped(s, width) for s in times.resolution([plan]))])


def notes(f: dict) -> list[str]:
    found = []
    if f.get("extrapolated"):
        found.append(f"{f['extrapolated']:.0%} of it extrapolated beyond the sizes measured")
    if f["seconds"] is not None and f["low"] is None and f["kind"] == "measured":
        found.append("no interval: three sizes or more must be measured to know one")
    if f["audits"] >= 10:
        found.append(f"interval from {f['audits']} finished runs' measured times")
    if not f["measuring_known"]:
        found.append("without the cost of measuring gradients: the profile was of another schedule")
    return found


def replayed(plans: list[Plan], control: str, source: int) -> dict:
    """The forecast of a control of one of the plans: its source's, of as many updates; of an lr twin that of
    the fixed arm of its source's first batch."""
    first, _ = times.bounds_of(plans[source])
    alike = (p.forecast for p in plans if control == "lr_twin" and times.fixed_batch(p) == first)
    return next(alike, plans[source].forecast)


def whole(plans: list[Plan], compared: Compared | None) -> tuple[str, dict]:
    """(how many runs, their sums) of a sweep; of a comparison every seed of every arm and the search for
    learning rates."""
    runs = [(p.forecast, 1) for p in plans]
    said = f"all {len(plans)} runs"
    if compared:
        runs = [(p.forecast, compared.seeds + more) for p, more in zip(plans, compared.searches)]
        runs += [(replayed(plans, control, i), compared.seeds) for _, control, i in compared.replayed]
        said = f"all {compared.seeds * len(runs)} runs ({compared.seeds} of each of {len(runs)} arms)"
        if searches := sum(compared.searches):
            said += f" and {searches} or more that tune learning rates"
    names = ("device_hours", "eur") if "eur" in plans[0].forecast else ("device_hours",)
    return said, {k: sum(count * f[k] for f, count in runs) for k in names}


def comparison(plans: list[Plan], width: int, compared: Compared | None = None) -> str:
    """A sweep: an arm a line, then what the adaptive ones are worth over the fixed ones."""
    arms, names = [], {}
    for plan, name in zip(plans, differing(plans)):
        if times.arm_of(plan) not in names:
            name = " ".join(o for o in name.split(" ") if not o.startswith("seed=")) or "(defaults)"
            names[times.arm_of(plan)] = name
            arms.append((name, plan))
    rows, each = [], [(name, plan.forecast) for name, plan in arms]
    if compared:
        each += [(name, replayed(plans, control, i)) for name, control, i in compared.replayed]
    for name, f in each:
        ends = (f["low"], f["high"]) if f["low"] is not None else (None, None)
        cells = [name, "\u2013" if f["seconds"] is None else duration(f["seconds"])]
        cells.append("" if ends[0] is None else f"{duration(ends[0])} to {duration(ends[1])}")
        rows.append([*cells, f"{f['device_hours']:,.3g}", *([f"{f['eur']:,.3g}"] if "eur" in f else [])])
    head = ["arm", "training", "interval", "device-hours", *(["EUR"] if len(rows[0]) > 4 else [])]
    best = max(plans, key=lambda p: p.forecast["upper_bound"]["ratio"])
    lines = [wrapped(bound(best), width), "", *aligned([head, *rows], left=(0,))]
    for name, plan in arms:
        for row in plan.forecast.get("speed_up_over") or ():
            lines.append(wrapped(f"{name} is {versus(row)}", width))
    runs, total = whole(plans, compared)
    kind = plans[0].forecast["kind"]
    label = "" if kind == "measured" else f"{kind}: "
    lines += ["", wrapped(f"{runs}: {label}{spent(total)}, on {plans[0].forecast['machine']}", width)]
    return "\n".join([*lines, *(wrapped(s, width) for s in times.resolution(plans, compared))])
