"""The format of profiles: what is read, refused, merged, chosen. A file may come from a stranger."""

import copy
import json
from functools import partial

import pytest
import support
from profile_files import entry, followed, point, profile, written

from adabatch import profiles, throughput
from adabatch.errors import UserError
from adabatch.forecast import fitting

GOOD = followed(lambda m: 1e-3 + 1e-5 * m, 1e-3)


changed = partial(support.changed, GOOD)


HOSTILE = {
    "no seconds": changed("points.0.seconds", None),
    "seconds as text": changed("points.0.seconds", "1.0"),
    "seconds below zero": changed("points.0.seconds", -1.0),
    "no time at all": changed("points.0.seconds", 0),
    "seconds true": changed("points.0.seconds", True),
    "seconds beyond floats": changed("points.0.seconds", 10**400),
    "data below zero": changed("points.0.data", -1.0),
    "low not a number": changed("points.0.low", [1]),
    "batch of half a sample": changed("points.0.batch_size", 0.5),
    "batch true": changed("points.0.batch_size", True),
    "batch of none": changed("points.0.batch_size", 0),
    "a batch that would take years to cut": changed("points.0.batch_size", 10**18),
    "too many passes": changed("points.0.batch_size", 10**7),
    "micro-batch below zero": changed("points.0.micro_batch", -4),
    "a point that is none": changed("points.0", 7),
    "points that are none": changed("points", {"0": {}}),
    "too many points": changed("points", [point(32, 32, 1.0)] * 501),
    "no points": changed("points", []),
    "out of memory throughout": changed("points", [point(32, 32, 1.0, out_of_memory=True)]),
    "more ranks than there are": changed("machine.processes", 10**9),
    "threads as text": changed("machine.threads", "two"),
    "machine that is none": changed("machine", []),
    "configuration that is none": changed("configuration", "x"),
    "ghost groups of none": changed("unit", 0),
    "nothing fits": changed("fits", 0),
    "reference that is none": changed("reference", ["x"]),
    "sustained for no time": changed("sustained_ratio", -1),
    "rounds without end": changed("points.0.rounds", [1.0] * 101),
    "rounds of nothing": changed("points.0.rounds", [0]),
    "measuring of nothing": changed("measuring", {"needs": [1], "points": []}),
    "measuring without end": changed("measuring", {"points": [{"batch_size": 1, "seconds": 10**400}]}),
    "not a dictionary": [],
}


@pytest.mark.parametrize("given", HOSTILE.values(), ids=HOSTILE.keys())
def test_what_is_no_profile_is_refused(tmp_path, given):
    source = written(tmp_path / "profile.json", given)
    for read in (profiles.read, throughput.profile):
        with pytest.raises(UserError, match="adabatch-profile"):
            read(source)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "7",
        "\x00",
        '{"format": 1}',
        '{"format": 1, "profiles": []}',
        '{"format": 2, "profiles": [1]}',
        '{"profiles": "x"}',
        "[" * 100_000,
        '{"format": 1, "profiles": ' + "[" * 5000 + "]" * 5000 + "}",
    ],
    ids=lambda text: text[:30],
)  # fmt: skip
def test_what_is_no_json_is_refused(tmp_path, text):
    (tmp_path / "profile.json").write_text(text)
    with pytest.raises(UserError):
        profiles.read(tmp_path / "profile.json")


def test_too_many_profiles_are_refused(tmp_path):
    with pytest.raises(UserError, match="64 at most"):
        profiles.read(written(tmp_path / "profile.json", *[GOOD] * 65))


def test_names_are_one_line_of_printable_text():
    found = profile(changed("machine.device", "\x1b[31mred\n" + "x" * 1000))
    assert found.machine["device"].isprintable() and len(found.machine["device"]) == 200
    assert "\n" not in found.words()


def test_unmeasured_sizes_are_told_apart():
    found = profile(entry([point(32, 32, 1.0), point(64, 64, 9.0) | {"out_of_memory": True}]))
    assert [p.batch_size for p in found.points] == [32] and [p.batch_size for p in found.failed] == [64]


def test_goodput_reads_it(tmp_path):
    """Each batch once: of several ways to take it the one with the fewest passes."""
    rows = [point(32, 32, 0.5), point(64, 64, 0.5), point(64, 32, 0.9, 2), point(128, 64, 1.0, 2)]
    source = written(tmp_path / "profile.json", entry(rows))
    assert throughput.profile(source) == [(32, 64.0), (64, 128.0), (128, 128.0)]
    assert throughput.profile(str(tmp_path)) == throughput.profile(source)  # the folder it lies in
    (tmp_path / "run").mkdir()
    throughput.keep(source, tmp_path / "run")
    assert throughput.profile(str(tmp_path / "run" / "profile.json")) == throughput.profile(source)


def test_the_other_forms_of_a_profile_are_still_read(tmp_path):
    value = {"format": 1, "points": [{"batch_size": b, "samples_per_second": b * 2.0} for b in (32, 64)]}
    (tmp_path / "points.json").write_text(json.dumps(value))
    assert throughput.profile(str(tmp_path / "points.json")) == [(32, 64.0), (64, 128.0)]


