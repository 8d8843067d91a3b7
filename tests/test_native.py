"""The kernel in C as a file: compiled once, kept, done without, and known to the run."""

import os
import shutil
import subprocess
import sys
import tempfile
import types

import pytest
import support

from adabatch import ghostnorm, layers, native

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
SCRIPT = """
from adabatch import ghostnorm, layers
print(ghostnorm.adopt([layers.norm("ghost", 8, 4)]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "compiler",
    [None, "exit 1", '[ "$1" = --version ] && exit 0; echo no such flag >&2; exit 1',
     '[ "$1" = --version ] && exit 0; while [ "$1" != -o ]; do shift; done; echo text > "$2"'],
)  # fmt: skip
def test_without_a_working_compiler_torchs_kernel_does_it(tmp_path, compiler):
    """None, two that fail, one that writes no library. Nothing is left behind."""
    (tmp_path / "bin").mkdir()
    if compiler:
        (tmp_path / "bin/cc").write_text(f"#!/bin/sh\n{compiler}\n")
        (tmp_path / "bin/cc").chmod(0o755)
    given = {
        "PATH": f"{tmp_path}/bin" + (":/bin" if compiler else ""),
        "ADABATCH_CACHE": str(tmp_path / "cache"),
    }
    environment = {k: v for k, v in os.environ.items() if k != "CC"} | given
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.strip() == "library", done.stderr
    assert not [path for path in tmp_path.glob("cache/native/*") if path.is_dir()]


SLOW = pytest.mark.slow  # each compiles


@pytest.mark.parametrize(
    "home", ["new", pytest.param("damaged", marks=SLOW), pytest.param("a file", marks=SLOW)]
)
def test_it_is_compiled_once_and_kept_where_that_may_be(tmp_path, monkeypatch, home):
    """A cache that cannot be written to (a file in its place): for this process alone."""
    cache = tmp_path / "cache"
    monkeypatch.setenv("ADABATCH_CACHE", str(cache))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    compiler, runs, real = shutil.which("cc"), [], subprocess.run
    kept = native._place(compiler)
    if home == "a file":
        cache.write_text("")
    if home == "damaged":
        kept.parent.mkdir(parents=True)
        kept.write_text("")

    def run(words, **how):
        runs.append(words[1] != "--version")
        return real(words, **how)

    monkeypatch.setattr(subprocess, "run", run)
    for _ in range(2):
        assert native._loaded(compiler).forward_float
    assert sum(runs) == (2 if home == "a file" else 1)
    assert kept.exists() == (home != "a file") and len(list(tmp_path.iterdir())) == 1, "nothing else is left"
    if home != "a file":
        assert [path.name for path in kept.parent.iterdir()] == [kept.name]


@pytest.mark.slow
def test_processes_that_compile_at_once_all_get_it(tmp_path):
    environment = os.environ | {"ADABATCH_CACHE": str(tmp_path)}
    words = [sys.executable, "-c", SCRIPT]
    both = [subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate(timeout=120)[0].strip() for process in both] == ["c", "c"]
    assert len(list((tmp_path / "native").iterdir())) == 1


def test_where_one_rank_has_no_kernel_none_uses_it(monkeypatch):
    """Else `reduction=ordered` would not have the same bits on any number of processes."""
    ranks = types.SimpleNamespace(reduce=lambda flags: [sum(flags) + 1])  # another one lacks it
    norm = layers.norm("ghost", 8, 4)
    assert ghostnorm.adopt([norm], ranks) == "library" and not norm.ours
    ranks = types.SimpleNamespace(reduce=lambda flags: [sum(flags)])
    assert ghostnorm.adopt([norm], ranks) == "c" and norm.ours


def test_a_run_that_goes_on_with_another_kernel_says_so(tmp_path, monkeypatch, caplog):
    lines = (*support.SMALL, "model.ghost=8", "epochs=2", "schedule.base_batch=32")
    support.run(tmp_path, *lines, "epochs=1")
    shutil.copy(tmp_path / "checkpoint.pt", tmp_path / "kept")
    monkeypatch.setattr(ghostnorm, "checked", lambda: (_ for _ in ()).throw(native.Unavailable("no cc")))
    with caplog.at_level("INFO", logger="adabatch"):
        support.run(tmp_path, *lines)
    assert "no longer bit for bit: ghost_norm c -> library" in caplog.text and "no cc" in caplog.text


def test_a_kernel_that_is_wrong_is_not_used(monkeypatch):
    ghostnorm.checked.cache_clear()
    apply = ghostnorm.Native.apply
    monkeypatch.setattr(ghostnorm.Native, "apply", lambda *given: (apply(*given)[0] * 1.001, None, None))
    norm = layers.norm("ghost", 8, 4)
    assert ghostnorm.adopt([norm]) == "library" and not norm.ours
    monkeypatch.undo()
    ghostnorm.checked.cache_clear()
    assert ghostnorm.adopt([norm]) == "c" and norm.ours
