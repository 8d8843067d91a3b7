"""Every option of `schedule`: it trains on digits, and killed on a change of batch it resumes bit for bit."""

import json

import pytest
from support import killed, outcome, resolved, run
from test_train import kill_at_step

from adabatch import config, plan, runs
from adabatch.noise import Noise
from adabatch.schedules import Observation

# Digits: 300 samples of real 8x8 pictures; ghost groups of 8, so that a batch of 16 has two to measure.
DIGITS = (
    "dataset=digits", "dataset.samples=null", "dataset.limit=300", "epochs=4", "model.ghost=8",
    "schedule.base_batch=16", "checkpoint.every_seconds=0", "evaluate.every=0.5",
)  # fmt: skip
MEASURED = ("schedule.noise_group=8", "schedule.hysteresis=0.01", "schedule.max_batch=64")
HELD_OUT = ("dataset.validation=60",)
MORE = {  # what an option needs beside
    "noise_scale": MEASURED,
    "norm_test": MEASURED,
    "norm_test_debiased": MEASURED,
    "inner_product_test": MEASURED,
    "cabs": (*MEASURED, "schedule.growth.c=200"),
    "simigrad": MEASURED,
    "divebatch": MEASURED,
    "goodput": MEASURED,
    "adascale": (*MEASURED[:1], "schedule.lr_batch=8"),
    "adadamp": HELD_OUT,
    "radadamp": ("schedule.growth.wait=160", "schedule.growth.window=80"),
    "padadamp": ("schedule.growth.rate=0.5", "schedule.growth.wait=10", "schedule.growth.dwell=10"),
    "linear_scaling": ("schedule.warmup_epochs=1",),
    "plateau": (*HELD_OUT, "schedule.growth.patience=0", "schedule.growth.threshold=0.3"),
}
STEADY = ("fixed", "cosine", "one_cycle", "piecewise", "large_batch", "linear_scaling", "legw", "adascale")
OPTIONS = sorted(file.stem for file in (config.conf_dir() / "schedule").glob("*.yaml"))


def overrides(option: str, folder) -> tuple:
    if option == "replay":
        if not (folder / "recorded").exists():
            run(folder / "recorded", *overrides("adabatch", folder))
        rest = [o for o in DIGITS if not o.startswith("schedule.")]
        return (*rest, "schedule=replay", f"schedule.run='{folder / 'recorded'}'")
    if option == "goodput":
        points = [{"batch_size": b, "samples_per_second": 1000.0 * b / (b + 64)} for b in (16, 64, 256)]
        (folder / "profile.json").write_text(json.dumps({"format": 1, "points": points}))
        more = (f"schedule.profile='{folder / 'profile.json'}'",)
    else:
        more = ()
    return (*DIGITS, f"schedule={option}", *MORE.get(option, ()), *more)


@pytest.mark.slow
@pytest.mark.parametrize("option", OPTIONS)
def test_it_trains_on_digits_and_resumes_on_a_change_of_batch(option, tmp_path):
    own = overrides(option, tmp_path)
    summary = run(tmp_path / "whole", *own)
    assert summary["final_train_loss"] < 2.29  # chance is ln 10 = 2.303
    rows = [row for row in runs.read_rows(tmp_path / "whole") if row["event"] == "train"]
    assert sum(row["batch_size"] for row in rows) == rows[-1]["position"] == summary["samples"]
    sizes = [row.get("divisor", row["batch_size"]) for row in rows]
    changes = [k for k in range(1, len(sizes)) if sizes[k] != sizes[k - 1]]
    assert bool(changes) != (option in STEADY), f"batches {sorted(set(sizes))}"
    for step in {changes[0] + 1, changes[-1]} if changes else {len(sizes) // 2}:  # steps count from 1
        killed(tmp_path / f"killed{step}", *own, arrange=kill_at_step(step))
        run(tmp_path / f"killed{step}", *own)
        assert outcome(tmp_path / f"killed{step}") == outcome(tmp_path / "whole")


@pytest.mark.parametrize("option", [o for o in OPTIONS if o not in ("replay", "goodput")])
def test_it_stays_within_its_bounds_under_any_measurement(option):
    """max_batch, multiple and the budget hold at every step, also where a rule is told of wild noise, and
    Adam-type optimizers resolve. Dampers plan beyond the cap, and the learning rate pays."""
    more = HELD_OUT if MORE.get(option, ())[:1] == HELD_OUT else ()
    tree = resolved(
        "dataset=digits", f"schedule={option}", "optimizer=adamw", "schedule.base_batch=32",
        "schedule.max_batch=200", "schedule.multiple=8", *more,
    )  # fmt: skip
    schedule = plan.schedule(tree, plan.samples_of(tree["dataset"]))
    position, step, wild = 0, 0, (1e-3, 1e6, 3.0, 1e3)
    while not schedule.done(position):
        setting = schedule(position)
        assert setting.divisor % 8 == 0 and 8 <= setting.divisor <= 200 and setting.lr >= 0
        size, trace = setting.batch_size, wild[step % 4]
        noise = Noise(
            size, 2, trace, 1.0, cosine=0.9 - step % 2, inner=trace, per_sample=1.0, diversity=trace
        )
        needs = schedule.measures(position, setting)
        loss = 10.0 / (1 + step) if "loss" in needs else None
        schedule.observe(Observation(position, setting, loss, noise if needs - {"loss"} else None))
        schedule.evaluated(position, trace, None)
        position, step = position + size, step + 1
    assert position == schedule.budget
