"""Checkpoints: whole or not at all, plain values only, damaged and foreign files named and refused."""

import collections
import enum
import errno
import os
import pickle
import random
import signal
import stat
import struct
import threading

import numpy as np
import pytest
import torch
from torch import nn

from adabatch import checkpoint
from adabatch.errors import UserError
from adabatch.flat import Flat
from adabatch.layers import GhostBatchNorm

pytestmark = pytest.mark.filterwarnings("ignore:Detected pickle protocol")


def state():
    generator = torch.Generator().manual_seed(0)
    return {
        "model": {"a.weight": torch.randn(20, 3, generator=generator), "a.count": torch.tensor(2**40)},
        "optimizer": {"buffers": [torch.randn(5, generator=generator, dtype=torch.float64), None]},
        "position": 2**41 + 1,
        "mixed": (1, 2.5, True, None, "text", b"bytes", [float("inf")], {3: "three"}),
        "bf16": torch.randn(4, generator=generator).bfloat16(),
    }


def same(a, b):
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def test_round_trip(tmp_path):
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, state())
    assert same(checkpoint.load(path), {"format": checkpoint.FORMAT, **state()})
    assert os.listdir(tmp_path) == ["checkpoint.pt"]
    checkpoint.save(path, {"position": 5})  # the next one takes its place
    assert checkpoint.load(path) == {"format": checkpoint.FORMAT, "position": 5}


@pytest.fixture
def held(monkeypatch):
    """Writing waits until the event is set."""
    event, write = threading.Event(), checkpoint._write

    def late(path, value):
        assert event.wait(20)
        write(path, value)

    monkeypatch.setattr(checkpoint, "_write", late)
    yield event
    event.set()


def test_a_thread_writes_what_was_true_when_it_was_told(tmp_path, held):
    path, now, writer = tmp_path / "checkpoint.pt", state(), checkpoint.Writer()
    writer.save(path, now)
    assert not path.exists()  # training goes on
    for tensor in (now["model"]["a.weight"], now["optimizer"]["buffers"][0], now["bf16"]):
        tensor.zero_()
    now["position"] = 0
    held.set()
    writer.wait()
    assert same(checkpoint.load(path), {"format": checkpoint.FORMAT, **state()})


def test_the_next_checkpoint_waits_for_the_one_before(tmp_path, held):
    path, writer = tmp_path / "checkpoint.pt", checkpoint.Writer()
    writer.save(path, {"position": 1})
    threading.Timer(0.3, held.set).start()
    writer.save(path, {"position": 2})
    assert held.is_set()
    writer.wait()
    assert checkpoint.load(path)["position"] == 2


def test_an_error_of_the_thread_is_raised_by_the_next_call_and_once(tmp_path):
    writer = checkpoint.Writer()
    for again in (lambda: writer.save(tmp_path / "checkpoint.pt", {"position": 2}), writer.wait):
        writer.save(tmp_path / "nowhere" / "checkpoint.pt", {"position": 1})
        with pytest.raises(FileNotFoundError):
            again()
        writer.wait()
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match="position is a builtins.set"):  # at once, in the thread that asked
        writer.save(tmp_path / "checkpoint.pt", {"position": {1}})


def test_a_bit_that_has_changed_is_noticed(tmp_path):
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, {"weights": torch.full((64,), 1.5)})
    data = bytearray(path.read_bytes())
    data[data.index(struct.pack("<f", 1.5) * 4)] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="checkpoint.pt is no readable checkpoint"):
        checkpoint.load(path)


class Colour(enum.IntEnum):
    RED = 1


Point = collections.namedtuple("Point", "x y")


@pytest.mark.parametrize(
    "value, said",
    [
        ({"a": {"b": [1, object()]}}, r"a\.b\[1\] is a builtins.object"),
        ({"a": np.float64(1)}, "a is a numpy.float64"),
        ({"a": [np.zeros(2)]}, r"a\[0\] is a numpy.ndarray"),
        ({"a": {1, 2}}, "a is a builtins.set"),
        ({"a": Colour.RED}, "a is a .*Colour"),
        ({"a": Point(1, 2)}, "a is a .*Point"),
        ({"a": collections.defaultdict(int)}, "a is a collections.defaultdict"),
        ({"a": {"b": {Colour.RED: 1}}}, r"plain keys; a\.b has one of type Colour"),
        ({(1, 2): 3}, "plain keys; it has one of type tuple"),
        ({"a": nn.Linear(1, 1)}, "a is a torch.nn.modules.linear.Linear"),
        ({"a": torch.float32}, "a is a torch.dtype"),
    ],
)
def test_objects_are_refused_by_key_before_anything_is_written(tmp_path, value, said):
    with pytest.raises(UserError, match=said):
        checkpoint.save(tmp_path / "checkpoint.pt", value)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "value",
    [collections.OrderedDict(a=[1]), torch.Size([1, 2]), nn.Parameter(torch.ones(2)), torch.zeros(0), {}, []],
)
def test_what_is_accepted_is_read_back(tmp_path, value):
    checkpoint.save(tmp_path / "x.pt", {"value": value})
    found = checkpoint.load(tmp_path / "x.pt")["value"]
    assert torch.equal(found, value) if isinstance(value, torch.Tensor) else found == value


