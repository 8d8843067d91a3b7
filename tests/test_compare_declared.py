"""compare.yaml, the order of runs, the search for learning rates, and what adabatch-report makes of them."""

import errno
import math
from types import SimpleNamespace

import pytest
import sweep_folders
import yaml

from adabatch import UserError, files
from adabatch.compare import asked, declare, jobs, tuning
from adabatch.compare.arms import Arm
from adabatch.outcome import outcome
from adabatch.verdict import plan
from adabatch.verdict.decide import decide
from adabatch.verdict.folders import look

NODE = {
    "adaptive": None, "arms": ["fixed", "adaptive"], "ladder": 4, "looks": [5, 10, 20], "seeds": None,
    "delta": 1.0, "target": None, "tune_lr": False, "tuning_seed": 1000, "order": 0, "retry": [],
    "arm": None, "stage": None,
}  # fmt: skip


def arm(name, batch=32, exponent=1.0, **given):
    config = {"seed": 0, "schedule": {"base_batch": batch, "lr_batch": 32, "base_lr": 0.05}}
    schedule = SimpleNamespace(scaling=SimpleNamespace(exponent=exponent))
    return Arm(name, (f"schedule.base_batch={batch}",), config, schedule, **given)


MATCHED = Arm("mm", control="mean_matched", of="adabatch")


def declared(arms=None, **given):
    arms = arms or [arm("fixed 32"), arm("adabatch"), MATCHED]
    return declare.content(asked.asked(NODE | given, "adabatch"), arms, 40_000)


# -- the declaration --------------------------------------------------------------------------------


def test_the_report_reads_what_was_declared(tmp_path):
    assert declare.settle(tmp_path, declared(delta=0.5, looks=[3, 6], target=0.1, tune_lr=True))
    found = plan.declared(tmp_path)
    assert (found.delta, found.looks, found.target, found.tuned) == (0.005, (3, 6), 0.1, True)
    assert (found.arms, tuple(found.named), found.samples) == (3, ("fixed 32", "adabatch", "mm"), 40_000)
    assert found.remark is None, "its hash is the one that adabatch-report takes"


def test_the_same_command_finds_its_declaration_and_may_have_more_seeds(tmp_path):
    assert declare.settle(tmp_path, declared())
    before = (tmp_path / "compare.yaml").read_bytes()
    assert not declare.settle(tmp_path, declared(seeds=10, retry=["failed"]))
    assert (tmp_path / "compare.yaml").read_bytes() == before


@pytest.mark.parametrize(
    "changed, said",
    [
        (declared(looks=[5, 10]), r"declares looks: \[5, 10, 20\], and this command asks for \[5, 10\]"),
        (declared(delta=2), "delta: 1.0, and this command asks for 2.0"),
        (declared(order=1), "order: 0, and"), (declared(tune_lr=True), "tuned: False"),
        (declared([arm("fixed 32"), arm("adabatch")]), "and this command lacks mm"),
        (declared([arm("fixed 32"), arm("more"), arm("adabatch")]), "lacks mm and adds more"),
        (declared([arm("fixed 32", 64), arm("adabatch"), MATCHED]),
         "fixed 32 as .*base_batch=32.*asks for .*base_batch=64"),
    ],
)  # fmt: skip
def test_a_changed_declaration_is_refused_with_a_remedy(tmp_path, changed, said):
    declare.settle(tmp_path, declared())
    with pytest.raises(UserError, match=said + r"(.|\n)*another folder: hydra.sweep.dir="):
        declare.settle(tmp_path, changed)


