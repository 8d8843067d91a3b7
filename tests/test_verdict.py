"""Every branch of the decision procedure by a written-out sweep."""

import math
from dataclasses import replace

import numpy as np
import pytest

from adabatch import statistics
from adabatch.verdict import power
from adabatch.verdict.arms import Arm, Declared, Plan, Run
from adabatch.verdict.decide import decide

KEY = {"device": "T4", "precision": "fp32", "threads": "4", "processes": "1", "torch version": "2.15"}
PLAN = Plan(evaluated=10_000, looks=(5,))
WOBBLE = (-0.002, -0.001, 0.0, 0.001, 0.002)  # of errors: a spread of 0.16 pp
JITTER = (0.02, -0.01, 0.0, -0.02, 0.01)  # of log times within blocks


def arm(name, error, seconds, n=5, adaptive=None, wobble=WOBBLE, shift=0, **given):
    """An arm whose runs have this mean error and geometric mean time. given: fields of every run."""
    runs = []
    for seed in range(n):
        time = seconds * math.exp(0.1 * seed + JITTER[(seed + shift) % 5])  # later blocks are slower for all
        figures = {"error": error + wobble[(seed + shift) % 5], "seconds": time, "key": KEY,
                   "weights": f"{name} {seed}"}  # fmt: skip
        runs.append(Run(**{"seed": seed, **figures, **given}))
    adaptive = not name.startswith("fixed") if adaptive is None else adaptive
    return Arm(name, adaptive, tuple(runs))


def with_states(whole, **states):
    """The arm with runs replaced: s3="diverged"."""
    found = [
        replace(run, state=states[f"s{run.seed}"], error=None) if f"s{run.seed}" in states else run
        for run in whole.runs
    ]
    return replace(whole, runs=tuple(found))


SMALL, LARGE = arm("fixed 32", 0.090, 150), arm("fixed 512", 0.092, 100, shift=1)
GOOD = arm("adabatch 32-512", 0.091, 70, shift=2)


def comparison(verdict, candidate, rival):
    return next(c for c in verdict.comparisons if (c.candidate, c.rival) == (candidate, rival))


def test_adaptive_wins():
    found = decide([SMALL, LARGE, GOOD], PLAN)
    assert (found.decision, found.winner) == ("adaptive", "adabatch 32-512")
    made = comparison(found, "adabatch 32-512", "fixed 512")
    ratios = [math.log(j.seconds / w.seconds) for w, j in zip(GOOD.runs, LARGE.runs)]
    low, high = (math.exp(x) for x in statistics.mean(ratios).interval(0.95))
    d_low, d_high = (100 * x for x in made.difference.interval(0.90))
    assert found.sentence == (
        f"adaptive: 1.43x faster [{low:.2f}, {high:.2f}] than fixed 512, error not worse by more than 1 pp "
        f"(-0.1 [{d_low:.1f}, {d_high:.1f}], n = 5); LRs by rule, untuned"
    )
    assert made.correlation is not None and made.beats and made.clauses.fast


def test_the_sentence_of_the_tuned_and_of_the_small_evaluation_set():
    plan = replace(PLAN, tuned=True, evaluated=360, chosen=False, remark="looks were not declared beforehand")
    found = decide([SMALL, LARGE, GOOD], plan)
    assert found.sentence.endswith(
        "; LRs tuned; for this evaluation set; looks were not declared beforehand; "
        "chosen and measured on the same set"
    )
    assert (
        "for this evaluation set" not in decide([SMALL, LARGE, GOOD], replace(PLAN, evaluated=5000)).sentence
    )


def test_the_fastest_of_those_that_qualify_is_named():
    other = arm("cabs 32-256", 0.091, 60, shift=3)
    worse = arm("seesaw 32-512", 0.12, 40, shift=4)
    found = decide([SMALL, LARGE, GOOD, other, worse], PLAN)
    assert found.winner == "cabs 32-256" and found.sentence.startswith("adaptive (cabs 32-256): 1.67x faster")


