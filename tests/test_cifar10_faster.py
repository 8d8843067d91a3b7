"""experiment=cifar10_faster: its source's figures, the arms of its comparison and its table, small runs."""

import pytest
from hydra.core.global_hydra import GlobalHydra
from support import launched, resolved, run, runs

from adabatch import build, config, plan
from adabatch.composed import Composed
from adabatch.models.airbench import Airbench

# airbench94_muon.py. Losses are sums over 2,000 samples there; its logits are divided by 256, ours by 9.
BATCH, EPOCHS, MUON_LR, BIAS_LR, HEAD_LR, DECAY = 2000, 8, 0.24, 0.053, 0.67, 2e-6 * 2000


def arms(name) -> dict:
    line = [f"experiment={name}"]
    with config.composer():
        loader = GlobalHydra.instance().config_loader()
        return {arm.name: arm for arm in Composed(config.load(line), loader, line).arms()[0]}


def test_the_recipe_has_the_figures_of_its_source():
    tree = resolved("experiment=cifar10_faster")
    schedule = plan.schedule(tree, 50_000)
    assert schedule.budget == EPOCHS * 50_000 and schedule(0).divisor == BATCH
    steps = EPOCHS * 50_000 // BATCH
    for step in (0, 1, 37, 150, steps - 1):
        assert schedule(step * BATCH).lr == pytest.approx(MUON_LR * (1 - step / steps), rel=1e-12)
    assert tree["label_smoothing"] == 0.2 and tree["evaluate"] == {"every": 1, "flip": True, "translate": 1}
    varied = {"pad": 2, "pad_mode": "reflect", "flip": "alternate", "cutout": 0}
    varied |= {"scale": None, "ratio": None}
    assert tree["dataset"]["augment"] == varied and tree["model"]["whiten_bias_epochs"] == 3
    assert BATCH % tree["model"]["ghost"] == 0 and tree["model"]["dirac"]


def test_the_rates_of_every_group_are_those_of_the_source_in_our_units():
    node = resolved("experiment=cifar10_faster")["optimizer"]
    net = Airbench(10, 3)
    _, chosen = build.optimizer(node, net)
    matrices, head, biases, whitening = chosen.param_groups
    assert (matrices["momentum"], matrices["nesterov"], chosen.steps) == (0.6, True, 3)
    assert len(matrices["matrices"]) == 6 and "weight_decay" not in matrices
    for group, lr in (
        (head, HEAD_LR * BATCH * (9 / 256) ** 2),
        (biases, BIAS_LR * BATCH),
        (whitening, BIAS_LR * BATCH),
    ):
        assert MUON_LR * group["lr_scale"] == pytest.approx(lr, rel=1e-12)
        assert lr * group["weight_decay"] == pytest.approx(DECAY, rel=1e-12)
        assert (group["momentum"], group["nesterov"]) == (0.85, True)
    assert [len(group["params"]) for group in (head, biases, whitening)] == [1, 1, 1]
    assert head["params"][0].numel() == 2560 and "until" not in biases and whitening["until"] == 3


def test_the_question_has_fixed_batches_a_growing_one_and_the_fixed_one_of_as_many_updates():
    found = arms("cifar10_faster_batch")
    paths = {name: [(batch, lr) for _, batch, lr in arm.path] for name, arm in found.items()}
    assert list(found) == [
        "fixed 500",
        "fixed 1000",
        "fixed 2000",
        "fixed 4000",
        "growing",
        "mean-matched 1067",
    ]
    for batch in (500, 1000, 2000, 4000):
        steps = 400_000 // batch
        lrs = [0.24 * (batch / 2000) ** 0.5 * (1 - step / steps) for step in range(steps)]
        assert paths[f"fixed {batch}"] == [(batch, pytest.approx(lr)) for lr in lrs]
    assert [batch for batch, _ in paths["growing"]] == [500] * 200 + [1000] * 100 + [2000] * 50 + [4000] * 25
    assert len(paths["mean-matched 1067"]) == len(paths["growing"]) == 375
    for start, batch, lr in found["growing"].path:
        assert lr == pytest.approx(0.24 * (batch / 2000) ** 0.5 * (1 - start / 400_000))
    assert [name for name, arm in found.items() if arm.adaptive] == ["growing"]
    recipe = runs.identity(resolved("experiment=cifar10_faster", "evaluate.every=8")["optimizer"])
    assert {runs.identity(arm.config["optimizer"]) for arm in found.values()} == {recipe}


