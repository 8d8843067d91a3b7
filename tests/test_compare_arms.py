"""The arms of a comparison: batches, learning rates and updates worked out by hand."""

import math
import re

import pytest
from hydra.core.global_hydra import GlobalHydra

from adabatch import UserError, config, suggestions
from adabatch.combinations import combinations
from adabatch.compare import asked, declare, matching
from adabatch.compare.arms import Arm, updates
from adabatch.compare.making import Maker
from adabatch.composed import Composed
from adabatch.verdict import plan

MNIST5K = ("dataset=mnist5k", "epochs=10")  # 4,000 samples: P = 40,000, a fifth of the run = 8,000


def expanded(*overrides, config_dir=None):
    """(arms by name, notes) of `adabatch -m experiment=compare OVERRIDES`."""
    line = ["experiment=compare", *overrides]
    with config.composer(config_dir):
        loader = GlobalHydra.instance().config_loader()
        hydra = Composed(config.load(line), loader, line)
        arms, notes = hydra.arms()
        return {arm.name: arm for arm in arms}, notes


def test_the_default_arms_written_out():
    """Fifths of 8,000 samples at 32, 64, 128, 256, 512: 250 + 125 + 63 + 31 + 16 = 485 updates (the 63rd
    batch of 128 reaches into the next fifth, of which 31 x 256 are left); 40,000 / 485 = 82.5: batch 82."""
    arms, notes = expanded(*MNIST5K)
    table = {  # name: batch, updates, first lr, highest lr, last lr
        "fixed 32": (32, 1250, 0.05, 0.05, 0.05 * 0.375**4),
        "fixed 128": (128, 313, 0.05, None, 4 * 0.05 * 0.375**4),
        "fixed 512": (512, 79, 0.05, None, 16 * 0.05 * 0.375**4),
        "mean-matched 82": (82, 488, 0.05 * 82 / 32, 0.05 * 82 / 32, 82 / 32 * 0.05 * 0.375**4),
        "adabatch": (None, 485, 0.05, 0.05, 0.05 * 0.75**4),
    }
    assert list(arms) == list(table)
    for name, (batch, count, first, highest, last) in table.items():
        path = arms[name].path
        assert len(path) == count and {b for _, b, _ in path} == (
            {batch} if batch else {32, 64, 128, 256, 512}
        )
        assert path[0][2] == pytest.approx(first) and path[-1][2] == pytest.approx(last)
        if highest:
            assert max(lr for *_, lr in path) == pytest.approx(highest)
    assert notes == ["lr twin of adabatch does what fixed 32 does: left out"]
    assert all(arm.config["schedule"]["lr_batch"] == 32 for arm in arms.values())


def test_a_large_fixed_batch_warms_up_from_the_base_rate_to_the_rule():
    """5 % of 10 epochs is half an epoch, 2,000 samples: lr(p) = 0.05 (1 + 15 p / 2,000), then 0.8."""
    (arms, _) = expanded(*MNIST5K)
    for start, _, lr in arms["fixed 512"].path:
        if start < 8000:
            assert lr == pytest.approx(0.05 * (1 + 15 * min(start, 2000) / 2000))


@pytest.mark.slow
def test_the_batch_of_as_many_updates_as_adabatch_128_to_2048_is_330():
    arms, _ = expanded("dataset=cifar10", "model=resnet", "epochs=100", "schedule.base_batch=128")
    assert [name for name in arms if name.startswith("mean")] == ["mean-matched 330"]
    assert arms["adabatch"].batches == (128, 2048)
    assert list(arms)[:3] == ["fixed 128", "fixed 512", "fixed 2048"]
    near = len(arms["mean-matched 330"].path) / len(arms["adabatch"].path)
    assert near == pytest.approx(1, abs=0.002)


def test_matched_noise_holds_at_every_update_also_for_adam():
    """lr / batch^q of the matched batch and of the adaptive arm, q = 1/2."""
    arms, _ = expanded(*MNIST5K, "optimizer=adamw")
    matched = next(arm for name, arm in arms.items() if name.startswith("mean-matched"))
    for start, batch, lr in arms["adabatch"].path:
        setting = matched.schedule(start)
        assert setting.lr / math.sqrt(setting.divisor) == pytest.approx(lr / math.sqrt(batch), rel=1e-9)