def test_a_fixed_arm_wins():
    found = decide([SMALL, LARGE, arm("adabatch 32-512", 0.091, 125, shift=2)], PLAN)
    assert (found.decision, found.winner) == ("fixed", "fixed 512")
    assert found.sentence.startswith("fixed 512: 1.25x faster [")
    assert "than adabatch 32-512, error not worse by more than 1 pp (+0.1 [" in found.sentence


def test_a_tie_goes_to_the_fixed_arm():
    steady = arm("adabatch 32-512", 0.092, 100, shift=1)
    steady = replace(steady, runs=tuple(replace(r, seconds=1.005 * r.seconds) for r in steady.runs))
    found = decide([SMALL, LARGE, steady], PLAN)
    assert found.decision == "fixed"
    steadier = [replace(r, seconds=0.99 * r.seconds) for r in LARGE.runs]
    found = decide([SMALL, LARGE, replace(GOOD, runs=tuple(
        replace(r, seconds=s.seconds) for r, s in zip(GOOD.runs, steadier)
    ))], PLAN)  # fmt: skip
    assert found.decision == "fixed"
    assert found.sentence.startswith(
        "fixed 512: not slower than adabatch 32-512 by 1.05x or more (0.99x as fast [0.99, 0.99])"
    )


def test_slower_but_more_accurate():
    found = decide([SMALL, LARGE, arm("adabatch 32-512", 0.060, 130, shift=2)], PLAN)
    assert found.decision == "adaptive"
    assert found.sentence.startswith(
        "adaptive: more accurate than fixed 512 by more than 1 pp (-3.2 [-3.4, -3.0], n = 5), 1.30x slower ["
    )


def test_both_clauses_must_hold_against_every_rival():
    """Faster than one and not than the other; and as accurate as one and not as the other."""
    found = decide([SMALL, arm("fixed 512", 0.092, 66, shift=1), GOOD], PLAN)
    assert found.decision == "fixed"
    found = decide([arm("fixed 32", 0.0805, 150), LARGE, GOOD], replace(PLAN, looks=(5, 10)))
    assert found.decision == "not resolvable"
    assert comparison(found, "adabatch 32-512", "fixed 512").beats
    assert "adabatch 32-512 may be more than 1 pp worse than fixed 32 (+1.0 [" in found.sentence
    assert "enlarge the evaluation set" in found.sentence  # which way of the margin, no spread would hide


def test_equal_within_the_margin_is_said_only_where_tost_holds():
    found = decide([SMALL, LARGE, GOOD], PLAN)
    assert sum("errors equal within 1 pp (TOST, p < 0.001" in note for note in found.notes) == 2
    better = decide([SMALL, LARGE, arm("adabatch 32-512", 0.081, 70, shift=2)], PLAN)
    assert better.decision == "adaptive" and not any("TOST" in note for note in better.notes)


def test_undecided_names_pairs_and_seeds():
    """A spread of 0.8 pp at five runs: ten would do."""
    wide = tuple(4 * x for x in WOBBLE)
    arms = [arm("fixed 32", 0.09, 150, wobble=wide), arm("adabatch 32-512", 0.09, 70, wobble=wide, shift=2)]
    found = decide(arms, replace(PLAN, looks=(5, 10, 20)))
    assert (found.decision, found.seeds) == ("undecided", 20)
    assert found.sentence.startswith(
        "undecided: adabatch 32-512 may be more than 1 pp worse than fixed 32 (+0.0 ["
    )
    assert "; 20 seeds would decide with 80 % power; LRs" in found.sentence
    wide = tuple(6 * x for x in WOBBLE)  # no planned look is left: another comparison, of an alpha of its own
    arms = [arm("fixed 32", 0.09, 150, wobble=wide), arm("adabatch 32-512", 0.09, 70, wobble=wide, shift=2)]
    found = decide(arms, PLAN)
    assert (
        found.seeds == 20 and "; 20 seeds in a new comparison would decide with 80 % power" in found.sentence
    )


