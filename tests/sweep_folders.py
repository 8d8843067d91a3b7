"""Sweeps of run folders as `adabatch -m` leaves them, for tests of what compares them."""

import copy
import json
import math
import random

from adabatch import runs

SAMPLES, EPOCHS = 1000, 10
CONFIG = {
    "seed": 0,
    "epochs": EPOCHS,
    "label_smoothing": 0.0,
    "model": {"_target_": "adabatch.models.convnet.ConvNet", "width": 16},
    "dataset": {
        "_target_": "adabatch.data.datasets.cifar10", "samples": SAMPLES, "test_samples": 10_000,
        "validation": 0,
    },
    "schedule": {
        "_target_": "adabatch.schedules.Schedule", "base_batch": 32, "base_lr": 0.05, "twin": None,
        "growth": {"_target_": "adabatch.schedules.Constant"},
    },
    "hardware": {
        "device": "auto", "precision": "fp32", "threads": 1, "micro_batch": "auto", "processes": None,
    },
    "optimizer": {"_target_": "adabatch.optim.SGD", "momentum": 0.9},
    "shadow": {},
    "rehearsal": None,
    "trackers": {"wandb": {"mode": "auto", "name": None}},
    "options": {"model": "convnet", "dataset": "cifar10", "schedule": "fixed", "hardware": "auto"},
}  # fmt: skip
ENVIRONMENT = {
    "cpu": "AMD EPYC 7B13", "cores": 4, "gpus": ["Tesla T4"],
    "versions": {"adabatch": "0.1.0", "torch": "2.15.0", "cuda": "13.2"},
}  # fmt: skip


def setting(node: dict, given: dict) -> dict:
    """A copy of the nested dictionary with dotted keys set."""
    node = copy.deepcopy(node)
    for key, value in given.items():
        *path, last = key.split(".")
        inner = node
        for name in path:
            inner = inner.setdefault(name, {})
        inner[last] = value
    return node


def schedule(batches, option=None) -> dict:
    """The keys of a schedule that goes through these batch sizes."""
    grows = len(batches) > 1
    return {
        "schedule.base_batch": batches[0],
        "schedule.growth._target_": "adabatch.schedules." + ("Steps" if grows else "Constant"),
        "options.schedule": option or ("adabatch" if grows else "fixed"),
    }


def run(parent, seed, batches, error, seconds, state="finished", config=None, environment=None, **figures):
    """One run's folder; config, environment: dotted keys; figures: of its summary."""
    made = setting(CONFIG, {"seed": seed, **schedule(batches), **(config or {})})
    name = f"schedule={made['options']['schedule']}-base_batch={batches[0]}-seed={seed}-{runs.identity(made)}"
    folder = parent / name
    folder.mkdir(parents=True)
    runs.write_yaml(folder / "config.yaml", {"format": 1, **made})
    runs.write_yaml(folder / "overrides.yaml", {"format": 1, "overrides": [], "identity": name[-8:]})
    runs.write_json(folder / "environment.json", {"format": 1, **setting(ENVIRONMENT, environment or {})})
    runs.write_json(folder / "status.json", {"format": 1, "state": state, "error": None, "owner": None})
    share = SAMPLES * EPOCHS // len(batches)
    rows = []
    for i, batch in enumerate(batches):
        at, epoch = (i + 1) * share, (i + 1) * EPOCHS / len(batches)
        rows.append({"event": "train", "position": at, "epoch": epoch, "batch_size": batch, "world_size": 1})
    for epoch in range(1, EPOCHS + 1):
        now = error + 0.5 * math.exp(-epoch) - 0.5 * math.exp(-EPOCHS)
        rows.append({
            "event": "eval", "split": "test", "weights": "raw", "epoch": epoch, "position": epoch * SAMPLES,
            "eval_error": now, "seconds": seconds * epoch / EPOCHS,
        })  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if state == "finished":
        phases = [{"start_position": i * share, "batch_size": b} for i, b in enumerate(batches)]
        updates = sum(math.ceil(share / b) for b in batches)
        summary = {
            "format": 1, "seed": seed, "epochs": EPOCHS, "steps": updates, "samples": SAMPLES * EPOCHS,
            "final_test_error": error, "best_test_error": error - 0.001, "train_seconds": seconds,
            "device_seconds": seconds, "images_per_second": SAMPLES * EPOCHS / seconds,
            "weights_sha256": f"{abs(hash((seed, batches, error))):064x}"[-64:], "phases": phases,
        }  # fmt: skip
        runs.write_json(folder / "summary.json", summary | figures)
    return folder


ARMS = {  # batch sizes: (final error, log of the seconds)
    (32,): (0.090, math.log(150)),
    (128,): (0.090, math.log(110)),
    (512,): (0.094, math.log(100)),
    (32, 128, 512): (0.091, math.log(70)),
}


def sweep(parent, arms=ARMS, seeds=5, spread=0.002, jitter=0.02, **given):
    """Every arm and seed, drawn from the truth that `arms` says; returns {(batches, seed): folder}."""
    draw = random.Random(1)
    made = {}
    for seed in range(seeds):
        block = draw.gauss(0, 0.05)
        for batches, (error, log) in arms.items():
            final, seconds = draw.gauss(error, spread), math.exp(log + block + draw.gauss(0, jitter))
            made[batches, seed] = run(parent, seed, batches, final, seconds, **given)
    return made
