"""A terminal for tests of what is drawn: independent of the library that draws."""

import io
import logging
import re


class Stream(io.StringIO):
    def __init__(self, tty: bool):
        super().__init__()
        self.tty = tty

    def isatty(self) -> bool:
        return self.tty


def screen(text: str, width: int) -> list[str]:
    """What a terminal of `width` columns shows after `text`: an emulator that wraps and never scrolls."""
    lines, row, column = [""], 0, 0
    for piece in re.findall(r"\x1b\[[?0-9;]*[A-Za-z]|.|\n", text):
        if piece == "\n":
            row, column = row + 1, 0
        elif piece == "\r":
            column = 0
        elif piece.startswith("\x1b"):
            count = int(re.sub(r"\D", "", piece) or 1)
            if piece.endswith("A"):
                row -= count
            elif piece.endswith("K"):
                lines[row] = ""
            else:
                assert piece[-1] in "mhl", f"unexpected control code {piece!r}"
        else:
            if column == width:
                row, column = row + 1, 0
            while len(lines) <= row:
                lines.append("")
            lines[row] = lines[row][:column].ljust(column) + piece + lines[row][column + 1 :]
            column += 1
        while len(lines) <= row:
            lines.append("")
    return [line.rstrip() for line in lines if line.strip()]


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def record(text: str, level: int = logging.INFO) -> logging.LogRecord:
    return logging.LogRecord("adabatch", level, "", 0, text, None, None)