def test_seeds_are_those_of_a_simulation_from_the_figures():
    wide = tuple(4 * x for x in WOBBLE)
    arms = [arm("fixed 32", 0.09, 150, wobble=wide), arm("adabatch 32-512", 0.09, 70, wobble=wide, shift=2)]
    sd, df = statistics.pooled([a.errors for a in arms])
    margins, sds = statistics.Margins(0.01, 1.05, 0.05 / 3), [statistics.upper_spread(sd, df)] * 2
    kinds = [False, True]
    powers = [
        statistics.power([0.09, 0.09], sds, [0.5, 0], 0.03, kinds, n, margins) for n in (10, 20)
    ]  # fmt: skip
    assert powers[0] < 0.8 <= powers[1]


def test_five_runs_that_happen_to_agree_are_no_proof_of_a_small_spread():
    """No spread beside a variance of 4e-5: pooled 2e-5 with 8 degrees of freedom, of which a fifth of all
    chi-squares lie below 4.594."""
    arms = [arm("fixed 32", 0.09, 150, wobble=(0.0,) * 5),
            arm("adabatch 32-512", 0.09, 70, wobble=tuple(4 * x for x in WOBBLE), shift=2)]  # fmt: skip
    made = decide(arms, replace(PLAN, looks=(5, 10))).comparisons
    limit = math.sqrt(2e-5 * 8 / 4.594)
    assert power.upper_spreads(arms, list(made)) == pytest.approx([limit, limit], rel=1e-3)


def test_the_spread_of_the_simulation_is_at_its_upper_limit_in_four_of_five_sweeps():
    """Of every arm at once, also of one whose own runs agree by chance."""
    draw, covered, sweeps, sd = np.random.default_rng(0), 0, 1000, 0.008
    for _ in range(sweeps):
        drawn = 0.09 + sd * draw.standard_normal((3, 5))
        arms = [
            Arm(f"{i}", i == 2, tuple(Run(s, error=float(e)) for s, e in enumerate(row)))
            for i, row in enumerate(drawn)
        ]
        covered += min(power.upper_spreads(arms, [])) >= sd
    assert covered / sweeps == pytest.approx(0.8, abs=3 * math.sqrt(0.16 / sweeps))


def test_a_hopeless_arm_hides_nobody():
    """A batch far too large is far less accurate and scatters: neither the seeds nor the pair that the
    sentence names are about it."""
    wide, wild = (tuple(k * x for x in WOBBLE) for k in (4, 30))
    arms = [arm("fixed 32", 0.09, 150, wobble=wide), arm("adabatch 32-512", 0.09, 70, wobble=wide, shift=2)]
    alone = decide(arms, replace(PLAN, looks=(5, 10, 20)))
    found = decide([*arms, arm("fixed 4096", 0.5, 40, wobble=wild)], replace(PLAN, looks=(5, 10, 20)))
    assert (found.decision, found.seeds) == (alone.decision, alone.seeds) == ("undecided", 20)
    assert "; fixed 32 may be more than 1 pp worse than adabatch 32-512" in found.sentence


def test_not_resolvable_says_what_would_help():
    wide = tuple(20 * x for x in WOBBLE)
    arms = [arm("fixed 32", 0.09, 150, wobble=wide), arm("adabatch 32-512", 0.09, 70, wobble=wide, shift=2)]
    found = decide(arms, replace(PLAN, looks=(5, 10, 20)))
    assert found.decision == "not resolvable" and found.seeds is None
    # Their sd is 20 sqrt(2.5e-6) = 3.16 pp; of 10,000 samples at 9 % comes sqrt(0.09 / 20,000) = 0.212.
    said = "runs of one arm differ by 3.16 pp, and 10,000 evaluated samples explain 0.212 pp: train longer"
    assert found.sentence.startswith(f"not resolvable with 20 seeds: {said}")
    small = decide(arms, replace(PLAN, looks=(5, 10, 20), evaluated=100))  # 2.12 of it
    assert small.sentence.startswith("not resolvable with 20 seeds: enlarge the evaluation set (adabatch")
    near = decide(
        [SMALL, LARGE, arm("adabatch 32-512", 0.091, 96, shift=2)], replace(PLAN, looks=(5, 10, 20))
    )
    assert near.sentence.startswith("not resolvable with 20 seeds: the arms lie too near the margins")
    assert "adabatch 32-512 may be less than 1.05x faster than fixed 512 (1.04x [" in near.sentence


