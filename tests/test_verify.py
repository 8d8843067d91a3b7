"""adabatch-verify: the diagnosis on records made by hand, the promises, and six ways to break the program."""

import dataclasses
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from support import SMALL

from adabatch.errors import UserError
from adabatch.verify import comparing, data, table
from adabatch.verify.check import KINDS, Check
from adabatch.verify.checks import NUDGED, Verification
from adabatch.verify.command import chosen, numbers
from adabatch.verify.cuts import micro_batches
from adabatch.verify.promises import PROMISES, gradient_bound, promised
from adabatch.verify.recorded import Recorded, Step, joined

ROOT = Path(__file__).resolve().parents[1]
META = dict(
    unit=4, micro_batch=8, samples=100, precision="fp32", device="cpu", deterministic=False, pieces=None,
    plain_norms=[], torch_dropouts=[], claims_ghost=True, names=["a.weight", "b.weight"], offsets=[0, 16],
)  # fmt: skip


def step(start: int, batch: int, **changed) -> Step:
    """A step whose every figure is a function of position."""
    p = torch.arange(start, start + batch)
    vector = {"values": torch.arange(32.0, dtype=torch.float64) + start, "stride": 1}
    found = dict(
        start=start, batch=batch, divisor=batch, lr=[0.1], trained=torch.ones_like(p), sample=p % 100,
        label=p % 7, input=p * 3, loss=1.0 / (1.0 + p.double()), norms=torch.tensor([3.0, 4.0]).double(),
        gradient=vector, weights=vector, running=vector, passes=1, disagree=None, drew=False,
    )  # fmt: skip
    return Step(**found | changed)


def record(*changes: dict, **meta) -> Recorded:
    """Four steps of 8, 8, 16 and 16 samples; changes: of each."""
    places = ((0, 8), (8, 8), (16, 16), (32, 16))
    changes = [*changes, *[{}] * 4][:4]
    return Recorded(META | meta, [step(*place, **change) for place, change in zip(places, changes)])


def moved(field: str, where: int, by: float = 1.0, batch: int = 8, start: int = 8) -> dict:
    """A change of one element of a tensor of the step."""
    value = getattr(step(start, batch), field)
    if isinstance(value, dict):
        new = value["values"].clone()
        new[where] += int(by) if new.dtype == torch.int64 else by
        return {field: value | {"values": new}}
    new = value.clone()
    new[where] += int(by) if new.dtype == torch.int64 else by
    return {field: new}


# ---------------------------------------------------------------- where two runs part


@pytest.mark.parametrize(
    "change, stage, position, words",
    [
        (dict(divisor=16), "trajectory", 8, "divisor 16 instead of 8"),
        (moved("trained", 3), "trajectory", 11, "2 times"),
        (moved("sample", 2), "order", 10, "sample 11 instead of 10"),
        (moved("label", 1), "labels", 9, "1 of 8"),
        (moved("input", 7), "inputs", 15, "1 of 8"),
        (dict(lr=[0.05]), "rate", 8, "0.05 instead of 0.1"),
        (moved("loss", 4), "forward", 12, "per-sample losses"),
        (moved("norms", 1, 8.0), "gradient", 8, "2.474 times what it should be) (most in b.weight"),
        (moved("gradient", 3), "gradient", 8, "normalisation or reduction"),
        (dict(disagree="the weights of rank 1 is not that of rank 0"), "ranks", 8, "rank 1"),
        (moved("weights", 20), "update", 16, "most in b.weight"),
        (moved("running", 0), "update", 16, "running statistics"),
    ],
)
def test_what_parts_first_is_named(change, stage, position, words):
    found = comparing.parting(record(), record({}, change, moved("loss", 0, batch=16, start=16)), 0.0)
    assert (found.stage, found.position) == (stage, position)
    assert words in str(found) and comparing.STAGES[stage] in str(found)


def test_equal_records_do_not_part_and_small_differences_only_beyond_the_bound():
    assert comparing.parting(record(), record(), 0.0) is None
    close = record({}, moved("loss", 4, 1e-9))
    assert comparing.parting(record(), close, 1e-6) is None
    assert comparing.parting(record(), close, 0.0).stage == "forward"


