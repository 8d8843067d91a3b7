"""The programs under examples/ and the blocks of docs/library.md, run as they stand."""

import importlib.util
import json
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from support import difference, outcome

from adabatch import runs
from adabatch.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"
ENV = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
LIBRARY = (ROOT / "docs" / "library.md").read_text()
COMMON = (
    "trackers.wandb.mode=disabled", "hardware=cpu", "hardware.threads=1", "model.ghost=16", "epochs=2",
    "checkpoint.every_seconds=0",
)  # fmt: skip


def load(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def python(*arguments, cwd, check=True, seconds=200):
    done = subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=cwd, env=ENV, text=True, capture_output=True,
        timeout=seconds,
    )  # fmt: skip
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


# -- a plain loop --------------------------------------------------------------------------------------


def test_the_plain_loop_learns_and_goes_on_where_it_was(tmp_path, capsys):
    plain = load("plain_loop")
    whole = plain.main(str(tmp_path / "whole.pt"))
    ended = capsys.readouterr().out.splitlines()[-1]
    assert whole < 0.12 and ended.endswith("after 28,740 samples")  # 20 epochs of 1,437
    plain.main(str(tmp_path / "cut.pt"), stop=9000)  # its last save is before that: the rest is done again
    kept = torch.load(tmp_path / "cut.pt", weights_only=True)["sampler"]["position"]
    assert 0 < kept < 9000
    capsys.readouterr()
    assert plain.main(str(tmp_path / "cut.pt")) == whole
    assert capsys.readouterr().out.splitlines()[-1] == ended
    one, two = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("whole", "cut"))
    assert one["sampler"] == two["sampler"] and one["model"].keys() == two["model"].keys()
    assert all(torch.equal(one["model"][name], two["model"][name]) for name in one["model"])


def test_the_plain_loop_s_batches_grow_as_the_table_says():
    """x2 and x0.375 at epochs 5, 10, 15 of 1,437 samples, linear scaling: the rate falls by 0.75."""
    from adabatch import Schedule, Steps, walk

    schedule = Schedule(samples=1437, epochs=20, base_batch=32, base_lr=0.1,
                        growth=Steps(2, every=5), decay=Steps(0.375, every=5))  # fmt: skip
    source = (EXAMPLES / "plain_loop.py").read_text()
    assert "epochs=20, base_batch=32, base_lr=0.1" in source and "growth=Steps(2, every=5)" in source
    firsts = {}
    for start, _, setting in walk(schedule):
        firsts.setdefault(setting.divisor, (start, setting.lr))
    assert list(firsts) == [32, 64, 128, 256]
    for k, (start, lr) in enumerate(firsts.values()):
        assert 0 <= start - 7185 * k < 32 * 2**k and lr == pytest.approx(0.1 * 0.75**k)


# -- several processes ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_processes_with_accumulation_give_the_weights_of_one(tmp_path, capsys):
    """float64, 5 epochs, batches 32 to 512 in micro-batches of 24, a last batch that is cut."""
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    asked = ("ddp_loop.py", "--float64", "--save")
    done = python(*launch, *asked, tmp_path / "two.pt", cwd=EXAMPLES)
    two = torch.load(tmp_path / "two.pt", weights_only=True)
    assert all(tensor.dtype == torch.float64 for tensor in two.values())
    loop = load("ddp_loop")
    one = loop.train(0, 1, torch.float64).state_dict()
    assert capsys.readouterr().out == done.stdout == "last batch: 305 of 512 samples, at 7,185\n"
    assert difference(two, one) < 1e-10
    loop.MICRO_BATCH = 7
    assert difference(loop.train(0, 1, torch.float64).state_dict(), one) < 1e-10


# -- tokens --------------------------------------------------------------------------------------------


def test_the_token_loop_follows_seesaw(capsys):
    """Batch x2 and lr / sqrt(2) where a cosine from 1 to 0 crosses 1/2, 1/4, 1/8 (arXiv 2510.14717)."""
    tokens = load("tokens_loop")
    data, vocabulary = tokens.sequences()
    assert data.shape[1] == tokens.LENGTH + 1 and torch.equal(data[0, -1], data[1, 0])
    steps = tokens.main()
    budget = len(data) * tokens.LENGTH * tokens.EPOCHS
    assert sum(batch for batch, _, _ in steps) == budget
    assert all(batch % tokens.LENGTH == 0 for batch, _, _ in steps)
    position = 0
    for batch, lr, _ in steps:
        cosine = (1 + math.cos(math.pi * position / budget)) / 2
        halvings = min(3, math.floor(-math.log2(cosine) + 1e-9))
        assert batch == min(512 * 2**halvings, budget - position)
        if position >= len(data) * tokens.LENGTH / 2:  # after the warm-up of half an epoch
            assert lr == pytest.approx(0.003 / math.sqrt(2) ** halvings)
        position += batch
    losses = [loss for _, _, loss in steps]
    assert losses[0] == pytest.approx(math.log(vocabulary), abs=0.5) and losses[-1] < 2.2