def test_out_of_memory_is_infeasible_and_named():
    big = with_states(arm("fixed 2048", 0.09, 50), s2="out_of_memory")
    found = decide([SMALL, LARGE, big, GOOD], PLAN)
    assert (
        found.decision == "adaptive"
        and "fixed 2048 ran out of memory here: infeasible, left out" in found.notes
    )
    assert not any("2048" in c.rival + c.candidate for c in found.comparisons)


OUT = {"s0": "out_of_memory"}


@pytest.mark.parametrize(
    "arms, sentence",
    [
        ([with_states(SMALL, **OUT), GOOD], "every fixed arm is left out (fixed 32 ran out of memory)"),
        ([SMALL, LARGE, with_states(GOOD, **OUT)],
         "every adaptive arm is left out (adabatch 32-512 ran out of memory)"),
        ([with_states(SMALL, **OUT), with_states(GOOD, **OUT)],
         "every adaptive arm is left out (adabatch 32-512 ran out of memory)"),
    ],
)  # fmt: skip
def test_a_class_that_does_not_fit_into_memory_leaves_nothing_to_compare(arms, sentence):
    found = decide(arms, PLAN)
    assert (found.decision, found.winner) == ("undecided", None)
    assert found.sentence == f"undecided: {sentence}; smaller batches may fit"


def test_while_runs_of_the_other_class_are_to_come_it_is_interim():
    """What is left of a class that does not fit is known before the sweep has ended."""
    lost = with_states(GOOD, **OUT)
    found = decide([with_states(SMALL, s4="running"), lost], PLAN)
    assert found.sentence == "interim, no verdict: 1 of 5 runs not finished (fixed 32 seed 4: running)"
    assert (
        "the next look is at 5"
        in decide([arm("fixed 32", 0.09, 9, n=3), lost], replace(PLAN, looks=(2, 5))).sentence
    )


@pytest.mark.parametrize(
    "count, decision", [(3, "adaptive"), (2, "undecided"), (1, "undecided"), (5, "adaptive")]
)
def test_an_arm_that_diverges(count, decision):
    """60 % of its runs: beaten. Fewer: its comparisons stay undecided."""
    wild = with_states(arm("fixed 2048", 0.02, 20), **{f"s{i}": "diverged" for i in range(count)})
    found = decide([SMALL, LARGE, wild, GOOD], PLAN)
    assert found.decision == decision
    if decision == "undecided":
        assert f"fixed 2048 diverged in {count} of 5 runs, which decides nothing" in found.sentence
        assert found.seeds is None


def test_an_arm_that_diverges_cannot_win():
    found = decide([SMALL, LARGE, with_states(arm("adabatch 32-512", 0.02, 20), s0="diverged")], PLAN)
    assert found.decision == "undecided" and found.winner is None
    assert "adabatch 32-512 diverged in 1 of 5 runs, so it cannot win" in found.sentence
    beaten = with_states(arm("adabatch 32-512", 0.02, 20), s0="diverged", s1="diverged", s2="diverged")
    found = decide([SMALL, LARGE, beaten], PLAN)
    assert found.decision == "fixed"
    assert found.sentence.startswith(
        "fixed 512: every rival diverged (adabatch 32-512 in 3 of 5 runs; n = 5); LRs"
    )


def test_where_times_cannot_be_compared_the_most_accurate_is_named():
    """A time of another device ranks nobody."""
    there = KEY | {"device": "V100"}
    better = [arm("adabatch 32-512", 0.05, 70, shift=2, key=there), arm("cabs 32-64", 0.04, 90, key=there)]
    found = decide([SMALL, LARGE, *better], PLAN)
    assert (found.decision, found.winner) == ("adaptive", "cabs 32-64")
    assert "more accurate than fixed 32 by more than 1 pp" in found.sentence
    assert "time not comparable: device differs (V100 and T4)" in found.sentence


