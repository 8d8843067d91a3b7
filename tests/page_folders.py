"""A sweep with everything that a comparison's page draws: rows of every step, ledgers, noise, forecasts."""

import json
import math
import random

from sweep_folders import EPOCHS, SAMPLES, run

from adabatch import runs

# {batch sizes: (final error, seconds)}: a parabola in log batch, the adaptive arm below it.
TRUTH = {
    (32,): (0.081, 150), (64,): (0.079, 128), (128,): (0.083, 110), (256,): (0.091, 101), (512,): (0.108, 96),
    (32, 64, 128, 256, 512): (0.082, 104),
}  # fmt: skip


def rows_of(batches, error, seconds, draw, noise=False, until=1.0):
    """Rows as a run writes them; until: the part of the run that has been trained."""
    rows, position, step, now, lr = [], 0, 0, 0.0, 0.05 * batches[0] / 32
    budget, share = SAMPLES * EPOCHS, SAMPLES * EPOCHS / len(batches)
    speed = {b: 1 / (0.02 / b + 0.0002) for b in batches}
    pace = seconds / sum(share / speed[b] for b in batches)
    batch, wobble = batches[0], draw.gauss(0, 0.04)
    while position < until * budget:
        planned = batches[min(int(position / share), len(batches) - 1)]
        if planned != batch:
            changes = {"batch_size": [batch, planned], "lr": [lr, 0.75 * lr]}
            rows.append({"event": "change", "position": position, "epoch": position / SAMPLES, "step": step,
                         "changes": changes, "rule": "growth x2 and decay x0.375"})  # fmt: skip
            batch, lr = planned, 0.75 * lr
        size = min(batch, budget - position)
        before, position, step = position // SAMPLES, position + size, step + 1
        now += pace * size / speed[batch]
        epoch = position / SAMPLES
        at = {"position": position, "epoch": epoch, "step": step, "seconds": now}
        rows.append({"event": "train", **at, "batch_size": size, "world_size": 1, "lr": lr,
                     "train_loss": 2 * math.exp(-epoch) + 0.1})  # fmt: skip
        if noise and step % 5 == 0:
            rows[-1]["noise_scale"] = 20 * math.exp(0.35 * epoch + draw.gauss(0, 0.3))
        if position // SAMPLES > before:
            curve = error + 0.6 * math.exp(-epoch / (1 + batches[0] / 400)) * (1 + wobble)
            seen = min(1.0, curve + draw.gauss(0, 0.002) if position < budget else error)
            rows.append({"event": "eval", **at, "split": "test", "weights": "raw", "eval_loss": 3 * seen,
                         "eval_error": seen})  # fmt: skip
    return rows


def full(parent, truth=TRUTH, seeds=5, spread=0.003, forecasts=True, until=None, **given):
    """{(batches, seed): folder}. until: {(batches, seed): share trained} of runs still in progress."""
    draw, made = random.Random(3), {}
    for seed in range(seeds):
        block = draw.gauss(0, 0.03)
        for batches, (error, seconds) in truth.items():
            final = draw.gauss(error, spread)
            took = seconds * math.exp(block + draw.gauss(0, 0.01))
            part = (until or {}).get((batches, seed), 1.0)
            ledger = {"compute": 0.86 * took, "data": 0.03 * took, "resize": 0.002 * took * len(batches[1:]),
                      "measuring": 0.0, "evaluation": 0.08 * took, "checkpoint": 0.02 * took,
                      "other": 4.0}  # fmt: skip
            figures = {"ledger": ledger}
            if forecasts:
                guess = took * math.exp(draw.gauss(0.02, 0.05))
                figures["forecast"] = {"profile": "ab", "seconds": guess, "low": 0.9 * guess,
                                       "high": 1.1 * guess, "measured": took}  # fmt: skip
            state = "finished" if part == 1.0 else "running"
            config = {"schedule.max_batch": batches[-1]}
            folder = run(parent, seed, batches, final, took, state, config, **figures, **given)
            rows = rows_of(batches, final, took, draw, noise=len(batches) > 1, until=part)
            (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            made[batches, seed] = folder
    return made


def declare(parent, **content):
    """A compare.yaml as it is written before the first run."""
    from adabatch.verdict.plan import digest

    runs.write_yaml(parent / "compare.yaml", {"format": 1, **content, "sha256": digest(content)})