# -- docs/library.md -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def library():
    """What the page's blocks leave behind, run one after the other."""
    names = {}
    torch.manual_seed(0)
    for block in re.findall(r"```python\n(.*?)```", LIBRARY, re.S):
        exec(compile(block, "docs/library.md", "exec"), names)
    return names


def test_the_page_of_the_library_runs(library):
    assert library["steps"][:2] == [(0, 32), (32, 32)] and library["steps"][-1][1] < 256
    sizes = {size for _, size in library["steps"][:-1]}
    assert sizes == {32, 64, 128, 256}
    positions, batches = zip(*library["taken"])
    assert positions[-1] + batches[-1] == 5 * 1437 and positions[0] == 0
    assert len(set(batches)) > 2  # labels without a signal: the noise asks for more than 32
    assert type(library["schedule"].growth.rule).__name__ == "Doubling"


def test_the_noise_of_the_page_is_that_of_its_definition(library):
    """tr(S) and |G|^2 from the gradients of softmax regression written out, groups of 16, 16 and 9."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(41, 8)), rng.integers(0, 3, 41)
    model = torch.nn.Linear(8, 3, dtype=torch.float64)
    noise = library["backward"](model, torch.tensor(x), torch.tensor(y), 50)
    logits = x @ model.weight.detach().numpy().T + model.bias.detach().numpy()
    residual = np.exp(logits) / np.exp(logits).sum(1, keepdims=True) - np.eye(3)[y]
    each = np.concatenate([(residual[:, :, None] * x[:, None, :]).reshape(41, -1), residual], axis=1)
    groups = [each[:16], each[16:32], each[32:]]
    mean = each.mean(0)
    between = sum(len(g) * ((g.mean(0) - mean) ** 2).sum() for g in groups) / 2  # K - 1
    assert noise.groups == 3 and noise.batch == 41
    assert noise.trace == pytest.approx(between, rel=1e-10)
    assert noise.sq_norm == pytest.approx((mean**2).sum() - between / 41, rel=1e-10)
    assert np.allclose(model.bias.grad.numpy(), residual.sum(0) / 50)
    assert library["backward"](model, torch.tensor(x[:16]), torch.tensor(y[:16]), 16) is None


# -- a rule of your own --------------------------------------------------------------------------------


def test_the_commands_of_the_page_are_those_of_the_example():
    commands = re.findall(r"^\$ (adabatch .*)$", LIBRARY, re.M)
    assert len(commands) == 3
    documented = (EXAMPLES / "own_rule.py").read_text()
    assert all(command in documented for command in commands)


def follows_its_rule(folder, ratio, cap=1437):
    """Whether the batch doubled exactly where the rows say that tr(S) / |G|^2 is `ratio` batches."""
    train = [row for row in runs.read_rows(folder) if row["event"] == "train"]
    batch = 32
    for row in train[:-1]:
        assert row["batch_size"] == batch
        if (row.get("noise_scale") or 0) >= ratio * batch:
            batch = min(2 * batch, cap)
    assert train[-2]["batch_size"] > 32


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run by the first command of the page, as it stands there."""
    folder = tmp_path_factory.mktemp("own") / "run"
    command = re.findall(r"^\$ adabatch (.*)$", LIBRARY, re.M)[0].split()
    python("-m", "adabatch", *command, *COMMON, f"hydra.run.dir={folder}", cwd=EXAMPLES)
    return folder


@pytest.mark.slow
def test_a_rule_of_your_own_runs_through_the_command(whole):
    run = runs.Run(whole)
    assert run.summary["schedule"] == "own_rule"
    assert run.config["schedule"]["growth"] == {"_target_": "own_rule.Doubling", "ratio": 2}
    follows_its_rule(whole, ratio=2)


@pytest.mark.parametrize("number, named", [(1, "own_rule"), (2, "noise_scale")])
def test_the_other_two_commands_of_the_page(tmp_path, monkeypatch, number, named):
    monkeypatch.chdir(EXAMPLES)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    words = re.findall(r"^\$ adabatch (.*)$", LIBRARY, re.M)[number].split()
    place = None
    if words[0] == "--config-dir":
        place, words = words[1], words[2:]
    import adabatch

    summary = adabatch.run([*words, *COMMON, f"hydra.run.dir={tmp_path / 'run'}"], config_dir=place)
    assert summary["schedule"] == named
    follows_its_rule(tmp_path / "run", ratio=4, cap=256 if number == 1 else 1437)


@pytest.mark.slow
def test_a_run_under_your_own_rule_resumes_bitwise(tmp_path, whole):
    """Killed by SIGKILL once the batch has grown; the same command again."""
    asked = ("--config-dir", "conf", "schedule=own_rule", f"hydra.run.dir={tmp_path / 'cut'}", *COMMON)
    child = subprocess.Popen(
        [sys.executable, "-m", "adabatch", *asked], cwd=EXAMPLES, env=ENV, stdout=subprocess.DEVNULL
    )
    rows, deadline = tmp_path / "cut" / "metrics.jsonl", time.monotonic() + 100
    while time.monotonic() < deadline and child.poll() is None:
        if rows.exists() and '"batch_size": 64' in rows.read_text():
            break
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL, "it had ended before it was killed"
    assert not (tmp_path / "cut" / "summary.json").exists()
    python("-m", "adabatch", *asked, cwd=EXAMPLES)
    assert outcome(tmp_path / "cut") == outcome(whole)


