"""experiment=big_batch: the source's numbers written out, its five arms, and tables of arms in general."""

import json
import math
from pathlib import Path

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from page_folders import declare
from support import QUIET, SMALL, launched, resolved, run
from sweep_folders import run as run_folder

from adabatch import config, labels, mistakes, plan, profiles, runs, targets
from adabatch.compare import asked, tabulated
from adabatch.composed import Composed
from adabatch.errors import UserError
from adabatch.verdict import decide, folders, formats, page

ROOT = Path(__file__).resolve().parents[1]
MNIST = ("model=mnist_f1", "dataset=mnist")
WHOLE = {"scale": None, "ratio": None}  # no parts of pictures
SHALLOW = (200, 128, 4096, {0: 1e-3, 59: 1e-3, 60: 1e-2, 120: 1e-3, 180: 1e-4, 199: 1e-4}, 0.0, 5e-4)
# eladhoffer/bigBatch: epochs, small batch, large batch, {epoch: learning rate}, momentum, weight decay.
SOURCE = {
    MNIST: (50, 128, 4096, {0: 0.1, 9: 0.1, 10: 1e-2, 20: 1e-3, 30: 1e-4, 49: 1e-4}, 0.9, 1e-4),
    ("model=cifar10_shallow", "dataset=cifar10"): SHALLOW,
    ("model=cifar100_shallow", "dataset=cifar100"): SHALLOW,
    ("model=resnet", "model.depth=44", "dataset=cifar10"):
        (100, 256, 2048, {0: 0.1, 80: 0.1, 81: 0.01, 99: 0.01}, 0.9, 1e-4),
    ("model=wide_resnet", "model.variant=bigbatch", "model.depth=16", "model.width=4", "dataset=cifar100"):
        (200, 256, 1024, {0: 0.1, 60: 0.02, 120: 0.004, 140: 1e-4, 199: 1e-4}, 0.9, 1e-4),
}  # fmt: skip


def arms(*overrides):
    """({name: arm}, what is said of them) of `adabatch -m experiment=big_batch OVERRIDES`."""
    line = ["experiment=big_batch", *overrides]
    with config.composer():
        try:
            found, notes = Composed(config.load(line), GlobalHydra.instance().config_loader(), line).arms()
        except Exception as error:
            raise UserError(mistakes.explain(error, line) or repr(error)) from error
    return {arm.name: arm for arm in found}, notes


def refused(*overrides) -> str:
    with pytest.raises(UserError) as caught:
        arms(*overrides)
    return str(caught.value)


@pytest.mark.parametrize("overrides", SOURCE, ids=lambda line: line[0])
def test_every_network_trains_by_the_regime_of_its_source(overrides):
    epochs, small, large, rates, momentum, decay = SOURCE[overrides]
    found = resolved("experiment=big_batch", *overrides)
    samples = 60_000 if "dataset=mnist" in overrides else 50_000
    schedule = plan.schedule(found, samples)
    assert (found["epochs"], schedule(0).divisor, found["clip_norm"]) == (epochs, small, 5)
    assert {e: pytest.approx(schedule(e * samples).lr) for e in rates} == rates
    assert found["optimizer"]["momentum"] == momentum and found["optimizer"]["weight_decay"] == decay
    assert found["optimizer"]["nesterov"] is False and found["optimizer"]["decay_norm_and_bias"]
    assert found["model"]["regime"]["large_batch"] == large and found["log"]["distance"] is True
    data = found["dataset"]
    if samples == 60_000:
        assert (data["mean"], data["std"]) == ([0.5], [0.5])
        assert data["augment"] == {"pad": 2, "pad_mode": "zeros", "flip": True, "cutout": 0} | WHOLE
    else:  # ImageNet's, as in torchvision's documentation
        assert (data["mean"], data["std"]) == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
        assert data["augment"] == {"pad": 4, "pad_mode": 127, "flip": True, "cutout": 0} | WHOLE


