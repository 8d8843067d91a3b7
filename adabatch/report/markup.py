"""HTML and SVG elements that escape what they hold: text is only ever put into a page through `el`."""

import html
import re

# Even a page whose escaping failed could load or run nothing.
POLICY = "default-src 'none'; style-src 'unsafe-inline'"
UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


class Markup(str):
    """Text that is markup already: made by `el` and `raw` alone, never from a value that was read."""


def raw(text: str) -> Markup:
    """Markup written in our own source."""
    return Markup(text)


def el(name: str, /, *children, **attributes) -> Markup:
    """One element. Children and attribute values are escaped unless they are Markup; None is left out.

    A trailing underscore is dropped from an attribute's name and others become hyphens: class_, stroke_width.
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(_plain(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    present = [c for c in children if c is not None]
    inside = "".join(c if isinstance(c, Markup) else html.escape(_plain(c)) for c in present)
    if not children and name in ("meta", "rect", "line", "polyline", "polygon", "circle"):
        return Markup(f"<{name}{written}/>")
    return Markup(f"<{name}{written}>{inside}</{name}>")


def _plain(value) -> str:
    """Without the characters that neither HTML nor UTF-8 allows: controls and lone surrogates."""
    return UNPRINTABLE.sub("\ufffd", str(value))


def table(head: list, rows: list[list], foot: list | None = None, numbers: int = 0) -> Markup:
    """A table that scrolls by itself where it is too wide; from column `numbers` on, right-aligned."""

    def line(cells, kind):
        return el("tr", *(el(kind, c, class_="n" if i >= numbers else None) for i, c in enumerate(cells)))

    return el("div", el("table", el("thead", line(head, "th")), el("tbody", *(line(r, "td") for r in rows)),
                        el("tfoot", line(foot, "td")) if foot else None), class_="wide")  # fmt: skip


def document(title: str, css: str, body: Markup) -> bytes:
    """A whole page as UTF-8."""
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", http_equiv="Content-Security-Policy", content=POLICY),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("title", f"{title} - adabatch"),
        el("style", raw(css)),
    )
    return f"<!DOCTYPE html>\n{el('html', head, body, lang='en')}\n".encode()


def section(title: str, content: Markup | None) -> Markup | None:
    """None where there is nothing to show."""
    return el("section", el("h2", title), content) if content else None