def test_what_is_no_duplicate_stays():
    """Where the learning rate does not follow the batch, the twin falls below the fixed arm; and where both
    grow alike, one of them goes."""
    arms, notes = expanded(*MNIST5K, "schedule.scaling=none")
    assert "lr twin of adabatch" in arms and not notes
    twin = arms["lr twin of adabatch"].path
    assert twin[-1][2] == pytest.approx(0.05 * 0.375**4 / 16)
    assert arms["mean-matched to adabatch"].source == "adabatch", "no fixed schedule has this noise: replayed"
    own = "{name: mine, overrides: ['schedule=adabatch', 'schedule.growth.factor=2']}"
    arms, notes = expanded(*MNIST5K, f"compare.arms=[fixed,adaptive,{own}]")
    assert list(arms)[-1] == "adabatch" and notes == ["mine does what adabatch does: left out"]


def test_the_fixed_arms_decay_as_the_adaptive_one():
    arms, _ = expanded(*MNIST5K, "schedule=dont_decay")
    assert arms["fixed 32"].path[-1][2] == pytest.approx(0.05 * 0.2**4)
    assert arms["dont_decay"].path[-1][1] == 4000, "32 x 5^4 is cut at the data set"
    arms, _ = expanded(*MNIST5K, "schedule=dont_decay", "schedule.decay.factor=0.5")
    assert arms["fixed 32"].path[-1][2] == pytest.approx(0.05 * 0.5**4), "what is typed holds for all"


def test_a_closed_loop_has_a_cap_and_controls_of_a_second_stage():
    arms, notes = expanded(*MNIST5K, "schedule=noise_scale", "schedule.measure_every=500")
    assert list(arms) == ["fixed 32", "fixed 128", "fixed 512", "mean-matched to noise_scale", "noise_scale"]
    assert notes == ["lr twin of noise_scale does what fixed 32 does: left out"]
    control, loop = arms["mean-matched to noise_scale"], arms["noise_scale"]
    assert (control.control, control.source, control.config) == ("mean_matched", "noise_scale", None)
    assert loop.batches == (32, 512) and loop.config["schedule"]["measure_every"] == 500
    assert updates(control, list(arms.values())) == (79, 1250)
    assert "measure_every" not in arms["fixed 32"].config["schedule"]
    arms, _ = expanded(*MNIST5K, "schedule=noise_scale", "schedule.scaling=none", "schedule.max_batch=128")
    assert arms["lr twin of noise_scale"].source == "noise_scale" and "fixed 128" in arms


def test_several_adaptive_arms_each_with_controls():
    arms, _ = expanded(*MNIST5K, "compare.adaptive=[adabatch,dont_decay]", "schedule.growth.factor=4",
                       "schedule.max_batch=512")  # fmt: skip
    assert {"adabatch", "dont_decay", "lr twin of dont_decay"} <= set(arms)
    for name in ("adabatch", "dont_decay"):
        assert arms[name].config["schedule"]["growth"]["factor"] == 4, (
            "a typed key holds where it means the same"
        )
    matched = [name for name in arms if name.startswith("mean-matched")]
    assert matched == ["mean-matched 111", "mean-matched 111 to dont_decay"], (
        "both grow alike, one decays faster"
    )
    ends = [arms[name].path[-1][2] for name in matched]
    assert ends == pytest.approx([111 / 32 * 0.05 * decay**4 for decay in (0.375, 0.2)])


def test_arms_of_the_users_own(tmp_path):
    (tmp_path / "arm").mkdir()
    (tmp_path / "arm" / "mine.yaml").write_text(
        "overrides: [schedule=fixed, schedule.scaling=sqrt]\nsizes: [1x, 2.5x, 512]\n"
    )
    arms, _ = expanded(*MNIST5K, "compare.arms=[mine,adaptive]", config_dir=str(tmp_path))
    assert list(arms) == ["mine 32", "mine 80", "mine 512", "adabatch"]
    assert arms["mine 80"].path[0][2] == pytest.approx(0.05 * math.sqrt(80 / 32))
    ramp = "{name: ramp, overrides: ['schedule=linear_ramp', 'schedule.max_batch=8x']}"
    arms, _ = expanded(*MNIST5K, f"compare.arms=[fixed,adaptive,{ramp}]")
    assert arms["ramp"].config["schedule"]["max_batch"] == 256


