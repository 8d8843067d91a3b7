"""How a global batch is cut, against the ghost groups of layers.py; and what is refused."""

import itertools
import os

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adabatch import cutting
from adabatch.cutting import groups_in, parts
from adabatch.errors import UserError
from adabatch.hardware import Hardware, own_gpu
from adabatch.layers import group_sizes

counts, units, worlds, micros = (
    st.integers(1, 600),
    st.integers(1, 70),
    st.integers(1, 9),
    st.integers(1, 700),
)


def shares(count, unit, world, micro, **kwargs):
    """The forward passes of each rank."""
    return [parts(count, unit, micro, rank, world, **kwargs).passes for rank in range(world)]


def borders(count, unit):
    return {0, *itertools.accumulate(group_sizes(count, unit))}


@given(counts, units)
def test_groups_are_those_of_the_norm(count, unit):
    assert groups_in(count, unit) == len(group_sizes(count, unit))


@given(counts, units, worlds)
def test_rows_cover_the_batch_once_and_cut_at_group_borders(count, unit, world):
    rows = [cutting.rows(count, unit, rank, world) for rank in range(world)]
    assert [i for r in rows for i in range(count)[r]] == list(range(count))
    assert all(r.start in borders(count, unit) and r.stop in borders(count, unit) for r in rows)
    groups = [len([b for b in borders(count, unit) if r.start < b <= r.stop]) for r in rows]
    assert max(groups) - min(groups) <= 1  # as even as groups allow; 0 where there are fewer than ranks


@given(counts, units, worlds, micros)
def test_micro_batches_cover_the_rows_once_in_whole_groups(count, unit, world, micro):
    for rank, passes in enumerate(shares(count, unit, world, micro)):
        rows = cutting.rows(count, unit, rank, world)
        assert [i for p in passes for i in range(p.start, p.stop)] == list(range(rows.start, rows.stop))
        assert all(p.start in borders(count, unit) and p.stop in borders(count, unit) for p in passes)
        step = max(micro // unit, 1) * unit
        assert all(p.start == rows.start + i * step for i, p in enumerate(passes))
        assert all(p.stop - p.start == step for p in passes[:-1])
        if passes:  # the last may hold a joined remainder of less than half a group
            assert 0 < passes[-1].stop - passes[-1].start < step + unit / 2


@given(counts, units, worlds, micros)
def test_the_grid_is_the_same_passes_on_any_number_of_ranks(count, unit, world, micro):
    (alone,) = shares(count, unit, 1, micro, grid=True)
    several = shares(count, unit, world, micro, grid=True)
    assert [p for passes in several for p in passes] == alone
    assert max(map(len, several)) - min(map(len, several)) <= 1


@given(counts, units, worlds, micros, st.integers(1, 4))
def test_noise_groups_are_whole_and_the_same_on_any_number_of_ranks(count, unit, world, micro, groups):
    size = groups * unit
    (alone,) = [parts(count, unit, micro, 0, 1, group=size)]
    several = [parts(count, unit, micro, rank, world, group=size) for rank in range(world)]
    assert [g for share in several for g in share.parts] == alone.parts
    assert alone.count == len(alone.parts) == len(group_sizes(count, size))
    assert [g[-1].stop - g[0].start for g in alone.parts] == group_sizes(count, size)
    assert [share.first for share in several] == [alone.count * rank // world for rank in range(world)]


@pytest.mark.parametrize(
    "count, unit, world, micro, expected",
    [
        (128, 32, 1, 64, [[(0, 64), (64, 128)]]),
        (100, 32, 1, 32, [[(0, 32), (32, 64), (64, 100)]]),  # the remainder of 4 joins
        (112, 32, 1, 32, [[(0, 32), (32, 64), (64, 96), (96, 112)]]),  # 16 is half a group: its own
        (100, 32, 2, 256, [[(0, 32)], [(32, 100)]]),
        (100, 32, 2, 40, [[(0, 32)], [(32, 64), (64, 100)]]),
        (100, 32, 5, 256, [[], [(0, 32)], [], [(32, 64)], [(64, 100)]]),  # more ranks than groups
        (5, 1, 2, 2, [[(0, 2)], [(2, 4), (4, 5)]]),  # no ghost norm
        (7, 32, 1, 1, [[(0, 7)]]),  # a batch below a group is one group
    ],
)
def test_table_of_cuts(count, unit, world, micro, expected):
    found = [[(p.start, p.stop) for p in passes] for passes in shares(count, unit, world, micro)]
    assert found == expected


def test_alone_all_rows_are_ours():
    assert Hardware(device="cpu").parts(100, 32, 1000).passes == [slice(0, 100)]


@pytest.mark.parametrize(
    "arguments, said",
    [
        ({"precision": "tf32"}, "NVIDIA GPUs only"),
        ({"precision": "fp23"}, "Did you mean 'fp32'"),
        ({"memory_format": "chanels_last"}, "Did you mean 'channels_last'"),
        ({"device": "mps"}, "mps"),
        ({"device": "meta"}, "auto, cpu, cuda or cuda:N, got 'meta'"),
        ({"device": "gpux"}, "got 'gpux'"),
        ({"device": None}, "got None"),
        ({"device": "cuda:99"}, "cuda:99 is not here"),
        ({"micro_batch": 0}, "got 0"),
        ({"micro_batch": "big"}, "got 'big'"),
        ({"micro_batch": True}, "got True"),
        ({"threads": 0}, "got 0"),
    ],
)
def test_mistakes_are_explained(arguments, said):
    with pytest.raises(UserError, match=said):
        Hardware(**{"device": "cpu", **arguments})


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "gpu"])
def test_an_absent_gpu_is_refused_and_auto_takes_the_cpu(monkeypatch, name):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="sees 0 GPU.*hardware=cpu"):
        Hardware(device=name)
    assert Hardware().device.type == "cpu"