def test_the_five_arms_written_out():
    """4,096 against 128: the root is 32^(1/2), regime adaptation 32 times 50 epochs of 60,000 samples with
    the steps at 320, 640 and 960 epochs, so as many updates as the small batch: 3,000,000 / 128 = 23,437.5.
    A key of the schedule that was typed holds for every arm."""
    found, notes = arms(*MNIST, "schedule.max_batch=9999")
    root, samples = math.sqrt(32), 60_000
    table = {  # name: batch, ghost group, learning rate at first, updates, epochs
        "small batch": (128, 128, 0.1, 23_438, 50),
        "large batch": (4096, 4096, 0.1, 733, 50),
        "+ sqrt LR": (4096, 4096, 0.1 * root, 733, 50),
        "+ ghost norm": (4096, 128, 0.1 * root, 733, 50),
        "+ regime adaptation": (4096, 128, 0.1 * root, 23_438, 1600),
    }
    assert list(found) == list(table)
    for name, (batch, ghost, lr, updates, epochs) in table.items():
        arm = found[name]
        assert arm.batches == (batch, batch) and len(arm.path) == updates
        assert arm.schedule.budget == epochs * samples and arm.path[0][2] == pytest.approx(lr)
        assert (arm.config["model"]["norm"], arm.config["model"]["ghost"]) == ("ghost", ghost)
        assert arm.config["schedule"]["max_batch"] == 9999
        stretch = epochs // 50
        for step, epoch in enumerate((10, 20, 30)):
            at = epoch * stretch * samples
            assert arm.schedule(at - 1).lr == pytest.approx(lr * 0.1**step)
            assert arm.schedule(at).lr == pytest.approx(lr * 0.1 ** (step + 1))
    assert notes == ["+ regime adaptation trains 32 times as many samples as small batch"]


def test_a_regime_may_be_changed_and_the_arms_follow():
    """1,000 against 300: 10 / 3 rounded up is 4."""
    found, notes = arms(*MNIST, "model.regime.batch=300", "model.regime.large_batch=1000", "epochs=2",
                        "model.regime.milestones=[1]", "model.regime.values=[0.5]")  # fmt: skip
    last = found["+ regime adaptation"]
    assert last.schedule.budget == 4 * 2 * 60_000 and last.config["model"]["ghost"] == 300
    assert last.path[0][2] == pytest.approx(0.1 * math.sqrt(10 / 3))
    assert last.schedule(4 * 60_000).lr == pytest.approx(0.05 * math.sqrt(10 / 3))
    assert notes[0].startswith("+ regime adaptation trains 4 times")


def test_a_network_without_a_regime_is_refused_and_one_may_be_given():
    said = refused("model=vgg", "dataset=cifar10")
    assert "model.regime and model.input_transform" in said and "model=mnist_f1" in said
    regime = "model.regime={epochs: 3, batch: 8, large_batch: 16, lr: 1, milestones: [1], values: [0.1], "
    regime += "momentum: 0.5, weight_decay: 0}"
    assert "input_transform" in refused("model=vgg", "dataset=cifar10", regime)
    pictures = "model.input_transform={mean: [0], std: [1], augment: {pad: 1, pad_mode: zeros, flip: false, "
    found, _ = arms("model=vgg", "dataset=cifar10", regime, pictures + "cutout: 0}}")
    assert found["large batch"].batches == (16, 16) and found["large batch"].config["epochs"] == 3
    assert found["large batch"].config["dataset"]["augment"]["pad"] == 1


def test_a_regime_is_no_part_of_a_runs_identity_nor_of_what_its_speed_depends_on():
    """It enters by what the experiment makes of it, once; and runs from before there was one keep theirs."""
    found = resolved("model=mnist_f1", "dataset=mnist")
    older = {k: v for k, v in found["model"].items() if k not in ("regime", "input_transform")}
    before = found | {"model": older, "compare": None, "log": {"every_samples": None}}
    other = resolved("model=mnist_f1", "dataset=mnist", "model.regime.lr=3", "model.input_transform.mean=[0]")
    for changed in (before, other):
        assert runs.identity(changed) == runs.identity(found)
        assert labels.comparison(changed, ROOT) == labels.comparison(found, ROOT)
        assert profiles.configured(changed) == profiles.configured(found)
    a, b = (resolved("experiment=big_batch", *MNIST, *more) for more in ((), ("model.regime.lr=3",)))
    assert runs.identity(a) != runs.identity(b)