@pytest.mark.parametrize(
    "lacking, said",
    [
        (("control", "of"), r"mm 82 with control: None, of: None, and this command asks for "
                            r"control: mean_matched, of: adabatch\."),
        (("adaptive",), r"mm 82 with adaptive: None, and this command asks for adaptive: False\."),
        (("identity",), r"mm 82 under another configuration \(identity None\), not this command's"),
    ],
)  # fmt: skip
def test_the_key_of_an_arm_that_differs_is_named(tmp_path, lacking, said):
    """A version that declared less of an arm: the same overrides and the same identity."""
    computed = arm("mm 82", 82, control="mean_matched", of="adabatch")
    wanted = declared([arm("fixed 32"), arm("adabatch"), computed])
    older = [{k: v for k, v in e.items() if e["name"] != "mm 82" or k not in lacking} for e in wanted["arms"]]
    declare.settle(tmp_path, wanted | {"arms": older})
    with pytest.raises(UserError, match=said):
        declare.settle(tmp_path, wanted)


def test_an_edited_declaration_is_refused(tmp_path):
    declare.settle(tmp_path, declared())
    path = tmp_path / "compare.yaml"
    path.write_text(path.read_text().replace("delta: 1.0", "delta: 2.0"))
    with pytest.raises(UserError, match="not as it was hashed"):
        declare.settle(tmp_path, declared(delta=2))


def test_nothing_is_declared_after_the_first_run(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "status.json").write_text("{}")
    with pytest.raises(UserError, match="before the first run"):
        declare.settle(tmp_path, declared())
    assert not (tmp_path / "compare.yaml").exists()


# -- blocks -----------------------------------------------------------------------------------------


def test_every_block_has_every_arm_once_in_an_order_of_its_own():
    arms = [arm(name) for name in "abcdef"] + [Arm("late", control="mean_matched", of="b")]
    found = jobs.blocks(arms, 20, order=0)
    assert [job.seed for job in found] == [seed for seed in range(20) for _ in arms]
    blocks = [[job.arm.name for job in found[i : i + 7]] for i in range(0, 140, 7)]
    assert all(sorted(block) == sorted("abcdef") + ["late"] and block[-1] == "late" for block in blocks)
    assert all(job.needs.arm.name == "b" and job.needs.seed == job.seed for job in found[6::7])
    assert len({tuple(block) for block in blocks}) > 15
    assert len({block[0] for block in blocks}) >= 4, "no arm is always the first"
    again = jobs.blocks(arms, 5, order=0)
    assert [job.name for job in again] == [job.name for job in found[:35]], "more seeds leave earlier blocks"
    assert [job.name for job in jobs.blocks(arms, 5, order=1)] != [job.name for job in again]


def test_what_is_to_be_done_with_a_run(tmp_path):
    def left(state, summary=False, error=None, **given):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        files.write_json(folder / "status.json", {"format": 1, "state": state, "error": error, "owner": None})
        if summary:
            files.write_json(folder / "summary.json", {"format": 1})
        return jobs.Job(arm("a"), 0, folder=folder, **given)

    assert jobs.due(left("finished", summary=True)) == jobs.DONE
    assert jobs.due(left("interrupted")) == jobs.due(left("preempted")) == jobs.TODO
    assert jobs.due(jobs.Job(arm("a"), 0, folder=tmp_path / "none")) == jobs.TODO
    for state in ("failed", "diverged", "out_of_memory"):
        assert jobs.due(left(state)) == jobs.DONE
        assert jobs.due(left(state), retry=(state,)) == jobs.TODO
        record = {"state": state}
        assert jobs.due(left(state, record=record), retry=(state,)) == jobs.DONE, "once in a command"
    full = outcome(OSError(errno.ENOSPC, "No space left on device"), tmp_path, "again")[2]
    assert jobs.due(left("failed", error=full)) == jobs.TODO, "its message says to go on"
    assert jobs.due(left("failed", error=full, record={"state": "failed"})) == jobs.DONE
    assert jobs.due(left("submitted", record={"state": "running"})) == jobs.BUSY
    assert jobs.due(left("interrupted", record={"state": "in use"})) == jobs.TODO
    assert jobs.due(jobs.Job(arm("a"), 0)) == jobs.LATER


