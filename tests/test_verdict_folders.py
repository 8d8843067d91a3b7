"""From run folders to arms: what belongs together, what is refused, what makes times incomparable."""

import json
import math
import os
import shutil

import pytest
from sweep_folders import ARMS, ENVIRONMENT, run, schedule, sweep

from adabatch import UserError, runs
from adabatch.verdict import formats, table
from adabatch.verdict import plan as plans
from adabatch.verdict.arms import LOOKS
from adabatch.verdict.decide import decide
from adabatch.verdict.folders import common, look, write


def judged(parent, **given):
    found = look([str(parent)], given)
    return decide(found.arms, found.plan, found.pending)


def test_a_whole_sweep(tmp_path):
    """From folders to the verdict that is true of what they were drawn from."""
    sweep(tmp_path / "all")
    found = look([str(tmp_path / "all")], {})
    assert [arm.name for arm in found.arms] == ["fixed 32", "fixed 128", "fixed 512", "adabatch 32-512"]
    assert [arm.adaptive for arm in found.arms] == [False, False, False, True]
    assert [[run.seed for run in arm.runs] for arm in found.arms] == [[0, 1, 2, 3, 4]] * 4
    assert found.folder == tmp_path / "all" and found.pending == 0 and found.notes == []
    assert found.plan.evaluated == 10_000 and not found.plan.chosen
    verdict = decide(found.arms, found.plan, found.pending)
    assert (verdict.decision, verdict.winner) == ("adaptive", "adabatch 32-512")
    assert verdict.sentence.startswith("adaptive: 1.4") and "than fixed 512" in verdict.sentence
    assert verdict.sentence.endswith("beforehand; chosen and measured on the same set")
    first = found.arms[0].runs[0]
    assert first.key == {
        "device": "Tesla T4", "precision": "fp32", "threads": "1", "processes": "1",
        "torch version": "2.15.0", "adabatch version": "0.1.0", "CUDA version": "13.2",
        "timing": "whole steps",
    }  # fmt: skip
    assert first.updates == 313 and first.alone is None


@pytest.mark.parametrize(
    "winner, error, seconds", [("adaptive", 0.091, 70), ("fixed", 0.091, 140), ("fixed", 0.13, 70)]
)
@pytest.mark.parametrize("seeds", [5, 10])
def test_sweeps_with_known_truths(tmp_path, winner, error, seconds, seeds):
    arms = {**ARMS, (32, 128, 512): (error, math.log(seconds))}
    sweep(tmp_path, arms, seeds)
    assert judged(tmp_path).decision == winner


def test_arms_of_one_name_are_told_apart(tmp_path):
    for keys in (
        {"schedule.base_lr": 0.05},
        {"schedule.base_lr": 0.1},
        {"schedule.base_lr": 0.3, "schedule.twin": "lr", "schedule.dwell": 2},
        {"schedule.base_lr": 0.3, "schedule.twin": "batch", "schedule.dwell": 2},
        {"options.schedule": "goyal", "schedule.base_lr": 0.2},
    ):
        run(tmp_path, 0, (32,), 0.1, 9.0, config=keys)
    names = sorted(arm.name for arm in look([str(tmp_path)], {}).arms)
    assert names[:2] == ["fixed 32, base_lr=0.05", "fixed 32, base_lr=0.1"] and names[4] == "goyal 32"
    assert {name[:-9] for name in names[2:4]} == {"fixed 32, base_lr=0.3, dwell=2"} and len(set(names)) == 5


def test_numbers_that_are_equal_make_one_arm(tmp_path):
    run(tmp_path, 0, (32,), 0.1, 9.0, config={"schedule.warmup_epochs": 5})
    run(tmp_path, 1, (32,), 0.1, 9.0, config={"schedule.warmup_epochs": 5.0})
    (arm,) = look([str(tmp_path)], {}).arms
    assert [r.seed for r in arm.runs] == [0, 1]


@pytest.mark.parametrize(
    "key, value",
    [("optimizer.momentum", 0.8), ("epochs", 20), ("dataset.test_samples", 500), ("model.width", 32),
     ("label_smoothing", 0.1), ("clip_norm", 0.5), ("dataset.augment.flip", True)],
)  # fmt: skip
def test_other_differences_are_refused_by_name(tmp_path, key, value):
    run(tmp_path, 0, (32,), 0.1, 9.0)
    run(tmp_path, 1, (32,), 0.1, 9.0, config={key: value})
    with pytest.raises(UserError, match=f"these runs differ in {key}: .* in .*seed=0.*, {value} in .*seed=1"):
        look([str(tmp_path)], {})