def test_a_network_is_not_given_its_regime():
    node = resolved(*MNIST)["model"]
    with torch.device("meta"):
        network = targets.make(node, "model", num_classes=10, channels=1, shape=(1, 28, 28))
    assert sum(p.numel() for p in network.parameters()) == 1_462_794


def test_one_ghost_group_of_the_whole_batch_is_batch_norm_over_it(tmp_path):
    """What "large batch" means here, against torch's own layer; and a forward pass holds all of it, whatever
    was asked for."""
    from adabatch import layers
    from adabatch.models.bigbatch import MnistF1

    def network(**keys):
        torch.manual_seed(1)
        return MnistF1(10, (1, 8, 8), width=16, **keys).double().train()

    ghost, plain = network(norm="ghost", ghost=200), network(norm="batch")
    layers.bind(ghost, micro := layers.MicroBatch(0))
    micro.groups, micro.weights, micro.record = [200], [1.0], False
    micro.positions = torch.arange(200)
    x = torch.randn(200, 1, 8, 8, dtype=torch.float64)
    assert torch.allclose(ghost(x), plain(x), rtol=1e-10, atol=1e-12)
    lines = (*SMALL[:-1], "epochs=1", "model=mnist_f1", "model.width=8", "model.layers=1", "model.ghost=300")
    run(tmp_path / "run", *lines, "schedule.base_batch=300", "hardware.micro_batch=64")
    (row,) = [row for row in runs.read_rows(tmp_path / "run") if row["event"] == "train"]
    assert (row["batch_size"], row["micro_batch"], row["accumulation"]) == (300, 300, 1)


def test_a_table_refuses_what_it_cannot_have():
    """Through the command where the configuration has to be known."""
    assert "arm large batch says schedule.base_batch=4096 itself" in refused(*MNIST, "schedule.base_batch=64")
    assert "compare.adaptive is for a comparison" in refused(*MNIST, "compare.adaptive=[adabatch]")
    assert "compare.table is true or false" in refused(*MNIST, "compare.table=1")
    assert "are the same run" in refused(*MNIST, "model.regime.large_batch=128")
    twice = "compare.arms=[{name: a, overrides: ['epochs=1']}, {name: a, overrides: ['epochs=2']}]"
    assert "two arms are called a" in refused(*MNIST, twice)
    one = "compare.arms=[{name: a, overrides: ['epochs=-1']}]"
    assert "arm a (compare.arms): epochs is a number above 0" in refused(*MNIST, one)


@pytest.mark.parametrize(
    "arms, said",
    [
        (["fixed"], "a list of {name: ..., overrides: [...]}, got ['fixed']"),
        ([{"name": "a", "sizes": ["2x"], "overrides": ["a=1"]}], "the keys name, overrides, got 'sizes'"),
        ([{"name": "a"}], "an arm has overrides"),
        ([{"name": "a", "overrides": ["epochs"]}], "overrides is a list of KEY=VALUE"),
        ([{"name": "a|b", "overrides": ["epochs=1"]}], "an arm's name is 1 to 40 letters"),
        ([{"name": "a", "overrides": ["seed=1"]}], "all arms of a table have the same seed"),
        ([{"name": "a", "overrides": ["dataset.limit=9"]}], "have the same dataset"),
        ([{"name": "a", "overrides": ["+model.ghost=9"]}], "model.ghost=5: arm a says +model.ghost=9 itself"),
    ],
)
def test_an_arm_of_a_table_that_cannot_be_is_refused(arms, said):
    with pytest.raises(UserError) as caught:
        for entry in asked.listed(arms, table=True):
            tabulated.refuse_lines(entry, {"model.ghost": "model.ghost=5"})
    assert said in str(caught.value)