def test_an_arm_that_ran_out_of_memory_starts_no_other_seed(tmp_path):
    large, small = arm("large"), arm("small")
    control = Arm("control", control="mean_matched", of="large")

    def made(which, seed, state=None, **given):
        folder = tmp_path / f"{which.name} {seed} {given.get('stage', '')}"
        if state:
            folder.mkdir()
            files.write_json(folder / "status.json", {"format": 1, "state": state, "error": None})
        return jobs.Job(which, seed, folder=folder, **given)

    gone, later = made(large, 0, "out_of_memory"), made(large, 1)
    stopped, other = made(large, 2, "interrupted"), made(small, 1)
    replay = jobs.Job(control, 1, needs=later)
    every = [gone, later, stopped, other, replay]
    lost = jobs.infeasible(every)
    assert lost == {"large"}
    found = [jobs.due(job, lost=lost) for job in every]
    assert found == [jobs.DONE, jobs.DONE, jobs.DONE, jobs.TODO, jobs.DONE]
    assert jobs.infeasible(every, ["failed"]) == {"large"}
    assert jobs.infeasible(every, ["out_of_memory"]) == frozenset()
    assert jobs.due(later, ["out_of_memory"]) == jobs.TODO and jobs.due(replay) == jobs.LATER
    search = [made(small, 1000, "out_of_memory", stage="tuning", multiplier=2.0)]
    assert not jobs.infeasible(search), "the search has a score of every learning rate"


# -- tuning -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "batch, exponent, multipliers",
    [
        (32, 1.0, [0.5, 1, 2]), (128, 1.0, [0.5, 1, 2]),  # sqrt(4) / 4 is 1/2
        (512, 1.0, [0.25, 0.5, 1, 2]), (512, 0.5, [0.5, 1, 2]),  # the square root is the rule already
    ],
)  # fmt: skip
def test_where_the_search_begins(batch, exponent, multipliers):
    assert tuning.first(arm("a", batch, exponent)) == pytest.approx(multipliers)


@pytest.mark.parametrize(
    "errors, best, further",
    [
        ({0.5: 0.3, 1: 0.2, 2: 0.4}, 1, None),
        ({0.5: 0.2, 1: 0.2, 2: 0.2}, 1, None),  # of equals the rule
        ({0.5: 0.1, 1: 0.2, 2: 0.4}, 0.5, 0.25),
        ({0.5: 0.3, 1: 0.2, 2: 0.1}, 2, 4),
        ({0.25: 0.3, 0.5: 0.1, 1: 0.2, 2: 0.4}, 0.5, None),
        ({0.5: 0.1, 1: math.inf, 2: math.inf}, 0.5, 0.25),
        ({0.5: math.inf, 1: math.inf, 2: math.inf}, 0.5, 0.25),  # all broke down: smaller
        (
            {0.0625: 0.1, 0.125: 0.2, 0.25: 0.3, 0.5: 0.4, 1: 0.5, 2: 0.6},
            0.0625,
            None,
        ),  # three beyond: enough
    ],
)
def test_the_search_goes_on_at_an_edge(errors, best, further):
    scores = [tuning.Score(m, error) for m, error in errors.items()]
    assert tuning.best(scores) == best
    assert tuning.further(arm("a"), scores) == further


