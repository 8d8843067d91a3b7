"""Decoded files: mapped when whole, made again when not, made once by six processes, never needed."""

import errno
import hashlib
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from adabatch.data import cache
from adabatch.published import Source

PROJECT = Path(cache.__file__).parents[2]


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """No test reads or fills the user's own ~/.cache."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def one_file(tmp_path):
    """load(cache, decode) of a dataset that is one file holding the bytes 0..99."""
    root = tmp_path / "root"
    root.mkdir()
    (root / "source").write_bytes(bytes(range(100)))
    table = [Source("source", 100, hashlib.md5(bytes(range(100))).hexdigest())]
    calls = []

    def decode(where):
        calls.append(where)
        return {"inputs": np.fromfile(where / "source", np.uint8).reshape(10, 10), "labels": np.arange(10)}

    def load(folder=None):
        arrays = cache.load("one", root, table, decode, folder)
        assert arrays["inputs"].flatten().tolist() == list(range(100)) and arrays["labels"].tolist() == [
            *range(10)
        ]
        return arrays

    load.root, load.calls = root, calls
    return load


def test_the_second_start_maps_what_the_first_decoded(one_file, tmp_path):
    for _ in range(2):
        arrays = one_file(tmp_path / "cache")
        assert isinstance(arrays["inputs"], np.memmap)
    assert len(one_file.calls) == 1
    arrays["inputs"][:] = 0  # the mapping is private
    one_file(tmp_path / "cache")
    one_file(False)
    assert len(one_file.calls) == 2


def test_a_damaged_decoded_file_is_made_again(one_file, tmp_path):
    one_file(tmp_path)
    (path,) = tmp_path.glob("*.bin")
    whole = path.read_bytes()
    lengths = [0, 5, 70, 128, 300, len(whole) - len(cache.END), len(whole) - 1]
    for number, length in enumerate(lengths, start=2):
        path.write_bytes(whole[:length])
        one_file(tmp_path)
        assert len(one_file.calls) == number and path.read_bytes() == whole
    for at in (0, 60, 140, len(whole) - 1):  # magic, shape, header, end mark
        path.write_bytes(whole[:at] + b"\xff" + whole[at + 1 :])
        one_file(tmp_path)
        assert path.read_bytes() == whole


def test_what_a_killed_writer_left_is_removed(one_file, tmp_path):
    one_file(tmp_path)
    (path,) = tmp_path.glob("*.bin")
    left = Path(f"{path}.123.tmp")
    left.write_bytes(path.read_bytes()[:200])
    path.unlink()
    one_file(tmp_path)
    assert not left.exists() and path.exists()


def test_a_full_disk_is_a_warning(one_file, tmp_path, monkeypatch, caplog):
    def fsync(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    with caplog.at_level(logging.WARNING, "adabatch"):
        one_file(tmp_path / "cache")
    assert "No space left" in caplog.text and str(tmp_path / "cache") in caplog.text
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".lock"]


def test_a_cache_folder_that_cannot_be_written_is_a_warning(one_file, tmp_path, caplog):
    (tmp_path / "file").write_text("")  # not even root can make a folder of this
    with caplog.at_level(logging.WARNING, "adabatch"):
        one_file(tmp_path / "file")
    assert str(tmp_path / "file") in caplog.text and len(one_file.calls) == 1


def test_the_default_folder_is_beside_the_data_else_below_home(one_file, home, caplog):
    one_file()
    assert len(list((one_file.root / ".adabatch-cache").glob("one-*.bin"))) == 1
    for path in (one_file.root / ".adabatch-cache").iterdir():
        path.unlink()
    (one_file.root / ".adabatch-cache").rmdir()
    (one_file.root / ".adabatch-cache").write_text("")  # as good as a root that is read-only
    with caplog.at_level(logging.WARNING, "adabatch"):
        one_file()
        one_file()
    assert len(list((home / ".cache" / "adabatch").glob("one-*.bin"))) == 1
    assert len(one_file.calls) == 2 and not caplog.text


STARTER = """
import hashlib, os, pathlib, sys, time
import numpy as np
from adabatch.data import cache
from adabatch.published import Source
root = pathlib.Path(sys.argv[1])
def decode(where):
    with open(where / "decoded", "a") as file:
        file.write(f"{os.getpid()}\\n")
    time.sleep(0.5)  # the others must come meanwhile
    return {"inputs": np.fromfile(where / "source", np.uint8)}
table = [Source("source", 3_000_000, sys.argv[2])]
print("ready", flush=True)
sys.stdin.readline()
print(hashlib.md5(cache.load("six", root, table, decode)["inputs"].tobytes()).hexdigest())
assert "torch" not in sys.modules
"""


def test_six_simultaneous_first_starts_decode_once(tmp_path):
    data = np.random.default_rng(0).integers(0, 256, 3_000_000, dtype=np.uint8).tobytes()
    (tmp_path / "source").write_bytes(data)
    md5 = hashlib.md5(data).hexdigest()
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    command = [sys.executable, "-c", STARTER, str(tmp_path), md5]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    starters = [subprocess.Popen(command, env=environment, **pipes) for _ in range(6)]
    assert [starter.stdout.readline() for starter in starters] == ["ready\n"] * 6
    for starter in starters:
        starter.stdin.write("\n")
        starter.stdin.flush()
    assert [starter.communicate(timeout=60)[0].strip() for starter in starters] == [md5] * 6
    assert [starter.returncode for starter in starters] == [0] * 6
    assert len((tmp_path / "decoded").read_text().split()) == 1
