"""Ranks that come late, twice, never or with other numbers; ranks that fail, die, freeze and leave."""

import os
import signal
import socket
import time
from datetime import timedelta

import pytest
import ranks_run
from ranks_run import Rank, free_port, values, world

BOUND = 60.0  # seconds in which the others end when one rank is gone


def hello(meeting) -> list:
    """Rank 0's word and a sum: the ranks can work together."""
    import torch

    from adabatch.ranks import Ranks

    if meeting.place.rank == 0:
        meeting.say("go")
    word = "go" if meeting.place.rank == 0 else meeting.hear()
    r = Ranks(meeting)
    total = r.reduce(torch.ones(3), flags=[1 + r.rank])
    r.close()
    return [word, total[0]]


def endless(meeting, unlucky=None) -> None:
    """Sums, as training does, until something happens; to the rank `unlucky` it happens after 20."""
    import torch

    from adabatch.ranks import Ranks

    r, vector = Ranks(meeting), torch.ones(300_000)
    print("working", flush=True)
    for count in range(10**9):
        if count == 20 and r.rank == unlucky:
            raise ValueError("unlucky")
        r.reduce(vector.fill_(1), flags=[0])


def stuck(meeting) -> None:
    """Rank 2 fails but its connections stay open; rank 1 does not come to the sum in which rank 0 waits."""
    import torch

    from adabatch.ranks import Ranks

    r = Ranks(meeting)
    r.barrier()  # all connections stand
    meeting.on_lost = lambda error: print(f"told: {error}", flush=True)
    if r.rank == 2:
        meeting.fail("ValueError: unlucky", 1)
    if r.rank > 0:
        time.sleep(60)
    r.reduce(torch.ones(300_000))


def unlucky(meeting) -> None:
    """Fails as soon as rank 0, which keeps the store, has been frozen."""
    print("working", flush=True)
    time.sleep(60 if meeting.place.rank == 0 else 3)
    raise ValueError("unlucky")


def leaving(meeting, delays) -> list:
    """What a rank knows after its own time; it ends when it returns."""
    time.sleep(delays[meeting.place.rank])
    return [meeting.lost]


def staying(meeting, over: str) -> list:
    """The same, until there is a file `over`."""
    print("working", flush=True)
    while not os.path.exists(over):
        time.sleep(0.05)
    return [meeting.lost]


def explained(meeting) -> list:
    """For an error that a lost rank can cause it takes ten seconds to hear of all."""
    found = []
    for error in (
        ValueError("a connection"),
        KeyError("x"),
        RuntimeError("shape mismatch"),
        KeyboardInterrupt(),
    ):
        began = time.monotonic()
        found.append([meeting.explain(error) is error, time.monotonic() - began < 5])
    return found


def silent(meeting) -> str:
    """Rank 0 never says a word."""
    print("working", flush=True)
    if meeting.place.rank == 0:
        time.sleep(60)
    return meeting.hear()


def reached(port: int, seconds: float = 60.0) -> None:
    until = time.monotonic() + seconds
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            assert time.monotonic() < until
            time.sleep(0.05)


def check_lost(ranks, victim: Rank, words: str) -> None:
    for rank in ranks:
        found = rank.end(BOUND)
        assert found["code"] == 1 and found["kind"] == "RankLost", found
        assert found["rank"] == victim.rank and found["error"].startswith(f"{victim.name} {words}"), found[
            "error"
        ]