@pytest.mark.parametrize(
    "content, said",
    [
        ("overrides: [schedule=fixed", r"arm/mine.yaml cannot be read \(line \d: "),
        ("- schedule=fixed", r"arm/mine.yaml says overrides, or control and of"),
        ("overrides: ['schedule=${none}']", r"arm/mine.yaml cannot be read \(Interpolation key"),
        ("overrides: [schedule=fixed, schedule.bsae_batch=64]",
         r"arm mine \(.*arm/mine.yaml\): unknown key 'schedule.bsae_batch'. Did you mean '.*base_batch'"),
        ("overrides: [schedule=fixed, schedule.base_batch=64]",
         r"arm/mine.yaml: schedule.base_batch=64 is no override of an arm: write sizes: \[64\]"),
        ("overrides: [schedule=fixed, schedule.lr_batch=64]", r"lr_batch=64 .*: give it with the command"),
        ("overrides: [schedule=fixed]\nsizes: [9999x]", r"arm mine \(.*arm/mine.yaml\): sizes is ladder or"),
        ("overrides: [schedule=fixed, schedule.base_lr=-1]",
         r"arm mine \(.*arm/mine.yaml\): base_lr is positive"),
        ("overrides: [schedule=adabatch, schedule.max_batch=0]", r"arm mine \(.*arm/mine.yaml\): max_batch"),
        ("overrides: [schedule=fixed]\nsize: [2x]", r"(?<!conf)/arm/mine.yaml: an arm has the keys"),
    ],
)  # fmt: skip
def test_a_mistake_in_an_arm_of_the_users_own_names_its_file(tmp_path, content, said):
    (tmp_path / "arm").mkdir()
    (tmp_path / "arm" / "mine.yaml").write_text(content)
    with pytest.raises(UserError, match=said):
        expanded(*MNIST5K, "compare.arms=[fixed,mine,adaptive]", config_dir=str(tmp_path))


def test_an_arm_of_the_users_own_takes_no_name_of_ours_without_a_word(tmp_path):
    (tmp_path / "arm").mkdir()
    (tmp_path / "arm" / "fixed.yaml").write_text("overrides: [schedule=fixed, schedule.scaling=sqrt]")
    with pytest.raises(UserError, match=r"arm/fixed.yaml: an arm called fixed is there already: give the"):
        expanded(*MNIST5K, config_dir=str(tmp_path))
    expanded(*MNIST5K, "compare.arms=[mean_matched,adaptive]", config_dir=str(tmp_path))


def test_candidates_are_the_adaptive_arms_and_no_control():
    """Also where a control changes its batch (reversed, batch_twin)."""
    own = "{name: ramp, overrides: ['schedule=linear_ramp', 'schedule.max_batch=8x']}"
    names = f"compare.arms=[fixed,batch_twin,mean_matched,adaptive,lr_twin,reversed,{own}]"
    arms, _ = expanded(*MNIST5K, "compare.adaptive=[adabatch,noise_scale]", names)
    assert {"batch twin of adabatch", "reversed adabatch", "reversed noise_scale", "fixed 512"} < set(arms)
    wanted = ["adabatch", "noise_scale", "ramp"]
    assert [name for name, arm in arms.items() if arm.adaptive] == wanted
    assert [e["name"] for e in map(declare.entry, arms.values()) if e["adaptive"]] == wanted


def test_a_control_is_declared_as_one_also_where_it_has_runs_of_its_own():
    arms, _ = expanded(*MNIST5K, "compare.adaptive=[adabatch,noise_scale]")
    said = {
        e["name"]: (e.get("control"), e.get("of"), "overrides" in e)
        for e in map(declare.entry, arms.values())
    }
    assert said["mean-matched 82"] == ("mean_matched", "adabatch", True)
    assert said["mean-matched to noise_scale"] == ("mean_matched", "noise_scale", False)
    assert {said[name] for name in ("fixed 32", "fixed 512", "adabatch")} == {(None, None, True)}