def test_a_run_that_ends_early_parts_where_it_ends():
    short = record()
    short.steps.pop()
    assert comparing.parting(record(), short, 0.0).position == 32


def test_the_relative_difference_is_over_the_whole_network():
    a = {"w": torch.tensor([1.0, -10.0]), "b": torch.tensor([0.0])}
    b = {"w": torch.tensor([1.0, -10.0]), "b": torch.tensor([0.5])}
    assert comparing.difference(b, a) == (0.05, "b")
    assert comparing.difference(a, a) == (0.0, None)
    assert comparing.difference({"w": a["w"] * math.nan, "b": a["b"]}, a)[0] == math.inf
    assert comparing.difference({"w": a["w"]}, a) == (math.inf, "b")


def test_where_weights_part():
    other = record({}, moved("weights", 0, 0.5))
    assert comparing.weights_part(record(), other, 0.0) == 16
    assert comparing.weights_part(record(), other, 0.9) is None


@pytest.mark.parametrize(
    "theirs, nudged, good",
    [
        ([0, 0, 0, 0], [0, 0, 0, 0], True),
        ([0, 0, 1e-11, 1e-11], [0, 0, 0, 0], True),  # within the bound
        ([0, 0, 1e-9, 1e-6], [0, 0, 2e-10, 2e-7], True),  # beyond it, as a rounding is
        ([0, 1e-9, 1e-9, 1e-9], [0, 0, 1e-3, 1e-3], False),  # before a rounding has come to that
        ([0, 0, 0, 1e-6], [0, 0, 1e-3, 1e-8], False),
        ([0, 0, 0, math.nan], [0, 0, 0, 1.0], False),
    ],
)
def test_a_difference_is_forgiven_only_where_a_rounding_has_come_to_a_tenth_of_it(theirs, nudged, good):
    def run(gaps):  # the weights of step k end in starts of 0, 8, 16, 32: the largest is 31 + start
        return record(*[
            moved("weights", 3, gap * (31 + start), batch, start)
            for gap, (start, batch) in zip(gaps, ((0, 8), (8, 8), (16, 16), (32, 16)))
        ])  # fmt: skip

    assert comparing.within(record(), run(theirs), run(nudged), 1e-10, 10.0) is good


class Rounding(Verification):
    """A run "cut" whose last weights are off by `far`, one from nudged weights by `own`; nothing is run."""

    def __init__(self, far: float, own: float, early: float = 0.0):
        self.off, self.early, self.started = {"cut": far, NUDGED: own}, early, []
        self.precision, self.made, self.earlier, self.begun, self.seen = "fp32", {}, {}, {}, []
        self.meta, self.references = META, {"fp64": record()}
        self.processes = self

    def run(self, name, *overrides, nudge=False):
        self.started.append((name, overrides, nudge))
        return SimpleNamespace(failure=None)

    def written(self, name):
        return self.recorded(self.off[name], self.early if name == "cut" else 0.0)

    def recorded(self, far: float, early: float = 0.0) -> Recorded:
        return record(moved("weights", 3, early * 31, 8, 0), {}, {}, moved("weights", 3, far * 63, 16, 32))

    def weights_of(self, name):
        return {"w": torch.tensor([1.0, self.off.get(name, 0.0)], dtype=torch.float64)}


@pytest.mark.parametrize(
    "found, bound, passed, runs",
    [
        (Rounding(5e-11, 1.0), 1e-10, True, 0),  # what is within the bound asks for no other run
        (Rounding(1e-9, 2e-10), 2e-9, True, 1),
        (Rounding(1e-9, 1e-11), 1e-10, False, 1),
        (Rounding(1e-9, 2e-10, early=1e-6), 1e-10, False, 1),
    ],
)
def test_beyond_1e_10_a_rounding_of_the_initial_weights_is_the_measure(found, bound, passed, runs):
    check = found.weights("cut", lambda name: found.written(name))
    assert (check.promised, check.passed) == (pytest.approx(bound), passed)
    assert found.started == [(NUDGED, ("hardware.precision=fp64",), True)] * runs
    assert ("nudged" in (check.reason or "")) == (passed and runs > 0)


