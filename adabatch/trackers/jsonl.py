"""metrics.jsonl: one JSON object per line, the record of a run that everything else is read from.

Rows are turned into text when they are logged, kept in memory, and written now and then; `sync` puts them
on the disk. A line counts as stored only after an fsync: until then its bytes are kept, so a full disk (or
a write cut short) loses nothing, and the next `sync` writes the same bytes to the same place again.
"""

import json
import math
import os
import time
from pathlib import Path

from adabatch.errors import UserError

CHUNK = 1 << 20  # bytes read at once while lines are counted


def plain(value):
    """`value` as JSON can hold it: non-finite floats become null, numbers of array libraries become Python's.

    Raises TypeError for what is neither a number, text, path, list nor dict: a row holds no other things.
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if callable(getattr(value, "item", None)):  # a numpy scalar, a tensor of one element
        return plain(value.item())
    raise TypeError(f"a row holds numbers, text, lists and dicts, not {type(value).__name__}: {value!r}")


def end_of_line(path: Path, rows: int) -> tuple[int, int]:
    """(bytes, lines): where line number `rows` ends, and how many of them there are without a torn tail."""
    size = lines = offset = 0
    with path.open("rb") as file:
        while lines < rows and (chunk := file.read(CHUNK)):
            start = 0
            while lines < rows and (found := chunk.find(b"\n", start)) >= 0:
                lines, start = lines + 1, found + 1
                size = offset + start
            offset += len(chunk)
    return size, lines


class Jsonl:
    """The file `path`. `rows` = lines logged so far, whether they are on the disk already or not.

    every: seconds after which logged rows are written (without fsync), so that a run can be watched.
    """

    def __init__(self, path: Path, every: float = 5.0):
        self.path = Path(path)
        self.every = every
        self.rows = 0
        self._stored = 0  # bytes that are known to be on the disk: whole lines
        self._lines: list[bytes] = []  # the lines after them
        self._written = 0  # how many of these have been written, though not synced
        self._last = time.monotonic()

    def resume(self, position: int, rows: int) -> None:
        """Keep exactly the first `rows` lines: later ones were logged after the checkpoint at `position`.

        Cutting a file is one operation of the file system, so a kill leaves the old length or the new one.
        Raises UserError where the file has fewer lines than the checkpoint counted.
        """
        fresh = not self.path.exists()
        size, lines = (0, 0) if fresh else end_of_line(self.path, rows)
        if lines < rows:
            raise UserError(
                f"{self.path} must hold the {rows} rows that were logged before the checkpoint at position "
                f"{position}, and holds {lines}: it was changed or damaged. Put it back, or begin anew with "
                "restart=true"
            )
        with _opened(self.path) as file:
            os.ftruncate(file, size)
            os.fsync(file)
        if fresh:
            _sync_folder(self.path.parent)  # else a new file's name may be lost with the power
        self.rows, self._stored, self._lines, self._written = rows, size, [], 0

    def log(self, row: dict) -> None:
        """Take one row. A disk that is full is no reason to stop here: the next `sync` says so."""
        self._lines.append(json.dumps(plain(row), allow_nan=False).encode() + b"\n")
        self.rows += 1
        if time.monotonic() - self._last >= self.every:
            try:
                with _opened(self.path) as file:
                    self._write(file)
            except OSError:
                self._last = time.monotonic()

    def sync(self) -> None:
        """Every row logged so far is on the disk when this returns. After an OSError: call it again."""
        if not self._lines:
            return
        with _opened(self.path) as file:
            self._write(file)
            try:
                os.fsync(file)
            except OSError:
                self._written = 0  # the system may have thrown the pages away: write them all again
                raise
        self._stored += sum(map(len, self._lines))
        self._lines, self._written = [], 0

    def forget(self) -> None:
        """Drop what is not on the disk: the file belongs to another process now."""
        self._lines, self._written = [], 0

    def close(self, exit_code: int = 0) -> None:
        self.sync()

    def _write(self, file: int) -> None:
        """Write what has not been written; after an error the file ends with a whole line again."""
        offset = self._stored + sum(map(len, self._lines[: self._written]))
        data = memoryview(b"".join(self._lines[self._written :]))
        done = 0
        try:
            while done < len(data):
                done += os.pwrite(file, data[done:], offset + done)
        except OSError:
            os.ftruncate(file, offset)
            raise
        self._written = len(self._lines)
        self._last = time.monotonic()


class _opened:
    """with _opened(path) as descriptor: a file for reading and writing, made where it is missing."""

    def __init__(self, path: Path):
        self.path = path

    def __enter__(self) -> int:
        self.file = os.open(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666)
        return self.file

    def __exit__(self, *_) -> None:
        os.close(self.file)


def _sync_folder(folder: Path) -> None:
    file = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
