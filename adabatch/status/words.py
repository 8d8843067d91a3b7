"""Numbers and text for a terminal. Every text from a run folder goes through `line` before it is shown."""

import sys


def line(value, limit: int = 300) -> str:
    """One line of printable characters: no control code, escape sequence or change of direction survives."""
    text = "".join(c if c.isprintable() else "?" for c in str(value)[: limit + 1])
    return text if len(text) <= limit else text[: limit - 3] + "..."


def lines(text: str, most: int, limit: int = 2000) -> list[str]:
    """The last `most` lines of a text, each as `line` makes it; tabs become spaces."""
    found = text.expandtabs(4).replace("\r\n", "\n").rstrip().split("\n")
    return [line(each, limit) for each in found[-most:]]


def first_line(text: str) -> str:
    """The first line that says something."""
    return line(next((each for each in text[:20_000].splitlines() if each.strip()), "").strip())


def cut(text: str, width: int) -> str:
    """The beginning of an ASCII text in at most `width` columns."""
    return text if len(text) <= width else text[: width - 1] + "\N{HORIZONTAL ELLIPSIS}"


def middle(text: str, width: int) -> str:
    """The text in at most `width` columns, cut in its middle: a run's name ends in its identity."""
    from rich.cells import cell_len

    if cell_len(text) <= width:
        return text
    left, right = (width - 1) // 2, (width - 1) - (width - 1) // 2
    head, tail = text[: max(left, 0)], text[len(text) - max(right, 0) :]
    while cell_len(head) > left:
        head = head[:-1]
    while cell_len(tail) > right:
        tail = tail[1:]
    return f"{head}\N{HORIZONTAL ELLIPSIS}{tail}"


def say(*texts: str) -> None:
    """Prints lines, whatever characters the stream knows."""
    encoding = sys.stdout.encoding or "utf-8"
    for text in texts:
        print(text.encode(encoding, "replace").decode(encoding), flush=len(texts) == 1)


def size(count: float) -> str:
    """Bytes in decimal units: 0 B, 950 B, 40 MB, 1.6 GB."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 999.5 or unit == "TB":
            return (
                f"{count:.1f} {unit}" if unit not in ("B", "kB") and count < 9.95 else f"{count:.0f} {unit}"
            )
        count /= 1000


def age(seconds: float | None) -> str:
    """How long ago, in its largest unit: 12 s, 5 min, 3 h, 2 d."""
    if seconds is None:
        return ""
    for unit, of, below in (("s", 1, 99.5), ("min", 60, 99.5), ("h", 3600, 47.5)):
        if seconds / of < below:
            return f"{max(seconds, 0) / of:.0f} {unit}"
    return f"{seconds / 86400:.0f} d"


def left(seconds: float | None) -> str:
    """A duration: 4:05, 1:02:03, 3d 04h."""
    if seconds is None:
        return ""
    total = int(seconds + 0.5)
    days, hours, minutes = total // 86400, total // 3600 % 24, total // 60 % 60
    if days:
        return f"{days}d {hours:02d}h" if days < 10_000 else "years"
    return f"{hours}:{minutes:02d}:{total % 60:02d}" if hours else f"{minutes}:{total % 60:02d}"


def rate(value: float | None) -> str:
    """Samples per second in three digits or so: 9.5/s, 950/s, 16.4k/s, 1.6M/s."""
    if value is None:
        return ""
    for unit, of in (("M", 1e6), ("k", 1e3)):
        if value >= 10 * of or (unit == "M" and value >= 1e6):
            return f"{value / of:,.{int(value < 100 * of)}f}{unit}/s"
    return f"{value:.0f}/s" if value >= 10 else f"{value:.1f}/s"


def short(value: float) -> str:
    """Epochs without digits that say nothing: 20.0 -> 20, 12.438 -> 12.4."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if value < 10 else f"{value:.1f}".removesuffix(".0")
