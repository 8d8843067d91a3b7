"""What is set before torch is imported, and that a user's own settings win."""

import platform
import resource
import subprocess
import sys

import pytest

from adabatch import environment

GLIBC = platform.libc_ver()[0] == "glibc"


@pytest.fixture
def clean(monkeypatch):
    """An environment without settings of an allocator; how often ours was called is returned."""
    calls = []
    for name in (
        "GOMP_SPINCOUNT",
        "OMP_WAIT_POLICY",
        "THP_MEM_ALLOC_ENABLE",
        "GLIBC_TUNABLES",
        "MALLOC_TRIM_THRESHOLD_",
    ):
        monkeypatch.setenv(name, "undone")  # so that what the test sets is taken back
        monkeypatch.delenv(name)
    monkeypatch.setattr(environment, "keep_memory", lambda: calls.append(1))
    return calls


@pytest.mark.parametrize(
    "cores, counts, spins",
    [(1, True, "100003"), (32, True, "100003"), (33, True, "1000"), (2, False, "1000")],
)
def test_defaults_are_set(clean, cores, counts, spins, monkeypatch):
    monkeypatch.setattr(environment, "cores", lambda: cores)
    monkeypatch.setattr(environment, "counts_waiting", lambda: counts)
    environment.before_torch()
    assert environment.os.environ["GOMP_SPINCOUNT"] == spins
    assert environment.os.environ["THP_MEM_ALLOC_ENABLE"] == "1" and clean == [1]


@pytest.mark.parametrize("name", ["GLIBC_TUNABLES", "MALLOC_TRIM_THRESHOLD_"])
def test_what_the_user_set_stays(clean, name, monkeypatch):
    monkeypatch.setenv(name, "131072")
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "0")
    environment.before_torch()
    assert environment.os.environ["GOMP_SPINCOUNT"] == "7"
    assert environment.os.environ["THP_MEM_ALLOC_ENABLE"] == "0" and clean == []


def test_how_threads_wait_is_left_to_a_user_who_says_it(clean, monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    environment.before_torch()
    assert "GOMP_SPINCOUNT" not in environment.os.environ


FAULTS = """
import resource, sys
from adabatch import environment
if sys.argv[1] == "keep":
    assert environment.keep_memory()
bytearray(64 << 20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
bytearray(64 << 20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_a_freed_block_is_there_again_without_paging_it_in():
    """64 MiB, 16,384 pages; the control without it faults them in anew, in huge pages at the least."""
    if not GLIBC:
        assert environment.keep_memory() is False
        return

    def faults(way):
        done = subprocess.run([sys.executable, "-c", FAULTS, way], capture_output=True, text=True, check=True)
        return int(done.stdout)

    assert faults("keep") < 8 and faults("leave") >= 30 and resource.getpagesize() <= 65536


@pytest.mark.parametrize(
    "vendor, flags, slow",
    [
        ("GenuineIntel", "fpu sse2 avx512_bf16 amx_bf16 amx_tile amx_int8", False),
        ("GenuineIntel", "fpu sse2 avx512f avx512_bf16", True),
        ("GenuineIntel", "fpu sse2 avx2", True),
        ("GenuineIntel", "amx_bf16_not_yet fpu", True),  # a whole word
        ("AuthenticAMD", "fpu sse2 avx512_bf16", False),  # not tried
        ("", "", False),  # not Linux, or an ARM
    ],
)
def test_processors_that_are_slow_in_bf16(vendor, flags, slow):
    assert environment.slow_in_bf16(vendor, flags) is slow


def test_what_linux_says_of_the_processor(tmp_path):
    said = tmp_path / "cpuinfo"
    said.write_text(
        "processor\t: 0\nmodel name\t: A: B\nflags\t\t: one two\n\nprocessor\t: 1\nflags\t\t: three\n"
    )
    assert environment.processor("model name", said) == "A: B"
    assert environment.processor("flags", said) == "one two"
    assert environment.processor("Features", said) == environment.processor("flags", tmp_path / "none") == ""


@pytest.mark.parametrize(
    "said, counts", [("512 0 7\n", True), ("0 0 0\n", False), ("", False), (None, False)]
)
def test_whether_waiting_is_counted(said, counts, tmp_path):
    if said is not None:
        (tmp_path / "schedstat").write_text(said)
    assert environment.counts_waiting(tmp_path / "schedstat") is counts


@pytest.mark.parametrize(
    "flags, precision, warned", [("sse2", "bf16", 1), ("amx_bf16", "bf16", 0), ("sse2", "fp32", 0)]
)
def test_a_run_in_bf16_says_that_it_is_slow_here(flags, precision, warned, monkeypatch, tmp_path, capsys):
    from adabatch.__main__ import command

    monkeypatch.setattr(
        environment, "processor", {"flags": flags, "vendor_id": "GenuineIntel", "model name": "m"}.get
    )
    monkeypatch.chdir(tmp_path)
    keys = "dataset=digits epochs=1 trackers.wandb.mode=disabled hardware.device=cpu hydra.run.dir=run"
    assert command([*keys.split(), f"hardware.precision={precision}"]) == 0
    said = capsys.readouterr()
    assert (said.out + said.err).count("hardware.precision=bf16 on an Intel processor without AMX") == warned