def test_duplicates_are_one_arm():
    twin = replace(arm("fixed 32, twin=lr", 0.09, 150), runs=SMALL.runs)
    found = decide([SMALL, twin, LARGE, GOOD], PLAN)
    assert found.notes[0] == "fixed 32, twin=lr and fixed 32 are the same runs (equal weights): one arm"
    assert [a.name for a in found.arms] == ["fixed 32", "fixed 512", "adabatch 32-512"]
    other = replace(twin, runs=(*SMALL.runs[:4], replace(SMALL.runs[4], weights="x")))
    assert len(decide([SMALL, other, LARGE, GOOD], PLAN).arms) == 4
    unknown = [replace(a, runs=tuple(replace(r, weights=None) for r in a.runs)) for a in (SMALL, twin)]
    assert len(decide([*unknown, GOOD], PLAN).arms) == 3


REVERSED = replace(arm("reversed adabatch", 0.091, 70, shift=2), adaptive=None)


def test_what_is_in_neither_class_changes_no_verdict():
    """Reversed batches have the time of their source by construction, and ties go to fixed: as a fixed arm
    they would win, or keep every adaptive arm from winning."""
    plan = replace(PLAN, looks=(5, 10))
    for arms in ([SMALL, LARGE, GOOD], [SMALL, LARGE, arm("adabatch 32-512", 0.091, 96, shift=2)]):
        alone, found = decide(arms, plan), decide([*arms, REVERSED], plan)
        assert (found.sentence, found.winner) == (alone.sentence, alone.winner)
        assert found.comparisons == alone.comparisons, "no candidate, no rival, and no part of m"
        assert [a.name for a in found.arms] == [*(a.name for a in arms), "reversed adabatch"]
    assert decide([SMALL, REVERSED], PLAN).sentence == "interim, no verdict: no adaptive arm was run"
    assert decide([GOOD, REVERSED], PLAN).sentence == "interim, no verdict: no fixed arm was run"


def test_the_runs_of_what_is_in_neither_class_are_waited_for():
    found = decide([SMALL, LARGE, GOOD, with_states(REVERSED, s3="running")], PLAN)
    assert "1 of 20 runs not finished (reversed adabatch seed 3: running)" in found.sentence


def test_of_two_controls_with_the_same_runs_the_fixed_one_stays():
    twin = replace(LARGE, name="batch twin of adabatch 32-512", adaptive=None)
    said = tuple(
        Declared(name, kind, control, control and GOOD.name)
        for name, kind, control in (
            (twin.name, False, "batch_twin"), (LARGE.name, False, "mean_matched"), (GOOD.name, True, None)
        )
    )  # fmt: skip
    for arms in ([twin, LARGE, GOOD], [LARGE, GOOD, twin]):
        found = decide(arms, replace(PLAN, declared=said, arms=3))
        assert {a.name for a in found.arms} == {LARGE.name, GOOD.name} and found.winner == GOOD.name


def test_an_arm_with_fewer_seeds_is_a_rival_and_no_candidate():
    """Also where it is the only one of its class: nobody wins then, and the sentence names the pair."""
    control = arm("mean-matched 72", 0.085, 60, n=3, adaptive=False)
    control = replace(control, partial="x broke down at seed 3, 4")
    found = decide([control, GOOD], replace(PLAN, looks=(5, 10)))
    assert found.winner is None and found.decision in ("undecided", "not resolvable")
    assert "adabatch 32-512 may be " in found.sentence and "than mean-matched 72" in found.sentence
    assert [(c.candidate, c.rival) for c in found.comparisons] == [(GOOD.name, control.name)]
    assert "mean-matched 72 is a rival with the 3 seeds that it has: x broke down at seed 3, 4" in found.notes
    beaten = replace(control, runs=tuple(replace(r, seconds=9 * r.seconds) for r in control.runs))
    assert decide([beaten, GOOD], PLAN).winner == GOOD.name