def test_each_arm_of_the_table_lacks_what_it_says():
    found = arms("cifar10_faster_parts")
    whole = found.pop("whole").config
    recipe = resolved("experiment=cifar10_faster", "evaluate.every=8") | {"hardware": whole["hardware"]}
    assert runs.identity(whole) == runs.identity(recipe)
    differ = {}
    for name, arm in found.items():
        nodes = {key for key in whole if arm.config[key] != whole[key]} - {"compare", "options"}
        differ[name] = {f"{n}.{k}" for n in nodes if isinstance(whole[n], dict) for k in whole[n]
                        if arm.config[n].get(k) != whole[n][k]} | {n for n in nodes if n not in ("model",)
                        and not isinstance(whole[n], dict)}  # fmt: skip
    sgd = found["sgd instead of muon"]
    assert sgd.config["optimizer"]["_target_"] == "adabatch.optim.SGD"
    # legacy/airbench94.py: 11.5 / (1024 (1 + 1 / 0.15)) a sample, decay 0.0153 in the same units.
    unit = 1024 * (1 + 1 / (1 - 0.85))
    assert max(lr for *_, lr in sgd.path) == pytest.approx(11.5 / unit * 2000, rel=2e-3)
    assert sgd.config["optimizer"]["weight_decay"] == pytest.approx(0.0153 / 11.5, rel=1e-4)
    del differ["sgd instead of muon"]
    assert differ == {
        "decay instead of renormalising": {"optimizer.renormalise"},
        "five steps of the iteration": {"optimizer.steps"},
        "no whitening bias": {"model.whiten_bias_epochs"},
        "whitening bias to the end": {"model.whiten_bias_epochs"},
        "no identity at the start": {"model.dirac"},
        "no label smoothing": {"label_smoothing"},
        "mirrored views only": {"evaluate.translate"},
        "one view": {"evaluate.flip", "evaluate.translate"},
    }


SMALLER = (
    "dataset=synthetic", "dataset.samples=48", "dataset.test_samples=16", "model.ghost=8", "epochs=2",
)  # fmt: skip


@pytest.mark.slow
def test_a_small_run_of_the_recipe_learns_and_its_weights_are_whole(tmp_path, monkeypatch):
    monkeypatch.setattr("adabatch.models.airbench.WIDTHS", (24, 32, 32))
    words = (
        "experiment=cifar10_faster",
        *SMALLER,
        "epochs=6",
        "dataset.samples=192",
        "dataset.test_samples=100",
        "schedule.base_batch=24",
        "optimizer.bias_lr=20",
    )
    summary = run(tmp_path, *words)
    rows = [row for row in runs.read_rows(tmp_path) if row["event"] == "train"]
    assert rows[-1]["train_loss"] < 0.8 * rows[0]["train_loss"] and summary["final_test_error"] < 0.5


@pytest.mark.slow
def test_the_command_file_runs_the_recipe_then_the_question(tmp_path):
    words = (
        *SMALLER, "schedule.base_batch=16", "hardware=cpu", "hardware.threads=1", "evaluate.every=2",
        "trackers.wandb.mode=disabled", "compare.seeds=1", "schedule.lr_batch=16",
        "compare.arms=[{name: fixed, overrides: ['schedule=fixed'], sizes: [2x]}, "
        "{name: growing, overrides: ['schedule=adabatch', 'schedule.growth.every=1']}]",
    )  # fmt: skip
    done = launched("cifar10_faster.sh", *words, cwd=tmp_path, RUNS="1", TARGET="0.95")
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list(tmp_path.glob("outputs/cifar10_faster/*/summary.json"))) == 1
    assert len(list(tmp_path.glob("outputs/compare-*/*/summary.json"))) == 2
