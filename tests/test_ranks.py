"""Sums, hashes and bytes between ranks, in real processes on this machine."""

import hashlib
import os

import pytest
import ranks_run
import torch

from adabatch import ranks
from adabatch.ranks import Alone, Ranks, digests

SIZES = [(), (1,), (2,), (3,), (5, 7), (0,), (1000,), (262_143,), (300_007,)]


def sha(tensors) -> str:
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(tensor.contiguous().numpy().tobytes())
    return found.hexdigest()


def own(rank: int, dtype=torch.float32) -> list:
    """Random tensors of many sizes; another rank's are others."""
    generator = torch.Generator().manual_seed(100 + rank)
    return [torch.randn(size, generator=generator, dtype=torch.float64).to(dtype) for size in SIZES]


def counted(monkey_calls: list):
    """torch.distributed's calls are written into the list from now on."""
    import torch.distributed as dist

    for name in ("all_reduce", "broadcast", "all_gather"):
        real = getattr(dist, name)

        def call(tensor, *rest, real=real, name=name, **named):
            monkey_calls.append((name, getattr(tensor, "numel", lambda: 0)()))
            return real(tensor, *rest, **named)

        setattr(dist, name, call)


def sums(meeting) -> dict:
    r, calls = Ranks(meeting), []
    counted(calls)
    found = {"sha": {}, "error": {}}
    for dtype in (torch.float32, torch.float64, torch.int64):
        tensors = own(r.rank, dtype)
        flags = r.reduce(*tensors, flags=[1, r.rank, 0.5])
        assert flags == [r.world, sum(range(r.world)), 0.5 * r.world], flags
        everyone = [own(rank, dtype) for rank in range(r.world)]
        exact = [sum(parts[i].double() for parts in everyone) for i in range(len(SIZES))]
        found["error"][str(dtype)] = max(
            float((t.double() - e).abs().max()) for t, e in zip(tensors, exact) if t.numel()
        )
        found["sha"][str(dtype)] = sha(tensors)
    # Not contiguous, large and small: summed where they lie all the same.
    large, small = torch.ones(3000, 400).t(), torch.ones(4, 6)[:, ::2]
    r.reduce(large, small)
    assert bool((large == r.world).all()) and bool((small == r.world).all())
    # A parameter, as a user's own code may hand it over.
    weight = torch.nn.Parameter(torch.ones(3))
    r.reduce(weight)
    assert weight.tolist() == [r.world] * 3 and weight.requires_grad
    calls.clear()
    found["counts"] = {}
    step = [torch.ones(500_000), torch.ones(40, dtype=torch.float64), torch.ones((), dtype=torch.float64)]
    for name, tensors, flags in [
        ("gradients, float64 statistics, flags", step, [1, 0]),
        ("and small float32", [*step, torch.ones(7), torch.ones(8, 3)], [1]),
        ("flags alone", [], [1]),
        ("nothing", [torch.ones(0)], []),
        ("one small", [torch.ones(7)], []),
    ]:
        r.reduce(*tensors, flags=flags)
        found["counts"][name] = [size for _, size in calls]
        calls.clear()
    # Where it lies: a tensor of its own pack, large or small, is handed to the backend itself.
    handed, start = [], r.start
    r.start = lambda tensor: handed.append(tensor.data_ptr()) or start(tensor)
    one, two = torch.ones(500_000), torch.ones(7, dtype=torch.float64)
    r.reduce(one, two)
    assert handed == [one.data_ptr(), two.data_ptr()]
    r.close()
    return found


def others(meeting) -> dict:
    """Everything but sums."""
    r, calls, found = Ranks(meeting), [], {}
    assert "GLOO_SOCKET_IFNAME" not in os.environ
    counted(calls)
    part = torch.full((1000,), float(r.rank))
    work = r.start(part)
    work.wait()
    assert part.tolist() == [sum(range(r.world))] * 1000
    for dtype in (torch.float32, torch.int64, torch.uint8):
        got = r.gather((torch.arange(6).reshape(2, 3) + 10 * r.rank).to(dtype).t())
        assert [t.tolist() for t in got] == [
            [[0 + k, 3 + k], [1 + k, 4 + k], [2 + k, 5 + k]] for k in range(0, 10 * r.world, 10)
        ]
    for source in range(r.world):
        t = torch.full((3,), r.rank, dtype=torch.float64)
        r.broadcast(t, source)
        assert t.tolist() == [source] * 3
    edge = [-(2**63), 2**63 - 1, r.rank - 1, -r.rank]
    assert r.spread(edge) == ([*edge[:2], -1, 1 - r.world], [*edge[:2], r.world - 2, 0])
    assert r.spread([]) == ([], [])
    for data in (b"", b"x", bytes(range(256)) * 5):
        ranks.PIECE = 1000  # 1,280 bytes go in two pieces
        assert r.share(data if r.rank == 0 else None) == data
    calls.clear()
    named = [(f"layer{i}", t) for i, t in enumerate(own(0))]
    r.same(named)
    found["calls of same"] = list(calls)
    found["differ"] = []
    for rank, index in ((r.world - 1, 4), (0, 8)):
        changed = [(name, t.clone()) for name, t in named]
        if r.rank == rank:
            changed[index][1].view(-1)[-1] += 1e-6
            changed[8][1][-1] += 1
        found["differ"].append(error(lambda changed=changed: r.same(changed)))
    swapped = named[7][1].clone()
    if r.rank == 1:
        swapped[[0, 1]] = swapped[[1, 0]]
    found["swapped"] = error(lambda: r.same([("weight", swapped)]))
    found["shapes"] = error(lambda: r.same(named[: 2 + (r.rank == 0)]))
    r.barrier()
    r.close()
    return found


