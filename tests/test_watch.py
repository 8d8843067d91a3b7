"""Who judges that a rank is gone reads the rank's last words first, however the two threads interleave."""

import time
from types import SimpleNamespace

import pytest

from adabatch import watch

RANK_1 = {"pid": 7, "host": "here", "started": 1.0, "near": True}


@pytest.fixture
def judge(monkeypatch):
    """Rank 0's Watch of two ranks; its threads end at once, the tests take their turns."""
    monkeypatch.setattr(watch.Watch, "_beat", lambda self: None)
    monkeypatch.setattr(watch.Watch, "_judge", lambda self: None)
    meeting = SimpleNamespace(
        place=SimpleNamespace(rank=0, world=2),
        who={1: RANK_1},
        name=lambda rank: f"rank {rank} (process 7 on here)",
        agent=False,
    )
    found = watch.Watch(meeting)
    yield found
    found.stop()


def look(judge, monkeypatch, during=lambda: None, alive=False) -> dict | None:
    """What the judge knows after a look; `during` happens while it asks whether rank 1's process is there."""

    def started(pid: int) -> float | None:
        during()
        return RANK_1["started"] if alive else None

    monkeypatch.setattr(watch, "started", started)
    judge._look(time.monotonic())
    return judge.lost


def test_a_rank_whose_leaving_is_read_during_the_look_is_not_lost(judge, monkeypatch):
    assert look(judge, monkeypatch) is None  # missed, its last words not read yet

    def turn() -> None:  # the other thread reads the store: rank 1 has left
        judge._left.add(1)
        judge._asked = judge._read = time.monotonic()

    assert look(judge, monkeypatch, turn) is None
    assert look(judge, monkeypatch) is None


def test_a_rank_that_left_after_the_store_was_read_is_not_lost(judge, monkeypatch):
    def turn() -> None:  # after the look began, and before rank 1 said that it leaves and ended
        judge._asked = judge._read = time.monotonic()

    assert look(judge, monkeypatch, turn) is None
    assert look(judge, monkeypatch) is None  # the next look still has only that reading
    judge._left.add(1)
    judge._asked = judge._read = time.monotonic()
    assert look(judge, monkeypatch) is None


def test_a_rank_that_ended_without_a_word_is_lost_once_the_store_was_read(judge, monkeypatch):
    assert look(judge, monkeypatch) is None
    judge._asked = judge._read = time.monotonic()
    found = look(judge, monkeypatch)
    assert found == {"rank": 1, "message": "rank 1 (process 7 on here) is gone: killed, or out of memory?"}


def test_a_hold_up_of_ones_own_is_no_reading_of_the_store(judge, monkeypatch):
    assert look(judge, monkeypatch) is None  # missed
    judge._forgive(20.0)
    assert look(judge, monkeypatch) is None


def test_a_rank_that_is_there_is_not_lost(judge, monkeypatch):
    judge._asked = judge._read = time.monotonic()
    assert look(judge, monkeypatch, alive=True) is None


@pytest.mark.parametrize("rank, near, away", [(1, False, True), (1, True, False), (0, False, False)])
def test_only_a_silent_host_that_is_not_the_first_is_away(judge, monkeypatch, rank, near, away):
    judge.rank, judge.meeting.who = 1 - rank, {rank: RANK_1 | {"near": near}}
    judge._seen = {rank: (b"7", time.monotonic() - watch.SILENCE - 1)}
    found = look(judge, monkeypatch, alive=True)
    assert found["rank"] == rank and "silent" in found["message"]
    assert watch.failure(found).away is away