def readers():
    return pytest.mark.parametrize("read", [checkpoint.load, checkpoint.weights_of])


@readers()
def test_damaged_files_are_refused_by_name(tmp_path, read):
    """Cut short anywhere, bytes changed, or rubbish like a pickle: an error that names the file."""
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, state())
    whole, generator, refused = path.read_bytes(), random.Random(0), 0
    opcodes = b"}]()X\x00q.KMJUuseatbcRhjrpli\x01\x02\x8a"
    damaged = [whole[:length] for length in range(0, len(whole), 53)]
    for _ in range(150):
        changed = bytearray(whole)
        for _ in range(generator.choice([1, 3, 20])):
            changed[generator.randrange(len(changed))] = generator.randrange(256)
        damaged.append(bytes(changed))
    damaged += [bytes(generator.randrange(256) for _ in range(generator.randrange(60))) for _ in range(150)]
    damaged += [
        b"\x80\x02" + bytes(generator.choices(opcodes, k=generator.randrange(40))) for _ in range(300)
    ]
    damaged += [b"", b"PK", b"<html>", b"\x80\x02."]
    for content in damaged:
        path.write_bytes(content)
        try:
            read(path)  # a changed byte in a tensor is not seen
        except UserError as error:
            assert str(path) in str(error) and "\n" not in str(error)
            refused += 1
    assert refused > len(damaged) - 150


@pytest.mark.parametrize("length", [0, 1, 100, 0.5, 0.99])
def test_a_truncated_checkpoint_is_always_refused(tmp_path, length):
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, state())
    whole = path.read_bytes()
    path.write_bytes(whole[: int(length * len(whole)) if isinstance(length, float) else length])
    with pytest.raises(UserError, match="no readable checkpoint"):
        checkpoint.load(path)


@pytest.mark.parametrize(
    "content, said",
    [
        (
            {"format": checkpoint.FORMAT + 1},
            f"format {checkpoint.FORMAT + 1}, .* reads up to {checkpoint.FORMAT}",
        ),
        ({"model": {}}, "no format number"),
        ({"format": "1"}, "no format number"),
        ([1, 2], "no format number"),
    ],
)
def test_foreign_and_newer_formats_are_refused(tmp_path, content, said):
    path = tmp_path / "checkpoint.pt"
    torch.save(content, path)
    with pytest.raises(UserError, match=said) as caught:
        checkpoint.load(path)
    assert str(path) in str(caught.value)


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@readers()
@pytest.mark.parametrize("plain_pickle", [True, False])
def test_a_malicious_file_is_not_executed(tmp_path, read, plain_pickle):
    path, harm = tmp_path / "checkpoint.pt", tmp_path / "harm"
    content = {"format": 1, "model": {"a": torch.zeros(1)}, "harm": Malicious(str(harm))}
    if plain_pickle:
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path)
    with pytest.raises(UserError) as caught:
        read(path)
    assert not harm.exists() and "trust" not in str(caught.value)  # no advice to run it
    torch.load(path, weights_only=False) if not plain_pickle else pickle.loads(path.read_bytes())
    assert harm.exists()  # the file would have done harm


def test_the_machines_trouble_is_not_the_files(tmp_path):
    with pytest.raises(FileNotFoundError):
        checkpoint.load(tmp_path / "absent.pt")


def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("call", ["fsync", "replace", "write"])
def test_a_failed_save_keeps_the_old_file_and_leaves_nothing_behind(tmp_path, monkeypatch, call):
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, state())
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        if call == "write":  # in the middle of torch's own writing, which turns it into a RuntimeError
            real = open

            def open_full(*args):
                file = real(*args)
                limited = type("Limited", (), {"__getattr__": lambda self, name: getattr(file, name)})
                limited.__enter__, limited.__exit__ = lambda self: self, lambda self, *_: file.close()
                limited.write = lambda self, data: file.write(data) if file.tell() < 2000 else full()
                return limited()

            patch.setattr(checkpoint, "open", open_full, raising=False)
        else:
            patch.setattr(checkpoint.os, call, full)
        with pytest.raises(OSError) as caught:
            checkpoint.save(path, {"big": torch.zeros(10_000)})
    assert caught.value.errno == errno.ENOSPC
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["checkpoint.pt"]
    checkpoint.save(path, {"position": 1})
    assert checkpoint.load(path)["position"] == 1


