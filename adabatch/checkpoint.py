"""Checkpoints: one file, written whole or not at all, read without running any code."""

import contextlib
import errno
import hashlib
import io
import os
import threading
import zipfile
from collections import OrderedDict
from pathlib import Path

import torch

from adabatch.errors import UserError

FORMAT = 3
PLAIN = (str, bytes, int, float, bool, type(None))


def refuse_objects(value, key: str = "") -> None:
    """Only plain values and tensors survive `weights_only` loading: the others are found by key before they
    are written. Exact types: a named tuple, a defaultdict or an IntEnum is pickled as code to run."""
    if type(value) in (dict, OrderedDict):
        for name, item in value.items():
            if type(name) not in PLAIN:
                kind = type(name).__name__
                raise UserError(f"a checkpoint holds plain keys; {key or 'it'} has one of type {kind}")
            refuse_objects(item, f"{key}.{name}" if key else str(name))
    elif type(value) in (list, tuple, torch.Size):
        for index, item in enumerate(value):
            refuse_objects(item, f"{key}[{index}]")
    elif type(value) not in (*PLAIN, torch.Tensor, torch.nn.Parameter):
        raise UserError(
            "a checkpoint holds dict, list, tuple, str, bytes, int, float, bool, None and tensors; "
            f"{key} is a {type(value).__module__}.{type(value).__name__}: return plain values from "
            "state_dict()"
        )


def save(path: Path, state: dict) -> None:
    """A checkpoint: plain values and tensors, with the format number."""
    refuse_objects(state)
    _write(path, {"format": FORMAT, **state})


def copied(value):
    """The same plain values with tensors of their own on the CPU, which training does not change."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {name: copied(item) for name, item in value.items()}
    return type(value)(map(copied, value)) if type(value) in (list, tuple) else value


class Writer:
    """Writes one run's checkpoints in a thread, one at a time, while training goes on. An error of the thread
    is raised by the next call."""

    def __init__(self):
        self._thread, self._error = None, None

    def save(self, path: Path, state: dict) -> None:
        """`save` of a copy; returns when that is made and the checkpoint before it is on the disk."""
        refuse_objects(state)
        self.wait()
        value = {"format": FORMAT, **copied(state)}
        self._thread = threading.Thread(target=self._work, args=(path, value), name="adabatch-checkpoint")
        self._thread.start()

    def _work(self, path: Path, value: dict) -> None:
        try:
            _write(path, value)
        except BaseException as error:  # for the thread that trains
            self._error = error

    def wait(self) -> None:
        """Until the last checkpoint is on the disk; raises why it could not be written."""
        if self._thread:
            self._thread.join()
        self._thread, error, self._error = None, self._error, None
        if error:
            raise error


def save_weights(path: Path, model) -> None:
    """A plain state_dict file, as torch.load and everybody's code expect it."""
    # Copies: the tensors are views of one flat vector, which would be written whole with each of them.
    _write(path, {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()})


def _write(path: Path, value) -> None:
    """Write beside `path`, force to disk, and put in the place of `path` in one move: whole or not at all."""
    path = Path(path)
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            torch.save(value, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)  # a full disk must not stay full of half a checkpoint
        if isinstance(error, RuntimeError) and isinstance(error.__context__, OSError):
            raise error.__context__ from None  # torch's zip writer hides it behind "unexpected pos"
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable; some network file systems cannot, and lose at most the newest
    checkpoint."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _read(path: Path, what: str):
    """What torch.save wrote, tensors on the CPU; no code is run. what: "checkpoint", or another kind of
    file."""
    try:
        if damaged := _damaged(path):
            raise ValueError(f"{damaged} in it is not what was written")
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, MemoryError):
        raise  # the machine's trouble, not the file's
    except Exception as error:  # a damaged file raises nearly anything
        lines = str(error).splitlines() or [type(error).__name__]
        # torch's first line advises to load what may run code; its reason stands below.
        marks = ("WeightsUnpickler error", "Trying to load unsupported")
        reason = next((line for line in lines if any(mark in line for mark in marks)), lines[0]).strip()
        if "weights_only" in reason:
            reason = "it holds more than plain values and tensors"
        raise UserError(f"{path} is no readable {what} ({reason}): move it away, or name another") from error


def _damaged(path: Path) -> str | None:
    """The part whose checksum is wrong: torch.load looks at none, and its older files have none."""
    if not zipfile.is_zipfile(path):
        return None
    try:
        with zipfile.ZipFile(path) as file:
            return file.testzip()
    except OSError as error:
        if error.errno == errno.EINVAL:  # it points outside itself
            return "the list of parts"
        raise


def load(path: Path) -> dict:
    """The state that `save` wrote, tensors on the CPU. A foreign or damaged file is refused with its name."""
    state = _read(path, "checkpoint")
    found = state.get("format") if isinstance(state, dict) else None
    if type(found) is not int:
        raise UserError(f"{path} is no checkpoint of ours (no format number): move it away to start anew")
    if found > FORMAT:
        raise UserError(
            f"{path} has checkpoint format {found}, this adabatch reads up to {FORMAT}: use a newer adabatch"
        )
    return state


def to_bytes(state: dict) -> bytes:
    """A loaded state for another process of the same run."""
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


def from_bytes(data: bytes) -> dict:
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def fit(model, weights: dict, what: str, but: tuple = ()) -> None:
    """Load weights by name into a network; names or shapes that do not fit are listed. but: names that stay
    as they are, whatever the weights have of them."""
    own = {name: tensor for name, tensor in model.state_dict().items() if name not in but}
    weights = {name: tensor for name, tensor in weights.items() if name not in but}
    problems = [f"missing {name}" for name in own if name not in weights]
    problems += [f"unknown {name}" for name in weights if name not in own]
    problems += [
        f"{name} is {list(weights[name].shape)}, the network has {list(own[name].shape)}"
        for name in own
        if name in weights and weights[name].shape != own[name].shape
    ]
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise UserError(f"{what} does not fit this network: {'; '.join(problems[:5])}{more}")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(weights[name])


LAST = ("weights.pt", "checkpoint.pt")


def weights_of(path: Path, names: tuple = LAST) -> dict:
    """A plain state_dict from a file: of ours (its network's weights) or anybody's (names -> tensors). names:
    what to look for, in this order, where the path is a run's folder."""
    path = Path(path)
    if path.is_dir():
        found = [path / name for name in names if (path / name).is_file()]
        if not found:
            raise UserError(f"{path} holds none of {', '.join(names)}: it is no run with kept weights")
        path = found[0]
    if not path.is_file():
        raise UserError(f"there is no weights file {path}")
    state = _read(path, "weights file")
    if isinstance(state, dict):
        state = state.get("model", state.get("state_dict", state))
    if not (isinstance(state, dict) and state and all(isinstance(t, torch.Tensor) for t in state.values())):
        raise UserError(f"{path} holds no state_dict (names -> tensors)")
    return state


def sha256(model) -> str:
    """Over all parameters and buffers in state_dict order, as little-endian contiguous bytes on the CPU."""
    digest = hashlib.sha256()
    for tensor in model.state_dict().values():
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
