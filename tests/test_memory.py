"""How many samples a forward pass holds: the choice and what it is recorded by, on one rank and several; and
what happens when memory runs out later. Accumulation is in test_accumulation.py."""

import copy
import functools
import logging
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import SMALL, resolved, run

from adabatch import cutting, machine, memory, plan, runs
from adabatch.build import build
from adabatch.errors import Diverged, Lost, OutOfMemory, UserError, is_out_of_memory
from adabatch.outcome import outcome
from adabatch.ranks import Alone
from adabatch.schedules.core import walk

GHOST = (*SMALL, "model.ghost=8")


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    """No choice that somebody measured before."""
    monkeypatch.setenv("ADABATCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "micro_batch.json"


def fresh(*overrides):
    """(configuration, parts) of a run that nobody trains."""
    tree = resolved(*overrides)
    return tree, build(copy.deepcopy(tree))


built = functools.cache(fresh)  # for tests that leave it as it was


def chosen(tree, parts, folder, attempt=None) -> int:
    folder.mkdir(exist_ok=True)
    return memory.choose(parts.step, parts.schedule, tree, parts.data.classes, folder, attempt)


def never(*_):
    raise AssertionError("it was measured already")


def full_above(most, tried=None):
    """A trial that runs out of memory above `most` samples."""

    def attempt(samples, timed):
        if tried is not None:
            tried.append(samples)
        if samples > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return [samples * 1e-3] * timed

    return attempt


class Together:
    """Ranks as threads: the collectives that the choice needs, and how many were made."""

    def __init__(self, world):
        self.world, self.slots, self.barrier = world, [None] * world, threading.Barrier(world, timeout=30)
        self.calls = [[] for _ in range(world)]

    def exchange(self, rank, name, value):
        self.calls[rank].append(name)
        self.slots[rank] = value
        self.barrier.wait()
        found = list(self.slots)
        self.barrier.wait()
        return found

    def rank(self, rank):
        together = self

        class Rank(Alone):
            world = together.world

            def spread(self, values):
                columns = list(zip(*together.exchange(rank, "spread", list(values))))
                return [min(c) for c in columns], [max(c) for c in columns]

            def share(self, data):
                assert (data is None) == (rank != 0)
                return together.exchange(rank, "share", data)[0]

        Rank.rank = rank
        return Rank()

    def run(self, work) -> list:
        """work(rank) in a thread each."""
        with ThreadPoolExecutor(self.world) as pool:
            return list(pool.map(work, range(self.world)))


# -- what counts as out of memory ------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
        MemoryError(),
        OutOfMemory("one ghost group does not fit"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory"
        ),
        RuntimeError("unable to mmap 1073741824 bytes from file: Cannot allocate memory (12)"),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
        RuntimeError("HIP out of memory"),
    ],
    ids=lambda error: f"{type(error).__name__} {str(error)[:40]}",
)
def test_these_are_out_of_memory_for_step_and_outcome_alike(error, tmp_path):
    assert is_out_of_memory(error)
    state, code, message = outcome(error, tmp_path, "adabatch seed=1")
    assert (state, code) == ("out_of_memory", 1) and "adabatch seed=1" in message


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error; out of shared memory"),
        RuntimeError("shape mismatch"),
        ValueError("out of memory"),
        OSError(28, "No space left on device"),
        UserError("model.name is a word, got 'out of memory'"),
        Lost("rank 2 is gone: it said out of memory"),
        Diverged("the training loss is nan"),
        KeyboardInterrupt(),
    ],
    ids=lambda error: f"{type(error).__name__} {str(error)[:40]}",
)
def test_these_are_not(error):
    assert not is_out_of_memory(error)


def test_a_single_group_that_does_not_fit_is_told_with_other_remedies(tmp_path):
    with pytest.raises(OutOfMemory) as told:
        memory.halved(32, 32)
    _, _, message = outcome(told.value, tmp_path, "adabatch")
    assert "hardware.micro_batch=32" in message and "a smaller model.ghost" in message
    assert "A smaller hardware.micro_batch" not in message  # there is none
    with pytest.raises(OutOfMemory, match="a single sample") as told:
        memory.halved(1, 1)
    assert "model.ghost" not in str(told.value)


# -- halving ---------------------------------------------------------------------------------------


