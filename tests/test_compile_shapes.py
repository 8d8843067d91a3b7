"""hardware.compile=true compiles a network once for a micro-batch, however often the batch changes.

Counted where torch.compile hands a graph to its backend; the backend here runs the graph as it is, because
what inductor makes of it would only cost minutes.
"""

from types import SimpleNamespace

import pytest
import torch
import torch._dynamo
from support import SMALL, difference, resolved, run

from adabatch import build as build_module
from adabatch import runs
from adabatch.build import build
from adabatch.data.stream import Stream
from adabatch.errors import UserError

# Batches of 16, 32, 64 and 128 in 5 epochs of 300; the last one is cut.
GROWING = (
    *SMALL, "epochs=5", "hardware.compile=true", "schedule=adabatch", "schedule.base_batch=16",
    "schedule.max_batch=128", "schedule.growth.every_samples=300", "model.ghost=8",
)  # fmt: skip


@pytest.fixture
def compiled(monkeypatch):
    """Samples in the inputs of each graph that is compiled."""
    sizes, compile = [], torch.compile

    def counting(graph, inputs):
        sizes.append(next(t.shape[0] for t in inputs if t.dim() == 4 and t.shape[1:] == (3, 8, 8)))
        return graph.forward

    def compiles(model, **options):
        return compile(model, backend=counting, **options)

    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", compiles)
    with torch._dynamo.config.patch(recompile_limit=8):  # torch's own, which build raises
        yield sizes
    torch._dynamo.reset()


def passes(folder) -> list:
    """(batch, largest micro-batch, forward passes) of each step."""
    rows = [row for row in runs.read_rows(folder) if row["event"] == "train"]
    return [(row["batch_size"], row["micro_batch"], row["accumulation"]) for row in rows]


def test_one_compilation_for_a_run_whose_batch_changes_three_times(compiled, tmp_path):
    run(tmp_path / "run", *GROWING)
    sizes = [batch for batch, *_ in passes(tmp_path / "run")]
    assert sorted(set(sizes[:-1])) == [16, 32, 64, 128] and sizes[-1] not in (16, 32, 64, 128)  # cut
    assert {micro for _, micro, _ in passes(tmp_path / "run")} == {16}
    assert compiled == [16]


@pytest.mark.parametrize(
    "micro, expected", [(8, [8]), pytest.param(32, [32], marks=pytest.mark.slow), (256, [])]
)
def test_only_passes_of_the_whole_micro_batch_are_compiled(micro, expected, compiled, tmp_path):
    """256 is never reached: no shape stands for the others, each of which is eager."""
    run(tmp_path / "run", *GROWING, f"hardware.micro_batch={micro}")
    assert compiled == expected


def test_runs_of_one_process_that_differ_in_their_seed_share_one_compilation(compiled, tmp_path):
    for seed in range(3):
        run(tmp_path / f"{seed}", *GROWING, f"seed={seed}", "hardware.own_process=false")
    assert compiled == [16]


def test_more_shapes_than_torch_allows_by_itself_are_compiled(compiled):
    hardware = SimpleNamespace(compile=True, device=torch.device("cpu"), precision="fp32")
    forward = build_module.compiled(torch.nn.Conv2d(3, 1, 1), hardware)
    for samples in range(1, 13):
        forward(torch.zeros(samples, 3, 8, 8))
    assert compiled == list(range(1, 13))


@pytest.mark.slow
def test_a_second_one_only_after_the_micro_batch_was_halved(compiled, tmp_path, monkeypatch):
    batch, asked = Stream.batch, []

    def fails_once(self, *rows):
        asked.append(rows)
        if len(asked) == 20:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return batch(self, *rows)

    monkeypatch.setattr(Stream, "batch", fails_once)
    run(tmp_path / "run", *GROWING)
    assert {micro for _, micro, _ in passes(tmp_path / "run")} == {16, 8}
    assert compiled == [16, 8]


@pytest.mark.parametrize("every", [0, pytest.param(0.5, marks=pytest.mark.slow)])
def test_measured_steps_compile_no_other_shape(every, compiled, tmp_path):
    """They are made of passes of a noise group at most, so all steps are, and that is what is compiled."""
    own = (
        "schedule=noise_scale", "schedule.noise_group=8", "schedule.max_batch=64", "schedule.hysteresis=0.01",
        "schedule.base_batch=16", f"schedule.measure_every={every}",
    )  # fmt: skip
    run(tmp_path / "run", *(o for o in GROWING if not o.startswith("schedule")), *own)
    assert len({batch for batch, *_ in passes(tmp_path / "run")}) > 1
    assert compiled == [8]


def test_compiled_and_eager_agree(compiled, tmp_path):
    """In float64, over all those changes."""
    own = (*GROWING, "hardware.precision=fp64")
    run(tmp_path / "compiled", *own)
    run(tmp_path / "eager", *own, "hardware.compile=false")
    a, b = (torch.load(tmp_path / name / "weights.pt", weights_only=True) for name in ("compiled", "eager"))
    assert compiled == [16] and difference(a, b) < 1e-10


@pytest.mark.parametrize("norm, precision, refused", [
    ("ghost", "bf16", True), ("ghost", "fp32", False), ("group", "bf16", False),
])  # fmt: skip
def test_what_the_compiler_gets_wrong_is_refused(norm, precision, refused, compiled):
    lines = [f"model.norm={norm}", f"hardware.precision={precision}", "hardware.compile=true", "hardware=cpu"]
    tree = resolved("dataset=digits", *lines)
    if not refused:
        build(tree)
        return
    with pytest.raises(UserError, match="hardware.compile=false"):
        build(tree)