def test_bonferroni_counts_the_candidates_of_the_class():
    one, two = decide([SMALL, GOOD], PLAN), decide([SMALL, GOOD, arm("cabs 32-64", 0.2, 99)], PLAN)
    made = [comparison(v, "adabatch 32-512", "fixed 32") for v in (one, two)]
    assert made[0].clauses.limit == pytest.approx(made[0].difference.upper(0.95))
    assert made[1].clauses.limit == pytest.approx(made[0].difference.upper(0.975))
    assert made[1].clauses.fast_limit == pytest.approx(made[0].speed.lower(1 - 0.05 / 4))
    assert comparison(two, "fixed 32", "adabatch 32-512").clauses.limit == pytest.approx(
        comparison(one, "fixed 32", "adabatch 32-512").clauses.limit
    )
    shared = comparison(decide([SMALL, GOOD], replace(PLAN, looks=(5, 10))), "adabatch 32-512", "fixed 32")
    assert shared.clauses.limit == pytest.approx(made[0].difference.upper(0.975))


@pytest.mark.parametrize("key, value", [("threads", "8"), ("device", "V100"), ("torch version", None)])
def test_times_of_other_conditions_are_not_compared(key, value):
    other = replace(GOOD, runs=(replace(GOOD.runs[0], key=KEY | {key: value}), *GOOD.runs[1:]))
    found = decide([SMALL, LARGE, other], PLAN)
    first = f"{value} and {KEY[key]}"
    assert f"time not comparable: {key} differs ({first})" in found.notes
    assert found.decision == "undecided" and f"time not comparable: {key} differs" in found.sentence
    made = comparison(found, "adabatch 32-512", "fixed 32")
    assert made.speed is None and not made.clauses.fast and made.clauses.not_worse
    blank = [replace(a, runs=tuple(replace(r, key=KEY | {key: None}) for r in a.runs)) for a in (SMALL, GOOD)]
    assert f"time not comparable: {key} is not recorded" in decide(blank, PLAN).notes


def test_shared_timings_give_no_time_verdict_and_accuracy_still_may():
    shared = [
        replace(a, runs=tuple(replace(r, alone="runs shared the machine") for r in a.runs))
        for a in (SMALL, LARGE, GOOD)
    ]
    found = decide(shared, PLAN)
    assert found.decision == "undecided" and "no time verdict: runs shared the machine" in found.sentence
    better = replace(shared[2], runs=tuple(replace(r, error=r.error - 0.03) for r in shared[2].runs))
    found = decide([*shared[:2], better], PLAN)
    assert found.decision == "adaptive"
    assert found.sentence.startswith("adaptive: more accurate than fixed 32 by more than 1 pp (-2.9 [")
    assert "n = 5); no time verdict: runs shared the machine; LRs" in found.sentence


@pytest.mark.parametrize(
    "n, looks, words",
    [
        (3, (5, 10, 20), "n = 3, the first look is at 5 runs of each arm"),
        (4, (3, 5), "n = 4, the next look is at 5 runs of each arm"),
        (5, (3, 4), "n = 5 lies beyond the last look (3, 4)"),
    ],
)
def test_between_looks_there_is_no_verdict(n, looks, words):
    arms = [arm("fixed 32", 0.09, 150, n=n), arm("adabatch 32-512", 0.09, 70, n=n, shift=2)]
    found = decide(arms, replace(PLAN, looks=looks))
    assert (found.decision, found.sentence) == ("interim", f"interim, no verdict: {words}")
    assert found.comparisons and found.comparisons[0].difference is not None  # tables are shown all the same


def test_a_partial_sweep_has_no_verdict():
    found = decide([SMALL, with_states(LARGE, s3="running", s4="interrupted"), GOOD], PLAN)
    assert found.sentence == (
        "interim, no verdict: 2 of 15 runs not finished "
        "(fixed 512 seed 3: running, fixed 512 seed 4: interrupted)"
    )
    lacking = replace(LARGE, runs=LARGE.runs[:4])
    assert decide([SMALL, lacking, GOOD], PLAN).sentence.endswith(
        "fixed 512 lacks seed 4, which other arms have"
    )
    assert decide([SMALL, GOOD], PLAN, pending=2).sentence.endswith("2 runs have not begun or cannot be read")
    assert decide([SMALL, GOOD], replace(PLAN, arms=3)).sentence.endswith(
        "2 of the 3 declared arms have begun"
    )
    assert decide([SMALL, LARGE], PLAN).sentence == "interim, no verdict: no adaptive arm was run"
    assert decide([], PLAN).sentence == "interim, no verdict: no adaptive arm was run"
    blank = replace(GOOD, runs=tuple(replace(r, error=None) for r in GOOD.runs))
    assert "seed 0: finished without an error figure" in decide([SMALL, blank], PLAN).sentence