@given(st.integers(1, 5000), st.integers(1, 70), st.integers(1, 5000))
def test_halving_leaves_whole_groups_and_comes_to_an_end_at_one(micro_batch, unit, longest):
    micro_batch = cutting.whole_groups(micro_batch, unit)
    first, steps = True, 0
    while min(micro_batch, longest) >= 2 * unit:
        before, micro_batch = micro_batch, memory.halved(micro_batch, unit, longest)
        assert micro_batch % unit == 0 and unit <= micro_batch <= min(before, longest) / 2
        assert not first or micro_batch > min(before, longest) / 2 - unit  # no more than it must
        first, steps = False, steps + 1
    assert steps <= 13
    with pytest.raises(OutOfMemory):
        memory.halved(micro_batch, unit, longest)


def test_halving_in_numbers():
    assert [memory.halved(m, 1) for m in (1024, 3, 2)] == [512, 1, 1]
    assert [memory.halved(m, 32) for m in (1024, 96, 64)] == [512, 32, 32]
    assert (
        memory.halved(1024, 32, longest=140) == 64
    )  # four groups and a joined remainder; 512 would repeat it


# -- the largest that fits, the fastest ------------------------------------------------------------


@pytest.mark.parametrize(
    "rates, unit, expected, tried",
    [
        # by size: samples per second. Saturates: 97.5 lies within 3 % of the best, 96 does not.
        ({1: 30, 2: 55, 4: 80, 8: 96, 16: 97.5, 32: 100, 64: 100, 128: 100}, 1, 16, 6),
        ({1: 10, 2: 20, 4: 40, 8: 80}, 1, 8, 4),  # rises to the largest
        # Two sizes in a row brought nothing: 256 is not seen.
        ({32: 100, 64: 101, 128: 102, 256: 500}, 32, 32, 3),
        ({32: 100, 64: 101, 128: 110, 256: 112, 512: 111}, 32, 128, 5),  # one in a row is no end
        ({32: 100, 64: 90, 96: 95}, 32, 32, 3),  # the largest need not be a power of two
        ({1: 10, 2: 20, 4: None, 8: 99}, 1, 2, 3),  # out of memory ends it
    ],
)
def test_the_fastest_is_the_smallest_within_3_percent_of_the_best(rates, unit, expected, tried):
    seen = []

    def seconds(samples):
        seen.append(samples)
        return rates[samples] and samples / rates[samples]

    found = memory.fastest(unit, max(rates), seconds)
    assert found["micro_batch"] == expected
    assert seen == sorted(rates)[:tried]
    timed = [s for s in seen if rates[s]]
    assert [point["micro_batch"] for point in found["curve"]] == timed
    for point in found["curve"]:
        assert point["samples_per_second"] == pytest.approx(rates[point["micro_batch"]])


def test_the_fastest_of_nothing_is_out_of_memory():
    with pytest.raises(OutOfMemory):
        memory.fastest(32, 256, lambda samples: None)


OPEN = [
    ("fixed",), ("adabatch",), ("adabatch", "schedule.twin=lr"), ("adabatch", "schedule.max_batch=100"),
    ("fixed", "schedule.twin=batch"), ("cosine", "schedule.twin=batch"), ("cosine",), ("linear_ramp",),
    ("geodamp",), ("padadamp", "schedule.growth.rate=0.5"), ("seesaw",), ("dont_decay",),
    ("exponential",), ("adabatch", "schedule.stretch=3"), ("fixed", "schedule.base_batch=900"), ("legw",),
]  # fmt: skip


@pytest.mark.parametrize("overrides", OPEN, ids=" ".join)
def test_the_largest_batch_of_an_open_loop_is_that_of_a_walk_through_it(overrides):
    option, *more = overrides
    schedule = plan.schedule(resolved(*SMALL, f"schedule={option}", "epochs=5", *more), 300)
    assert memory.largest_batch(schedule) == max(setting.divisor for *_, setting in walk(schedule))


def test_the_largest_batch_of_a_closed_loop_is_its_cap():
    more = ("schedule=noise_scale", "schedule.max_batch=100", "schedule.multiple=8", "schedule.base_batch=16")
    assert memory.largest_batch(plan.schedule(resolved(*SMALL, *more), 300)) == 96