@pytest.mark.parametrize("victim", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_a_killed_rank_is_named_by_all_others(tmp_path, victim):
    ranks = world(tmp_path, endless, 3)
    for rank in ranks:
        rank.wait_for("working")
    os.kill(ranks[victim].process.pid, signal.SIGKILL)
    check_lost([r for r in ranks if r.rank != victim], ranks[victim], "is gone")


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_frozen_rank_is_named_by_all_others(tmp_path, victim):
    ranks = world(tmp_path, endless, 3, constants={"SILENCE": 5.0})
    try:
        for rank in ranks:
            rank.wait_for("working")
        os.kill(ranks[victim].process.pid, signal.SIGSTOP)
        for rank in ranks:
            if rank.rank != victim:
                found = rank.end(BOUND)
                assert found["code"] == 1 and ranks[victim].name in found["text"], found
    finally:
        ranks[victim].process.kill()


@pytest.mark.slow
def test_a_rank_that_fails_ends_although_the_store_does_not_answer(tmp_path):
    ranks = world(tmp_path, unlucky, 2)
    try:
        for rank in ranks:
            rank.wait_for("working")
        os.kill(ranks[0].process.pid, signal.SIGSTOP)
        found = ranks[1].end(30)
        assert (found["code"], found["kind"], found["error"]) == (1, "ValueError", "unlucky")
    finally:
        ranks[0].process.kill()


@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_fails_tells_the_others_why(tmp_path, victim):
    ranks = world(tmp_path, endless, 3, victim)
    check_lost([r for r in ranks if r.rank != victim], ranks[victim], "failed: ValueError: unlucky")
    assert ranks[victim].end()["error"] == "unlucky"


@pytest.mark.slow
def test_a_rank_that_is_stuck_in_a_sum_is_ended(tmp_path):
    ranks = world(tmp_path, stuck, 3)
    texts = []
    for rank in ranks[:2]:
        found = rank.end(BOUND)
        assert found["code"] == 1 and "value" not in found
        assert f"{ranks[2].name} failed: ValueError: unlucky" in found["text"]
        texts.append(found["text"])
    # Whoever is ended second may notice that the first one's connections broke, and say it itself.
    assert any("told: " in text for text in texts)
    ranks[2].process.kill()


@pytest.mark.slow
def test_a_rank_that_is_told_to_stop_while_it_waits_takes_the_others_with_it(tmp_path):
    """Meanwhile they saw that all are there, and wait for it in the first sum: no rank is lost."""
    port = free_port()
    first = Rank(tmp_path, endless, 0, 3, port)
    reached(port)  # so that what rank 2 waits for is rank 1
    told = Rank(tmp_path, endless, 2, 3, port, told=[2, 6.0])
    last = Rank(tmp_path, endless, 1, 3, port, delay=3.0)
    assert told.end()["kind"] == "Interrupted"
    for rank in (first, last):
        found = rank.end(BOUND)
        stopped = (found.get("kind"), found.get("error")) == ("Interrupted", "SIGTERM")
        assert stopped or found["code"] == 130, found


@pytest.mark.parametrize("delays", [[0, 3, 0], pytest.param([3, 0, 0], marks=pytest.mark.slow)])
def test_ranks_may_leave_one_after_another(tmp_path, delays):
    assert values(world(tmp_path, leaving, 3, delays)) == [[None]] * 3


def test_an_error_that_no_other_rank_can_cause_is_not_looked_into(tmp_path):
    assert values(world(tmp_path, explained, 2)) == [[[True, True]] * 4] * 2


def test_rank_0_gone_before_its_word(tmp_path):
    ranks = world(tmp_path, silent, 2)
    for rank in ranks:
        rank.wait_for("working")
    os.kill(ranks[0].process.pid, signal.SIGKILL)
    check_lost(ranks[1:], ranks[0], "is gone")


def test_a_rank_that_comes_late(tmp_path):
    port, said = free_port(), {"constants": {"NEWS": 1.0}}
    last = Rank(tmp_path, hello, 2, 3, port, **said)
    last.wait_for("rank 2 waits for rank 0's store at")
    first = Rank(tmp_path, hello, 0, 3, port, **said)
    first.wait_for("rank 0 waits for rank")  # 1, or 1 and 2
    assert values([first, Rank(tmp_path, hello, 1, 3, port), last]) == [["go", 6.0]] * 3


def test_a_rank_that_never_comes(tmp_path):
    port = free_port()
    ranks = [Rank(tmp_path, hello, rank, 4, port, patience=3.0) for rank in (0, 2)]
    for rank in ranks:
        found = rank.end(20)
        assert (
            found["kind"] == "UserError" and "waited 3 s in vain for ranks 1, 3. All ranks" in found["error"]
        )
        assert "WORLD_SIZE" in found["error"] and "hardware.join_timeout" in found["error"]


def test_no_rank_0(tmp_path):
    """Also where something else listens at the port and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as mute:
        ports = [free_port(), mute.getsockname()[1]]
        ranks = [Rank(tmp_path, hello, 1, 2, port, patience=3.0) for port in ports]
        for rank, port, word in zip(ranks, ports, ["refused", "nobody answers"]):
            found = rank.end(20)
            assert found["kind"] == "UserError" and f"rank 0's store at 127.0.0.1:{port}" in found["error"]
            assert word in found["error"] and "MASTER_PORT" in found["error"]
            assert "frame #" not in found["text"]  # torch's C++ stacks


def test_a_port_in_use(tmp_path):
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        found = Rank(tmp_path, hello, 0, 2, port).end(20)
    assert found["kind"] == "UserError"
    for word in (f"port {port} of {socket.gethostname()}", "another program", "MASTER_PORT", "ss -ltnp"):
        assert word in found["error"]


def test_a_second_process_of_one_rank(tmp_path):
    port, over = free_port(), tmp_path / "over"
    ranks = [Rank(tmp_path, staying, rank, 2, port, (str(over),)) for rank in (0, 1)]
    for rank in ranks:
        rank.wait_for("working")
    second = Rank(tmp_path, staying, 1, 2, port, (str(over),))
    found = second.end(20)
    over.touch()
    assert found["kind"] == "UserError" and "two processes are rank 1 of one run" in found["error"]
    for rank in (ranks[1], second):
        assert f"process {rank.process.pid} on" in found["error"]
    assert values(ranks) == [[None]] * 2  # the first are not disturbed


@pytest.mark.parametrize("delays", [[0, 1], [1, 0]])
def test_a_wrong_world_size(tmp_path, delays):
    port = free_port()
    ranks = [
        Rank(tmp_path, hello, 0, 2, port, delay=delays[0]),
        Rank(tmp_path, hello, 1, 3, port, delay=delays[1]),
    ]
    for rank in ranks:
        found = rank.end(20)
        assert found["kind"] == "UserError" and "WORLD_SIZE must be the same" in found["error"], found
        for own, size in zip(ranks, (2, 3)):
            assert f"{own.name} has {size}" in found["error"]


def test_a_socket_that_the_parent_opened(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        ranks = [
            Rank(
                tmp_path,
                hello,
                rank,
                2,
                port,
                kind="local",
                delay=1.0 - rank,
                **{"listening": listening} if not rank else {},
            )
            for rank in range(2)
        ]
        values(ranks)


def twice(meeting) -> list:
    from adabatch.meeting import Meeting

    first = hello(meeting)
    meeting.leave()
    second = Meeting(meeting.place, 20.0)
    found = [first, hello(second)]
    second.leave()
    return found


def test_one_run_after_another_in_the_same_processes(tmp_path):
    assert values(world(tmp_path, twice, 2)) == [[["go", 3.0]] * 2] * 2


def test_the_next_run_may_come_while_the_last_is_leaving(tmp_path):
    port = free_port()
    last = [Rank(tmp_path, leaving, rank, 3, port, ([0, 0, 3],)) for rank in range(3)]
    last[1].end(30)
    early = Rank(tmp_path, hello, 1, 3, port)  # finds rank 0 of the last run, which waits for rank 2
    values(last)
    assert values([early, *(Rank(tmp_path, hello, rank, 3, port) for rank in (0, 2))]) == [["go", 6.0]] * 3


def test_torchruns_own_store_and_two_runs_in_it(tmp_path):
    from torch.distributed import TCPStore

    store = TCPStore("127.0.0.1", 0, None, True, timedelta(seconds=30), wait_for_workers=False)
    for restart in ("0", "0", "1"):
        environment = {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": restart}
        ranks = [Rank(tmp_path, hello, rank, 2, store.port, environment=environment) for rank in range(2)]
        assert values(ranks) == [["go", 3.0]] * 2


def test_a_reason_to_stop_ends_the_waiting(monkeypatch):
    from adabatch.errors import Interrupted
    from adabatch.meeting import Meeting
    from adabatch.places import Place

    reasons = iter([None, None, "SIGTERM"])
    with pytest.raises(Interrupted, match="SIGTERM"):
        Meeting(Place("torchrun", 1, 2, 1, 2, "127.0.0.1", free_port()), 60.0, lambda: next(reasons))


def test_what_a_broken_connection_can_cause():
    from torch.distributed import DistBackendError, DistStoreError

    from adabatch.watch import breaks

    said = "[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.1.1]:4302"
    for error in (
        RuntimeError(said),
        DistBackendError("x"),
        DistStoreError("x"),
        ConnectionResetError("peer"),
    ):
        assert breaks(error)
    for error in (ValueError(said), RuntimeError("size mismatch"), KeyError("peer"), OSError("disk full")):
        assert not breaks(error)


def test_the_ranks_run_of_these_tests_sees_failures(tmp_path):
    with pytest.raises(AssertionError, match="nothing to say"):
        values([Rank(tmp_path, ranks_run.fails, 0, 1, free_port())])
