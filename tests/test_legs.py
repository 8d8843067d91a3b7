"""How a run is cut into jobs of different sizes."""

import re

import profile_files
import pytest

from adabatch import config, profiles
from adabatch.errors import UserError
from adabatch.legs import Leg, Rule, legs, remaining, rule, suiting
from adabatch.schedules.core import Schedule, walk
from adabatch.schedules.curves import LinearRamp
from adabatch.schedules.factors import Constant, Steps


def adabatch(growth=None, **changed):
    """64 doubled at epochs 2 and 4 of 6, over 1,000 samples."""
    given = dict(samples=1000, epochs=6, base_batch=64, base_lr=0.1, decay=Constant())
    return Schedule(**given | dict(growth=growth or Steps(factor=2.0, milestones=[2, 4])) | changed)


@pytest.mark.parametrize(
    "batch, processes",
    [
        (1, 1),
        (63, 1),
        (64, 1),
        (127, 1),
        (128, 2),
        (255, 3),
        (256, 4),
        (511, 4),
        (512, 8),
        (800, 12),
        (4096, 16),
    ],
)
def test_a_process_for_each_64_samples_and_whole_nodes_of_4_beyond_one(batch, processes):
    assert Rule(64, 16, 4).processes(batch) == processes


def configured(*overrides):
    with config.composer():
        return config.checked(config.load(config.lenient(["hardware=slurm", *overrides]))).config


@pytest.mark.parametrize("phases, samples", [("null", None), ("auto", 48), (512, 512)])
def test_the_rule_of_a_configuration(phases, samples):
    found = rule(configured("schedule.base_batch=48", f"hardware.phases={phases}"), 8, 4)
    assert found == (samples and Rule(samples, 8, 4))


RATES = {32: 100.0, 64: 190.0, 128: 196.0, 256: 200.0}  # 190 is 95 % of 200


def profile(folder, run, *worlds, rates=RATES):
    """A profile of this run's network for each number of processes, in a folder as adabatch-profile names
    it."""
    path = folder / "profile-model=convnet" / "profile.json"
    path.parent.mkdir(exist_ok=True)
    points = [profile_files.point(batch, batch, batch / rate) for batch, rate in rates.items()]
    of = profiles.configured(run)
    return profile_files.written(
        path, *(profile_files.entry(points, world=w, configuration=of) for w in worlds)
    )


@pytest.mark.parametrize("world, samples", [(1, 64), (2, 32), (3, 22)])
def test_a_profile_says_how_many_samples_keep_a_process_busy(tmp_path, world, samples):
    source = profile(tmp_path, configured(), world)
    assert rule(configured(f"hardware.phases={source}"), 8, 4) == Rule(samples, 8, 4)


def test_where_throughput_still_rose_each_process_gets_the_largest_batch_measured(tmp_path):
    source = profile(tmp_path, configured(), 1, rates={32: 100.0, 64: 200.0, 128: 400.0})
    assert rule(configured(f"hardware.phases={source}"), 8, 4) == Rule(128, 8, 4)


def test_a_profile_of_another_network_or_of_several_machines_is_refused(tmp_path):
    source = profile(tmp_path, configured("model=resnet"), 1)
    with pytest.raises(UserError, match="another network, other settings or other threads: adabatch-profile"):
        rule(configured(f"hardware.phases={source}"), 8, 4)
    source = profile(tmp_path, configured(), 1)
    assert rule(configured(f"hardware.phases={source}", "hardware.threads=1"), 8, 4) == Rule(64, 8, 4)
    with pytest.raises(UserError, match="or other threads"):
        rule(configured(f"hardware.phases={source}", "hardware.threads=2"), 8, 4)
    source = profile(tmp_path, configured(), 1, 2)
    with pytest.raises(UserError, match="2 profiles of this network, name one: @") as told:
        rule(configured(f"hardware.phases={source}"), 8, 4)
    key = str(told.value).rpartition("@")[2][:8]  # the second: two processes
    assert rule(configured(f"hardware.phases={source}@{key}"), 8, 4) == Rule(32, 8, 4)


def test_a_profile_that_is_not_there_is_refused_at_once(tmp_path):
    with pytest.raises(UserError, match="a file of adabatch-profile's, got 'autp'"):
        configured("hardware.phases=autp")


def test_the_legs_of_adabatch_begin_where_its_batch_is_doubled():
    schedule = adabatch()
    starts = {s.divisor: start for start, _, s in reversed(list(walk(schedule)))}
    assert list(sorted(starts)) == [64, 128, 256] and starts[64] == 0
    assert legs(schedule, Rule(64, 4, 4)) == [
        Leg(0, 1, 64),
        Leg(starts[128], 2, 128),
        Leg(starts[256], 4, 256),
    ]
    assert legs(schedule, Rule(64, 2, 2)) == [Leg(0, 1, 64), Leg(starts[128], 2, 256)]
    assert legs(schedule, Rule(1000, 4, 4)) == [Leg(0, 1, 256)]
    assert legs(adabatch(growth=Constant()), Rule(16, 4, 4)) == [Leg(0, 4, 64)]


def test_a_smooth_growth_has_a_leg_for_each_number_and_every_batch_suits_its_leg():
    schedule, by = adabatch(growth=LinearRamp(to=900, over=5)), Rule(64, 64, 4)
    found = legs(schedule, by)
    assert [leg.processes for leg in found] == [1, 2, 3, 4, 8, 12]
    for start, _, setting in walk(schedule):
        leg = [leg for leg in found if leg.start <= start][-1]
        assert by.processes(setting.divisor) == leg.processes and setting.divisor <= leg.batch


def test_a_growth_in_too_many_steps_is_refused_with_their_number():
    schedule = adabatch(growth=LinearRamp(to=6400, over=5), samples=50_000)
    with pytest.raises(UserError, match="at most 24 jobs .* makes (\\d+)") as told:
        legs(schedule, Rule(64, 100, 100))
    assert int(re.search(r"makes (\d+)\.", str(told.value))[1]) > 24
    samples = int(re.search(r"hardware.phases=(\d+)", str(told.value))[1])
    assert len(legs(schedule, Rule(samples, 100, 100))) <= 24  # as it says


@pytest.mark.parametrize("position, left", [(0, 3), (2000, 3), (2048, 2), (4000, 2), (4096, 1), (6000, 1)])
def test_what_is_left_of_a_run_that_has_come_so_far(position, left):
    cut = [Leg(0, 1, 64), Leg(2048, 2, 128), Leg(4096, 4, 256)]
    assert remaining(cut, position) == cut[-left:]


def test_a_closed_loop_only_grows():
    by = Rule(64, 8, 4)
    assert [by.next(batch, 2, closed=True) for batch in (64, 128, 512)] == [2, 2, 8]
    assert [by.next(batch, 2, closed=False) for batch in (64, 128, 512)] == [1, 2, 8]


def test_what_the_loop_asks_before_a_batch():
    plain = Rule(64, 8, 4).plain(closed=False)
    better = suiting(plain, 2)
    assert [better(batch) for batch in (64, 128, 191, 256)] == [1, None, None, 4]
    assert suiting(plain | {"closed": True}, 2)(64) is None and suiting(None, 2) is None
