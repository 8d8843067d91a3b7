"""--plot: batch size, learning rate, lr/batch and updates over epochs, of one plan or of several."""

import html
from itertools import accumulate
from pathlib import Path

from adabatch import files
from adabatch.errors import UserError, suggest
from adabatch.phases import Phase, curve, phases
from adabatch.planning import bounds
from adabatch.planning.job import Plan
from adabatch.planning.table import DEEP
from adabatch.report import svg
from adabatch.report.series import MARKS, Line, Panel, scale, thin_steps

KINDS = (".svg", ".png")
GAP, TITLE = 24, 26  # pixels between panels, above each

STYLE = (
    'text{font:13px system-ui,"DejaVu Sans",sans-serif;fill:#5a616b}'
    ".grid{stroke:#d9dde3;stroke-width:1}.axis{stroke:#5a616b;stroke-width:1.2}"
    ".mark{stroke:#8a8a8a;stroke-width:1;stroke-dasharray:4 4}.name{font-weight:600;fill:#1c1f24}"
)


def checked(name: str) -> Path:
    """The file that --plot names. UserError: another kind than can be drawn, a folder that is not there."""
    path = Path(name).expanduser()
    if path.suffix.lower() not in KINDS:
        ending = path.suffix or "no ending"
        raise UserError(f"--plot draws {' or '.join(KINDS)}, got {ending} in {name}.{suggest(ending, KINDS)}")
    if not path.parent.is_dir():
        raise UserError(f"--plot {name}: there is no folder {path.parent}")
    return path


def write(path: Path, plans: list[Plan], names: list[str]) -> None:
    """UserError where the file cannot be written."""
    found = panels(plans, names)
    if path.suffix.lower() == ".svg":
        data = page(found).encode()
    else:
        from adabatch.report import png

        data = png.draw(found, "Plan: " + (", ".join(names) if len(names) > 1 else titled(plans[0])))
    try:
        files.write_bytes(path, data)
    except OSError as error:
        raise UserError(f"--plot {path} cannot be written ({error.strerror})") from None


def titled(plan: Plan) -> str:
    return " ".join(plan.overrides) or "the default run"


def curves(plan: Plan, name: str) -> list[tuple[str, list, list, bool]]:
    """[(label, curve, phases, dashed)]: one of an open loop, the two ends of what a closed loop may do."""
    c, s = plan.closed, plan.schedule
    if not c:
        return [(name, plan.curve, plan.found, False)]
    ends = []
    for batch, said in ((c["smallest_batch"], "stays"), (c["largest_batch"], "at the cap at once")):
        other = bounds.frozen(s, batch) or s
        found = phases(other)
        ends.append((f"{name}: {said} {batch:,}".strip(": "), curve(other, found), found, True))
    return ends


def panels(plans: list[Plan], names: list[str]) -> list[Panel]:
    """Batch size, learning rate, learning rate / batch, updates."""
    drawn = [each for plan, name in zip(plans, names) for each in curves(plan, name)]
    several = len(drawn) > 1
    samples = [plan.schedule.samples for plan in plans for _ in curves(plan, "")]
    end = max(plan.schedule.budget / plan.schedule.samples for plan in plans)
    marks = [] if several else changes(plans[0])
    columns = {
        "Batch size": lambda line, _: [(p, b) for p, b, _ in line],
        "Learning rate": lambda line, _: [(p, lr) for p, _, lr in line],
        "Learning rate / batch": lambda line, _: [(p, lr / b) for p, b, lr in line],
        "Updates": lambda _, found: updates(found),
    }
    found = []
    for title, column in columns.items():
        lines = []
        for i, ((label, line, steps, dashed), n) in enumerate(zip(drawn, samples)):
            points = [(p / n, value) for p, value in column(line, steps)]
            thin = points if title == "Updates" else thin_steps(points)[0]
            dashed = dashed or i >= len(svg.SHARES)
            step = title != "Updates"
            lines.append(Line(label, svg.share_colour(i), thin, dashed=dashed and several, step=step))
        values = [v for line in lines for _, v in line.points]
        kind = scale(values, 1.9 if title == "Batch size" else 10)
        kind = "linear" if max(values) > DEEP * min(values) else kind
        kind = {"Batch size": "log2" if kind == "log" else kind, "Updates": "linear"}.get(title, kind)
        found.append(Panel(title, "", kind, lines, marks, end, []))
    return found


def updates(found: list[Phase]) -> list[tuple[int, int]]:
    """Steps taken up to the start of each phase, and to the end."""
    taken = [0, *accumulate(phase.steps for phase in found)]
    return list(zip([*(phase.start for phase in found), found[-1].end], taken))


def changes(plan: Plan) -> list[float]:
    pairs = zip(plan.found, plan.found[1:])
    marks = [b.start / plan.schedule.samples for a, b in pairs if a.batch_size != b.batch_size]
    return [] if len(marks) > MARKS else marks


def page(found: list[Panel]) -> str:
    """One standalone SVG: the panels two by two, the lines' names below."""
    width, height = svg.WIDTH, svg.HEIGHT + TITLE
    names = [(line.label, line.colour, line.dashed) for line in found[0].lines]
    whole = (2 * width + 3 * GAP, 2 * height + 3 * GAP + 20 * len(names))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {whole[0]} {whole[1]}" '
        f'width="{whole[0]}" height="{whole[1]}"><style>{STYLE}</style>'
        f'<rect width="{whole[0]}" height="{whole[1]}" fill="#fff"/>'
    ]
    for i, panel in enumerate(found):
        x, y = GAP + (i % 2) * (width + GAP), GAP + (i // 2) * (height + GAP)
        parts.append(f'<text class="name" x="{x}" y="{y + 12}">{html.escape(panel.name)}</text>')
        parts.append(svg.picture(panel, x=x, y=y + TITLE, width=svg.WIDTH, height=svg.HEIGHT))
    for i, (label, colour, dashed) in enumerate(names):
        y = 2 * (height + GAP) + GAP + 20 * i
        dashes = ' stroke-dasharray="6 4"' if dashed else ""
        parts.append(f'<line x1="{GAP}" x2="{GAP + 30}" y1="{y}" y2="{y}" stroke="{colour}" '
                     f'stroke-width="3"{dashes}/>')  # fmt: skip
        parts.append(f'<text x="{GAP + 40}" y="{y + 5}">{html.escape(label)}</text>')
    return "\n".join([*parts, "</svg>\n"])