def limit_of(batch, unit, world, ordered=False):
    """The limit of a run whose batches are all of one size."""

    class Schedule:
        cap, budget, stretch = batch, batch, 1
        growth = decay = type("Factor", (), {"closed": False, "milestones": lambda self: []})()

        def __call__(self, position):
            return type("Setting", (), {"divisor": batch})

    step = type("Step", (), {"unit": unit})
    step.hardware = hardware = type("Hardware", (), {"compile": False, "ordered": ordered})
    hardware.ranks = type("Ranks", (), {"world": world})
    return memory.limit(step, Schedule())


@settings(deadline=None, max_examples=200)
@given(st.integers(1, 700), st.integers(1, 40), st.integers(1, 9))
def test_no_pass_of_the_run_is_longer_than_the_limit_and_one_is_as_long(batch, unit, world):
    """Longer by no more than the remainder that joins a batch's last ghost group."""
    limit = limit_of(batch, unit, world)
    shares = [cutting.parts(batch, unit, limit, rank, world).passes for rank in range(world)]
    joined = max(0, batch - cutting.groups_in(batch, unit) * unit)
    longest = max(p.stop - p.start for passes in shares for p in passes)
    assert limit % unit == 0 and limit - unit < longest <= limit + joined
    groups = cutting.groups_in(batch, unit)
    # As many passes as ranks that can have one: no rank idles for the sake of another's longer pass.
    assert sum(map(len, shares)) == min(world, groups)


@given(st.integers(1, 700), st.integers(1, 40), st.integers(1, 9))
def test_ordered_the_limit_does_not_know_the_ranks_and_gives_work_to_four(batch, unit, world):
    limit = limit_of(batch, unit, world, ordered=True)
    assert limit == limit_of(batch, unit, 1, ordered=True)
    groups = cutting.groups_in(batch, unit)
    assert cutting.parts(batch, unit, limit, 0, 4, grid=True).count >= min(4, groups)


@pytest.mark.parametrize("world, expected", [(1, 64), (2, 32), (3, 16), (8, 8), (9, 8)])
def test_compiled_the_micro_batch_is_the_first_batchs(world, expected, monkeypatch):
    """First batch 64 of ghost groups of 8: every later batch, a multiple, is made of passes of one shape."""
    _, parts = built(*GHOST, "schedule=adabatch", "schedule.base_batch=64")
    monkeypatch.setattr(parts.step.hardware, "compile", True)
    monkeypatch.setattr(parts.step.hardware.ranks, "world", world)
    assert memory.fitting(parts.step, parts.schedule) == expected


def test_the_largest_is_a_rule_and_grows_to_what_the_run_can_use(tmp_path, monkeypatch):
    """Where memory is short: the largest power of two of ghost groups below it, by arithmetic."""
    tree, parts = built(*GHOST, "schedule=adabatch", "schedule.base_batch=16", "schedule.max_batch=200")
    assert chosen(tree, parts, tmp_path / "a") == 25 * 8  # the cap, in groups
    bytes_of_16, bytes_of_32 = (memory.activation_bytes(parts.step, n) for n in (16, 32))
    assert bytes_of_32 == pytest.approx(2 * bytes_of_16, rel=0.05)
    for groups, expected in ((1.0, 8), (3.9, 16), (4.1, 32), (0.3, 8)):
        per_group = memory.activation_bytes(parts.step, 8)
        monkeypatch.setattr(parts.step.hardware, "activation_budget", lambda b=groups * per_group: b)
        assert chosen(tree, parts, tmp_path / "b") == expected
    assert not (tmp_path / "b" / "micro_batch.json").exists()  # nothing was measured


@pytest.mark.parametrize("wish, expected", [(5, 8), (8, 8), (100, 96)])
def test_a_number_becomes_whole_ghost_groups(wish, expected, tmp_path, caplog):
    tree, parts = built(*GHOST, f"hardware.micro_batch={wish}", "hardware.prefer=fastest")
    with caplog.at_level(logging.INFO, logger="adabatch"):
        assert chosen(tree, parts, tmp_path / "run", never) == expected
    assert ("becomes" in caplog.text) == (wish != expected)