# -- the report --------------------------------------------------------------------------------------


def tabled(tmp_path, table=True, other=lambda name, seed: {}):
    """Three arms of two seeds, declared in this order; the last trained four times the samples. other:
    further keys of a run's configuration."""
    given = [("b", (128,), 32, 1), ("a", (32,), 32, 1), ("long", (512,), 64, 4)]
    for seed in (0, 1):
        for name, batches, ghost, times in given:
            keys = {"compare.arm": name, "model.ghost": ghost, **other(name, seed)}
            run_folder(tmp_path, seed, batches, 0.1 + 0.01 * seed, 10.0, config=keys, samples=times * 10_000)
    declare(tmp_path, arms=[{"name": name} for name, *_ in given], **({"table": True} if table else {}))
    return folders.look([str(tmp_path)], {})


def test_a_table_is_shown_in_its_order_with_budgets_and_without_a_verdict(tmp_path):
    found = tabled(tmp_path)
    verdict = decide.decide(found.arms, found.plan)
    assert verdict.decision == "table" and verdict.sentence.startswith("a table of 3 arms, no verdict")
    assert verdict.winner is None and verdict.comparisons == ()
    shown = formats.as_json(verdict, found.plan, [])
    told = [(arm["arm"], arm["budget_ratio"]) for arm in shown["arms"]]
    assert told == [("b", None), ("a", None), ("long", 4)]
    assert [arm["final_error"] for arm in shown["arms"]] == [pytest.approx(0.105)] * 3
    text = formats.text(verdict, found.plan, [], 120)
    assert "4 times the samples" in text and "neither class" not in text and "margin" not in text
    assert "an adaptive batch wins" not in text
    html = page.render(verdict, found).decode()
    assert "Error against epochs" in html and "4 times the samples" in html and "margin of error" not in html


def test_the_same_runs_without_the_declaration_are_refused(tmp_path):
    with pytest.raises(UserError, match="differ in model.ghost"):
        tabled(tmp_path, table=False)


def test_runs_of_an_arm_are_alike_and_all_arms_have_the_same_data(tmp_path):
    with pytest.raises(UserError, match="differ in model.width"):
        tabled(tmp_path / "seeds", other=lambda name, seed: {"model.width": 16 + seed})
    with pytest.raises(UserError, match="differ in dataset.test_samples"):
        tabled(tmp_path / "arms", other=lambda name, seed: {"dataset.test_samples": 98 + (name == "a")})


def test_a_table_in_progress_says_what_is_missing(tmp_path):
    found = tabled(tmp_path)
    waiting = run_folder(tmp_path, 2, (32,), 0.1, 10.0, state="running",
                         config={"compare.arm": "a", "model.ghost": 32})  # fmt: skip
    assert waiting.is_dir()
    found = folders.look([str(tmp_path)], {})
    assert decide.decide(found.arms, found.plan).sentence.startswith("interim, no verdict: 1 of 7 runs")


# -- the command file --------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_command_file_runs_the_whole_table(tmp_path):
    """From another folder, a few samples of real digits, one seed; given again it has nothing to do."""
    lines = ["dataset=mnist5k", "dataset.limit=256", "epochs=1", "model.regime.large_batch=256",
             "model.width=32", "compare.seeds=1", "hardware.parallel_runs=2", *QUIET]  # fmt: skip
    done = launched("big_batch.sh", *lines, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "a table of 5 arms, no verdict" in done.stdout and "2 times the samples" in done.stdout
    (report,) = tmp_path.glob("outputs/compare-*/report.json")
    shown = json.loads(report.read_text())["arms"]
    assert [arm["updates"] for arm in shown] == [2, 1, 1, 1, 2]
    assert "Weight distance" in report.with_name("report.html").read_text()
    again = launched("big_batch.sh", *lines, cwd=tmp_path)
    assert again.returncode == 0 and "5 finished already" in again.stdout