@pytest.mark.parametrize(
    "overrides, control",
    [
        ("'schedule=adabatch', 'schedule.twin=batch'", "batch_twin"),
        ("'schedule=adabatch', 'schedule.scaling=none', 'schedule.twin=lr'", "lr_twin"),
    ],
)
def test_a_control_of_the_users_own_is_declared_as_one(tmp_path, overrides, control):
    """Of no arm: so the report knows whether it is fixed or in neither class."""
    arms, _ = expanded(*MNIST5K, f"compare.arms=[fixed,adaptive,{{name: mine, overrides: [{overrides}]}}]")
    entry = declare.entry(arms["mine"])
    assert (entry["adaptive"], entry["control"], entry["of"]) == (False, control, None)
    declare.settle(tmp_path, declare.content(compared_as(), list(arms.values()), 40_000))
    said = plan.declared(tmp_path).named["mine"]
    assert (said.adaptive, said.beside, said.replayed) == (False, control == "batch_twin", False)


def compared_as():
    node = {"adaptive": None, "arms": ["fixed", "adaptive"], "ladder": 4, "looks": [5], "seeds": None,
            "delta": 1.0, "target": None, "tune_lr": False, "tuning_seed": 1000, "order": 0, "retry": [],
            "arm": None, "stage": None}  # fmt: skip
    return asked.asked(node, "adabatch")


@pytest.mark.parametrize("first", [0, 1])
def test_of_two_arms_that_do_the_same_the_one_of_a_class_stays(first):
    """A batch twin is in neither class, so the fixed arm that it equals must not go for it."""
    path = [(0, 32, 0.1), (32, 32, 0.1)]
    fixed, twin = Arm("fixed 32", path=path), Arm("batch twin of x", path=path, control="batch_twin", of="x")
    candidate = Arm("x", path=path, adaptive=True)
    for other, kept in ((fixed, "fixed 32"), (candidate, "x")):
        maker = Maker.__new__(Maker)
        maker.arms, maker.notes = [], []
        for arm in ([other, twin], [twin, other])[first]:
            maker.add(arm)
        assert [arm.name for arm in maker.arms] == [kept]
        assert maker.notes == [f"batch twin of x does what {kept} does: left out"]


def test_a_plan_has_a_line_for_every_arm_that_replays_nothing():
    with config.composer():
        jobs, _ = combinations(["experiment=compare", *MNIST5K, "compare.adaptive=[adabatch,noise_scale]"])
    names = [next(o for o in job if o.startswith("compare.arm=")).partition("=")[2] for job in jobs]
    fixed = ["'fixed 32'", "'fixed 128'", "'fixed 512'", "'mean-matched 82'"]
    assert names == [*fixed, "'adabatch'", "'noise_scale'"]


