"""metrics.jsonl survives kills, full disks and torn lines, and holds exactly the rows that were logged."""

import errno
import json
import math
import os

import pytest

from adabatch.errors import UserError
from adabatch.trackers import jsonl as jsonl_module
from adabatch.trackers.jsonl import Jsonl


def row(step: int, **more) -> dict:
    return {"event": "train", "position": 32 * step, "step": step, "train_loss": 1 / (step + 1), **more}


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def file(tmp_path):
    return Jsonl(tmp_path / "metrics.jsonl")


def test_rows_are_json_lines_in_order_and_counted(file):
    file.resume(0, 0)
    for step in range(5):
        file.log(row(step))
    assert file.rows == 5
    file.sync()
    assert lines(file.path) == [row(step) for step in range(5)]
    file.log(row(5))
    file.close(0)
    assert [line["step"] for line in lines(file.path)] == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    "given, stored",
    [
        (math.nan, "null"),
        (math.inf, "null"),
        (-math.inf, "null"),
        (0.1, "0.1"),
        (True, "true"),
        (None, "null"),
        ([1, math.nan], "[1, null]"),
        ((1, 2), "[1, 2]"),
        ({"lr": [0.1, math.inf]}, '{"lr": [0.1, null]}'),
        ("two\nlines", '"two\\nlines"'),
        (2**70, "1180591620717411303424"),
    ],
)
def test_values(file, given, stored):
    file.resume(0, 0)
    file.log({"value": given})
    file.sync()
    assert file.path.read_text() == f'{{"value": {stored}}}\n'


def test_numbers_of_array_libraries_become_plain(file):
    import numpy

    file.resume(0, 0)
    given = [numpy.float32(0.5), numpy.int64(3), numpy.float64("nan"), numpy.bool_(True)]
    file.log(dict(zip("abcd", given, strict=True)))
    file.sync()
    assert lines(file.path) == [{"a": 0.5, "b": 3, "c": None, "d": True}]


def test_what_is_no_number_is_refused(file):
    file.resume(0, 0)
    with pytest.raises(TypeError, match="not object"):
        file.log({"a": object()})


def test_a_row_changed_after_logging_is_stored_as_it_was(file):
    file.resume(0, 0)
    shared = row(1)
    file.log(shared)
    shared["step"] = 99
    file.sync()
    assert lines(file.path)[0]["step"] == 1


def test_rows_wait_in_memory_until_sync(file, monkeypatch):
    file.resume(0, 0)
    file.log(row(1))
    assert file.path.read_text() == ""
    monkeypatch.setattr(jsonl_module.time, "monotonic", lambda: file._last + file.every + 1)
    file.log(row(2))
    assert [line["step"] for line in lines(file.path)] == [1, 2]  # written to be watched, without an fsync
    file.log(row(3))
    file.sync()
    assert [line["step"] for line in lines(file.path)] == [1, 2, 3]


@pytest.mark.parametrize("tail", ["", '{"event": "tra', '{"event": "train"}\n{"torn'])
@pytest.mark.parametrize("keep", [0, 1, 3])
def test_resume_keeps_exactly_the_rows_before_the_checkpoint(file, tail, keep):
    file.path.write_text("".join(json.dumps(row(step)) + "\n" for step in range(3)) + tail)
    file.resume(32 * keep, keep)
    assert file.rows == keep
    assert file.path.read_text() == "".join(json.dumps(row(step)) + "\n" for step in range(keep))
    file.log(row(7))
    file.sync()
    assert [line["step"] for line in lines(file.path)] == [*range(keep), 7] and file.rows == keep + 1


def test_resume_counts_lines_across_chunks(file, monkeypatch):
    text = "".join(json.dumps(row(step)) + "\n" for step in range(40))
    expected = "".join(text.splitlines(keepends=True)[:23])
    for chunk in (1, 7, len(expected), len(expected) + 1):  # borders inside, at and after a line's end
        monkeypatch.setattr(jsonl_module, "CHUNK", chunk)
        file.path.write_text(text)
        file.resume(1, 23)
        assert file.path.read_text() == expected


@pytest.mark.parametrize("text", [None, "", '{"step": 0}\n', '{"step": 0}\n{"step": 1}'])
def test_fewer_rows_than_the_checkpoint_counted_is_the_users_problem(file, text):
    if text is not None:
        file.path.write_text(text)
    with pytest.raises(UserError, match=r"the 2 rows .* position 64, and holds [01]: .*restart=true"):
        file.resume(64, 2)
    assert (file.path.read_text() if text is not None else None) == text, "a refusal must not touch the file"


def full_disk(room: int):
    """os.pwrite on a disk that has `room` bytes left: writes what fits, then raises ENOSPC."""
    left = [room]
    real = os.pwrite

    def pwrite(file, data, offset):
        if left[0] == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        done = real(file, bytes(data)[: left[0]], offset)
        left[0] -= done
        return done

    return pwrite


@pytest.mark.parametrize("room", [0, 1, 40, 130])
def test_a_full_disk_loses_nothing(file, monkeypatch, room):
    file.resume(0, 0)
    file.log(row(0))
    file.sync()
    before = file.path.read_bytes()
    for step in range(1, 5):
        file.log(row(step))
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full_disk(room))
        for _ in range(2):
            with pytest.raises(OSError, match="No space left"):
                file.sync()
            assert file.path.read_bytes() == before, "a line cut in two was left behind"
        file._last -= file.every + 1
        file.log(row(5))  # writing in between fails silently: only sync may stop a run
    assert file.rows == 6
    file.sync()
    assert [line["step"] for line in lines(file.path)] == [0, 1, 2, 3, 4, 5]


def test_rows_whose_fsync_failed_are_written_again(file, monkeypatch):
    file.resume(0, 0)
    file.log(row(0))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: (_ for _ in ()).throw(OSError(errno.EIO, "lost")))
        with pytest.raises(OSError, match="lost"):
            file.sync()
    os.truncate(file.path, 0)  # the system dropped the pages that it could not write
    file.sync()
    assert lines(file.path) == [row(0)]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_dev_full_raises_from_sync(tmp_path):
    target = tmp_path / "metrics.jsonl"
    file = Jsonl(target)
    file.resume(0, 0)
    file.log(row(0))
    target.unlink()
    target.symlink_to("/dev/full")
    with pytest.raises(OSError):
        file.sync()


def test_sync_reaches_the_disk(file, monkeypatch):
    synced = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (synced.append(os.fstat(file).st_size), real(file)))
    file.resume(0, 0)
    file.log(row(0))
    synced.clear()
    file.sync()
    assert synced == [file.path.stat().st_size] and synced[0] > 0
    file.sync()
    assert len(synced) == 1, "nothing new, nothing to wait for"