def test_the_choice_is_recorded_and_found_again(tmp_path):
    scores = {"a": [tuning.Score(2.0, 0.1, "finished", "x"), tuning.Score(1.0, math.inf, "diverged", "y")],
              "b": [tuning.Score(1.0, 0.2, "finished", "z")]}  # fmt: skip
    assert tuning.read(tmp_path, ["a", "b"]) is None
    assert tuning.write(tmp_path, 1000, [arm("a"), arm("b")], scores) == {"a": 2.0, "b": 1.0}
    assert tuning.read(tmp_path, ["a", "b"]) == {"a": 2.0, "b": 1.0}
    assert tuning.read(tmp_path, ["a", "c"]) is None
    path = tmp_path / "tuning.yaml"
    kept = path.read_text()
    path.write_text(kept.replace("multiplier: 2.0", "multiplier: 4.0", 1))
    with pytest.raises(UserError, match="tuning.yaml is not as it was hashed"):
        tuning.read(tmp_path, ["a", "b"])
    path.write_text(kept)
    written = yaml.safe_load((tmp_path / "tuning.yaml").read_text())
    assert written["arms"]["a"]["base_lr"] == 0.1 and written["arms"]["b"]["base_lr"] == 0.05
    assert written["arms"]["a"]["at_an_edge"] and written["arms"]["a"]["tried"][0]["validation_error"] is None
    assert tuning.lines(arm("a"), 2.0) == ("schedule.base_batch=32", "schedule.base_lr=0.1")
    assert tuning.lines(arm("a"), 1.0) == ("schedule.base_batch=32",)


# -- the verdict on such a folder -------------------------------------------------------------------


def compared(parent, name, seed, batches, error, seconds, stage="verdict", **config):
    more = {"compare.arm": name, "compare.stage": stage, **config}
    return sweep_folders.run(parent, seed, batches, error, seconds, config=more)


def swept(parent):
    """Five seeds of three arms, the third with another schedule for each seed; 10,000 samples each."""
    arms = [
        arm("fixed 32"),
        arm("grows", adaptive=True),
        Arm("matched", control="mean_matched", of="grows"),
    ]
    declare.settle(parent, declare.content(asked.asked(NODE, "adabatch"), arms, 10_000))
    for seed in range(5):
        away = 0.001 * (seed - 2)
        compared(parent, "fixed 32", seed, (32,), 0.09 + away, 150 + seed)
        compared(parent, "grows", seed, (32, 128), 0.09 - away, 80 + seed)
        compared(parent, "matched", seed, (50 + seed,), 0.12 + away, 80 + seed,
                 **{"schedule.run": f"run {seed}", "schedule.base_batch": 50,
                    "schedule._target_": "adabatch.schedules.replay"})  # fmt: skip


def test_arms_are_what_the_runs_say_whatever_their_schedules(tmp_path):
    swept(tmp_path)
    found = look([str(tmp_path)], {})
    assert {a.name: len(a.runs) for a in found.arms} == {"fixed 32": 5, "matched": 5, "grows": 5}
    assert {a.name: a.adaptive for a in found.arms} == {"fixed 32": False, "matched": False, "grows": True}
    verdict = decide(found.arms, found.plan, found.pending)
    assert (verdict.decision, verdict.winner) == ("adaptive", "grows") and not found.notes
    assert "untuned" in verdict.sentence and "declared" not in verdict.sentence


def test_tuning_runs_are_no_runs_of_the_verdict(tmp_path):
    swept(tmp_path)
    before = look([str(tmp_path)], {}).arms
    (tmp_path / "tuning").mkdir()
    compared(tmp_path / "tuning", "grows", 1000, (32, 128), 0.5, 80, "tuning")
    compared(tmp_path, "grows", 1001, (32, 128), 0.5, 80, "tuning")  # wherever it lies
    found = look([str(tmp_path)], {})
    assert found.arms == before and found.pending == 0
    cost = "20,000 samples and 160 s"  # 10 epochs of 1,000 samples and 80 s each
    assert found.notes == [f"2 runs that tuned learning rates left out ({cost})"]


def test_an_arm_that_was_not_declared_is_left_out_and_named(tmp_path):
    swept(tmp_path)
    before = look([str(tmp_path)], {}).arms
    for seed in range(5):
        compared(tmp_path / "later", "<b>late", seed, (32, 512), 0.01, 10)
    found = look([str(tmp_path)], {})
    assert found.arms == before
    assert found.notes == ["<b>late: left out, it is no declared arm"]
