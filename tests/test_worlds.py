"""What-if worlds against the roofline, worked out by hand, and the devices that come with the program."""

import re

import pytest
from profile_files import entry, followed, point, profile

from adabatch import worlds
from adabatch.errors import UserError
from adabatch.forecast import fixed_arm, forecast

COSTS = {
    "flops_per_sample": 1e9,
    "activation_bytes_per_sample": 1e6,
    "operations_per_pass": 200,
    "parameter_bytes": 4e6,
    "dispatch_seconds": 1e-5,
}
KNOWN = dict(name="X", source=(), peak={"fp32": 1e13}, devices=1, memory_bandwidth=1e12, memory=16e9)


def pace(world: dict = KNOWN, costs: dict = COSTS, largest: int = 4096, unit: int = 1):
    made = entry([point(b, b, 1.0) for b in (32, 64)], unit=unit, **costs)
    return worlds.WorldPace(profile(made), worlds.World(**world), "fp32", largest)


@pytest.mark.parametrize(
    "change, batch, seconds",
    [
        ({}, 100, 100 * 1e9 / 1e13),  # bound by operations
        ({"memory_bandwidth": 1e10}, 100, 2 * 1e6 * 100 / 1e10),  # by memory
        ({}, 4, 200 * 1e-5),  # by the host that starts the operations
        ({"launch": 5e-4}, 4, 200 * 5e-4),
    ],
)
def test_a_pass_takes_its_slowest_part(change, batch, seconds):
    made = KNOWN | change
    update = 5 * 4e6 / made["memory_bandwidth"]
    assert pace(made).step(batch).seconds == pytest.approx(seconds + update)


def test_devices_share_a_batch_and_add_up_in_a_ring():
    """Eight devices: 14 hops, each with an eighth of the gradients; a batch of 800 is 100 on each."""
    ring = {"devices": 8, "link_bandwidth": 1e10, "latency": 1e-6, "collective": 2e-5}
    found = pace(KNOWN | ring).step(800)
    reduction = 2e-5 + 14 * (1e-6 + 4e6 / 8 / 1e10)
    assert found.communication == pytest.approx(reduction)
    assert found.seconds == pytest.approx(100 * 1e9 / 1e13 + 5 * 4e6 / 1e12 + reduction)
    assert pace(KNOWN | {"devices": 1}).step(800).communication == 0


def test_the_profiled_device_itself_in_greater_number():
    """Without a peak the profile's own times count, and the ring comes on top."""
    made = followed(lambda m: 1e-3 + 1e-5 * m, 2e-3, parameter_bytes=4e6, fits=512)
    many = dict(name="X", source=(), peak={}, devices=4, link_bandwidth=1e9, latency=1e-5)
    found = worlds.WorldPace(profile(made), worlds.World(**many), "fp32", 1024).step(256)
    assert found.seconds == pytest.approx(1e-3 + 64e-5 + 2e-3 + 6 * (1e-5 + 1e6 / 1e9))


def test_a_micro_batch_is_what_the_memory_holds():
    """0.4 of 16 GB hold 6,400 samples of 1 MB: 4,096 as a power of two; and no more than a rank's share."""
    assert pace(largest=10**6).micro_batch == 4096
    assert pace(largest=1000).micro_batch == 1000
    assert pace(KNOWN | {"devices": 10, "link_bandwidth": 1.0}, largest=1000).micro_batch == 100
    with pytest.raises(UserError, match="does not fit its memory"):
        pace(KNOWN | {"memory": 1e6})


def test_there_is_no_interval_of_an_order_of_magnitude():
    found = forecast(pace(), fixed_arm(64, 6400))
    assert (found.low, found.high) == (None, None)


SHEETS = {  # by hand from the documents that the files name
    "p100": ({"fp32": 10.6e12, "fp64": 5.3e12}, 720e9, 16e9, 80e9),
    "v100": ({"fp32": 15.7e12, "fp64": 7.8e12}, 900e9, 16e9, 150e9),
    "a100": ({"fp32": 19.5e12, "tf32": 156e12, "bf16": 312e12, "fp64": 9.7e12}, 2039e9, 80e9, 300e9),
    "h100": ({"fp32": 67e12, "tf32": 494.5e12, "bf16": 989.5e12, "fp64": 34e12}, 3350e9, 80e9, 450e9),
}


@pytest.mark.parametrize("name", SHEETS)
def test_the_devices_that_come_with_the_program(name):
    found = worlds.read(name)
    assert (found.peak, found.memory_bandwidth, found.memory, found.link_bandwidth) == SHEETS[name]
    assert (found.latency, found.collective, found.launch) == (3.4e-6, 8.4e-6, None)
    assert re.search("whitepaper|datasheet", found.source[0]) and "NVIDIA" in found.source[0]
    assert worlds.read(name.upper(), devices=4).devices == 4


def test_all_of_them_are_known():
    assert worlds.names() == sorted(SHEETS)


BAD = {
    "peek: {fp32: 1}": "Did you mean 'peak'",
    "peak: {fp8: 1}": "peak lists",
    "peak: 7": "peak lists",
    "peak: {fp32: 1.0e+12}": "memory_bandwidth",
    "peak: {fp32: -1}\nmemory_bandwidth: 1": "peak.fp32 is a number above 0",
    "peak: {fp32: .inf}\nmemory_bandwidth: 1": "above 0",
    "devices: 4": "link_bandwidth",
    "devices: 0\nlink_bandwidth: 1": "whole number from 1 .*got 0",
    "devices: true\nlink_bandwidth: 1": "whole number",
    "devices: 1000000000\nlink_bandwidth: 1": "whole number",
    "memory: lots": "memory is a number above 0",
    "- 1": "holds a list where a dictionary belongs. A world is a YAML of keys",
    "": "holds a NoneType where a dictionary belongs. A world is a YAML of keys",
    "a: &a [1]\nb: *a": "aliases",
}


@pytest.mark.parametrize("text", BAD)
def test_what_is_no_world_is_refused(tmp_path, text):
    (tmp_path / "w.yaml").write_text(text)
    with pytest.raises(UserError, match=BAD[text]) as told:
        worlds.read(str(tmp_path / "w.yaml"))
    assert "run" not in str(told.value).replace(str(tmp_path), "")  # of no run folder's file is spoken


def test_devices_left_out_are_one(tmp_path):
    (tmp_path / "w.yaml").write_text("memory: 1e9\n")
    assert worlds.read(str(tmp_path / "w.yaml")).devices == 1


def test_a_name_nearly_right():
    with pytest.raises(UserError, match="Did you mean 'h100'"):
        worlds.read("h10O")


def test_yamls_own_spelling_of_large_numbers(tmp_path):
    """YAML 1.1 takes 900e9 for text."""
    (tmp_path / "w.yaml").write_text("peak: {fp32: 15.7e12}\nmemory_bandwidth: 900e9\n")
    found = worlds.read(str(tmp_path / "w.yaml"))
    assert (found.memory_bandwidth, found.peak) == (900e9, {"fp32": 15.7e12})


def test_what_the_profile_does_not_say_is_asked_for():
    with pytest.raises(UserError, match="dispatch_seconds"):
        pace(costs={k: v for k, v in COSTS.items() if k != "dispatch_seconds"})
    with pytest.raises(UserError, match="no peak for hardware.precision=fp32, but bf16"):
        pace(KNOWN | {"peak": {"bf16": 1e12}})
