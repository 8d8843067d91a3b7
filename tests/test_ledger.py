"""The ledger of wall time, with a clock that only moves when told to."""

import pytest

from adabatch.ledger import CAUSES, NOT_TRAINING, PASSES, Ledger


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now

    def pass_(self, seconds):
        self.now += seconds


@pytest.fixture
def clock():
    return Clock()


def spent(ledger):
    return {cause: seconds for cause, seconds in ledger.read().items() if seconds}


def test_an_inner_cause_takes_its_time_out_of_the_outer_one(clock):
    ledger = Ledger(clock)
    clock.pass_(1)
    with ledger("compute"):
        clock.pass_(2)
        with ledger("data"):
            clock.pass_(4)
            with ledger("compute"):  # the same cause inside itself
                clock.pass_(8)
            clock.pass_(16)
        clock.pass_(32)
    clock.pass_(64)
    assert spent(ledger) == {"other": 65, "compute": 42, "data": 20}
    assert sum(ledger.read().values()) == clock.now - 1000


def test_reading_in_the_middle_counts_once(clock):
    ledger = Ledger(clock)
    with ledger("evaluation"):
        clock.pass_(3)
        assert spent(ledger) == {"evaluation": 3}
        assert spent(ledger) == {"evaluation": 3}
        clock.pass_(2)
    assert spent(ledger) == {"evaluation": 5}
    ledger.read()["evaluation"] = 99  # a copy
    assert spent(ledger) == {"evaluation": 5}


def test_an_exception_closes_its_causes(clock):
    ledger = Ledger(clock)
    with pytest.raises(RuntimeError), ledger("compute"):
        clock.pass_(1)
        with ledger("data"):
            clock.pass_(2)
            raise RuntimeError
    clock.pass_(4)
    assert spent(ledger) == {"compute": 1, "data": 2, "other": 4}


def test_a_resumed_run_goes_on_counting(clock):
    first = Ledger(clock)
    with first("compute"):
        clock.pass_(5)
    clock.pass_(1)
    state = first.state_dict()
    clock.pass_(100)  # nobody runs
    second = Ledger(clock)
    clock.pass_(2)
    with second("compute"):
        clock.pass_(16)
    second.load_state_dict(state)
    with second("compute"):
        clock.pass_(7)
    assert spent(second) == {"compute": 28, "other": 3}
    assert set(second.state_dict()) == set(CAUSES)


def test_training_time_leaves_out_what_it_says(clock):
    ledger = Ledger(clock)
    for power, cause in enumerate(CAUSES):
        with ledger(cause):
            clock.pass_(2**power)
    counted = {"compute", "data", "exposed_communication", "resize", "recompile", "measuring"}
    assert ledger.training() == sum(2**power for power, cause in enumerate(CAUSES) if cause in counted)
    assert counted | set(NOT_TRAINING) == set(CAUSES)


def test_passes_are_counted_apart_only_where_asked_for_and_only_in_a_steps_own_computing(clock):
    for apart in (False, True):
        ledger = Ledger(clock, passes=apart)
        for cause in ("compute", "first_compile", "measuring"):
            with ledger(cause):
                clock.pass_(1)
                with ledger("forward"):
                    clock.pass_(2)
                    with ledger("data"):
                        clock.pass_(4)
                with ledger("backward"):
                    clock.pass_(8)
        others = {"first_compile": 11, "measuring": 11, "data": 12}
        passes = {"compute": 1, "forward": 2, "backward": 8} if apart else {"compute": 11}
        assert spent(ledger) == others | passes
        assert ledger.training() == 11 + 11 + 12
        assert set(ledger.state_dict()) - set(CAUSES) == (set(PASSES) if apart else set())


def test_a_pass_that_is_counted_waits_for_the_device_at_both_ends(clock):
    """What the device still had to do before belongs to the rest, what the pass gave it to the pass."""
    ledger, waits = Ledger(clock, passes=True), iter((32, 64))
    ledger.wait = lambda: clock.pass_(next(waits))
    with ledger("compute"):
        clock.pass_(1)
        with ledger("forward"):
            clock.pass_(2)
    assert spent(ledger) == {"compute": 1 + 32, "forward": 2 + 64}


def test_an_unknown_cause_is_refused(clock):
    with pytest.raises(KeyError, match="'lunch' is no cause"), Ledger(clock)("lunch"):
        pass


def test_time_really_passes():
    ledger = Ledger()
    before = ledger.read()["other"]
    assert ledger.read()["other"] > before >= 0
