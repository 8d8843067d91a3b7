"""Source files on disk, checked, and their decoded form: one memory-mapped file per dataset.

A start looks at the size and time of each source (six calls to stat), maps the decoded file and reads
nothing. Only who writes that file pays for MD5 and decoding, under a lock, into a temporary file that is
fsynced and renamed: any number of processes may start at once. The decoded file is never needed: where it
cannot be written (full disk, folder without permission, no locks) the run warns and decodes in memory.

File format: `.npy` arrays one after another in one file: a header (JSON as bytes), the arrays it names, an
end mark. No torch here: whoever waits for the lock should not have paid for importing it.
"""

import contextlib
import hashlib
import json
import logging
import os
from pathlib import Path

import numpy as np

from adabatch.errors import UserError
from adabatch.published import find_fault, unusable

FORMAT = 1  # of the decoded file and of what decoders make; part of its name: another format is another file
END = np.frombuffer(b"end of adabatch cache", dtype=np.uint8)
LOCK_SECONDS = 900  # longer than any decoding: who waits longer goes on without the cache
log = logging.getLogger("adabatch")


def load(name: str, root: Path, sources, decode, cache=None, fetch=None) -> dict:
    """The arrays of dataset `name`, memory-mapped (copy-on-write) where the decoded file could be kept.

    sources: the Source files below `root`; decode(root) -> {name: array}, called only after all MD5s agreed;
    cache: the folder of decoded files, None for the default (see `folders`), False for none;
    fetch(root): downloads the sources, None where that is not allowed.
    Raises UserError for a source that is missing, truncated or corrupt and was not downloaded.
    """
    ensure(name, root, sources, fetch, md5=False)
    filename = f"{name}-{_key(sources)}.bin"
    places = folders(root, cache)
    for folder in places:
        arrays = _read(folder / filename, root, sources)
        if arrays is not None:
            return arrays
    for folder in places:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = _acquire(folder / f"{filename}.lock")
        except (OSError, NotImplementedError) as error:  # a lock that times out is an OSError too
            log.info("no decoded copy of dataset %s in %s: %s", name, folder, error)
            continue
        with lock:
            arrays = _read(folder / filename, root, sources)
            return _build(name, folder / filename, root, sources, decode, fetch) if arrays is None else arrays
    if places:
        where = " nor ".join(map(str, places))
        log.warning("cannot keep the decoded dataset %s in %s: it is decoded at each start", name, where)
    ensure(name, root, sources, fetch, md5=True)
    return decode(root)


def folders(root: Path, cache=None) -> list:
    """Where decoded files are looked for and, in this order, written. cache: see `load`."""
    if cache is False:
        return []
    if cache not in (None, True):
        return [Path(cache).expanduser()]
    return [root / ".adabatch-cache", Path("~/.cache/adabatch").expanduser()]


def ensure(name: str, root: Path, sources, fetch, md5: bool) -> None:
    """Check sizes (and MD5s); sources that fail are downloaded if `fetch` is given, else a UserError."""
    fault = find_fault(root, sources, md5)
    if fault and fetch:
        _download(name, root, sources, fetch)
        fault = find_fault(root, sources, md5=True)
    if fault:
        raise unusable(name, fault, sources, fetched=bool(fetch))


def _key(sources) -> str:
    """12 hex digits for what the decoded file is made from and how."""
    text = json.dumps([FORMAT, [[s.path, s.size, s.md5] for s in sources]])
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _acquire(path: Path):
    """A lock between processes, held until its `with` ends; the kernel frees it when its owner dies."""
    import filelock  # 30 ms, and only for whoever writes

    return filelock.FileLock(str(path)).acquire(timeout=LOCK_SECONDS)


def _download(name: str, root: Path, sources, fetch) -> None:
    """Call fetch(root) once however many processes ask; a file that is there but wrong is kept aside."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _acquire(root / ".adabatch-download.lock"):
            if find_fault(root, sources, md5=True) is None:
                return  # another process has just downloaded them
            for source in sources:
                path = root / source.path
                if path.exists() and find_fault(root, [source], md5=True):
                    log.warning("%s is not as published; kept as %s.corrupt", path, path.name)
                    os.replace(path, f"{path}.corrupt")  # torchvision trusts some files because they exist
            fetch(root)
    except Exception as error:  # network, disk, archive: whatever a download raises is one message
        raise UserError(
            f"dataset {name}: the download to {root} failed: {type(error).__name__}: {error}. "
            "What to do: repeat where there is a network, or copy the files by hand and name their folder by "
            "dataset.root=FOLDER or $ADABATCH_DATA"
        ) from error


def _stamps(root: Path, sources) -> list:
    states = [os.stat(root / source.path) for source in sources]
    return [[state.st_size, state.st_mtime_ns] for state in states]


def _build(name, path: Path, root: Path, sources, decode, fetch) -> dict:
    """Decode, and keep the result at `path` (the lock is held); mapped where that worked, else in memory."""
    ensure(name, root, sources, fetch, md5=True)
    stamps = _stamps(root, sources)
    arrays = decode(root)
    try:
        for left in path.parent.glob(f"{path.name}.*.tmp"):  # its writer was killed: we hold the lock
            left.unlink()
        _write(path, arrays, stamps)
    except OSError as error:
        log.warning(
            "cannot keep the decoded dataset %s in %s: %s; going on without", name, path.parent, error
        )
        return arrays
    mapped = _read(path, root, sources)
    return arrays if mapped is None else mapped


def _write(path: Path, arrays: dict, stamps) -> None:
    temporary = Path(f"{path}.{os.getpid()}.tmp")
    header = json.dumps({"format": FORMAT, "names": list(arrays), "stamps": stamps}).encode()
    try:
        with open(temporary, "wb") as file:
            for array in [np.frombuffer(header, dtype=np.uint8), *arrays.values(), END]:
                array = np.ascontiguousarray(array)
                np.lib.format.write_array(file, array, version=(1, 0), allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def _read(path: Path, root: Path, sources) -> dict | None:
    """The arrays of a decoded file; None where it is absent, truncated or made from other sources.

    Sources with another time than when they were decoded are checked by MD5; the decoded file is kept if they
    are the same, since replacing it could pull the pages from under a run on another machine.
    """
    try:
        with open(path, "rb") as file:
            header = json.loads(_map(file).tobytes())
            if header["format"] != FORMAT:
                return None
            arrays = {name: _map(file) for name in header["names"]}
            if not np.array_equal(_map(file), END):
                return None
        if header["stamps"] != _stamps(root, sources) and find_fault(root, sources, md5=True):
            return None
        return arrays
    except FileNotFoundError:
        return None
    except (
        Exception
    ) as error:  # NumPy reads a header by parsing Python, so a damaged one raises almost anything
        log.info("decoded file %s is not whole (%s); decoding again", path, error)
        return None


def _map(file) -> np.ndarray:
    """The `.npy` array at the file's position, mapped copy-on-write as torch likes it; moves past it."""
    version = np.lib.format.read_magic(file)
    if version != (1, 0):
        raise ValueError(f"array format {version}")
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    if dtype.hasobject:
        raise ValueError("an array of objects")
    start = file.tell()
    array = np.memmap(file, dtype=dtype, mode="c", offset=start, shape=shape)  # ValueError beyond the end
    file.seek(start + array.nbytes)
    return array
