"""Files that are written whole or not at all, and read as if a stranger had written them.

Reading is bounded in size, YAML may not use aliases, nothing is unpickled, and a newer format is refused.
"""

import json
import math
import os
import threading
from pathlib import Path

import yaml

from adabatch.errors import UserError

FORMAT = 1  # of every file in a run folder
SMALL, LARGE = 16 << 20, 1 << 30  # bytes that a JSON or YAML file, and that metrics.jsonl, may have


def finite(value):
    """The value with non-finite floats as None: JSON has no way to write them."""
    if isinstance(value, dict):
        return {str(k): finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def number(value) -> float | None:
    """A finite float, or None for anything else: null, text, true, 10**400, nan."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        value = float(value)
    except OverflowError:
        return None
    return value if math.isfinite(value) and abs(value) < 1e30 else None


def write_bytes(path: Path, data: bytes) -> None:
    """Whole or not at all: written beside, flushed to the disk, renamed. OSError leaves the old file and no
    debris. Of several processes or threads that write the same file, the last one's is left."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_native_id()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, value) -> None:
    """Atomic. Non-finite floats become null; anything JSON does not know becomes its text."""
    text = json.dumps(finite(value), indent=2, allow_nan=False, default=str)
    write_bytes(Path(path), text.encode() + b"\n")


def write_yaml(path: Path, value: dict) -> None:
    """Atomic; keys in the order given."""
    write_bytes(Path(path), yaml.safe_dump(value, sort_keys=False, allow_unicode=True).encode())


def read_text(path: Path, limit: int) -> str:
    path = Path(path)
    try:
        with open(path, "rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    if len(data) > limit:
        raise UserError(f"{path} is larger than {limit >> 20} MiB: it is not a file of an adabatch run")
    return data.decode(errors="replace")


def read_tail(path: Path, count: int) -> str:
    """The last `count` bytes as text, from the first line that begins in them; "" where there is no file."""
    path = Path(path)
    try:
        if not path.is_file():
            return ""
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(size - count - 1, 0))
            data = file.read(count + 1)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    if size > count:
        data = data.partition(b"\n")[2]
    return data.decode(errors="replace")


def _dictionary(path: Path, value) -> dict:
    if not isinstance(value, dict):
        raise UserError(
            f"{path} holds a {type(value).__name__} where a dictionary belongs: not a file of an adabatch run"
        )
    version = value.get("format", FORMAT)
    if not isinstance(version, int) or isinstance(version, bool) or version > FORMAT:
        raise UserError(
            f"{path} has format {version!r}; this adabatch reads up to {FORMAT}. Install a newer one."
        )
    return value


def read_json(path: Path) -> dict:
    """A dictionary written by write_json. UserError: unreadable, too large, not JSON, or of a newer
    format."""
    try:
        value = json.loads(read_text(path, SMALL), parse_constant=lambda _: None)
    except (ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        state = Path(path).name == "status.json"
        remedy = ". Delete it: the run goes on from its checkpoint" if state else ""
        raise UserError(
            f"{path} is not valid JSON ({error}): it was damaged or is not a file of an adabatch run{remedy}"
        ) from None
    return _dictionary(path, value)


class _Plain(yaml.SafeLoader):
    """YAML without aliases: a few lines of them can expand to gigabytes."""

    def compose_node(self, parent, index):
        if self.check_event(yaml.events.AliasEvent):
            raise yaml.YAMLError("aliases are not allowed here")
        return super().compose_node(parent, index)


def read_yaml(path: Path) -> dict:
    """A dictionary written by write_yaml; errors as read_json."""
    text = read_text(path, SMALL)
    try:
        value = yaml.load(text, Loader=_Plain)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid YAML ({error})") from None
    return _dictionary(path, value)