@pytest.mark.parametrize(
    "key, value",
    [("trackers.wandb.mode", "offline"), ("dataset.root", "/data"), ("hardware.micro_batch", 64)],
)
def test_what_changes_no_result_may_differ(tmp_path, key, value):
    run(tmp_path, 0, (32,), 0.1, 9.0)
    run(tmp_path, 1, (32,), 0.1, 9.0, config={key: value})
    assert len(look([str(tmp_path)], {}).arms) == 1


@pytest.mark.parametrize(
    "where, key, value, words",
    [
        ("config", "hardware.threads", 8, "threads differs (8 and 1)"),
        ("config", "hardware.precision", "bf16", "precision differs (bf16 and fp32)"),
        ("config", "hardware.compile", True, "hardware.compile differs (True and None)"),
        ("config", "hardware.device", "cpu", "device differs (AMD EPYC 7B13 and Tesla T4)"),
        ("environment", "gpus", ["Tesla V100"], "device differs (Tesla V100 and Tesla T4)"),
        ("environment", "versions.torch", "2.14.0", "torch version differs (2.14.0 and 2.15.0)"),
        ("environment", "versions", None, "torch version differs (None and 2.15.0)"),
    ],
)
def test_times_are_compared_under_equal_conditions_only(tmp_path, where, key, value, words):
    made = sweep(tmp_path, seeds=4)
    for batches, (error, log) in ARMS.items():
        other = {where: {key: value}} if len(batches) > 1 else {}
        made[batches, 4] = run(tmp_path, 4, batches, error, math.exp(log), **other)
    verdict = judged(tmp_path)
    pair = next(c for c in verdict.comparisons if c.candidate == "adabatch 32-512")
    name, shown = words.split(" differs ")
    assert pair.no_time.startswith(f"time not comparable: {name} differs (")
    assert set(shown.strip("()").split(" and ")) == set(
        pair.no_time.partition("(")[2].strip(")").split(" and ")
    )
    assert verdict.decision != "adaptive" and "time not comparable: " in verdict.sentence
    assert pair.clauses.not_worse


def test_another_number_of_processes_is_another_speed(tmp_path):
    made = sweep(tmp_path)
    rows = [json.loads(line) for line in (made[(512,), 2] / "metrics.jsonl").read_text().splitlines()]
    text = "".join(
        json.dumps(row | ({"world_size": 2} if "world_size" in row else {})) + "\n" for row in rows
    )
    (made[(512,), 2] / "metrics.jsonl").write_text(text)
    assert "processes differs" in judged(tmp_path).sentence


@pytest.mark.parametrize(
    "config, figures, words",
    [
        ({"shadow": {"cabs": {"x": 1}}}, {}, "no time verdict: shadow schedules looked on"),
        ({"hardware.parallel_runs": 2}, {}, "no time verdict: runs shared the machine"),
        ({}, {"shared": True}, "no time verdict: runs shared the machine"),
    ],
)
def test_shared_machines_give_no_time_verdict(tmp_path, config, figures, words):
    sweep(tmp_path, config=config, **figures)
    verdict = judged(tmp_path)
    assert verdict.decision == "undecided" and words in verdict.sentence
    sweep(tmp_path / "alone", config={"hardware.parallel_runs": 1, "shadow": None})
    assert judged(tmp_path / "alone").decision == "adaptive"


def test_the_class_is_what_the_batches_did(tmp_path):
    """An option called fixed whose batch changed is adaptive; a rule that never grew is fixed."""
    run(tmp_path, 0, (32, 64), 0.1, 9.0, config={"options.schedule": "fixed"})
    run(tmp_path, 0, (64,), 0.1, 9.0, config=schedule((64,), "cabs") | {"schedule.growth._target_": "x.Cabs"})
    run(tmp_path, 0, (32, 64), 0.1, 9.0, state="running", config={"schedule.base_lr": 0.1})
    fresh = run(tmp_path, 0, (16,), 0.1, 9.0, state="running", config={"schedule.growth._target_": "x.Cabs"})
    (fresh / "metrics.jsonl").unlink()
    found = {arm.name: arm.adaptive for arm in look([str(tmp_path)], {}).arms}
    assert found == {"cabs 64": False, "fixed": True, "fixed 32-64": True, "adabatch 32-64": True}


def test_a_cut_last_batch_is_no_change(tmp_path):
    folder = run(tmp_path, 0, (32,), 0.1, 9.0, state="interrupted")
    row = {"event": "train", "position": 9, "epoch": 9, "batch_size": 7, "divisor": 32, "world_size": 1}
    with open(folder / "metrics.jsonl", "a") as file:
        file.write(json.dumps(row) + "\n")
    (arm,) = look([str(tmp_path)], {}).arms
    assert not arm.adaptive and arm.name == "fixed 32"


