"""curves.png: the four panels by matplotlib, through its objects: no global figure state is touched."""

import io

from adabatch.report.series import Panel


def draw(panels: list[Panel], title: str) -> bytes:
    """The panels two by two as a PNG of 1,430 x 910 pixels."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # Neither a user's matplotlibrc nor a "$" in a run's name may change or break the picture.
    plain = {"text.usetex": False, "axes.formatter.use_mathtext": False, "font.family": "DejaVu Sans"}
    with rc_context(plain):
        figure = Figure(figsize=(11, 7), dpi=130, layout="constrained", facecolor="white")
        canvas = FigureCanvasAgg(figure)
        latin = "".join(c if c.isascii() else "?" for c in title)  # the font has no more than some alphabets
        figure.suptitle(latin[:110], fontsize=12, parse_math=False)
        for panel, axes in zip(panels, figure.subplots(2, 2, sharex=True).flat, strict=True):
            _panel(axes, panel)
        for axes in figure.axes[2:]:
            axes.set_xlabel("epochs (dashed: the batch size changes)" if panels[0].marks else "epochs")
        out = io.BytesIO()
        canvas.print_png(out, metadata={"Software": None})  # nothing that differs between two equal runs
    return out.getvalue()


def _panel(axes, panel: Panel) -> None:
    axes.set_title(f"{panel.name} ({panel.unit})" if panel.unit else panel.name, loc="left", fontsize=10)
    axes.grid(True, color="#e3e3e3", linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if panel.empty:
        centred = {"transform": axes.transAxes, "ha": "center", "va": "center"}
        axes.text(0.5, 0.5, "nothing logged yet", color="#666666", **centred)
        axes.set_xlim(0, panel.end)
        axes.set_yticks([])
        return
    for epoch in panel.marks:
        axes.axvline(epoch, color="#8a8a8a", linewidth=0.9, linestyle=(0, (4, 3)))
    for line in panel.lines:
        _line(axes, line)
    _axis(axes, panel)
    axes.set_xlim(0, panel.end * 1.01)
    if len(panel.lines) > 1:
        axes.legend(fontsize=8, frameon=False)


def _line(axes, line) -> None:
    xs, ys = zip(*line.points, strict=True)
    if line.band:
        at, low, high = zip(*line.band, strict=True)
        axes.fill_between(at, low, high, color=line.colour, alpha=0.18, linewidth=0)
    axes.plot(
        xs,
        ys,
        label=line.label,
        color=line.colour,
        linewidth=1.5,
        linestyle="--" if line.dashed else "-",
        marker="o" if line.dots else None,
        markersize=3.5,
        drawstyle="steps-post" if line.step else None,
    )


def _axis(axes, panel: Panel) -> None:
    """The scale, and ticks that are written as people write them."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    from adabatch.report.svg import limits, tick_label, ticks

    low, high = limits(panel)
    if panel.scale != "linear":
        axes.set_yscale("log", base=2 if panel.scale == "log2" else 10)
    axes.set_ylim(low, high)
    axes.set_yticks(ticks(low, high, panel.scale))
    axes.set_xticks(ticks(0, panel.end))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: tick_label(value)))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.minorticks_off()