def test_runs_of_other_lengths_are_not_within():
    short = record()
    short.steps.pop()
    assert not comparing.within(record(), short, record(), 1.0, 10.0)


# ---------------------------------------------------------------- all runs at once


def expected(**changed) -> dict:
    steps = [[0, 8, 8, 0.1], [8, 8, 8, 0.1], [16, 16, 16, 0.1], [32, 16, 16, 0.1]]
    return dict(budget=48, steps=steps, whole=None, order=[p % 100 for p in range(48)]) | changed


def test_a_dropped_tail_is_named():
    short = record()
    short.steps.pop()
    found = data.schedule([("reference", record()), ("other", short)], expected(), held=False)
    assert not found.passed and found.position == 32
    assert "other: dropped tail: the last 16 samples" in found.reason
    assert data.schedule([("reference", record())], expected(), held=False).passed
    whole = data.schedule([("reference", record())], expected(whole="it ends at 40"), held=False)
    assert not whole.passed and "dropped tail: it ends at 40" in whole.reason


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(divisor=9), "divided by 9"),
        (dict(lr=[0.2]), "learning rate 0.2"),
        (moved("trained", 0, -1), "0 times"),
    ],
)
def test_a_run_that_is_not_as_planned_is_named(change, words):
    found = data.schedule([("one", record({}, change))], expected(), held=False)
    assert not found.passed and words in found.reason and found.position == 8


def test_a_held_horizon_moves_the_learning_rate_and_a_closed_loop_has_no_plan():
    runs = [("one", record({}, dict(lr=[0.2])))]
    assert data.schedule(runs, expected(), held=True).passed
    assert data.schedule(runs, expected(steps=None), held=False).passed
    assert not data.schedule(runs, expected(steps=None, budget=50), held=False).passed


def test_order_and_inputs_of_every_run():
    wrong = record({}, moved("sample", 5))
    found = data.order([("reference", record()), ("2 processes", wrong)], expected())
    assert not found.passed and found.position == 13 and "2 processes: data order: sample 14" in found.reason
    references = {"fp32": record()}
    assert data.inputs(
        [("a", record()), ("b", record(moved("input", 0), precision="fp64"))], references
    ).passed
    other = data.inputs([("a", record({}, moved("input", 6)))], references)
    assert not other.passed and other.position == 14 and "augmentation" in other.reason
    pieces = data.inputs([("a", record(pieces=5))], references)
    assert not pieces.passed and pieces.position == 5 and "keyed by batch" in pieces.reason


def test_plain_batch_norm_is_a_broken_promise_only_where_ghost_was_said():
    plain = META | {"plain_norms": ["net.1 (PlainBatchNorm)"]}
    said = data.norms(plain)
    assert not said.passed and "net.1" in said.reason and said.promised == 0
    declared = data.norms(plain | {"claims_ghost": False})
    assert declared.passed and declared.promised is None and "net.1" in declared.reason
    assert data.norms(META) == Check("norms as configured", None, 0.0, True)


# ---------------------------------------------------------------- promises


@pytest.mark.parametrize(
    "kind, meta, bound",
    [
        ("same", {}, 0.0),
        ("resumed", {}, 0.0),
        ("cut", {}, 1e-10),
        ("gradient", {}, 1e-5),
        ("ordered", {}, 0.0),
        ("gradient", {"precision": "bf16"}, None),
        ("same", {"device": "cuda:0"}, None),
        ("same", {"device": "cuda:0", "deterministic": True}, 0.0),
        ("cut", {"torch_dropouts": ["d (Dropout)"]}, None),
        ("resumed", {"torch_dropouts": ["d (Dropout)"]}, None),
        ("same", {"torch_dropouts": ["d (Dropout)"]}, 0.0),
        ("cut", {"plain_norms": ["n (BatchNorm2d)"], "claims_ghost": False}, None),
        ("cut", {"plain_norms": ["n (BatchNorm2d)"]}, 1e-10),
        ("resumed", {"plain_norms": ["n (BatchNorm2d)"], "claims_ghost": False}, 0.0),
    ],
)
def test_what_is_promised(kind, meta, bound):
    found, why = promised(kind, META | meta)
    assert found == bound and (why is None) == (bound is not None)
    for layer in meta.get("torch_dropouts", []) + meta.get("plain_norms", []):
        assert bound is not None or layer in why


