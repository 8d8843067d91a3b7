"""A sweep as a picture: a bar of seconds per batch for each setting, what is waited for data and what is
computed, with the quartiles of all of it."""

import html

from adabatch.report.svg import tick_label, ticks

LEAST, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 760, 420, 76, 24, 74, 30
LINE = 17  # pixels of a line of a label
LETTER = 7.5  # pixels of one at 13 px, so that no label reaches into the next
BLUE, ORANGE, GREY = "#0072B2", "#E69F00", "#5a616b"


def svg(found: dict) -> str:
    """A standalone picture of what sweep.json holds; every text is escaped."""
    rows = found["settings"]
    top = 1.08 * max(max(one["high"], one["seconds"]) for one in rows)
    longest = max(len(word) for one in rows for word in one["label"].split(" "))
    width = max(LEAST, round(LEFT + RIGHT + len(rows) * (LETTER * longest + 12)))
    bottom = BOTTOM + LINE * max(len(one["label"].split(" ")) for one in rows)
    slot = (width - LEFT - RIGHT) / len(rows)
    wide = min(0.6 * slot, 90)

    def y(seconds: float) -> float:
        return HEIGHT - bottom - (HEIGHT - TOP - bottom) * seconds / top

    def label(text: str, at: float, height: float, anchor="middle") -> str:
        return f'<text x="{at:.1f}" y="{height:.1f}" text-anchor="{anchor}">{html.escape(text)}</text>'

    def bar(at: float, low: float, high: float, colour: str) -> str:
        return (
            f'<rect x="{at - wide / 2:.1f}" width="{wide:.1f}" y="{y(high):.1f}" '
            f'height="{y(low) - y(high):.1f}" fill="{colour}"/>'
        )

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {HEIGHT}" width="{width}" '
        f'height="{HEIGHT}"><style>text{{font:13px system-ui,"DejaVu Sans",sans-serif;fill:{GREY}}}'
        f'</style><rect width="{width}" height="{HEIGHT}" fill="#fff"/>',
        label(titled(found), LEFT, 22, "start"),
    ]
    for at, colour, words in (
        (LEFT, BLUE, "computing"),
        (LEFT + 110, ORANGE, "waiting for data and preparing it"),
    ):
        parts.append(f'<rect x="{at}" y="35" width="11" height="11" fill="{colour}"/>')
        parts.append(label(words, at + 17, 45, "start"))
    parts.append(label("bars: medians; lines: quartiles", width - RIGHT, 45, "end"))
    for tick in ticks(0, top):
        parts.append(
            f'<line x1="{LEFT}" x2="{width - RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}" stroke="#d9dde3"/>'
        )
        parts.append(label(tick_label(tick), LEFT - 8, y(tick) + 4.5, "end"))
    for number, one in enumerate(rows):
        at = LEFT + slot * (number + 0.5)
        computing = max(0.0, one["seconds"] - one["data"])
        parts += [bar(at, 0, computing, BLUE), bar(at, computing, one["seconds"], ORANGE)]
        parts.append(
            f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{y(one["low"]):.1f}" y2="{y(one["high"]):.1f}" '
            'stroke="#111" stroke-width="2"/>'
        )
        parts += [label(words, at, HEIGHT - bottom + LINE * (line + 1)) for line, words in
                  enumerate(one["label"].split(" "))]  # fmt: skip
    parts.append(label("seconds per batch", LEFT - 60, TOP - 12, "start"))
    return "\n".join([*parts, "</svg>\n"])


def titled(found: dict) -> str:
    model = str((found["configuration"].get("model") or {}).get("_target_") or "").rpartition(".")[2]
    what = f"{model}, batch" if model else "batch"
    return f"{what} {found['batch_size']:,}: seconds per batch. {place(found['machine'])}".rstrip(". ")[:110]


def place(machine: dict) -> str:
    """Device and threads, as far as all settings have the same."""
    count = machine.get("threads")
    threads = f"{count} thread{'' if count == 1 else 's'}" if count else None
    return ", ".join(part for part in (machine.get("device"), threads) if part)
