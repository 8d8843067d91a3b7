"""What is said of the search for learning rates: where it was no search, what it chose, what it cost."""

import json
import math
from types import SimpleNamespace

import pytest
import sweep_folders

from adabatch import UserError, files
from adabatch.compare import asked, declare, told, tuning
from adabatch.compare.arms import Arm
from adabatch.compare.tuning import Score
from adabatch.verdict import command, plan, search
from adabatch.verdict.decide import decide
from adabatch.verdict.folders import look

NODE = {
    "adaptive": None, "arms": ["fixed", "adaptive"], "ladder": 4, "looks": [5, 10, 20], "seeds": None,
    "delta": 1.0, "target": None, "tune_lr": True, "tuning_seed": 1000, "order": 0, "retry": [],
    "arm": None, "stage": None,
}  # fmt: skip
BETWEEN = {0.5: 0.2, 1.0: 0.1, 2.0: 0.3}


def arm(name, **given):
    config = {"seed": 0, "schedule": {"base_batch": 32, "lr_batch": 32, "base_lr": 0.05}}
    return Arm(name, (), config, SimpleNamespace(scaling=SimpleNamespace(exponent=1.0)), **given)


ARMS = [arm("fixed 32"), arm("grows", adaptive=True)]


def searched(parent, errors: dict, tests=(0.09, 0.09), **config):
    """A finished comparison of two arms whose searches had these errors: {arm: {multiplier: error}}."""
    parent.mkdir(exist_ok=True)
    declare.settle(parent, declare.content(asked.asked(NODE, "adabatch"), ARMS, 10_000))
    scores = {
        name: [Score(m, error, "diverged" if math.isinf(error) else "finished") for m, error in tried.items()]
        for name, tried in errors.items()
    }
    tuning.write(parent, 1000, ARMS, scores)
    for name, batches, error in zip(("fixed 32", "grows"), ((32,), (32, 128)), tests):
        for seed in range(5):
            more = {"compare.arm": name, "compare.stage": "verdict", "dataset.classes": 10, **config}
            away = 0.001 * (seed - 2)
            sweep_folders.run(
                parent, seed, batches, error + away, 150 - 40 * len(batches) + seed, config=more
            )
    return parent


def sentence(folder) -> str:
    found = look([str(folder)], {})
    return decide(found.arms, found.plan, found.pending).sentence


@pytest.mark.parametrize(
    "tried, said",
    [
        ({0.5: 0.9, 1.0: 0.5, 2.0: 0.4, 4.0: 0.3, 8.0: 0.2, 16.0: 0.1}, "ended at its edge"),
        ({0.25: 0.1, 0.5: 0.2, 1.0: 0.3, 2.0: 0.4}, "ended at its edge"),
        (
            {0.5: math.inf, 1.0: math.inf, 2.0: math.inf, 0.25: math.inf},
            "every learning rate of the search broke",
        ),
        ({0.5: 0.9, 1.0: 0.9, 2.0: 0.9}, "found no difference between learning rates"),
        ({0.5: 0.9, 1.0: 0.9, 2.0: math.inf}, "found no difference between learning rates"),
        ({0.5: 0.2, 1.0: 0.1, 2.0: math.inf}, None),  # beyond the largest that trains is no edge
        (BETWEEN, None),
    ],
)
def test_the_sentence_says_where_a_search_was_none(tmp_path, tried, said):
    one = sentence(searched(tmp_path / "one", {"fixed 32": BETWEEN, "grows": tried}))
    assert "; LRs tuned; " in one
    if said is None:
        assert "search" not in one
        return
    (clause,) = [part for part in one.split("; ") if said in part]
    assert clause.endswith(" for grows") and "fixed 32" not in clause
    every = sentence(searched(tmp_path / "every", {"fixed 32": tried, "grows": tried}))
    assert said in every and "for every arm; " in every


def test_the_search_that_found_nothing_leaves_the_arm_the_likeliest_rate():
    """Every rate broke down: no smaller one was tried than the one that the verdict's runs have."""
    assert tuning.best([Score(m, math.inf, "diverged") for m in (2.0, 0.125, 1.0, 0.25, 0.5)]) == 0.125