def error(call) -> str:
    with pytest.raises(RuntimeError) as caught:
        call()
    return str(caught.value)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_sums_have_the_same_bits_on_all_ranks_and_few_collectives(tmp_path, count):
    found = ranks_run.values(ranks_run.world(tmp_path, sums, count))
    assert all(one["sha"] == found[0]["sha"] for one in found)
    assert found[0]["error"]["torch.int64"] == 0
    assert found[0]["error"]["torch.float64"] < 1e-14 and found[0]["error"]["torch.float32"] < 2e-6
    for one in found:
        assert one["counts"] == {
            "gradients, float64 statistics, flags": [500_000, 43],
            "and small float32": [500_000, 42, 31],
            "flags alone": [1],
            "nothing": [],
            "one small": [7],
        }


@pytest.mark.parametrize("count", [2, 3])
def test_gather_spread_share_and_same(tmp_path, count):
    found = ranks_run.values(ranks_run.world(tmp_path, others, count))
    last = count - 1
    for one in found:
        assert one["calls of same"] == [["all_reduce", 4]]  # one collective where all is well
        sides = "rank 0 and rank 1" if count == 2 else "ranks 0, 1 and rank 2"
        assert one["differ"][0].startswith("layer4 has not the same bits") and sides in one["differ"][0], last
        sides = "rank 0 and rank 1" if count == 2 else "rank 0 and ranks 1, 2"
        assert one["differ"][1].startswith("layer8 has not the same bits") and sides in one["differ"][1]
        assert one["swapped"].startswith("weight has not the same bits")
        assert "different tensors" in one["shapes"]


def test_alone_nothing_is_copied_or_changed():
    alone, tensors = Alone(), [torch.randn(5), torch.randn(400_000, dtype=torch.float64)]
    before = [(t.data_ptr(), t._version, t.clone()) for t in tensors]
    assert alone.reduce(*tensors, flags=[True, 0.5]) == [1.0, 0.5]
    alone.start(tensors[0]).wait()
    alone.broadcast(tensors[0], 0)
    alone.same([("a", tensors[0])])
    assert [(t.data_ptr(), t._version) for t in tensors] == [b[:2] for b in before]
    assert all(torch.equal(t, b[2]) for t, b in zip(tensors, before))
    assert alone.gather(tensors[0])[0] is tensors[0]
    assert alone.spread([3, -(2**63)]) == ([3, -(2**63)], [3, -(2**63)])
    assert alone.share(b"data") == b"data"
    alone.barrier()
    alone.close()
    assert (alone.rank, alone.world, alone.local) == (0, 1, 0)


def test_both_have_one_interface():
    def public(kind):
        return {name for name in vars(kind) if not name.startswith("_")}

    assert public(Ranks) <= public(Alone) == public(Ranks) | {"rank", "world", "local"}


DTYPES = (
    torch.float64,
    torch.float32,
    torch.bfloat16,
    torch.int64,
    torch.uint8,
    torch.bool,
    torch.complex128,
)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_digest_sees_every_bit_and_every_place(dtype):
    # Zeros, ones and twos: bit patterns with long runs of zeros, which a weighted sum modulo 2^64 confuses.
    base = torch.tensor([0, 1, 1, 0, 2, 0, 1, 0] * 6).to(dtype)
    found = {}
    for i in range(len(base)):
        for j in range(i):
            if base[i] != base[j]:
                swapped = base.clone()
                swapped[[i, j]] = swapped[[j, i]]
                found.setdefault(swapped.view(torch.uint8).numpy().tobytes(), swapped)
    raw = base.clone().view(torch.uint8)
    for bit in range(8 * len(raw) if dtype != torch.bool else 0):
        flipped = raw.clone()
        flipped[bit // 8] ^= 1 << bit % 8
        found.setdefault(flipped.numpy().tobytes(), flipped.view(dtype))
    values = digests([base, *found.values()])
    assert len(set(values)) == len(values) > 350


def test_a_digest_is_of_bits_alone():
    x = torch.randn(6, 4)
    assert digests([x]) == digests([x.clone()]) == digests([x.t().contiguous().t()])
    assert digests([torch.tensor([0.0])]) != digests([torch.tensor([-0.0])])
    nan = torch.tensor([float("nan")])
    assert digests([nan]) == digests([nan.clone()])
    assert digests([torch.zeros(0)]) == [0] and digests([]) == []


def test_a_digest_does_not_depend_on_the_chunk(monkeypatch):
    x = torch.randn(1000)
    whole = digests([x])
    monkeypatch.setattr(ranks, "CHUNK", 7)
    assert digests([x]) == whole


def trained(meeting, folder: str, how: str) -> list:
    """How a training ended on this rank, and whether its groups are still open."""
    from pathlib import Path

    import torch.distributed as dist
    from support import SMALL, resolved

    from adabatch.train import train

    config = resolved(*SMALL, "epochs=1", "model.ghost=16")
    stop = {"told": lambda: "SIGTERM"}.get(how, lambda: None)
    try:
        train(config, Path(folder), stop, meeting, leg=(lambda batch: 3) if how == "leg" else None)
        ended = "finished"
    except Exception as error:
        ended = type(error).__name__
    return [ended, dist.is_initialized()]


@pytest.mark.slow
@pytest.mark.parametrize("how, ended", [("end", "finished"), ("told", "Interrupted"), ("leg", "HandOver")])
def test_a_run_that_ends_in_good_order_closes_its_groups(tmp_path, how, ended):
    """A thread of gloo's that drops a sum while Python ends would abort the process."""
    (tmp_path / "run").mkdir()
    world = ranks_run.world(tmp_path, trained, 2, str(tmp_path / "run"), how)
    assert ranks_run.values(world) == [[ended, False]] * 2
