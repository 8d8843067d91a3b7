"""What a witness writes is what went through the step, and watching changes nothing."""

import hashlib

import pytest
import torch
from support import SMALL, killed, outcome, run

from adabatch.data.stream import Order
from adabatch.verify import recorded
from adabatch.witness import digests, nudge, part


def watched(folder, *overrides: str, more: str = ""):
    """A rehearsal in `folder`/run, watched."""
    line = f"rehearsal={{steps:8,witness:'{folder}/witness'{more}}}"
    run(folder / "run", *SMALL, "schedule=adabatch", "evaluate.every=100", line, *overrides)
    return recorded.read(folder / "witness")


def test_digests_are_of_the_bits_whatever_the_layout():
    x = torch.randn(3, 4, 5, 5)
    expected = [hashlib.blake2b(row.numpy().tobytes(), digest_size=8).digest() for row in x]
    expected = [int.from_bytes(d, "little", signed=True) for d in expected]
    assert digests(x).tolist() == digests(x.to(memory_format=torch.channels_last)).tolist() == expected
    y = x.clone()
    y[1, 2, 3, 4] = torch.nextafter(y[1, 2, 3, 4], torch.tensor(9.0))
    assert (digests(x) != digests(y)).tolist() == [False, True, False]
    assert len(digests(torch.tensor([3, 1, 3])).unique()) == 2 and len(digests(x[:0])) == 0


def test_a_part_of_a_vector():
    found = part(torch.arange(10), most=4)
    assert found["stride"] == 3 and found["values"].tolist() == [0, 3, 6, 9]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_nudge_is_one_rounding_of_each_element_either_way(dtype):
    before = torch.arange(-1000, 1001).to(dtype)
    after = before.clone()
    nudge(after)
    gap = (after.double() - before.double())[before != 0]
    relative = gap / before.double()[before != 0] / torch.finfo(dtype).eps
    assert (
        float(after[1000]) == 0.0 and 0.5 <= float(relative.abs().min()) <= float(relative.abs().max()) <= 2
    )
    assert 800 < int((relative > 0).sum()) < 1200
    again = before.clone()
    nudge(again)
    assert torch.equal(again, after)


def test_a_nudged_run_begins_beside_the_other(tmp_path):
    precise = "hardware.precision=fp64"
    one = watched(tmp_path / "one", precise)
    other = watched(tmp_path / "other", precise, more=",nudge:true")
    first = [run.steps[0].gradient["values"] for run in (one, other)]
    assert 0 < float((first[0] - first[1]).abs().max()) < 1e-12 * float(first[0].abs().max())


def test_what_is_written_is_what_was_trained(tmp_path):
    found = watched(tmp_path, "hardware.micro_batch=32")
    assert [s.batch for s in found.steps] == [32] * 4 + [64] * 3 + [41]
    assert [s.passes for s in found.steps] == [1] * 4 + [2] * 3 + [1]  # 41 = a group and 9 that join it
    assert all(bool((s.trained == 1).all()) for s in found.steps)
    assert [s.lr for s in found.steps] == [[0.05]] * 4 + [[0.05 * 2 * 0.375]] * 4
    stop = found.steps[-1].stop
    assert torch.equal(found.by_position("sample"), Order(300, 0).indices(0, stop))
    assert [s.gradient["stride"] for s in found.steps] == [1] * 8
    assert found.meta["unit"] == 32 and found.meta["pieces"] is None and not found.steps[0].drew
    size = found.steps[0].gradient["values"].square().sum().sqrt()
    assert float(found.steps[0].norms.square().sum().sqrt()) == pytest.approx(float(size), rel=1e-5)
    assert found.tensor(0) == "body.0.weight" and found.tensor(10**9) == "head.bias"


def test_watching_changes_no_bit(tmp_path):
    watched(tmp_path, "dataset.augment.pad=2")
    lines = ("schedule=adabatch", "evaluate.every=100", "rehearsal={steps:8}", "dataset.augment.pad=2")
    run(tmp_path / "alone", *SMALL, *lines)
    assert outcome(tmp_path / "run") == outcome(tmp_path / "alone")


def test_it_kills_itself_after_so_many_steps_and_goes_on_the_same(tmp_path):
    whole = watched(tmp_path / "whole")
    place = tmp_path / "cut"
    lines = [*SMALL, "schedule=adabatch", "evaluate.every=100", "checkpoint.every_seconds=0"]
    dying = f"rehearsal={{steps:8,witness:'{place}/first',kill_after:5}}"
    killed(place / "run", *lines, dying, arrange=lambda: None)
    first = recorded.read(place / "first")
    assert len(first.steps) == 5
    run(place / "run", *lines, f"rehearsal={{steps:8,witness:'{place}/second'}}")
    both = recorded.read(place / "second").after(first)
    assert [s.start for s in both.steps] == [s.start for s in whole.steps]
    for a, b in zip(whole.steps, both.steps):
        assert torch.equal(a.loss, b.loss) and torch.equal(a.weights["values"], b.weights["values"])
