"""What a run is called beside others: equal for the seeds of an arm, on every machine, whatever the place."""

import copy

import pytest
from sweep_folders import CONFIG, setting

from adabatch import labels


def test_a_comparison_is_what_all_its_runs_share(tmp_path):
    own = labels.comparison(CONFIG, tmp_path / "a")
    assert own.startswith("convnet-cifar10-10ep-")
    for same in ({"seed": 4}, {"schedule.base_batch": 512}, {"options.schedule": "adabatch"},
                 {"hardware.threads": 9}, {"dataset.root": "/data"}, {"trackers.x": 1}):  # fmt: skip
        assert labels.comparison(setting(CONFIG, same), tmp_path / "b/c") == own, same
    for other in ({"epochs": 11}, {"model.width": 17}, {"dataset.limit": 9}, {"optimizer.momentum": 0.8},
                  {"label_smoothing": 0.1}):  # fmt: skip
        assert labels.comparison(setting(CONFIG, other), tmp_path / "a") != own, other


@pytest.mark.parametrize("below", ["run", "tuning/run"])
def test_a_declared_comparison_is_its_folder(tmp_path, below):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/compare.yaml").write_text("delta: 1.0\n")
    assert labels.comparison(CONFIG, tmp_path / "mine" / below) == "mine"


@pytest.mark.parametrize("given", [None, "chosen"])
def test_runs_that_search_for_a_learning_rate_are_a_group_of_their_own(tmp_path, given):
    """A chart of the arms by their group must not average them in."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/compare.yaml").write_text("delta: 1.0\n")
    groups = [
        labels.group({**CONFIG, "compare": {"arm": "fixed 32", "stage": stage}}, tmp_path / below, given)
        for stage, below in (("verdict", "mine/run"), ("tuning", "mine/tuning/run"))
    ]
    assert groups == [given or "mine", f"{given or 'mine'}-tuning"]
    assert labels.group(CONFIG, tmp_path / "mine/run", given) == groups[0]


@pytest.mark.parametrize("given, arm", [
    ({}, "fixed 32"), ({"options.schedule": "adabatch", "schedule.base_batch": 64}, "adabatch 64"),
    ({"compare": {"arm": "mean-matched 330"}}, "mean-matched 330"), ({"compare": None}, "fixed 32"),
    ({"options": None}, "Schedule 32"), ({"schedule": None, "options": {}}, "schedule"),
])  # fmt: skip
def test_an_arm_is_called_as_the_comparison_calls_it(given, arm):
    config = copy.deepcopy(CONFIG) | {k: v for k, v in given.items() if "." not in k}
    config = setting(config, {k: v for k, v in given.items() if "." in k})
    assert labels.arm(config) == arm
    assert labels.tags(config) == [f"arm: {arm}", "seed: 0"]


def test_tags_are_as_long_as_wandb_allows():
    tags = labels.tags(setting(CONFIG, {"options.schedule": "x" * 200, "seed": 10**80}))
    assert all(1 <= len(tag) <= 64 for tag in tags)


@pytest.mark.parametrize(
    "typed, said",
    [
        (["compare.arm='mean-matched 80'", "compare.stage=verdict", "schedule.base_lr=0.2", "seed=3"],
         "mean-matched 80 seed=3"),
        (["compare.arm='fixed 32'", "compare.stage=tuning", "schedule.base_lr=0.2", "seed=1000"],
         "fixed 32 lr=0.2 tuning"),
        (["compare.arm=mine", "compare.stage=tuning", "seed=1000"], "mine tuning"),
        (["schedule=adabatch", "seed=3"], None),
    ],
)  # fmt: skip
def test_a_job_of_a_comparison_in_brief(typed, said):
    """What differs between its jobs: arm and seed, in a search arm and learning rate."""
    assert labels.brief(typed) == said