def test_unfinished_runs(tmp_path):
    made = sweep(tmp_path)
    folder = made[(512,), 3]
    (folder / "summary.json").unlink()
    runs.write_json(folder / "status.json", {"format": 1, "state": "running"})
    assert "1 of 20 runs not finished (fixed 512 seed 3: running)" in judged(tmp_path).sentence
    for name in os.listdir(folder):
        (folder / name).unlink()
    runs.write_json(folder / "status.json", {"format": 1, "state": "submitted"})
    found = look([str(tmp_path)], {})
    assert found.pending == 1 and "without a configuration yet" in found.notes[0]
    assert "1 run has not begun or it cannot be read" in judged(tmp_path).sentence


def test_a_damaged_summary_is_named_and_does_not_count(tmp_path):
    made = sweep(tmp_path)
    (made[(512,), 3] / "summary.json").write_text('{"format": 1, "final_test_er')
    found = look([str(tmp_path)], {})
    assert any("summary.json is not valid JSON" in note for note in found.notes)
    assert "seed 3: finished without an error figure" in judged(tmp_path).sentence


def test_out_of_memory_and_divergence_are_outcomes(tmp_path):
    sweep(tmp_path)
    for seed in range(5):
        run(tmp_path, seed, (2048,), 0, 0, state="out_of_memory")
        run(tmp_path, seed, (1024,), 0, 0, state="diverged")
    verdict = judged(tmp_path)
    assert verdict.decision == "adaptive"
    assert "fixed 2048 ran out of memory here: infeasible, left out" in verdict.notes
    assert next(c for c in verdict.comparisons if c.rival == "fixed 1024").beats


def test_another_budget(tmp_path):
    made = sweep(tmp_path)
    for seed in range(5):
        run(tmp_path, seed, (64,), 0.01, 9.0, config={"schedule.stretch": 2}, samples=20_000)
    verdict = judged(tmp_path)
    assert verdict.decision == "adaptive"
    assert "fixed 64 is left out: it trained 20,000 samples where the comparison has 10,000" in verdict.notes
    assert len(made) == 20


def test_a_seed_twice_in_an_arm_counts_once(tmp_path):
    made = sweep(tmp_path / "all")
    shutil.copytree(made[(512,), 3], tmp_path / "all/again/x")
    found = look([str(tmp_path / "all")], {})
    assert [len(arm.runs) for arm in found.arms] == [5] * 4
    assert "fixed 512: left out as a seed that another run has: 1" in found.notes
    pair = [made[(512,), 3], tmp_path / "all/again/x"]
    for failed, whole in (pair, pair[::-1]):
        runs.write_json(failed / "status.json", {"format": 1, "state": "failed"})
        runs.write_json(whole / "status.json", {"format": 1, "state": "finished"})
        assert (
            judged(tmp_path / "all").decision == "adaptive"
        )  # the one that finished is taken, wherever it is


def test_validation_chooses_and_test_decides(tmp_path):
    sweep(tmp_path, config={"dataset.validation": 5000}, best_test_error=None, final_validation_error=0.2)
    found = look([str(tmp_path)], {})
    assert found.plan.chosen and found.plan.evaluated == 10_000
    verdict = judged(tmp_path)
    assert "same set" not in verdict.sentence and found.arms[0].runs[0].validation == 0.2