def test_the_decisive_rival_is_missed():
    """A fixed batch of as many updates; 10,000 samples in 139 updates are batches of 72."""

    def updated(whole, updates):
        return replace(whole, runs=tuple(replace(run, updates=updates) for run in whole.runs))

    plan, own = replace(PLAN, samples=10_000), updated(GOOD, 139)
    arms = [updated(SMALL, 313), updated(LARGE, 20), own]
    note = "no fixed arm has about as many updates as adabatch 32-512 (139: batch 72)"
    assert note in decide(arms, plan).notes
    matched = updated(arm("fixed 72", 0.09, 120), 139)
    assert decide([*arms, matched], plan).decision == "adaptive"
    assert note not in decide([*arms, matched], plan).notes


def test_another_budget_is_left_out():
    long = replace(arm("adascale 32", 0.05, 50, adaptive=True), outside="it trained 9 samples")
    found = decide([SMALL, LARGE, GOOD, long], PLAN)
    assert "adascale 32 is left out: it trained 9 samples" in found.notes and found.winner == GOOD.name


def test_runs_without_any_spread():
    """Counts that agree to the last sample: the floor is their rounding, and nothing is divided by zero."""
    same = [
        arm("fixed 32", 0.09, 150, wobble=(0.0,) * 5), arm("adabatch 32-512", 0.09, 70, wobble=(0.0,) * 5)
    ]  # fmt: skip
    same = [replace(a, runs=tuple(replace(r, seconds=s) for r in a.runs)) for a, s in zip(same, (150, 70))]
    found = decide(same, PLAN)
    assert found.decision == "adaptive" and "2.14x faster [2.14, 2.14]" in found.sentence
    assert "(+0.00 [-0.00, 0.00], n = 5)" in found.sentence.replace("[0.00", "[-0.00")
    unknown = decide(same, replace(PLAN, evaluated=None))
    assert unknown.decision == "adaptive"


def test_two_runs_of_one_seed_are_enough_to_show_and_one_is_not():
    found = decide([arm("fixed 32", 0.09, 150, n=1), arm("adabatch 32-512", 0.09, 70, n=1)], PLAN)
    assert found.decision == "interim" and found.comparisons[0].why == "fewer than 2 finished runs of each"


def test_the_procedure_is_the_one_that_was_simulated():
    """80 random sweeps: `decide` and the function of which false verdicts were counted agree."""
    kinds = [False, False, True, True]
    margins = statistics.Margins(0.01, 1.05, 0.05 / 2)
    tally = {"adaptive": 0, "fixed": 0, 0: 0}
    for seed in range(80):
        draw = np.random.default_rng(seed)
        floor = statistics.rounding(10_000)
        errors = draw.normal(0.09, 0.004, 4)[:, None] + draw.normal(0, 0.003, (4, 5))
        logs = draw.normal(0, 0.1, 4)[:, None] + draw.normal(0, 0.02, (4, 5))
        expected = statistics.decisions(list(errors), list(logs), kinds, margins, floor)
        arms = []
        for i, kind in enumerate(kinds):
            each = zip(errors[i].tolist(), np.exp(logs[i]).tolist())
            made = tuple(Run(s, error=e, seconds=t, key=KEY) for s, (e, t) in enumerate(each))
            arms.append(Arm(f"{'adabatch' if kind else 'fixed'} {i}", kind, made))
        found = decide(arms, replace(PLAN, looks=(5, 10))).decision
        assert found in {1: ("adaptive",), -1: ("fixed",), 0: ("undecided", "not resolvable")}[int(expected)]
        tally[found if expected else 0] += 1
    assert min(tally.values()) > 8, tally