# -- trials ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("most, expected", [(1000, 128), (127, 64), (31, 16), (8, 8)])
def test_a_size_that_runs_out_of_memory_is_halved(most, expected, tmp_path, empty_cache):
    tree, parts = built(*GHOST, "schedule.base_batch=128")
    tried = []
    assert chosen(tree, parts, tmp_path / "run", full_above(most, tried)) == expected
    assert tried == [n for n in (128, 64, 32, 16, 8) if n >= expected]
    kept = runs.read_json(tmp_path / "run" / "micro_batch.json")
    assert kept["micro_batch"] == expected and kept["depends_on"]["at_most"] == 128
    assert list(runs.read_json(empty_cache)["choices"].values()) == [kept]
    assert chosen(tree, parts, tmp_path / "again", never) == expected
    assert runs.read_json(tmp_path / "again" / "micro_batch.json") == kept


def test_nothing_that_fits_is_told(tmp_path, empty_cache):
    tree, parts = built(*GHOST, "schedule.base_batch=128")
    with pytest.raises(OutOfMemory, match="hardware.micro_batch=8"):
        chosen(tree, parts, tmp_path / "run", full_above(7))
    assert not empty_cache.exists()


def test_another_error_of_a_trial_is_no_lack_of_memory(tmp_path):
    tree, parts = built(*GHOST)

    def broken(samples, timed):
        raise RuntimeError("shape mismatch")

    with pytest.raises(RuntimeError, match="shape mismatch"):
        chosen(tree, parts, tmp_path / "run", broken)


def state(step) -> list:
    buffers = [t.clone() for _, t in sorted(step.model.named_buffers())]
    return [step.flat.params.clone(), step.flat.grads.clone(), torch.get_rng_state(), *buffers]


NETWORKS = {
    "ghost norm and dropout by position": ("model.norm=ghost", "model.ghost=8", "model.dropout=0.3"),
    "plain batch norm": ("model.norm=batch",),
    "torch's dropout": ("model={_target_: test_memory.Foreign}",),
}


class Foreign(torch.nn.Module):
    """With a buffer that counts passes and noise from torch's own generator. most: samples that one pass of
    it can take; once: at one pass only."""

    most, once = None, False

    def __init__(self, num_classes, channels, shape):
        super().__init__()
        self.body = torch.nn.Sequential(
            torch.nn.Flatten(), torch.nn.Linear(channels * shape[1] * shape[2], 32)
        )
        self.norm, self.drop = torch.nn.BatchNorm1d(32), torch.nn.Dropout(0.2)
        self.head = torch.nn.Linear(32, num_classes)

    def forward(self, x):
        return self.head(self.drop(self.norm(self.body(x)).relu()))


@pytest.mark.parametrize("network", NETWORKS)
def test_trial_passes_leave_nothing_behind(network, monkeypatch):
    """Also one that fails halfway through its backward pass."""
    _, parts = fresh(*SMALL, *NETWORKS[network])
    step, before = parts.step, None
    before = state(step)
    found = memory.passes(step, 24, timed=3)
    assert len(found) == 3 and min(found) > 0
    assert all(torch.equal(a, b) for a, b in zip(before, state(step)))
    fail = iter([False, True])
    step.flat.members[-1].register_post_accumulate_grad_hook(lambda p: fails() if next(fail) else None)

    def fails():
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        memory.passes(step, 24, timed=3)
    assert all(torch.equal(a, b) for a, b in zip(before, state(step)))


def test_an_allocator_that_had_to_try_again_counts_as_out_of_memory(monkeypatch):
    """Thrash of the first pass is forgiven (it may try algorithms), of a later one not."""
    _, parts = built(*GHOST)
    for counts, fits in (([5, 5, 5], True), ([7, 7, 7], True), ([5, 5, 6], False)):
        said = list(counts)
        monkeypatch.setattr(memory, "trouble", lambda device, said=said: said.pop(0))
        if fits:
            memory.passes(parts.step, 16, timed=2)
        else:
            with pytest.raises(torch.OutOfMemoryError):
                memory.passes(parts.step, 16, timed=2)


