"""A profile as a picture: throughput over the batch size, and what a step's time goes into."""

import html
import math

from adabatch.pace import Pace
from adabatch.profiles import Profile
from adabatch.throughput import knee

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 760, 420, 76, 24, 56, 52
BLUE, GREY, ORANGE = "#0072B2", "#5a616b", "#D55E00"


def draw(profile: Profile, kind: str) -> bytes:
    """As .svg or .png."""
    return svg(profile).encode() if kind == ".svg" else png(profile)


def series(profile: Profile) -> dict:
    """Points of each line: measured as a run cuts a batch, several passes a step, and the interpolation."""
    pace, shown = Pace(profile), profile.plain()
    usual = [(p.batch_size, p.samples_per_second) for p in shown]
    others = [(p.batch_size, p.samples_per_second) for p in profile.points if p not in shown]
    low, high = math.log(usual[0][0]), math.log(usual[-1][0])
    sizes = sorted({round(math.exp(low + (high - low) * i / 120)) for i in range(121)})
    ratio, (where, stopped) = profile.sustained_ratio, knee(dict(usual))
    return {
        "usual": usual,
        "quartiles": [(p.batch_size, p.batch_size / p.high, p.batch_size / p.low) for p in shown],
        "others": others,
        "between": [(b, pace.throughput(b) * ratio) for b in sizes],
        "knee": where if stopped else None,
    }


def titled(profile: Profile) -> str:
    model = str((profile.configuration.get("model") or {}).get("_target_")).rpartition(".")[2]
    return f"{model}: samples per second by batch size. {profile.words()}"


def svg(profile: Profile) -> str:
    """A standalone picture; every text is escaped."""
    from adabatch.report.svg import tick_label, ticks

    found = series(profile)
    batches = [b for name in ("usual", "others") for b, _ in found[name]]
    rates = [r for name in ("usual", "others", "between") for _, r in found[name]]
    first, last, top = min(batches) / 1.15, max(batches) * 1.15, max(rates) * 1.08

    def x(batch: float) -> str:
        share = math.log(batch / first) / math.log(last / first)
        return f"{LEFT + (WIDTH - LEFT - RIGHT) * share:.1f}"

    def y(rate: float) -> str:
        return f"{HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * rate / top:.1f}"

    def label(text: str, at, height, anchor="middle") -> str:
        return f'<text x="{at}" y="{height}" text-anchor="{anchor}">{html.escape(text)}</text>'

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" '
        f'height="{HEIGHT}"><style>text{{font:13px system-ui,"DejaVu Sans",sans-serif;fill:{GREY}}}'
        f'</style><rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
        label(titled(profile)[:110], LEFT, 22, "start"),
        label("filled: one pass or as a run cuts it; hollow: cut into more passes; line: interpolated",
              LEFT, 42, "start"),
    ]  # fmt: skip
    for tick in ticks(0, top):
        parts.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(tick)}" y2="{y(tick)}" stroke="#d9dde3"/>'
        )
        parts.append(label(tick_label(tick), LEFT - 8, float(y(tick)) + 4.5, "end"))
    for tick in ticks(first, last, "log2"):
        parts.append(label(tick_label(tick), x(tick), HEIGHT - BOTTOM + 18))
    parts.append(label("batch size (samples)", WIDTH - RIGHT, HEIGHT - 8, "end"))
    if found["knee"]:
        at = x(found["knee"])
        parts.append(
            f'<line x1="{at}" x2="{at}" y1="{TOP}" y2="{HEIGHT - BOTTOM}" stroke="{ORANGE}" '
            'stroke-dasharray="5 4"/>'
        )
        side = "end" if float(at) > WIDTH / 2 else "start"
        parts.append(label(f"95 % of the highest from {found['knee']:,}", at, HEIGHT - BOTTOM - 8, side))
    corners = " ".join(f"{x(b)},{y(r)}" for b, r in found["between"])
    parts.append(f'<polyline points="{corners}" fill="none" stroke="{BLUE}" stroke-width="1.5"/>')
    for batch, low, high in found["quartiles"]:
        parts.append(f'<line x1="{x(batch)}" x2="{x(batch)}" y1="{y(low)}" y2="{y(min(high, top))}" '
                     f'stroke="{BLUE}" stroke-width="3" opacity="0.4"/>')  # fmt: skip
    for name, fill in (("usual", BLUE), ("others", "#fff")):
        for batch, rate in found[name]:
            parts.append(f'<circle cx="{x(batch)}" cy="{y(rate)}" r="4" fill="{fill}" stroke="{BLUE}"/>')
    return "\n".join([*parts, "</svg>\n"])


def png(profile: Profile) -> bytes:
    """By matplotlib, through its objects."""
    import io

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, NullFormatter

    from adabatch.report.svg import tick_label

    found = series(profile)
    figure = Figure(figsize=(8, 4.6), dpi=130, layout="constrained", facecolor="white")
    canvas, axes = FigureCanvasAgg(figure), figure.add_subplot()
    title = "".join(c if c.isascii() else "?" for c in titled(profile))
    axes.set_title(title[:100], loc="left", fontsize=10, parse_math=False)
    axes.plot(*zip(*found["between"]), color=BLUE, linewidth=1.2)
    axes.plot(*zip(*found["usual"]), "o", color=BLUE, label="one pass, or as a run cuts it")
    if found["others"]:
        axes.plot(*zip(*found["others"]), "o", markerfacecolor="white", color=BLUE, label="more passes")
    if found["knee"]:
        axes.axvline(found["knee"], color=ORANGE, linestyle="--", label="95 % of the highest from here on")
    axes.set_xscale("log", base=2)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("batch size (samples)")
    axes.set_ylabel("samples per second")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: tick_label(value)))
        axis.set_minor_formatter(NullFormatter())
    axes.legend(fontsize=8, frameon=False)
    out = io.BytesIO()
    canvas.print_png(out, metadata={"Software": None})
    return out.getvalue()