def test_of_several_profiles_one_is_named(tmp_path):
    other = followed(lambda m: 2e-3 * m, world=2)
    source = written(tmp_path / "all.json", GOOD, other)
    keys = [p.key for p in profiles.read(source)]
    assert len(set(keys)) == 2
    with pytest.raises(UserError, match="holds 2 profiles, name one"):
        throughput.profile(source)
    for key in keys:
        assert [p.key for p in profiles.read(f"{source}@{key}")] == [key]
    assert throughput.profile(f"{source}@{keys[1]}")[0] == (64, pytest.approx(1000.0))
    with pytest.raises(UserError, match="no profile 'ffffffff'"):
        profiles.read(f"{source}@ffffffff")


def test_merging_keeps_every_machine_and_no_profile_twice(tmp_path):
    other = copy.deepcopy(GOOD)
    other["machine"] |= {"device": "another"}
    a = written(tmp_path / "a.json", GOOD)
    b = written(tmp_path / "b.json", GOOD, other)
    found = profiles.merged([a, b])
    profiles.write(tmp_path / "out.json", found)
    read = profiles.read(tmp_path / "out.json")
    assert [p.machine["device"] for p in read] == ["A processor", "another"]
    assert [p.points for p in read] == [profile(GOOD).points] * 2


def test_two_sessions_of_one_machine_are_not_merged_and_no_point_is_lost(tmp_path):
    """Their times are relative to two references. The message names the sizes to measure in one session."""
    a = written(tmp_path / "a.json", entry([point(b, b, 1.0) for b in (32, 512)]))
    b = written(tmp_path / "b.json", entry([point(b, b, 2.0) for b in (48, 512, 1024)]))
    with pytest.raises(UserError, match="--batches 32,48,512,1024") as told:
        profiles.merged([a, b])
    assert a in str(told.value) and b in str(told.value)
    assert profile(entry([point(1, 1, 1.0)])).key in str(told.value)


def test_a_key_says_network_and_machine():
    assert profile(GOOD).key == profile(changed("points.0.seconds", 3.0)).key
    keys = {profile(GOOD).key}
    for path, value in (("machine.device", "x"), ("machine.threads", 4), ("machine.processes", 2),
                        ("machine.torch", "9"), ("configuration.model", {"_target_": "b"})):  # fmt: skip
        keys.add(profile(changed(path, value)).key)
    assert len(keys) == 6
    assert profiles.digest(profile(GOOD)) != profiles.digest(profile(changed("points.0.seconds", 3.0)))


CONFIG = {
    "model": {"_target_": "a.Net", "depth": 20, "base_lr": 0.1, "init_from": None},
    "dataset": {"_target_": "d", "augment": {"pad": 4}, "limit": 10},
    "hardware": {"precision": "fp32", "processes": 3, "micro_batch": 7},
    "optimizer": {"_target_": "o", "momentum": 0.9},
    "loss": {"_target_": "l"},
    "epochs": 3,
    "seed": 5,
}


@pytest.mark.parametrize(
    "change, same",
    [
        ({"seed": 1}, True),
        ({"epochs": 9}, True),
        ({"model": CONFIG["model"] | {"base_lr": 1.0, "init_from": "x"}}, True),
        ({"dataset": CONFIG["dataset"] | {"limit": 5}}, True),
        ({"hardware": CONFIG["hardware"] | {"processes": 1, "micro_batch": 2}}, True),
        ({"model": CONFIG["model"] | {"depth": 56}}, False),
        ({"dataset": CONFIG["dataset"] | {"augment": None}}, False),
        ({"hardware": CONFIG["hardware"] | {"precision": "bf16"}}, False),
        ({"optimizer": {"_target_": "adam"}}, False),
        ({"ema": 100}, False),
        ({"clip_norm": 1.0}, False),
    ],
)
def test_what_a_steps_time_depends_on(change, same):
    assert (profiles.configured(CONFIG | change) == profiles.configured(CONFIG)) is same


def test_the_fitting_profile_is_chosen():
    ours = profiles.configured(CONFIG)
    found = [profile(followed(lambda m: m, world=w, configuration=ours)) for w in (1, 2)]
    assert fitting(found, ours, "f", 2).world == 2
    assert fitting(found, ours, "f").world == 1
    with pytest.raises(UserError, match="not measured on 4 process"):
        fitting(found, ours, "f", 4)
    assert fitting(found, ours, "f", 1, threads=1).world == 1
    with pytest.raises(UserError, match=r"not measured with 8 thread\(s\), but: .*hardware.threads=8"):
        fitting(found, ours, "f", 1, threads=8)
    other = profiles.configured(CONFIG | {"model": CONFIG["model"] | {"depth": 56}})
    with pytest.raises(UserError, match="model.depth: 56, the profile has 20"):
        fitting(found, other, "f")
    twice = [*found, profile(followed(lambda m: m, configuration=ours, machine={"device": "B"}))]
    with pytest.raises(UserError, match="name one: @"):
        fitting(twice, ours, "f", 1)