@pytest.mark.parametrize(
    "own, bound", [(2e-6, 1e-5), (5.6e-3, 1.12e-2), (None, 1e-3), (math.inf, 1e-3), (math.nan, 1e-3)]
)
def test_a_gradient_in_float32_may_differ_by_what_float32_does(own, bound):
    """None: no float64 to measure by. A network whose float32 is not finite promises no more than that."""
    assert gradient_bound(own) == bound


def test_the_promises_are_those_of_the_page():
    rows = re.findall(r"^\| (.+?) \| (.+?) \|$", (ROOT / "docs/verify.md").read_text(), re.M)
    printed = [(a, b) for a, b in rows if a not in ("compared", "---")]
    said = [(p.compared, p.words) for p in PROMISES.values()]
    assert [row for row in said if row not in printed] == []


def test_micro_batches_cut_otherwise_and_one_does_not_divide():
    found = micro_batches(record())  # ghost groups of 4, batches of 8 and 16, cut by 8
    assert found == [4, 12]
    assert micro_batches(record(unit=16, micro_batch=16)) == []
    for micro in micro_batches(record(unit=1, micro_batch=64)):
        assert micro > 1


def test_ranks_are_put_together():
    """Two ranks, three samples and one, and a rank that is not like the other."""

    def seen(passes, values, weight):
        vector = {"values": torch.tensor([weight]), "stride": 1}
        whole = torch.tensor(values)
        return dict(
            start=4, batch=4, divisor=4, lr=[0.1], passes=passes, sample=whole, label=whole, input=whole,
            loss=whole.double(), norms=torch.ones(1), gradient=vector, weights=vector, running=vector,
            drew=False,
        )  # fmt: skip

    one, other = seen([(4, 6), (6, 7)], [10, 11, 12], 1.0), seen([(7, 8)], [13], 1.0)
    found = joined([one, other])
    assert found.sample.tolist() == [10, 11, 12, 13] and found.trained.tolist() == [1] * 4
    assert found.passes == 3 and found.disagree is None
    twice = joined([one, seen([(6, 8)], [12, 13], 2.0)])
    assert twice.trained.tolist() == [1, 1, 2, 1] and "rank 1" in twice.disagree


# ---------------------------------------------------------------- the command


def test_the_table_and_its_json():
    rows = [Check("a", 0.0, 0.0, True), Check("b", 2e-3, 1e-10, False, "why", 5), Check("c", 1.0, None, True)]
    assert [(table.far(c), table.bound(c), table.verdict(c)) for c in rows] == [
        ("0", "same bits", "kept"), ("2.0e-03", "1e-10", "BROKEN"), ("1.0e+00", "nothing", "-"),
    ]  # fmt: skip
    assert Check("d", math.inf, 0.0, False).json()["max_relative_difference"] is None
    names = {"name", "max_relative_difference", "promised", "passed", "reason", "position"}
    assert {f.name for f in dataclasses.fields(Check)} == names == set(rows[0].json())


def test_options():
    assert numbers("2, 3", "--processes") == [2, 3] and numbers(None, "--x") == []
    assert chosen("twice,elastic") == ["twice", "elastic"] and chosen(None) is None
    assert chosen(",".join(KINDS)) == list(KINDS)
    with pytest.raises(UserError, match="killed"):
        chosen("twice,kiled")


def verify(*arguments: str, cwd=None, **how) -> subprocess.CompletedProcess:
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests/broken")])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "adabatch.verify", *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, **how)


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["schedule=adabtch"], "Did you mean 'adabatch'"),
        (["--step", "12"], "--steps"),
        (["--steps", "3"], "from 4"),
        (["--only", "twise"], "Did you mean 'twice'"),
        (["--processes", "two"], "--processes"),
        (["hardware.micro_batch=0"], "hardware.micro_batch"),
    ],
)
def test_a_mistake_is_told_without_torch(arguments, words, tmp_path):
    code = (
        "import sys; from adabatch.verify.command import command; code = command(sys.argv[1:]);"
        "sys.exit(code if 'torch' not in sys.modules else 99)"
    )
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