def test_time_to_the_target(tmp_path):
    """First evaluation at or below it; none: a miss; of averaged weights where there are any."""
    folder = run(tmp_path, 0, (32,), 0.09, 100.0)
    run(tmp_path, 1, (32,), 0.12, 100.0)
    run(tmp_path, 2, (32,), 0.0, 100.0, state="diverged")
    rows = [
        {"event": "eval", "split": "test", "epoch": e, "seconds": 10.0 * e, "eval_error": 0.2 / e}
        for e in (1, 2, 4)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (arm,) = look([str(tmp_path)], {"target": 0.1}).arms
    assert [r.target for r in arm.runs] == [20.0, math.inf, 20.0]  # the last one reached it and then diverged
    averaged = [row | {"weights": "ema", "eval_error": 0.4 / row["epoch"]} for row in rows]
    with open(folder / "metrics.jsonl", "a") as file:
        file.write("".join(json.dumps(r) + "\n" for r in averaged))
    (arm,) = look([str(tmp_path)], {"target": 0.1}).arms
    assert arm.runs[0].target == 40.0


def test_rehearsals_and_folders_put_aside_are_no_runs(tmp_path):
    sweep(tmp_path)
    run(tmp_path, 0, (8,), 0.1, 9.0, config={"rehearsal": {"steps": 12}})
    old = run(tmp_path / "x", 0, (32,), 0.1, 9.0)
    old.rename(tmp_path / f"{old.name}.old1")
    found = look([str(tmp_path)], {})
    assert len(found.arms) == 4 and found.pending == 0
    assert any("a rehearsal, no run" in note for note in found.notes)
    assert "1 put aside by restart=true (*.old1, ...) left out" in found.notes


# -- margins -----------------------------------------------------------------------------------------


def declare(folder, **content):
    content = {"delta": 1.0, "looks": [5, 10, 20]} | content
    runs.write_yaml(folder / "compare.yaml", {**content, "sha256": plans.digest(content)})


def test_declared_looks_are_not_remarked_on(tmp_path):
    sweep(tmp_path)
    declare(tmp_path, delta=0.5, r0=1.1, alpha=0.1, looks=[5], tuned=True, arms=["a", "b"], target=0.2)
    found = look([str(tmp_path)], {})
    plan = found.plan
    assert (plan.delta, plan.r0, plan.alpha, plan.looks) == (0.005, 1.1, 0.1, (5,))
    assert plan.tuned and plan.target == 0.2 and plan.remark is None and plan.arms == 2
    sentence = judged(tmp_path).sentence
    assert "declared" not in sentence and "LRs tuned" in sentence


def test_a_changed_declaration_counts_as_none(tmp_path):
    sweep(tmp_path)
    declare(tmp_path)
    path = tmp_path / "compare.yaml"
    path.write_text(path.read_text().replace("delta: 1.0", "delta: 2.0"))
    assert "compare.yaml is not as it was hashed, so looks were not declared" in judged(tmp_path).sentence
    declare(tmp_path)
    assert (
        "delta and looks not as declared in compare.yaml" in judged(tmp_path, delta=0.02, looks=(5,)).sentence
    )
    assert "declared" not in judged(tmp_path, delta=0.01, looks=(5, 10, 20)).sentence


@pytest.mark.parametrize(
    "content, words",
    [
        ({"delta": -1}, "delta is a number from 0.001 to 50, got -1"),
        ({"delta": True}, "delta is a number"),
        ({"r0": 0.5}, "r0 is a number from 1 to 10, got 0.5"),
        ({"alpha": "x"}, "alpha is a number"),
        ({"looks": [10, 5]}, "looks are ascending numbers of runs"),
        ({"looks": [1]}, "looks are ascending"),
        ({"looks": {}}, "looks are ascending"),
        ({"looks": []}, "looks are ascending"),
        ({"looks": [5.5]}, "looks are ascending"),
        ({"looks": [10**400]}, "looks are ascending"),
        ({"metric": "loss"}, "metric is final_error, got loss"),
        ({"split": "train"}, "split is test or validation, got train"),
        ({"arms": "all"}, "arms is a list of the arms, got all"),
        ({"target": 5}, "target is a number from 0 to 1, got 5"),
        ({"samples": -5}, "samples is a number"),
        ({"arms": ["a"] * 201}, "arms are at most 200, got 201"),
        ({"arms": [{"name": "a", "adaptive": "yes"}]}, "adaptive of a is true or false, got yes"),
        ({"arms": [{"name": "a", "control": ["x"]}]}, "control of a is a name"),
        ({"arms": [{"name": "a", "of": {"b": 1}}]}, "of of a is a name"),
        ({"arms": [{"name": "a", "control": "reversed", "of": "b"}]}, "a is a control of b, which is no"),
        ({"arms": [{"name": "a" * 40 + "x"}, {"name": "a" * 40 + "y"}]}, "an arm's name is its own, got aaa"),
    ],
)
def test_a_declaration_that_makes_no_sense_is_refused(tmp_path, content, words):
    sweep(tmp_path, seeds=2)
    declare(tmp_path, **content)
    with pytest.raises(UserError) as error:
        look([str(tmp_path)], {})
    assert words in str(error.value) and "compare.yaml" in str(error.value)


# -- declared arms -----------------------------------------------------------------------------------

NAMED = {  # name: batches, final error, seconds
    "fixed 32": ((32,), 0.090, 150),
    "fixed 512": ((512,), 0.094, 100),
    "adabatch": ((32, 128, 512), 0.091, 70),
    "cabs": ((32, 64), 0.091, 120),
}
MATCHED = "mean-matched to cabs"
WOBBLE = (-0.002, 0.001, 0.0, -0.001, 0.002)


def entry(name):
    return {"name": name, "adaptive": not name.startswith("fixed"), "overrides": [], "identity": "x"}


def named(folder, name, seed, batches, error, seconds, state="finished", **config):
    """A run of a declared arm."""
    config = {"compare": {"arm": name, "stage": "verdict"}, "options.schedule": name, **config}
    spread = WOBBLE[(seed + len(name)) % 5]
    return run(folder, seed, batches, error + spread, seconds * math.exp(2 * spread), state, config)


def compared(folder, broken=(), state="diverged", arms=NAMED):
    """Five seeds of each arm, the runs of cabs broken at some; and the control that replays them."""
    for name, (batches, error, seconds) in arms.items():
        for seed in range(5):
            how = state if name == "cabs" and seed in broken else "finished"
            named(folder, name, seed, batches, error, seconds, how)
    for seed in sorted(set(range(5)) - set(broken)):
        replayed(folder, seed)
    control = {"name": MATCHED, "adaptive": False, "control": "mean_matched", "of": "cabs"}
    declare(folder, arms=[*map(entry, arms), control])


def replayed(folder, seed, batches=(48,), name=MATCHED, control="mean_matched", **config):
    node = {"schedule._target_": "adabatch.schedules.replay", "schedule.control": control}
    config = node | {"schedule.run": f"somewhere/cabs-{seed}", **config}
    named(folder, name, seed, batches, 0.092, 118, **config)


def test_a_control_with_a_run_of_its_own_is_waited_for_whatever_became_of_its_source(tmp_path):
    """Its batches were known beforehand: it replays nothing (science: D)."""
    compared(tmp_path, [0, 1, 2, 3, 4])
    own = {"name": MATCHED, "adaptive": False, "control": "mean_matched", "of": "cabs", "overrides": []}
    declare(tmp_path, arms=[*map(entry, NAMED), own])
    assert "no verdict: 4 of the 5 declared arms have begun" in judged(tmp_path).sentence
    named(tmp_path, MATCHED, 0, (48,), 0.092, 118)
    assert f"no verdict: {MATCHED} lacks seed 1, 2, 3, 4, which other arms have" in judged(tmp_path).sentence


def test_the_table_says_whose_control_an_arm_is(tmp_path):
    compared(tmp_path)
    found = look([str(tmp_path)], {})
    names, *_, last = table.arms(decide(found.arms, found.plan, found.pending), found.plan)
    said = dict(zip(names.cells, last.cells))
    assert said[MATCHED] == "control of cabs" and said["adabatch"] == "wins" and said["fixed 32"] == ""


def test_a_run_of_another_configuration_than_the_declared_one_is_refused(tmp_path):
    compared(tmp_path)
    (first,) = tmp_path.glob("*base_batch=512-seed=0*")
    summary = json.loads((first / "summary.json").read_text())
    for identity in ("x", "y"):
        (first / "summary.json").write_text(json.dumps(summary | {"identity": identity}))
        if identity == "x":
            assert judged(tmp_path).decision == "adaptive"
    with pytest.raises(
        UserError, match="declares fixed 512 with identity x at seed 0, and the run .* has y: "
    ):
        judged(tmp_path)
    declare(tmp_path, arms=[*map(entry, NAMED)], tuned=True)  # a search changed the learning rate
    verdict = judged(tmp_path)
    assert (verdict.decision, verdict.winner) == ("adaptive", "adabatch")
    assert "LRs tuned" in verdict.sentence


@pytest.mark.parametrize("tuned", [False, True])
@pytest.mark.parametrize(
    "key, value, said",
    [
        ("hardware.precision", "bf16", "hardware.precision (fp32 and bf16)"),
        ("hardware.deterministic", True, "hardware.deterministic (absent and True)"),
        ("hardware.threads", 4, "hardware.threads (1 and 4)"),
        ("hardware.micro_batch", 8, None),  # changes no result
    ],
)
def test_runs_of_one_arm_on_unlike_hardware_are_told(tmp_path, key, value, said, tuned):
    """Not two arms that differ: each mean is of like runs then."""
    for name, (batches, error, seconds) in NAMED.items():
        for seed in range(5):
            other = name == "cabs" or (name == "fixed 512" and seed == 3)
            named(tmp_path, name, seed, batches, error, seconds, **({key: value} if other else {}))
    declare(tmp_path, arms=[*map(entry, NAMED)], tuned=tuned)
    notes = [note for note in look([str(tmp_path)], {}).notes if "differ" in note]
    assert notes == ([f"fixed 512: its runs differ in {said}, and enter one mean"] if said else [])


def test_under_plain_batch_norm_the_micro_batch_is_told_too(tmp_path):
    norm = {"model.norm": "batch"}
    for seed, size in enumerate(("auto", 8)):
        run(tmp_path, seed, (32,), 0.1, 9.0, config=norm | {"hardware.micro_batch": size})
    said = "fixed 32: its runs differ in hardware.micro_batch (auto and 8), and enter one mean"
    assert said in look([str(tmp_path)], {}).notes


@pytest.mark.parametrize("state", ["diverged", "out_of_memory"])
@pytest.mark.parametrize("broken", [[3], [0, 1, 3], [0, 1, 2, 3, 4]])
def test_a_control_whose_source_broke_down_does_not_hold_up_the_verdict(tmp_path, broken, state):
    compared(tmp_path, broken, state)
    verdict = judged(tmp_path)
    assert (verdict.decision, verdict.winner) == ("adaptive", "adabatch")
    seeds = ", ".join(map(str, broken))
    part = f"is a rival with the {5 - len(broken)} seeds that it has" if len(broken) < 4 else "is left out"
    said = f"{MATCHED} {part}: cabs broke down at seed {seeds}, so it lacks what it replays"
    assert (said in verdict.notes) is (len(broken) < 5)
    pair = [c for c in verdict.comparisons if MATCHED in (c.candidate, c.rival)]
    assert {c.rival for c in pair} == ({MATCHED} if len(broken) < 4 else set()), "no candidate"


def test_a_control_that_lacks_a_seed_still_has_to_be_beaten(tmp_path):
    """Its four runs are faster than any adaptive arm's: an arm that diverged once makes no other win."""
    compared(tmp_path, [3])
    for path in tmp_path.glob("*base_batch=48-seed=*/summary.json"):
        figures = json.loads(path.read_text())
        runs.write_json(path, figures | {"train_seconds": figures["train_seconds"] / 3})
    verdict = judged(tmp_path)
    assert verdict.decision not in ("adaptive", "fixed", "interim")
    assert f"adabatch may be less than 1.05x faster than {MATCHED}" in verdict.sentence
    pair = next(c for c in verdict.comparisons if (c.candidate, c.rival) == ("adabatch", MATCHED))
    assert pair.clauses.not_worse and not pair.clauses.fast and pair.speed.df == 3


def test_the_runs_of_a_control_that_lacks_a_seed_are_waited_for(tmp_path):
    """Four of five are to come of which one has finished."""
    compared(tmp_path, [3])
    for seed in (1, 2, 4):
        (folder,) = tmp_path.glob(f"*base_batch=48-seed={seed}*")
        (folder / "summary.json").unlink()
        runs.write_json(folder / "status.json", {"format": 1, "state": "running"})
    assert f"3 of 24 runs not finished ({MATCHED} seed 1: running" in judged(tmp_path).sentence


@pytest.mark.parametrize("whole", [0, 1, 3])
def test_an_arm_that_ran_out_of_memory_needs_no_other_seed_nor_does_its_control(tmp_path, whole):
    """Its later seeds are not begun, so nothing of them can be replayed either."""
    compared(tmp_path)
    for seed in range(whole, 5):
        for folder in tmp_path.glob(f"*cabs-base_batch=*-seed={seed}*"):  # its control's too
            shutil.rmtree(folder)
    named(tmp_path, "cabs", whole, (32, 64), 0, 0, "out_of_memory")
    verdict = judged(tmp_path)
    assert (verdict.decision, verdict.winner) == ("adaptive", "adabatch")
    assert "cabs ran out of memory here: infeasible, left out" in verdict.notes
    assert any(MATCHED in note and "is a rival with the 3 seeds" in note for note in verdict.notes) is (
        whole == 3
    )


def test_a_source_that_broke_down_loses_to_arms_with_all_seeds(tmp_path):
    """Not to its control, of which only one run could be made."""
    compared(tmp_path, [0, 1, 2, 3], arms={k: v for k, v in NAMED.items() if k != "adabatch"})
    verdict = judged(tmp_path)
    assert (verdict.decision, verdict.winner) == ("fixed", "fixed 512")
    assert MATCHED not in [c.candidate for c in verdict.comparisons]


def test_a_control_that_is_still_to_come_is_waited_for(tmp_path):
    """Where its source finished, alone or beside seeds at which it broke down."""
    compared(tmp_path, [3])
    (last,) = tmp_path.glob("*base_batch=48-seed=4*")
    shutil.rmtree(last)
    assert f"no verdict: {MATCHED} lacks seed 3, 4, which other arms have" in judged(tmp_path).sentence
    for folder in tmp_path.glob("*base_batch=48*"):
        shutil.rmtree(folder)
    assert "no verdict: 4 of the 5 declared arms have begun" in judged(tmp_path).sentence


@pytest.mark.parametrize("alone", [True, False])
def test_a_closed_loop_that_never_moved_is_adaptive_as_declared(tmp_path, alone):
    """Its runs are bit for bit those of the fixed batch, and it is held against them all the same."""
    arms = {k: v for k, v in NAMED.items() if not (alone and k == "adabatch")}
    arms["cabs"] = ((32,), 0.090, 150)
    for name, (batches, error, seconds) in arms.items():
        for seed in range(5):
            rule = {"schedule.growth._target_": "x.Cabs"} if name == "cabs" else {}
            folder = named(tmp_path, name, seed, batches, error, seconds, **rule)
            if name in ("cabs", "fixed 32"):
                figures = json.loads((folder / "summary.json").read_text())
                runs.write_json(folder / "summary.json", figures | {"weights_sha256": f"{seed:064x}"})
    declare(tmp_path, arms=[*map(entry, arms)])
    verdict = judged(tmp_path)
    assert {arm.name: arm.adaptive for arm in verdict.arms}["cabs"] is True
    assert verdict.decision == ("fixed" if alone else "adaptive")
    assert sum(c.candidate == "cabs" for c in verdict.comparisons) == 2


@pytest.mark.parametrize("said", [{"adaptive": False}, {"adaptive": True}, {}])
def test_a_control_is_no_candidate_whatever_its_batch_does(tmp_path, said):
    """The reversed batches are fastest and most accurate by far: they win nothing, neither as an adaptive
    arm nor as a fixed one, and keep no other from winning."""
    for name, (batches, error, seconds) in NAMED.items():
        for seed in range(5):
            named(tmp_path, name, seed, batches, error, seconds)
    for seed in range(5):
        replayed(tmp_path, seed, (64, 32), "reversed cabs", "reversed")
        (folder,) = tmp_path.glob(f"*base_batch=64-seed={seed}*")
        figures = json.loads((folder / "summary.json").read_text())
        quick = {"train_seconds": figures["train_seconds"] / 9, "final_test_error": 0.03}
        runs.write_json(folder / "summary.json", figures | quick)
    control = {"name": "reversed cabs", "control": "reversed", "of": "cabs", **said}
    declare(tmp_path, arms=[*map(entry, NAMED), control])
    verdict = judged(tmp_path)
    assert {arm.name: arm.adaptive for arm in verdict.arms}["reversed cabs"] is None
    assert (verdict.decision, verdict.winner) == ("adaptive", "adabatch")
    assert not [c for c in verdict.comparisons if "reversed cabs" in (c.candidate, c.rival)]
    found = look([str(tmp_path)], {})
    names, *_, last = table.arms(verdict, found.plan)
    assert names.cells[-1] == "reversed cabs" and last.cells[-1] == "control of cabs; neither class"


@pytest.mark.parametrize(
    "control, kind",
    [("mean_matched", False), ("lr_twin", False), ("reversed", None), ("batch_twin", None)],
)
def test_the_class_of_a_control(tmp_path, control, kind):
    """Its batch is fixed, or it is in neither class, also where it never moved."""
    compared(tmp_path)
    said = {"name": MATCHED, "adaptive": False, "control": control, "of": "cabs"}
    declare(tmp_path, arms=[*map(entry, NAMED), said])
    found = look([str(tmp_path)], {})
    assert {arm.name: arm.adaptive for arm in found.arms}[MATCHED] is kind
    verdict = decide(found.arms, found.plan, found.pending)
    assert (MATCHED in {c.rival for c in verdict.comparisons}) is (kind is False)
    classes = {a["arm"]: a["class"] for a in map(formats.arm_json, verdict.arms)}
    assert classes[MATCHED] == ("fixed" if kind is False else "neither")
    assert classes["adabatch"] == "adaptive"


def test_a_control_with_the_runs_of_its_source_is_no_rival_of_it(tmp_path):
    """The batch twin of an adaptive arm may be that arm: one arm, and the adaptive one."""
    for name, (batches, error, seconds) in NAMED.items():
        for seed in range(5):
            named(tmp_path, name, seed, batches, error, seconds)
    for seed in range(5):
        named(tmp_path, "batch twin of adabatch", seed, *NAMED["adabatch"], **{"schedule.twin": "batch"})
    for path in tmp_path.glob("*adabatch-*/summary.json"):
        figures = json.loads(path.read_text())
        runs.write_json(path, figures | {"weights_sha256": f"{figures['seed']:064x}"})
    twin = {"name": "batch twin of adabatch", "control": "batch_twin", "of": "adabatch"}
    declare(tmp_path, arms=[*map(entry, NAMED), twin])
    verdict = judged(tmp_path)
    assert (verdict.decision, verdict.winner) == ("adaptive", "adabatch")
    assert any("are the same runs (equal weights): one arm" in note for note in verdict.notes)


def test_one_name_with_two_schedules(tmp_path):
    """Of one comparison an error; of two of them, two arms. Replays differ in the run alone."""
    compared(tmp_path / "a")
    assert [len(arm.runs) for arm in look([str(tmp_path / "a")], {}).arms] == [5] * 5
    for seed in range(5):
        named(tmp_path / "b", "fixed 32", seed, (32,), 0.09, 150, **{"schedule.base_lr": 0.2})
        replayed(tmp_path / "b", seed, name="again", **{"schedule.run": f"elsewhere/{seed}"})
    found = look([str(tmp_path)], {})
    names = [arm.name for arm in found.arms]
    assert {name for name in names if "32," in name} == {"fixed 32, base_lr=0.05", "fixed 32, base_lr=0.2"}
    assert {len(arm.runs) for arm in found.arms} == {5} and len(names) == 7
    assert any(note.startswith("fixed 32: 2 schedules have this name") for note in found.notes)
    named(tmp_path / "a", "fixed 32", 4, (32,), 0.09, 150, **{"schedule.base_lr": 0.2})
    with pytest.raises(
        UserError, match="those of fixed 32 have 2: base_lr=0.05 in .*base_lr=0.2 in .*seed=4"
    ):
        look([str(tmp_path / "a")], {})


def test_runs_of_no_arm_enter_no_declared_verdict(tmp_path):
    """A fixed batch that nothing could beat, begun by hand in the same folder."""
    compared(tmp_path)
    for seed in range(5):
        run(tmp_path, seed, (256,), 0.01, 9.0)
    found = look([str(tmp_path)], {})
    assert len(found.arms) == 5 and "left out as runs of no declared arm: 5" in found.notes
    assert decide(found.arms, found.plan, found.pending).winner == "adabatch"


@pytest.mark.parametrize("replays", [True, False])
def test_controls_that_replay_were_not_tuned(tmp_path, replays):
    compared(tmp_path)
    control = {"name": MATCHED, "adaptive": False, "control": "mean_matched", "of": "cabs"}
    control |= {} if replays else {"overrides": ["schedule=fixed"], "identity": "y"}
    declare(tmp_path, arms=[*map(entry, NAMED), control], tuned=True)
    assert ("LRs tuned but for replayed controls" in judged(tmp_path).sentence) is replays
    assert "LRs tuned" in judged(tmp_path).sentence


def test_the_common_folder(tmp_path):
    a, b = tmp_path / "s/a", tmp_path / "s/b/c"
    assert common([a]) == a and common([a, b]) == tmp_path / "s" and common([a, a]) == a
    assert common([tmp_path / "s", b]) == tmp_path / "s"
    assert "say where with --out" in write(common([a, type(a)("/nowhere")]), {})
    assert (
        write(tmp_path, {"a": math.inf}) is None
        and (tmp_path / "report.json").read_text() == '{\n  "a": null\n}\n'
    )


def test_the_environment_of_the_helper_is_that_of_a_run():
    from adabatch import environment

    assert set(ENVIRONMENT) - {"gpus"} <= set(environment.describe({}))


def test_looks_that_nobody_declared_are_called_the_defaults(tmp_path):
    sweep(tmp_path / "a", seeds=2)
    assert "the first look is at 5 runs of each arm by default" in judged(tmp_path / "a").sentence
    plan = look([str(tmp_path / "a")], {}).plan
    assert "looks at 5, 10, 20 runs of each arm (the defaults)" in formats.settings(plan)
    asked = {"looks": (3, 5)}
    assert judged(tmp_path / "a", **asked).sentence.endswith("the first look is at 3 runs of each arm")
    declare(tmp_path / "a")
    assert judged(tmp_path / "a").sentence.endswith("the first look is at 5 runs of each arm")


def test_what_each_of_two_comparisons_declares_is_not_what_both_together_do(tmp_path):
    """Their looks are of each alone; the remark says why they do not hold."""
    for name, batches in (("one", ((32,), (32, 128))), ("two", ((128,), (32, 512)))):
        sweep(tmp_path / name, arms={key: ARMS[max(key),] for key in batches})
        declare(tmp_path / name, looks=[5])
    for named in ([tmp_path / "one", tmp_path / "two"], [tmp_path]):
        plan = look([str(path) for path in named], {}).plan
        assert plan.assumed and plan.looks == LOOKS
        assert plan.remark == "looks were not declared beforehand for one and two together"
    assert look([str(tmp_path / "one")], {}).plan.looks == (5,)


def test_a_target_of_the_command_was_not_fixed_in_advance(tmp_path):
    """No verdict rests on it, so it stands in the notes and the sentence stays."""
    sweep(tmp_path)
    for declared, said in ((None, "none was declared"), (0.2, "20 % was declared")):
        declare(tmp_path, looks=[5], target=declared)
        (note,) = [n for n in look([str(tmp_path)], {"target": 0.1}).notes if "target" in n]
        assert "10 %" in note and said in note
        assert judged(tmp_path, target=0.1).sentence == judged(tmp_path).sentence
    assert not [n for n in look([str(tmp_path)], {"target": 0.2}).notes if "target" in n]


def test_folders_whose_names_begin_alike_are_told_apart(tmp_path):
    """A name is as long as the options of its run, and what tells runs apart is its end."""
    long = "dataset=digits-" + "dataset.validation=200-" * 5
    for folder in sweep(tmp_path, seeds=2).values():
        folder.rename(tmp_path / (long + folder.name))
    named = [run.folder for arm in look([str(tmp_path)], {}).arms for run in arm.runs]
    assert sorted(named) == sorted(path.name for path in tmp_path.iterdir())
