"""A profile for people: a table, and where throughput stops rising."""

from adabatch.pace import Pace
from adabatch.profiles import Point, Profile
from adabatch.throughput import SHARE, knee

BUSY = 0.1  # a drift that forecasts should not be made by
HEAD = ("batch", "micro x accum", "samples/s", "quartiles", "ms/step", "data", "compute", "comm.",
        "overhead", "memory")  # fmt: skip


def text(profile: Profile) -> str:
    """The whole of it."""
    pace = Pace(profile)
    rows = [HEAD, *(row(p, pace) for p in profile.points), *(failed(p) for p in profile.failed)]
    widths = [max(len(r[i]) for r in rows) for i in range(len(HEAD))]
    lines = ["  ".join(c.rjust(w) for c, w in zip(r, widths)).rstrip() for r in rows]
    return "\n".join([f"on         {profile.words()}", "", *lines, "", *said(profile, pace)])


def row(p: Point, pace: Pace) -> list[str]:
    """Shares of the step: compute is what data, communication and the fixed part leave."""
    fixed = max(0.0, min(pace.fixed - p.communication, p.seconds))
    shares = [p.data, max(0.0, p.seconds - p.data - p.communication - fixed), p.communication, fixed]
    low, high = p.batch_size / max(p.high, 1e-12), p.batch_size / max(p.low, 1e-12)
    memory = "" if p.peak_memory_bytes is None else f"{p.peak_memory_bytes / 2**20:,.0f} MiB"
    return [
        f"{p.batch_size:,}", f"{p.micro_batch:,} x {p.accumulation}", f"{p.samples_per_second:,.0f}",
        f"{low:,.0f} to {high:,.0f}", f"{1e3 * p.seconds:,.3g}",
        *(f"{share / p.seconds:.0%}" for share in shares), memory,
    ]  # fmt: skip


def failed(p: Point) -> list[str]:
    return [f"{p.batch_size:,}", f"{p.micro_batch:,} x {p.accumulation}", "out of memory", *[""] * 7]


def said(profile: Profile, pace: Pace) -> list[str]:
    """What the figures come to."""
    rates = {p.batch_size: p.samples_per_second for p in profile.plain()}
    where, stopped = knee(rates)
    first, best = min(rates), max(rates, key=rates.get)
    ratio = rates[best] / rates[first]
    share = f"the smallest batch with {SHARE:.0%} of the highest throughput measured"
    lines = [f"saturates  at batch {where:,} ({share})"]
    if not stopped:
        lines = [f"saturates  not up to batch {where:,}: throughput was still rising; --largest goes further"]
    lines.append(
        f"at most    {ratio:.2f}x: batch {best:,} trains {rates[best]:,.0f} samples/s, batch {first:,} "
        f"{rates[first]:,.0f}; a fixed batch of {best:,} attains that"
    )
    if pace.identified:
        lines.append(f"each step  {1e3 * pace.fixed:.3g} ms whatever its size (told apart by accumulation)")
    out, rep, drift = pace.errors
    shown = [f"repeated steps {rep:.2%}", f"drift {drift:.1%}"]
    if out:
        shown.insert(0, f"interpolation {max(map(abs, out)):.1%} at most (each size left out in turn)")
    lines.append(f"errors     {', '.join(shown)}")
    if drift > BUSY:
        lines.append(
            f"warning    the reference point's time moved by {drift:.0%}: the machine had other work, or its "
            "clock changes. Profile again when it is quiet"
        )
    if profile.given.get("sustained_seconds"):
        lines.append(
            f"sustained  {profile.sustained_ratio:.3f} times the seconds of a short burst, over "
            f"{profile.figure('sustained_seconds') or 0:g} s"
        )
    return lines