def test_chosen_rates_and_the_cost_of_the_search_are_in_the_report(tmp_path, capsys):
    searched(tmp_path, {"fixed 32": BETWEEN, "grows": {1.0: 0.3, 2.0: 0.2, 4.0: 0.1, 8.0: 0.3}})
    for seed in (1000, 1001):
        tuned = {"compare.arm": "grows", "compare.stage": "tuning"}
        sweep_folders.run(tmp_path / "tuning", seed, (32,), 0.1, 80, config=tuned)
    sweep_folders.run(tmp_path / "tuning", 1002, (32,), 0.1, 80, state="diverged", config=tuned)
    assert command.command([str(tmp_path)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "tuned LR" in shown and "0.05 (x1)" in shown and "0.2 (x4)" in shown
    page = (tmp_path / "report.html").read_text()
    assert "0.2 (x4)" in page and page.count("LRs tuned") == 1, "once: its head is cut off from the rest"
    report = json.loads((tmp_path / "report.json").read_text())
    chosen = {a["arm"]: (a["base_lr"], a["lr_multiplier"], a["search_trouble"]) for a in report["arms"]}
    assert chosen == {"fixed 32": (0.05, 1.0, None), "grows": (0.2, 4.0, None)}
    runs = "3 runs that tuned learning rates left out (20,000 samples and 160 s of the 2 that finished)"
    assert runs in report["notes"]


@pytest.mark.parametrize(
    "tests, classes, said",
    [
        ((0.9, 0.895), 10, "no better than guessing (90 % error): every arm"),
        ((0.9, 0.3), 10, "no better than guessing (90 % error): fixed 32"),
        ((0.5, 0.3), 2, "no better than guessing (50 % error): fixed 32"),
        ((0.8, 0.3), 10, None), ((0.9, 0.9), None, None),
    ],
)  # fmt: skip
def test_arms_that_learned_nothing_are_named(tmp_path, tests, classes, said):
    tried = {"fixed 32": BETWEEN, "grows": BETWEEN}
    found = sentence(searched(tmp_path, tried, tests, **{"dataset.classes": classes}))
    assert (said in found) if said else ("guessing" not in found)
    assert command.command([str(tmp_path)]) == 0
    beside = "<small>LRs tuned; " + (said or "")
    assert beside in (tmp_path / "report.html").read_text(), "the page sets all qualifications apart"


@pytest.mark.parametrize("content", ["sha256", "[1]", "arms: {a: 3}\nsha256: 1", "arms: [\n"])
def test_a_record_that_is_not_whole_is_remarked_on(tmp_path, content):
    searched(tmp_path, {"fixed 32": BETWEEN, "grows": BETWEEN})
    (tmp_path / search.FILE).write_text(content)
    assert sentence(tmp_path).count("tuning.yaml is not as it was hashed") == 1


def test_hostile_entries_of_a_hashed_record_are_no_search(tmp_path):
    tried = [{"multiplier": 1.0, "validation_error": 0.1}, {"multiplier": "x"}, 7]
    arms = {"a": 3, "b": {"multiplier": "1"}, "c": {"multiplier": 1.0, "tried": "no"}, "d": {"multiplier": 1},
            "<b>" * 100: {"multiplier": 1.0, "base_lr": [], "tried": tried}}  # fmt: skip
    files.write_yaml(tmp_path / search.FILE, {"arms": arms, "sha256": plan.digest({"arms": arms})})
    (found,) = search.read(tmp_path, plan.digest).items()
    assert len(found[0]) <= search.NAME and found[1] == search.Search(1.0, None, ((1.0, 0.1),))
    arms = {str(n): 1 for n in range(10)}
    files.write_yaml(tmp_path / search.FILE, {"arms": arms, "sha256": "another"})
    with pytest.raises(UserError, match="not as it was hashed"):
        search.read(tmp_path, plan.digest)


def test_the_table_shows_the_rates_that_runs_have():
    """At four times the rule every rate is four times as large: 0.05 to 0.01 becomes 0.2 to 0.04."""
    falls = arm("falls", adaptive=True)
    falls = Arm("falls", (), falls.config, falls.schedule, [(0, 32, 0.05), (32, 32, 0.01)], adaptive=True)
    (heading, row) = told.table([falls], [], {"falls": 4.0}, "learning rate by the search")
    assert "0.2 to 0.04" in row and "learning rate by the search" in heading
    assert "0.05 to 0.01" in told.table([falls], [], {}, "learning rate")[1]