@pytest.mark.parametrize("when", ["fsync", "replace"])
def test_a_kill_within_the_write_keeps_the_old_file(tmp_path, when):
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, state())
    before = path.read_bytes()
    child = os.fork()
    if child == 0:  # dies with the temporary file written, and not yet in its place
        try:
            setattr(os, when, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
            checkpoint.save(path, {"position": 1})
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    assert path.read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["checkpoint.pt", "checkpoint.pt.tmp"]
    checkpoint.save(path, {"position": 2})
    assert checkpoint.load(path)["position"] == 2 and os.listdir(tmp_path) == ["checkpoint.pt"]


def test_the_file_is_on_disk_before_it_takes_the_old_ones_place(tmp_path, monkeypatch):
    calls, fsync, replace = [], os.fsync, os.replace

    def noted_fsync(handle):
        kind = "folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else f"file of {os.fstat(handle).st_size}"
        calls.append(kind)
        fsync(handle)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append("move"), replace(a, b)))
    checkpoint.save(tmp_path / "x.pt", state())
    assert calls == [f"file of {(tmp_path / 'x.pt').stat().st_size}", "move", "folder"]


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), GhostBatchNorm(8), nn.Flatten(), nn.Linear(8, 4))


def test_weights_are_a_plain_small_file(tmp_path):
    """Also where parameters are views of one flat vector, which a careless save writes with each of them."""
    model = network().to(memory_format=torch.channels_last)
    Flat(model, [list(model.named_parameters())])
    path = tmp_path / "weights.pt"
    checkpoint.save_weights(path, model)
    bytes_of_values = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    assert path.stat().st_size < bytes_of_values + 1024 * len(model.state_dict()) + 2048
    found = torch.load(path, weights_only=True)
    assert type(found) is dict and list(found) == list(model.state_dict())
    assert all(torch.equal(found[name], t) for name, t in model.state_dict().items())
    assert all(t.untyped_storage().nbytes() == t.numel() * t.element_size() for t in found.values())
    careless = tmp_path / "careless.pt"
    torch.save({name: t[:1] for name, t in nn.Linear(500, 500).state_dict().items()}, careless)
    assert careless.stat().st_size > 4 * 500 * 500  # what this test is about


def test_fit_loads_by_name_whatever_the_order():
    source, target = network(), network()
    for t in source.state_dict().values():
        t.add_(torch.rand(t.shape))
    kept = [t.data_ptr() for t in target.state_dict().values()]
    checkpoint.fit(target, dict(reversed(source.state_dict().items())), "it")
    assert all(
        torch.equal(a, b)
        for a, b in zip(source.state_dict().values(), target.state_dict().values(), strict=True)
    )
    assert [t.data_ptr() for t in target.state_dict().values()] == kept  # in place: flat views stay views


def test_fit_lists_what_does_not_fit_and_loads_nothing():
    model, weights = network(), network().state_dict()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    weights = {name: t + 1 for name, t in weights.items()}
    del weights["0.bias"]
    weights["head.weight"] = torch.zeros(1)
    weights["3.weight"] = torch.zeros(10, 8)
    with pytest.raises(UserError) as caught:
        checkpoint.fit(model, weights, "weights.pt")
    said = "missing 0.bias; unknown head.weight; 3.weight is [10, 8], the network has [4, 8]"
    assert str(caught.value) == f"weights.pt does not fit this network: {said}"
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    with pytest.raises(UserError, match=r"missing 0.weight.* and 3 more"):
        checkpoint.fit(model, {}, "x")


def test_weights_of_files(tmp_path):
    plain = {"a": torch.ones(2), "b": torch.zeros(3)}
    for name, content in (("plain", plain), ("theirs", {"state_dict": plain, "epoch": 3})):
        torch.save(content, tmp_path / f"{name}.pt")
        assert same(checkpoint.weights_of(tmp_path / f"{name}.pt"), plain)
    checkpoint.save(tmp_path / "ours.pt", {"model": plain, "position": 3})
    assert same(checkpoint.weights_of(str(tmp_path / "ours.pt")), plain)


def test_weights_of_a_run_folder(tmp_path):
    checkpoint.save(tmp_path / "checkpoint.pt", {"model": {"a": torch.tensor(0)}})
    assert checkpoint.weights_of(tmp_path)["a"] == 0
    for value, name in enumerate(("weights.pt", "best.pt"), 1):
        torch.save({"a": torch.tensor(value)}, tmp_path / name)
    assert checkpoint.weights_of(tmp_path)["a"] == 1  # those of the end; the best ones are asked for by name
    assert checkpoint.weights_of(tmp_path, ("best.pt", *checkpoint.LAST))["a"] == 2


@pytest.mark.parametrize(
    "content", [[torch.ones(1)], {}, {"a": 1}, {"model": "vgg"}, {"model": {"a": 1}}, 5, None]
)
def test_what_holds_no_weights_is_refused(tmp_path, content):
    path = tmp_path / "x.pt"
    torch.save(content, path)
    with pytest.raises(UserError, match="holds no state_dict") as caught:
        checkpoint.weights_of(path)
    assert str(path) in str(caught.value)


def test_absent_weights_are_refused(tmp_path):
    with pytest.raises(UserError, match="no weights file .*absent.pt"):
        checkpoint.weights_of(tmp_path / "absent.pt")
    with pytest.raises(UserError, match="holds none of weights.pt, checkpoint.pt"):
        checkpoint.weights_of(tmp_path)
