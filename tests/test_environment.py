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
    for name in ("GOMP_SPINCOUNT", "THP_MEM_ALLOC_ENABLE", "GLIBC_TUNABLES", "MALLOC_TRIM_THRESHOLD_"):
        monkeypatch.setenv(name, "undone")  # so that what the test sets is taken back
        monkeypatch.delenv(name)
    monkeypatch.setattr(environment, "keep_memory", lambda: calls.append(1))
    return calls


def test_defaults_are_set(clean):
    environment.before_torch()
    assert environment.os.environ["GOMP_SPINCOUNT"] == "1000"
    assert environment.os.environ["THP_MEM_ALLOC_ENABLE"] == "1" and clean == [1]


@pytest.mark.parametrize("name", ["GLIBC_TUNABLES", "MALLOC_TRIM_THRESHOLD_"])
def test_what_the_user_set_stays(clean, name, monkeypatch):
    monkeypatch.setenv(name, "131072")
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "0")
    environment.before_torch()
    assert environment.os.environ["GOMP_SPINCOUNT"] == "7"
    assert environment.os.environ["THP_MEM_ALLOC_ENABLE"] == "0" and clean == []


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