TINY = (*SMALL, "hardware=cpu", "hardware.threads=1", "schedule=adabatch", "--steps", "8", "--json")


def judged(*arguments: str, cwd=None) -> tuple[int, dict]:
    """(exit code, {name: check}) of the real command."""
    done = verify(*TINY, *arguments, cwd=cwd, timeout=280)
    assert done.stdout, done.stderr
    return done.returncode, {check["name"]: check for check in json.loads(done.stdout)["checks"]}


@pytest.mark.slow
@pytest.mark.parametrize(
    "module, more, row, words",
    [
        (
            "averaged",
            ["--only", "micro-batch"],
            "micro-batch 32, fp64",
            "gradient.*losses agree.*normalisation",
        ),
        ("rank_order", ["--only", "processes", "--processes", "2"], "data order", "2 processes.*data order"),
        ("rank_indices", ["--only", "processes", "--processes", "2"], "2 processes, fp64", "data order"),
        ("batch_augmentation", ["--only", "", "dataset.augment.pad=2"], "augmentation", "keyed by batch"),
        ("dropped_tail", ["--only", ""], "schedule as planned", "dropped tail"),
        ("stale_rate", ["--only", "killed"], "killed twice and resumed", "learning rate"),
        ("forgotten_rate", ["--only", "killed"], "killed twice and resumed", "learning rate"),
        ("plain_norm", ["--only", ""], "norms as configured", r"plain batch norm.*ghost.*body\.1\.0"),
    ],
)
def test_a_broken_program_is_found_and_named(module, more, row, words, tmp_path):
    code, found = judged(f"loss._target_={module}.cross_entropy", *more, cwd=tmp_path)
    assert code == 1 and not found[row]["passed"], found
    assert re.search(words, found[row]["reason"], re.S), found[row]["reason"]
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_whole_program_keeps_its_promises(tmp_path):
    code, found = judged("--keep", "runs", cwd=tmp_path)
    assert code == 0 and all(check["passed"] for check in found.values()), found
    assert found["the same command twice"]["max_relative_difference"] == 0.0
    assert found["2 processes, fp64"]["promised"] == 1e-10 and "3 processes, fp64" in found
    assert {"killed with 2 processes, resumed with 1", "killed with 2 processes, resumed with 3"} <= set(
        found
    )
    assert (tmp_path / "runs/01-reference/run/summary.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides, layer",
    [(["model.norm=batch"], "PlainBatchNorm"), (["model._target_=own.Dropping"], "body.3 (Dropout)")],
)
def test_what_is_declared_breaks_nothing_and_is_named(overrides, layer, tmp_path):
    code, found = judged("--only", "twice,micro-batch", *overrides, cwd=tmp_path)
    assert code == 0, found
    cut = [check for name, check in found.items() if name.startswith("micro-batch")]
    assert cut and all(check["promised"] is None and layer in check["reason"] for check in cut)
    assert any(
        check["max_relative_difference"] > 1e-10 for check in cut
    )  # the control: it does depend on the cut
    assert found["the same command twice"]["promised"] == 0


@pytest.mark.slow
def test_a_network_that_knows_no_float64_is_compared_by_its_gradient(tmp_path):
    code, found = judged("--only", "micro-batch", "model._target_=own.Single", cwd=tmp_path)
    assert code == 0 and not any("fp64" in name for name in found)
    assert all("float64" in found[name]["reason"] for name in found if name.startswith("micro-batch"))


@pytest.mark.slow
def test_ctrl_c_ends_what_runs(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-m", "adabatch.verify", *TINY, "--steps", "4000", "--only", "twice"]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, process_group=0)
    began = time.monotonic()
    while not list(tmp_path.glob("*/*/witness/rank0/*.pt")):
        assert time.monotonic() - began < 120 and process.poll() is None
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGINT)
    _, words = process.communicate(timeout=60)
    assert process.returncode == 130 and "interrupted" in words
    left = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True).stdout
    assert str(tmp_path) not in left and not list(tmp_path.iterdir())