def test_the_command_that_resumes_names_the_folder_of_your_options(tmp_path, monkeypatch):
    from adabatch import jobs
    from adabatch.__main__ import command

    told = []
    monkeypatch.chdir(EXAMPLES)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setattr(jobs, "run_job", lambda *_, places, **__: told.append(places) or ({}, 0))
    place = f"hydra.run.dir={tmp_path}"
    assert command(["--config-dir", "conf", "schedule=own_rule", place]) == 0
    assert command(["schedule=fixed", place]) == 0
    assert told == [[place, "--config-dir", "conf"], [place]]


@pytest.mark.slow
def test_the_comparison_that_a_run_suggests_finds_your_options(tmp_path):
    """What the run prints, typed again as it stands: it is planned, not refused as an unknown schedule."""
    asked = ["--config-dir", "conf", "schedule=own_rule", *COMMON]
    for line in (asked, ["-m", *asked, "seed=0"]):
        place = [f"hydra.{'sweep' if '-m' in line else 'run'}.dir={tmp_path / str(len(line))}"]
        said = python("-m", "adabatch", *line, *place, cwd=EXAMPLES).stdout
        words = shlex.split(re.search(r"^compare: adabatch (.*)$", said, re.M)[1])
        assert "own_rule" in python("-m", "adabatch.planning", *words, cwd=EXAMPLES).stdout


def test_the_identity_of_a_run_holds_the_rule_s_arguments():
    from adabatch import config

    names = set()
    for ratio in (2, 3):
        with config.composer(str(EXAMPLES / "conf")):
            tree = config.load(["schedule=own_rule", f"schedule.growth.ratio={ratio}"])
            sys.path.insert(0, str(EXAMPLES))
            try:
                names.add(config.checked(tree).name.rsplit("-", 1)[1])
            finally:
                sys.path.remove(str(EXAMPLES))
    assert len(names) == 2


MISTAKES = {
    "Text": ("def wish(self, seen): return 'big'", "returns a batch size.*it returned 'big' on trial"),
    "Fails": ("def wish(self, seen): return 2 * seen.scale", "failed on trial.*TypeError.*line 4"),
    "Needs": ("needs = frozenset({'trac'})", "Needs.needs names trac; there is: trace"),
    "Silent": ("", "cannot be made: TypeError: Can't instantiate abstract class"),
    "Asks": ("def __init__(self): raise OSError('no table')", "cannot be made: OSError: no table"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_a_rule_is_told_before_the_run(tmp_path, monkeypatch, name):
    from adabatch import config, mistakes

    body, message = MISTAKES[name]
    module = f"mistaken_{name.lower()}"
    wish = "" if "wish" in body or name == "Silent" else "\n    def wish(self, seen): return 1"
    head = f"from adabatch import Rule\nclass {name}(Rule):\n    needs = frozenset({{'trace'}})\n"
    (tmp_path / f"{module}.py").write_text(f"{head}    {body}{wish}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with config.composer(), pytest.raises(Exception) as caught:
        config.checked(config.load(["schedule=noise_scale", f"schedule.growth._target_={module}.{name}"]))
    found = mistakes.explain(caught.value, [])
    assert found is not None and re.search(message, found), found


def test_a_mistake_that_shows_late_names_the_position():
    from adabatch import Constant, Observation, Rule, closed_loop

    class Late(Rule):
        needs = frozenset({"loss"})

        def wish(self, seen):
            if seen.position > 10_000:
                return [seen.batch]

    schedule = closed_loop(
        samples=1000, epochs=20, growth=Late(), decay=Constant(), base_batch=400, base_lr=0.1
    )
    schedule.observe(Observation(400, schedule(400), 1.0))
    with pytest.raises(UserError, match="it returned \\[400\\] at position 12000"):
        schedule.observe(Observation(12_000, schedule(12_000), 1.0))


def test_a_rule_is_no_factor():
    from adabatch import Constant, Rule, Schedule

    class Mine(Rule):
        def wish(self, seen):
            return 1

    with pytest.raises(UserError, match="adabatch.schedules.closed_loop, growth may derive from .*got Mine"):
        Schedule(samples=10, epochs=1, growth=Mine(), decay=Constant(), base_batch=2, base_lr=0.1)


def test_the_public_names_are_these():
    """`import adabatch` says what there is without loading it."""
    code = "import adabatch, json, sys; print(json.dumps([adabatch.__all__, 'torch' in sys.modules]))"
    names, heavy = json.loads(python("-c", code, cwd=EXAMPLES).stdout)
    assert not heavy and names == [
        "__version__", "run", "Run", "UserError", "Diverged", "Interrupted", "Schedule", "Constant", "Steps",
        "closed_loop", "Rule", "Setting", "Observation", "walk", "Noise", "BatchSampler",
    ]  # fmt: skip
    import adabatch as package

    assert all(getattr(package, name) is not None for name in names)
