"""What the processes of one run say to each other: sums, hashes and bytes, in few collectives.

The only file for torch.distributed, beside the store of `meeting.py`. `Alone` and `Ranks` have one interface,
so that nobody above asks how many there are. Every result has the same bits on all ranks: gloo and NCCL
compute each element of a sum in one place and hand it out.
"""

import contextlib
import hashlib
import logging
import os
import socket
from datetime import timedelta

import torch
import torch.distributed as dist

from adabatch.errors import RankLost

SMALL = 1 << 20  # bytes; a larger tensor is summed where it lies, smaller ones are packed into one buffer
PIECE = 64 << 20  # bytes of a long message that travel at once
LIMIT = timedelta(hours=1)  # of one collective; dead ranks are noticed by meeting.py long before
CHUNK = 1 << 22  # elements that are hashed at once
ODD = (-7046029254386353131, -4658895280553007687, 5871781006564002453)  # for the hash: odd, bits well mixed

log = logging.getLogger("adabatch")


class _Done:
    def wait(self) -> None:
        pass


class Alone:
    """One process: nothing to add, to say or to wait for. No tensor is copied."""

    rank, world, local = 0, 1, 0

    def reduce(self, *tensors, flags=()) -> list[float]:
        return [float(flag) for flag in flags]

    def start(self, tensor):
        return _Done()

    def broadcast(self, tensor, source: int = 0) -> None:
        pass

    def align(self, tensors, source: int) -> None:
        pass

    def gather(self, tensor) -> list:
        return [tensor]

    def spread(self, values) -> tuple[list[int], list[int]]:
        return [int(v) for v in values], [int(v) for v in values]

    def share(self, data: bytes | None) -> bytes:
        return data

    def same(self, named) -> None:
        pass

    def barrier(self) -> None:
        pass

    def close(self) -> None:
        pass


class Ranks:
    """The ranks that have met. device: this rank's; a GPU of its own is reached by NCCL, all else by gloo.

    A collective is called by all ranks, in the same order and with the same shapes and types.
    """

    def __init__(self, meeting, device="cpu"):
        place, self.device = meeting.place, torch.device(device)
        self.rank, self.world, self.local = place.rank, place.world, place.local
        self.close()  # the groups of an earlier run in this process
        try:
            with _interface(all(one["near"] for one in meeting.who.values())):
                dist.init_process_group(
                    "gloo", store=meeting.fresh(), rank=self.rank, world_size=self.world, timeout=LIMIT
                )
        except RuntimeError as error:
            why = meeting.explain(error)
            if isinstance(why, RankLost):
                raise why from error
            raise RuntimeError(
                f"the ranks met at {place.address}:{place.port} but could not connect to each other: "
                f"{error}. "
                "Where a host has several networks, GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME name the "
                "interface"
            ) from error
        self.group = dist.group.WORLD  # of tensors on the device
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
            self._choose(torch.cuda.get_device_properties(self.device))

    def _choose(self, properties) -> None:
        """NCCL, unless ranks share a GPU, which it refuses."""
        name = str(getattr(properties, "uuid", self.device.index)).encode()
        own = int.from_bytes(hashlib.blake2b(name, digest_size=7).digest(), "big")
        names = [int(t) for t in self.gather(torch.tensor([own]))]
        if len(set(names)) == self.world:
            self.group = dist.new_group(backend="nccl", timeout=LIMIT)
        elif self.rank == 0:
            log.warning(
                f"{self.world} processes share {len(set(names))} GPU(s): gloo carries their sums through the "
                "host, slowly, because NCCL takes one process per GPU"
            )

    def _of(self, tensor):
        return self.group if tensor.device.type == "cuda" else dist.group.WORLD

    @torch.no_grad()
    def reduce(self, *tensors, flags=()) -> list[float]:
        """Sums over ranks, in place; returns the sums of `flags`, numbers of the host.

        One collective for each tensor of more than SMALL bytes, one for all others of a dtype and device. The
        flags travel with the float64 tensors of the host; on a GPU alone, so that they wait for no kernel.
        """
        packs, flags = {}, torch.tensor(list(flags), dtype=torch.float64)
        for i, tensor in enumerate([*tensors, flags]):
            if tensor.numel():
                large = tensor.nbytes > SMALL and tensor.is_contiguous()
                packs.setdefault((tensor.device, tensor.dtype, i if large else -1), []).append(tensor)
        sums = []
        for parts in packs.values():
            alone = len(parts) == 1 and parts[0].is_contiguous()
            buffer = parts[0] if alone else torch.cat([part.reshape(-1) for part in parts])
            sums.append((self.start(buffer), buffer, () if alone else parts))
        for work, buffer, parts in sums:
            work.wait()
            for part, total in zip(parts, buffer.split([part.numel() for part in parts]) if parts else ()):
                part.copy_(total.view(part.shape))
        return flags.tolist()

    def start(self, tensor):
        """Begins a sum over ranks in place; `.wait()` of the answer ends it. The tensor is contiguous."""
        return dist.all_reduce(tensor, group=self._of(tensor), async_op=True)

    def broadcast(self, tensor, source: int = 0) -> None:
        """The tensor of the rank `source`, on every rank, in place. It is contiguous."""
        dist.broadcast(tensor, source, group=self._of(tensor))

    def align(self, tensors, source: int) -> None:
        """The tensors of the rank `source`, on every rank, in place: one collective for each dtype."""
        packs = {}
        for tensor in tensors:
            packs.setdefault((tensor.device, tensor.dtype), []).append(tensor)
        for parts in packs.values():
            buffer = torch.cat([part.reshape(-1) for part in parts])
            self.broadcast(buffer, source)
            for part, given in zip(parts, buffer.split([part.numel() for part in parts])):
                part.copy_(given.view(part.shape))

    def gather(self, tensor) -> list:
        """All ranks' tensors, by rank. They have one shape and dtype."""
        tensor = tensor.detach().contiguous()
        found = [torch.empty_like(tensor) for _ in range(self.world)]
        dist.all_gather(found, tensor, group=self._of(tensor))
        return found

    def spread(self, values) -> tuple[list[int], list[int]]:
        """(the least, the greatest) over ranks of each integer of 64 bits."""
        own = torch.tensor([int(v) for v in values], dtype=torch.int64)
        both = torch.cat([own, ~own])  # ~v = -v - 1 turns the order round and cannot overflow
        dist.all_reduce(both, op=dist.ReduceOp.MAX)
        return (~both[len(own) :]).tolist(), both[: len(own)].tolist()

    def share(self, data: bytes | None) -> bytes:
        """Rank 0's bytes, on every rank."""
        size = torch.tensor([len(data) if self.rank == 0 else 0])
        dist.broadcast(size, 0)
        buffer = bytearray(data if self.rank == 0 else int(size))
        for start in range(0, int(size), PIECE):
            count = min(PIECE, int(size) - start)
            dist.broadcast(torch.frombuffer(buffer, dtype=torch.uint8, count=count, offset=start), 0)
        return data if self.rank == 0 else bytes(buffer)

    def same(self, named) -> None:
        """RuntimeError, on all ranks, that names the first of (name, tensor) whose bits differ between ranks.

        One collective where all is well. Costs a pass over the tensors, on their device.
        """
        named = list(named)
        text = repr([(name, str(t.dtype), tuple(t.shape)) for name, t in named]).encode()
        outline = int.from_bytes(hashlib.blake2b(text, digest_size=7).digest(), "big")
        found = [int(d) for d in digests([t for _, t in named])]
        whole = hashlib.blake2b(repr(found).encode(), digest_size=7).digest()
        least, most = self.spread([outline, int.from_bytes(whole, "big")])
        if least == most:
            return
        if least[0] != most[0]:
            raise RuntimeError("the ranks have networks of different tensors: other names, shapes or dtypes")
        everyone = torch.stack(self.gather(torch.tensor(found, dtype=torch.int64)))
        first = int((everyone != everyone[0]).any(0).nonzero()[0])
        raise RuntimeError(_differ(named[first][0], everyone[:, first].tolist()))

    def barrier(self) -> None:
        dist.barrier()

    def close(self) -> None:
        """Ends the groups; no other rank is waited for. While they are open, a thread of gloo's may drop a
        sum as Python ends, which aborts the process ("terminate called without an active exception")."""
        if dist.is_initialized():
            dist.destroy_process_group()


