"""experiment=cifar10_fast and the two recipes that it comes from: their figures, repeats in one process, the
script."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support import SMALL, launched, resolved

from adabatch import build, ema, kept, losses, optim, plan, runs
from adabatch.errors import UserError
from adabatch.models.resnet9 import ResNet9
from adabatch.targets import GENERIC

IN_ONE = "hardware.own_process=false"
# (position in epochs, learning rate) by the sources' knots, and what is read off the straight lines between.
RECIPES = {
    "cifar10_fast": dict(
        batch=512, epochs=10, decay=5e-4, bias=(64.0, 7.8125e-6), parameters=(6_570_880, 729), ghost=32,
        lr=[(0, 0), (1, 0.5), (2, 1), (5, 0.55), (7.5, 0.175), (8, 0.1), (9.99, 0.1)],
        smoothing=0.2, flip=True, cutout=0,
    ),
    "cifar10_fast_page": dict(
        batch=512, epochs=24, decay=5e-4, bias=None, parameters=(6_573_120, 0), ghost=512,
        lr=[(0, 0), (2.5, 0.2), (5, 0.4), (14.5, 0.2), (19.25, 0.1), (24, 0)],
        smoothing=0.0, flip=False, cutout=8,
    ),
    "cifar10_fast_apple": dict(
        batch=2048, epochs=18, decay=7.5e-4, bias=(64.0, 1.171875e-5), parameters=(6_570_880, 729), ghost=16,
        lr=[(0, 0), (1.8, 0.75), (3.6, 1.5), (9.8, 0.825), (16, 0.15), (17.9, 0.15)],
        smoothing=0.2, flip=True, cutout=0,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_has_the_figures_of_its_source(name):
    said, config = RECIPES[name], resolved(f"experiment={name}")
    schedule = plan.schedule(config, 50_000)
    assert schedule.budget == said["epochs"] * 50_000
    for epoch, lr in said["lr"]:
        setting = schedule(round(epoch * 50_000))
        assert setting.lr == pytest.approx(lr, rel=1e-4, abs=1e-12), epoch
        assert setting.divisor == said["batch"]
    assert config["label_smoothing"] == said["smoothing"] and config["evaluate"]["flip"] == said["flip"]
    varied = {"pad": 4, "pad_mode": "reflect", "flip": True, "cutout": said["cutout"],
              "scale": None, "ratio": None}  # fmt: skip
    assert config["dataset"]["augment"] == varied and config["options"]["dataset"] == "cifar10"
    keys = {k: v for k, v in config["model"].items() if k not in ("_target_", *GENERIC["model"])}
    net = ResNet9(10, 3, **keys)
    scales = sum(p.numel() for n, p in net.named_parameters() if p.dim() == 1 and n.endswith("weight"))
    frozen = sum(p.numel() for p in net.parameters() if not p.requires_grad)
    trained = sum(p.numel() for p in net.parameters() if p.requires_grad)
    assert (trained, frozen - (scales if frozen else 0)) == said["parameters"]
    assert {m.ghost for m in net.modules() if hasattr(m, "ghost") and m is not net} == {said["ghost"]}
    groups = optim.groups(net, config["optimizer"])
    node = config["optimizer"]
    assert (node["nesterov"], node["momentum"], node["weight_decay"]) == (True, 0.9, said["decay"])
    if said["bias"] is None:
        assert [own for _, own in groups] == [{}]
    else:
        (weights, plain), (biases, own) = groups
        assert plain == {} and (own["lr_scale"], own["weight_decay"]) == pytest.approx(said["bias"])
        assert {n.endswith("weight") for n, _ in weights} == {True} == {n.endswith("bias") for n, _ in biases}
        assert all(p.dim() > 1 for _, p in weights) and len(biases) == 8  # one norm a convolution


def test_the_peak_rates_of_biases_are_those_of_the_sources():
    peaks = {"cifar10_fast": (100_000, 64), "cifar10_fast_apple": (180_000, 96)}
    for name, (position, expected) in peaks.items():
        config = resolved(f"experiment={name}")
        lr = plan.schedule(config, 50_000)(position).lr
        assert lr * config["optimizer"]["bias_lr"] == pytest.approx(expected)


def test_another_number_of_epochs_is_the_whole_recipe():
    schedule = plan.schedule(resolved("experiment=cifar10_fast", "epochs=5"), 50_000)
    assert [schedule(round(e * 50_000)).lr for e in (1, 2.5, 4, 4.9)] == pytest.approx([1, 0.55, 0.1, 0.1])


def test_the_average_of_the_weights_keeps_99_per_cent_in_a_step_of_512():
    """new_dawn.py: 0.99^5 every fifth step. By our update of one number from 1 towards 0."""

    class Flat:
        params, running = torch.ones(1, dtype=torch.float64), torch.zeros(0)

    average = ema.Average(Flat, resolved("experiment=cifar10_fast")["ema"])
    Flat.params.zero_()
    for _ in range(5):
        average.update(512)
    assert average.mean[0].item() == pytest.approx(0.99**5, rel=1e-6)
    assert resolved("experiment=cifar10_fast_apple")["ema"] is None


def test_label_smoothing_is_the_loss_of_the_sources():
    """0.8 cross entropy + 0.2 mean over classes of -log p, a value per sample, in float64."""
    training, evaluation = build.losses(resolved("experiment=cifar10_fast"))
    logits = torch.randn(50, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 4
    labels = torch.arange(50) % 10
    logs = logits - logits.exp().sum(1, keepdim=True).log()
    entropy = -logs[torch.arange(50), labels]
    assert torch.allclose(training(logits, labels), 0.8 * entropy - 0.2 * logs.mean(1), rtol=1e-12)
    assert torch.allclose(evaluation(logits, labels), entropy, rtol=1e-12)
    assert losses.cross_entropy(logits, labels).shape == (50,)


# -- repeats in one process -----------------------------------------------------------------------

DATA = (*SMALL, "dataset.augment.pad=1", "dataset.augment.flip=true")


def test_what_is_kept_between_runs_is_one_data_set_and_what_it_was_laid_out_as(monkeypatch):
    monkeypatch.setattr(kept, "_kept", {})
    first = build.build(resolved(*DATA, IN_ONE))
    laid = first.step.stream.samples.windows
    again = build.build(resolved(*DATA, IN_ONE, "seed=1"))
    assert again.data is not first.data and again.data.train is first.data.train
    assert again.step.stream.samples.windows is laid
    other = build.build(resolved(*DATA, IN_ONE, "dataset.augment.pad=2"))
    assert other.data.train is not first.data.train and len(kept._kept["sources"]) == 1
    assert other.step.stream.samples.windows is not laid
    build.build(resolved(*DATA))
    assert kept._kept == {}, "a run of an ordinary process keeps nothing, and lets go"


def test_a_loader_of_ones_own_is_asked_each_time(monkeypatch):
    monkeypatch.setattr(kept, "_kept", {})
    config = resolved(*DATA, IN_ONE)
    config["dataset"]["_target_"] = "mine.load"
    made = []
    for _ in range(2):
        kept.splits(config, "cpu", lambda: made.append(1) or build.data(resolved(*DATA)["dataset"]))
    assert len(made) == 2 and kept._kept == {}


@pytest.mark.parametrize("other", ["hardware.processes=2", "hardware.parallel_runs=2"])
def test_one_process_and_several_exclude_each_other(other):
    with pytest.raises(UserError, match=f"own_process=false makes all runs in one process, got {other}"):
        resolved(IN_ONE, other)


def command(*arguments, cwd, check=True):
    line = [sys.executable, "-m", "adabatch", *arguments]
    done = subprocess.run(line, cwd=cwd, capture_output=True, text=True, timeout=280)
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def summaries(parent) -> dict:
    """{seed: summary}"""
    found = [runs.read_json(path) for path in Path(parent).glob("*/summary.json")]
    return {summary["seed"]: summary for summary in found}


@pytest.mark.slow
def test_repeats_in_one_process_are_bit_for_bit_those_of_processes_of_their_own(tmp_path):
    common = [*DATA, "epochs=2", "hardware=cpu", "hardware.threads=1", "trackers.wandb.mode=disabled"]
    command("-m", *common, "seed=0,1,2", IN_ONE, "hydra.sweep.dir=one", cwd=tmp_path)
    for seed in range(3):
        command(*common, f"seed={seed}", f"hydra.run.dir=own/{seed}", cwd=tmp_path)
    one, own = summaries(tmp_path / "one"), summaries(tmp_path / "own")
    assert set(one) == set(own) == {0, 1, 2}
    hashes = [[found[seed]["weights_sha256"] for seed in range(3)] for found in (one, own)]
    assert hashes[0] == hashes[1] and len(set(hashes[0])) == 3
    assert [one[s]["identity"] for s in range(3)] == [own[s]["identity"] for s in range(3)]


@pytest.mark.slow
def test_a_run_that_fails_in_the_one_process_does_not_end_the_others(tmp_path):
    common = [*DATA, "epochs=1", "hardware=cpu", "hardware.threads=1", "trackers.wandb.mode=disabled"]
    given = ["schedule.base_lr=1e30,0.05", "schedule.decay.factor=1", IN_ONE, "hydra.sweep.dir=one"]
    done = command("-m", *common, *given, cwd=tmp_path, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    states = [json.loads(p.read_text())["state"] for p in sorted((tmp_path / "one").glob("*/status.json"))]
    assert sorted(states) == ["diverged", "finished"]


# -- the script -----------------------------------------------------------------------------------

TINY = (
    "dataset=synthetic", "dataset.samples=24", "dataset.test_samples=8", "epochs=1", "model.ghost=8",
    "hardware=cpu", "hardware.threads=1", "trackers.wandb.mode=disabled", "checkpoint.every_seconds=60",
)  # fmt: skip


@pytest.mark.slow
def test_the_script_repeats_reports_and_writes_the_tsv_of_each_run(tmp_path):
    done = launched("cifar10_fast.sh", *TINY, cwd=tmp_path, RUNS="2", TARGET="0.95")
    assert done.returncode == 0, done.stdout + done.stderr
    out = tmp_path / "outputs" / "cifar10_fast"
    assert set(summaries(out)) == {0, 1}
    assert "final error: min / mean / median" in done.stdout and "at 95 % or less" in done.stdout
    for run in out.glob("*/summary.json"):
        head, *rows = (run.parent / "dawnbench.tsv").read_text().splitlines()
        assert head == "epoch\thours\ttop1Accuracy" and rows
        epoch, hours, accuracy = map(float, rows[-1].split("\t"))
        summary = runs.read_json(run)
        assert epoch == 1 and accuracy == pytest.approx(100 * (1 - summary["final_test_error"]), abs=0.01)
        assert hours == pytest.approx(summary["train_seconds"] / 3600, abs=1e-8)


def test_the_script_refuses_a_number_of_runs_that_is_none(tmp_path):
    for runs_asked in ("0", "some", "-1", "2x"):
        done = launched("cifar10_fast.sh", cwd=tmp_path, RUNS=runs_asked)
        assert done.returncode == 2 and f"got '{runs_asked}'" in done.stderr
