"""A rehearsal: a few steps of the user's own schedule, with a change of batch, that end inside a batch."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import SMALL, resolved, run

from adabatch import plan, runs
from adabatch.errors import UserError
from adabatch.schedules import Schedule, Steps, rehearsal, walk
from adabatch.schedules.factors import Constant
from adabatch.schedules.setting import Observation


def rehearsed(*overrides: str, samples: int = 1437, steps: int = 12) -> Schedule:
    return plan.schedule(resolved(*overrides, f"rehearsal={{steps:{steps}}}"), samples)


def listed(schedule) -> list[tuple]:
    return [(start, s.batch_size, s.divisor, s.lr) for start, _, s in walk(schedule)]


def test_adabatch_written_out():
    """Base 32, lr 0.05: six steps of its first phase, six of its second (batch x 2, lr x 2 x 0.375), the last
    cut to 41 of 64."""
    found = listed(rehearsed("schedule=adabatch"))
    first = [(32 * i, 32, 32, 0.05) for i in range(6)]
    second = [(192 + 64 * i, 64, 64, 0.05 * 2 * 0.375) for i in range(5)]
    assert found == [*first, *second, (512, 41, 64, 0.05 * 2 * 0.375)]


@pytest.mark.parametrize(
    "overrides, sizes, rates",
    [
        (["schedule=fixed"], [32, 64], [0.05, 0.1]),  # doubled, with the learning rate of linear scaling
        (["schedule=fixed", "schedule.scaling=none"], [32, 64], [0.05, 0.0375]),  # a stale rate would show
        (["schedule=fixed", "schedule.scaling=sqrt"], [32, 64], [0.05, 0.05 * 2**0.5]),
        (["schedule=dont_decay"], [32, 160], [0.05, 0.05]),
        (["schedule=adabatch", "schedule.twin=lr", "schedule.compat=nvlabs"], [32, 64], [0.05, 0.1]),
    ],
)
def test_the_change_of_batch_is_the_schedules_own_or_a_doubling(overrides, sizes, rates):
    found = listed(rehearsed(*overrides))
    assert len(found) == 12
    assert [divisor for *_, divisor, _ in found] == [sizes[0]] * 6 + [sizes[1]] * 6
    assert [lr for *_, lr in found] == pytest.approx([rates[0]] * 6 + [rates[1]] * 6, rel=1e-12)


def test_a_late_change_is_found_at_its_milestone():
    """Behind more steps than are walked one by one."""
    late = rehearsal.FAR * 3
    schedule = Schedule(
        samples=10_000, epochs=20, growth=Steps(4, milestones_samples=[late]), decay=Constant(), base_batch=2,
        base_lr=0.1,
    )  # fmt: skip
    assert rehearsal.changed(schedule) == late
    assert {s.divisor for _, _, s in walk(rehearsal.rehearse(schedule, 8))} == {2, 8}


@settings(deadline=None)
@given(
    samples=st.integers(2, 400), batch=st.integers(1, 300), steps=st.integers(4, 20), every=st.integers(1, 9),
    ghost=st.sampled_from([None, 2, 3, 16, 32]), factor=st.sampled_from([1, 2, 5]), epochs=st.integers(1, 9),
)  # fmt: skip
def test_any_open_loop_becomes_so_many_steps_with_one_change(
    samples, batch, steps, every, ghost, factor, epochs
):
    batch = min(batch, samples)
    growth = Steps(factor, every=every) if factor > 1 else Constant()
    own = Schedule(
        samples=samples, epochs=epochs, growth=growth, decay=Constant(), base_batch=batch, base_lr=0.1
    )
    schedule = rehearsal.rehearse(own, steps, ghost)
    found = listed(schedule)
    assert len(found) == steps and sum(size for _, size, *_ in found) == schedule.budget
    assert schedule.done(schedule.budget) and not schedule.done(schedule.budget - 1)
    assert len({divisor for *_, divisor, _ in found}) > 1 or samples == 1
    _, last, divisor, _ = found[-1]
    assert 1 <= last <= divisor and (divisor < 3 or last < divisor)
    if ghost and divisor >= 3 and last > 1:
        assert last % ghost and last % 2


@pytest.mark.parametrize("schedule", ["noise_scale", "adascale", "cabs"])
def test_a_closed_loop_that_does_nothing_is_doubled_half_way(schedule):
    own = rehearsed(f"schedule={schedule}")
    first, position, sizes = own(0).divisor, 0, []
    while not own.done(position):
        setting = own(position)
        sizes.append(setting.divisor)
        own.observe(Observation(position, setting))
        position += setting.batch_size
    assert sizes == [first] * 6 + [2 * first] * 6 and position == own.budget


def test_a_doubled_closed_loop_is_restored_as_such():
    own, again = rehearsed("schedule=noise_scale"), rehearsed("schedule=noise_scale")
    position = 0
    for _ in range(7):
        setting = own(position)
        own.observe(Observation(position, setting))
        position += setting.batch_size
    again.load_state_dict(own.state_dict())
    assert again(position) == own(position) and again(position).divisor == 64


@pytest.mark.parametrize(
    "value, words",
    [
        ("{steps:3}", "rehearsal.steps"),
        ("{step:12}", "Did you mean 'steps'"),
        ("{steps:12,kill_after:0}", "rehearsal.kill_after"),
        ("12", "rehearsal is null"),
        ("{witness:7}", "rehearsal.witness"),
    ],
)
def test_what_no_rehearsal_can_be_is_refused(value, words):
    with pytest.raises(UserError, match=words):
        resolved(f"rehearsal={value}")


def test_where_it_is_killed_and_watched_does_not_belong_to_its_identity():
    plain, killed = (resolved(f"rehearsal={{steps:12{more}}}") for more in ("", ",kill_after:3,witness:/x"))
    assert runs.identity(plain) == runs.identity(killed) != runs.identity(resolved())


def test_a_run_of_it_ends_at_its_budget(tmp_path):
    summary = run(tmp_path, *SMALL, "schedule=adabatch", "rehearsal={steps:6}", "evaluate.every=100")
    rows = [row for row in runs.read_rows(tmp_path) if row["event"] == "train"]
    assert [row["batch_size"] for row in rows] == [32, 32, 32, 64, 64, 41]
    assert summary["samples"] == 96 + 128 + 41