def test_fastest_measures_once_and_the_run_keeps_it(tmp_path, monkeypatch, empty_cache):
    own = (*GHOST, "epochs=1", "hardware.prefer=fastest", "schedule.base_batch=64")
    run(tmp_path / "first", *own)
    kept = runs.read_json(tmp_path / "first" / "micro_batch.json")
    sizes = [point["micro_batch"] for point in kept["curve"]]
    assert sizes == [8, 16, 32, 64][: len(sizes)] and len(sizes) >= 3 and kept["micro_batch"] in sizes
    assert {row["micro_batch"] for row in train_rows(tmp_path / "first")} >= {kept["micro_batch"]}

    monkeypatch.setattr(memory, "passes", never)
    run(tmp_path / "second", *own)
    assert runs.read_json(tmp_path / "second" / "micro_batch.json") == kept
    assert weights(tmp_path / "second") == weights(tmp_path / "first")
    empty_cache.unlink()
    run(tmp_path / "second", *own[:-1], "epochs=2", own[-1])  # goes on: the checkpoint knows
    with pytest.raises(AssertionError, match="measured already"):
        run(tmp_path / "third", *own)


def train_rows(folder) -> list:
    return [row for row in runs.read_rows(folder) if row["event"] == "train"]


def weights(folder) -> dict:
    found = torch.load(folder / "weights.pt", weights_only=True)
    return {name: tensor.numpy().tobytes() for name, tensor in found.items()}


# -- what is recorded ------------------------------------------------------------------------------


def test_ranks_agree_where_one_runs_out_of_memory(tmp_path, empty_cache):
    """Rank 1 has room for 24 samples, rank 0 for all; both make the same collectives and rank 0 alone
    writes."""
    together, found = Together(2), {}

    def work(rank):
        tree, parts = found[rank]
        parts.step.hardware.ranks = together.rank(rank)
        return chosen(tree, parts, tmp_path / f"rank{rank}", full_above(24 if rank else 1000))

    for rank in range(2):  # one after the other: both set torch's switches
        found[rank] = fresh(*GHOST, "schedule.base_batch=128")
    assert together.run(work) == [16, 16]  # from 64, a rank's share
    assert together.calls[0] == together.calls[1] == ["spread", "share"] + 3 * ["spread"]
    assert (tmp_path / "rank0" / "micro_batch.json").exists()
    assert not (tmp_path / "rank1" / "micro_batch.json").exists()
    assert len(runs.read_json(empty_cache)["choices"]) == 1
    together.calls = [[], []]
    assert together.run(work) == [16, 16]  # rank 0 reads it, rank 1 hears of it
    assert together.calls[0] == together.calls[1] == ["spread", "share"]


def test_ranks_take_the_time_of_the_slowest(tmp_path):
    """Rank 0 alone would take 64, rank 1 alone 16: its passes above take the longer, the larger they are."""
    together, found = Together(2), {}
    slow = {8: 8, 16: 10, 32: 25, 64: 60}

    def work(rank):
        tree, parts = found[rank]
        parts.step.hardware.ranks = together.rank(rank)
        return chosen(
            tree, parts, tmp_path / f"rank{rank}", lambda n, timed: [slow[n] if rank else 1] * timed
        )

    for rank in range(2):
        found[rank] = fresh(*GHOST, "schedule.base_batch=128", "hardware.prefer=fastest")
    assert together.run(work) == [16, 16]
    curve = runs.read_json(tmp_path / "rank0" / "micro_batch.json")["curve"]
    assert {p["micro_batch"]: p["samples_per_second"] for p in curve} == pytest.approx(
        {n: n / seconds for n, seconds in slow.items()}
    )


OTHER = (
    "model.width=8", "hardware.precision=bf16", "hardware.memory_format=contiguous", "hardware.threads=2",
    "hardware.prefer=fastest", "schedule.base_batch=64", "model.ghost=16", "dataset.side=12",
    "dataset.classes=7", "label_smoothing=0.1",
)  # fmt: skip


@pytest.mark.parametrize("other", OTHER)
def test_a_choice_holds_for_what_it_was_measured_on(other, tmp_path):
    tree, parts = built(*GHOST, "schedule.base_batch=128")
    chosen(tree, parts, tmp_path / "run", full_above(1000))
    tried = []
    tree, parts = built(*GHOST, "schedule.base_batch=128", other)
    chosen(tree, parts, tmp_path / "other", full_above(1000, tried))
    assert bool(tried) == (other != "label_smoothing=0.1")  # which takes no memory and no time