@contextlib.contextmanager
def _interface(one_host: bool):
    """Ranks of one host meet on its loopback: gloo takes the address of the host's name, which may be wrong,
    behind a firewall, or open to others."""
    loopback = [name for _, name in socket.if_nameindex() if name in ("lo", "lo0")]
    if not one_host or not loopback or "GLOO_SOCKET_IFNAME" in os.environ:
        yield
        return
    os.environ["GLOO_SOCKET_IFNAME"] = loopback[0]
    try:
        yield
    finally:
        del os.environ["GLOO_SOCKET_IFNAME"]


def _differ(name: str, digest: list[int]) -> str:
    """Which ranks have which bits of a tensor, in words."""
    sides = {}
    for rank, value in enumerate(digest):
        sides.setdefault(value, []).append(str(rank))
    words = " and ".join(f"rank{'s' * (len(r) > 1)} {', '.join(r)}" for r in sides.values())
    return (
        f"{name} has not the same bits on all ranks: they differ between {words}. Ranks must start from "
        "the same "
        "weights and do the same arithmetic; another version of torch or kind of processor on one host "
        "breaks it"
    )


@torch.no_grad()
def digests(tensors) -> list[int]:
    """A number of 64 bits for the bits of each tensor: equal for equal bits, in every place. One
    synchronization per device."""
    found = [_digest(tensor) for tensor in tensors]
    values = dict.fromkeys(range(len(found)))
    for device in {d.device for d in found}:
        at = [i for i, d in enumerate(found) if d.device == device]
        values.update(zip(at, torch.stack([found[i] for i in at]).tolist()))
    return list(values.values())


def _digest(tensor):
    """The sum over elements of a mixed (bits + position x odd number), modulo 2^64, where the tensor lies."""
    tensor = tensor.detach().contiguous().reshape(-1)
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor).reshape(-1)
    kind = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    bits, total = tensor.view(kind), torch.zeros((), dtype=torch.int64, device=tensor.device)
    for start in range(0, bits.numel(), CHUNK):
        part = bits[start : start + CHUNK]
        x = torch.arange(start + 1, start + 1 + part.numel(), device=tensor.device).mul_(ODD[0]).add_(part)
        for shift, odd in zip((32, 29), ODD[1:]):  # each step maps 64 bits one to one
            x.bitwise_xor_(x >> shift).mul_(odd)
        total += x.bitwise_xor_(x >> 32).sum()
    return total