@pytest.mark.parametrize(
    "name, local, count, expected",
    [("cuda", 0, 1, 0), ("cuda", 3, 4, 3), ("cuda", 5, 4, 1), ("cuda:2", 0, 4, 2)],
)
def test_a_process_has_a_gpu_that_torch_can_make_current(name, local, count, expected):
    device = own_gpu(torch.device(name), local, count)
    assert torch.cuda._utils._get_device_index(device) == expected  # refuses a device without an index


@pytest.mark.needs_gpu
def test_a_gpu_is_found():
    assert Hardware().device.type == Hardware(device="gpu", precision="tf32").device.type == "cuda"
    assert Hardware().activation_budget() > 1 << 30 and Hardware().peak_memory() >= 0


@pytest.mark.parametrize(
    "precision, weights, product",
    [("fp32", torch.float32, torch.float32), ("bf16", torch.float32, torch.bfloat16),
     ("fp64", torch.float64, torch.float64)],
)  # fmt: skip
def test_precision(precision, weights, product):
    hardware = Hardware(device="cpu", precision=precision)
    assert hardware.dtype == weights
    x = torch.ones(2, 2, dtype=weights)
    with hardware.autocast():
        assert (x @ x).dtype == product
    assert (x @ x).dtype == weights


def test_memory_format():
    assert Hardware(device="cpu", memory_format="contiguous").memory_format == torch.contiguous_format
    assert Hardware(device="cpu", memory_format="channels_last").memory_format == torch.channels_last


def test_threads_and_memory_are_this_machines():
    assert Hardware(device="cpu", threads=3).threads == 3
    assert Hardware(device="cpu").threads == len(os.sched_getaffinity(0))
    # Resident pages right now, from the kernel; the peak is at least as much, and bytes, not KiB.
    resident = int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    assert resident * 0.99 <= Hardware(device="cpu").peak_memory() < 100 * resident
    # A constant of the device: the same command cuts its batches alike every time.
    assert Hardware(device="cpu").activation_budget() == 2**30


def test_set_up_sets_torchs_switches(monkeypatch):
    before = torch.get_num_threads(), torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic
    tf32 = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    try:
        torch.backends.cuda.matmul.allow_tf32 = True
        watched = []
        monkeypatch.setattr("adabatch.crowding.watch", watched.append)
        Hardware(device="cpu", threads=2).set_up()
        assert torch.get_num_threads() == 2 and watched == [2]
        assert not torch.backends.cuda.matmul.allow_tf32 and not torch.backends.cudnn.allow_tf32
        assert torch.backends.cudnn.benchmark and not torch.backends.cudnn.deterministic
    finally:
        torch.set_num_threads(before[0])
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = before[1:]
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = tf32


def test_whether_cudnn_times_its_kernels_follows_from_deterministic_unless_it_is_said():
    """On a CPU nothing would follow from saying it."""
    for deterministic in (False, True):
        assert Hardware(device="cpu", deterministic=deterministic).benchmark is not deterministic
    for said in (True, False):
        with pytest.raises(UserError, match=f"there is none, got hardware.benchmark={str(said).lower()}"):
            Hardware(device="cpu", benchmark=said)


@pytest.mark.needs_gpu
def test_a_gpu_takes_both_switches_apart(caplog):
    before = torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic
    try:
        Hardware(device="cuda", benchmark=False).set_up()
        assert not torch.backends.cudnn.benchmark and not torch.backends.cudnn.deterministic
        Hardware(device="cuda", benchmark=True, deterministic=True).set_up()
        assert torch.backends.cudnn.benchmark and "lets the clock choose kernels" in caplog.text
    finally:
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = before
