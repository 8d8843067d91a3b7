"""The table of a terminal, as wide as that: names lose what all share, and the least important columns go."""

from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Group
from rich.constrain import Constrain
from rich.table import Table
from rich.text import Text

from adabatch.status import words
from adabatch.status.rows import COLUMNS, Row, counts, shared, state, totals, without

NAME, LEAST = 34, 26  # columns that a name gets before other columns do; in a window narrower than NARROW
NARROW = 100
STATE = 21  # columns of a state, where its whole text would cost another column
MESSAGE = 28  # columns from which on an error has a place in the table
TOLD = 12  # errors told below the table where they have no place in it


def table(found: list[Row], common: str, width: int, most: int | None = None, notes=()) -> Constrain:
    """What rich prints: the table, errors that have no place in it, the totals.

    width: of the window. most: how many rows are shown, the last ones.
    """
    width -= 1  # some terminals wrap when the last column is filled
    shown = found if most is None else found[-most:]
    parts = shared(found)
    if max(cell_len(row.name) for row in shown) <= NAME:
        parts = []
    layout = _layout(shown, parts, width + 2)  # no gap behind the last column
    heading = f"{common}: {' '.join(parts)}" if parts else common
    lines = [_cut(heading, "dim")] if heading else []
    if hidden := found[: len(found) - len(shown)]:
        lines.append(Text(f"... above: {counts(hidden)}", "dim"))
    lines += [_grid(shown, layout), *_told(shown, layout), Text(totals(found))]
    return Constrain(Group(*lines, *(Text(words.line(note), "dim") for note in notes)), width)


@dataclass(frozen=True)
class _Layout:
    states: list[str]  # of each row
    names: list[str]  # whole
    name: int  # columns that one gets
    columns: list[tuple]  # (heading, text of each row, to the right) of those that fit
    message: int  # columns for the error; 0: it has no place

    def taken(self) -> int:
        """Columns of everything but the name and the error, the gaps included."""
        wide = [_wide(values, heading) for heading, values, _ in self.columns]
        return _wide(self.states, "state") + 2 + sum(each + 2 for each in wide)


def _wide(texts: list[str], heading: str) -> int:
    return max(map(cell_len, [*texts, heading]))


def _layout(shown: list[Row], parts: list[str], width: int) -> _Layout:
    names = [row.name if row.run.named else without(row.label, parts) for row in shown]
    states = [state(row) for row in shown]
    brief = [words.cut(text.replace("PENDING: ", ""), STATE) for text in states]
    least = min(_wide(names, "run"), NAME if width >= NARROW else LEAST)
    columns, other = (_fitting(shown, width - _wide(s, "state") - 4 - least) for s in (states, brief))
    if len(other) > len(columns) or _wide(states, "state") + 2 + least > width:
        states, columns = brief, other
    layout = _Layout(states, names, 0, columns, 0)
    spare = width - layout.taken() - (_wide(names, "run") + 2) - 2
    wrong = any(row.verdict.error for row in shown)
    message = spare if wrong and spare >= MESSAGE else 0
    longest = max(width - layout.taken() - 2 - (message + 2 if message else 0), 8)
    return _Layout(states, names, longest, columns, message)


def _fitting(shown: list[Row], room: int) -> list[tuple]:
    chosen = set()
    texts = {heading: [cell(row) for row in shown] for heading, cell, *_ in COLUMNS}
    for heading, *_ in sorted(COLUMNS, key=lambda column: -column[2]):
        if not any(texts[heading]):
            continue
        room -= _wide(texts[heading], heading) + 2
        if room < 0:
            break  # nor one that is less important: columns would come and go while one watches
        chosen.add(heading)
    return [(heading, texts[heading], right) for heading, _, _, right in COLUMNS if heading in chosen]


def _grid(shown: list[Row], layout: _Layout) -> Table:
    grid = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim", highlight=False)
    for heading, right in [("state", False), ("run", False), *((h, right) for h, _, right in layout.columns)]:
        grid.add_column(heading, no_wrap=True, justify="right" if right else "left")
    if layout.message:
        grid.add_column("last error", no_wrap=True, overflow="ellipsis", max_width=layout.message)
    for i, row in enumerate(shown):
        cells = [Text(layout.states[i], row.style), Text(words.middle(layout.names[i], layout.name))]
        cells += [Text(values[i]) for _, values, _ in layout.columns]
        grid.add_row(*cells, *([Text(row.verdict.error, "red")] if layout.message else []))
    return grid


def _told(shown: list[Row], layout: _Layout) -> list[Text]:
    """The errors that the table has no place for, the last ones."""
    wrong = [(row, name) for row, name in zip(shown, layout.names) if row.verdict.error]
    if layout.message or not wrong:
        return []
    lines = [_cut(f"{words.middle(name, NAME)}: {row.verdict.error}", "red") for row, name in wrong[-TOLD:]]
    more = len(wrong) - len(lines)
    said = [Text(f"{more} more with an error (--failed shows all)", "dim")] if more else []
    return [Text(""), *said, *lines]


def _cut(text: str, style: str) -> Text:
    return Text(text, style, no_wrap=True, overflow="ellipsis")