@pytest.mark.parametrize(
    "device", [dict(cpu="another processor"), dict(version="2.99.0"), dict(world=2), dict(own="9.9")]
)
def test_a_choice_holds_for_the_machine_and_the_versions(device, tmp_path, monkeypatch):
    tree, parts = built(*GHOST)
    before = memory.depends_on(parts.step, tree, 10, 128)
    if "cpu" in device:
        monkeypatch.setattr(memory.environment, "cpu", lambda: device["cpu"])
    if "version" in device:
        monkeypatch.setattr(torch, "__version__", device["version"])
    if "world" in device:
        monkeypatch.setattr(parts.step.hardware.ranks, "world", 2)
    if "own" in device:
        monkeypatch.setattr(memory, "__version__", device["own"])
    after = memory.depends_on(parts.step, tree, 10, 128)
    assert len([key for key in before if before[key] != after[key]]) == 1
    machine.record(before, machine.stamp() | {"micro_batch": 8, "curve": [], "depends_on": before})
    assert machine.recall(before)["micro_batch"] == 8 and machine.recall(after) is None


FACTS = {"ghost": 8, "at_most": 128}


def entry(**changed) -> dict:
    return machine.stamp() | {"micro_batch": 64, "curve": [], "depends_on": FACTS} | changed


def test_what_is_recorded_is_recalled_beside_others(empty_cache):
    machine.record(FACTS, entry())
    machine.record(FACTS | {"ghost": 16}, entry(micro_batch=32, depends_on=FACTS | {"ghost": 16}))
    assert machine.recall(FACTS)["micro_batch"] == 64
    assert machine.recall(FACTS | {"ghost": 16})["micro_batch"] == 32
    assert machine.recall(FACTS | {"ghost": 32}) is None


@pytest.mark.parametrize(
    "changed",
    [
        *({"micro_batch": value} for value in (12, 0, 256, -8, "64", True, None, 64.0)),
        *({"depends_on": value} for value in ({}, None)),
    ],
    ids=str,
)  # fmt: skip
def test_a_choice_that_cannot_be_is_not_believed(changed, empty_cache):
    machine.record(FACTS, entry(**changed))
    assert machine.recall(FACTS) is None
    machine.record(FACTS, entry())
    assert machine.recall(FACTS)["micro_batch"] == 64


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "null", "[1, 2]", '{"format": 1}', '{"format": 1, "choices": 3}', "\x00\xff",
        '{"format": 1, "choices": {"a": 1}}', '{"format": 99, "choices": {}}', '{"choices": ' + "[" * 100_000,
    ],
    ids=lambda text: text[:20],
)  # fmt: skip
def test_a_damaged_record_is_measured_anew_and_replaced(text, tmp_path, empty_cache):
    empty_cache.parent.mkdir(parents=True)
    empty_cache.write_bytes(text.encode("latin-1"))
    tree, parts = built(*GHOST, "schedule.base_batch=128")
    assert chosen(tree, parts, tmp_path / "run", full_above(64)) == 64
    assert chosen(tree, parts, tmp_path / "run", never) == 64


@pytest.mark.parametrize("blocked", ["a file where the folder belongs", "no home"])
def test_what_cannot_be_recorded_is_said_and_measured_again(blocked, tmp_path, monkeypatch, caplog):
    if blocked == "no home":
        monkeypatch.setattr(machine, "path", lambda: (_ for _ in ()).throw(RuntimeError("no home folder")))
    else:
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("ADABATCH_CACHE", str(tmp_path / "file"))
    tree, parts = built(*GHOST, "schedule.base_batch=128")
    for _ in range(2):
        tried = []
        assert chosen(tree, parts, tmp_path / "run", full_above(64, tried)) == 64
        assert tried
    assert "not kept for the next run" in caplog.text


def test_many_writers_lose_nothing(empty_cache):
    def write(number):
        facts = FACTS | {"number": number}
        machine.record(facts, entry(depends_on=facts))

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(write, range(64)))
    assert all(machine.recall(FACTS | {"number": n}) for n in range(64))
    assert [p.name for p in empty_cache.parent.iterdir() if p.suffix == ".tmp"] == []


def test_the_record_does_not_grow_without_end(empty_cache, monkeypatch):
    monkeypatch.setattr(machine, "KEPT", 3)
    for number in range(5):
        facts = FACTS | {"number": number}
        machine.record(facts, entry(depends_on=facts, measured=f"2030-01-0{number + 1}T00:00:00Z"))
    kept = [n for n in range(5) if machine.recall(FACTS | {"number": n})]
    assert kept == [2, 3, 4]  # the latest