@pytest.mark.parametrize(
    "overrides, said",
    [
        (["compare.adaptive=[noise_scal]"], "Did you mean 'noise_scale'"),
        (["compare.arms=[fixed,adaptve]"], "Did you mean 'adaptive'"),
        (["compare.arms=[fixed]"], "no adaptive arm"),
        (["compare.arms=[adaptive]"], "no fixed arm to compare with: add fixed, or mean_matched"),
        (["compare.arms=[fixed,adaptive,{name: a}]"], "overrides, or control and of, got neither for a"),
        (["compare.arms=[fixed,adaptive,{name: a, control: lr_twin, overrides: ['schedule=fixed']}]"],
         "overrides, or control and of, got both for a"),
        (["compare.arms=[fixed,adaptive,{name: a, overrides: ['schedule.base_lr=abc']}]"],
         "arm a (compare.arms): base_lr is positive, got abc"),
        (["schedule=fixed"], "never changes its batch"),
        (["compare.arms=[adaptive,{name: a, overrides: ['optimizer=adamw']}]"], "in their schedule only"),
        (["compare.arms=[fixed,adaptive,{name: a, size: 3}]"], "Did you mean 'sizes'"),
        (["compare.arms=[fixed,adaptive,{name: a, control: mean, of: adabatch}]"], "control is one of"),
        (["compare.arms=[fixed,adaptive,{name: 'a;b', overrides: []}]"], "an arm's name"),
        (["compare.arms=[adaptive,{name: a, overrides: ['schedule=adascale', 'schedule.stop=gained']}]"],
         "train the same number of samples"),
        (["compare.seeds=21"], "at most the last look, 20"),
        (["compare.tuning_seed=3"], "no seed of the verdict"),
        (["compare.retry=[interrupted]"], "interrupted runs go on by themselves"),
        (["compare.retry=[diverged]"], "A run that diverged is a result"),
        (["schedule.compat=nvlabs"], "drops the tail of every epoch"),
        ([f"compare.arms=[fixed,adaptive,{{name: {'n' * 40}, overrides: ['schedule=fixed'], sizes: [2x]}}]"],
         "a shorter"),
        ([f"compare.arms=[adaptive,mean_matched,{{name: {'n' * 40}, overrides: ['schedule=noise_scale']}}]"],
         "a shorter"),
        (["compare.looks=[10,5]"], "compare.looks are ascending"),
        (["compare.delta=0"], "compare.delta is a number"),
        (["compare.ladder=1"], "compare.ladder is a number"),
        (["compare.target=2"], "compare.target is a number"),
        (["compare.retry=faild"], "Did you mean 'failed'"),
        (["dataset.samples=null"], "dataset.samples"),
    ],
)  # fmt: skip
def test_mistakes_are_told_before_anything_runs(overrides, said):
    with pytest.raises(UserError, match=re.escape(said)):
        expanded(*MNIST5K, *overrides)


def test_trajectories_are_compared_at_every_update():
    path = [(0, 32, 0.1), (32, 32, 0.05)]
    assert matching.equal(path, [(0, 32, 0.1), (32, 32, 0.05 * (1 + 1e-12))])
    for other in ([(0, 32, 0.1), (32, 32, 0.051)], [(0, 32, 0.1), (32, 33, 0.05)], path[:1]):
        assert not matching.equal(path, other)


@pytest.mark.parametrize(
    "line, sizes, said",
    [
        ("dataset=mnist5k seed=3", (32,), "dataset=mnist5k epochs=20"),
        ("schedule.base_batch=64 schedule.warmup_epochs=1 epochs=2", (64,),
         "schedule.base_batch=64 epochs=2"),
        ("schedule=adabatch schedule.growth.factor=4", (32, 128),
         "schedule=adabatch schedule.growth.factor=4 epochs=20"),
        ("schedule=noise_scale schedule.max_batch=256", (32, 64),
         "schedule=noise_scale schedule.max_batch=256 epochs=20"),
        ("schedule=large_batch schedule.base_lr=0.2", (256,), "schedule.base_lr=0.2 epochs=20"),
        ("schedule=adabatch schedule.twin=lr", (32,), "epochs=20"),
        ("schedule=adabatch schedule.compat=nvlabs", (32, 64), "schedule=adabatch epochs=20"),
    ],
)  # fmt: skip
def test_what_a_finished_run_suggests_is_a_comparison_with_its_schedule(line, sizes, said):
    """And with as many epochs; where its batch did not change, with AdaBatch."""
    summary = {"phases": [{"batch_size": size} for size in sizes]}
    words = suggestions.comparison(line.split(), {"epochs": 20.0}, summary)
    assert words == ["adabatch", "-m", "experiment=compare", *said.split()]
    arms, _ = expanded(*words[3:])
    adaptive = "noise_scale" if "noise_scale" in line else "adabatch"
    assert {"fixed", adaptive} <= {name.split()[0] for name in arms}


def test_every_fixed_schedule_gives_its_place_to_adabatch():
    for option in ("cosine", "legw"):
        words = suggestions.comparison([f"schedule={option}"], {}, {"phases": [{"batch_size": 32}]})
        assert "adabatch" in expanded(*words[3:])[0]


@pytest.mark.parametrize(
    "line", ["compare.arm=fixed seed=1", "experiment=another", "schedule=replay compare.arm=x"]
)
def test_a_run_of_a_comparison_or_of_an_experiment_suggests_none(line):
    assert suggestions.comparison(line.split(), {}, {}) is None
