"""What SLURM's commands are asked and told, with stand-ins for them."""

import os
import threading

import pytest

from adabatch import slurm


@pytest.mark.parametrize(
    "said, ending",
    [
        ("JobState=RUNNING PreemptEligibleTime=x PreemptTime=None", False),
        ("JobState=RUNNING PreemptEligibleTime=x PreemptTime=2026-11-22T16:04:59", True),  # GraceTime
        ("JobState=RUNNING Reason=None", False),
        ("JobState=COMPLETING Reason=None", True),
        ("JobState=CANCELLED Reason=None", True),
        ("error: Invalid job id specified", True),
        ("error: Unable to contact slurm controller", None),
    ],
)
def test_whether_slurm_is_ending_a_job(tmp_path, monkeypatch, said, ending):
    command(tmp_path, monkeypatch, f"echo '{said}' >&{2 if 'error' in said else 1}; exit {'error' in said:d}")
    assert slurm.ending("10_2") is ending


def command(folder, monkeypatch, text: str):
    """A scontrol of ours."""
    path = folder / "bin" / "scontrol"
    path.parent.mkdir()
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{path.parent}:{os.environ['PATH']}")


@pytest.mark.parametrize("thread", [False, True])
def test_the_requeues_own_sigterm_spares_the_command_that_asks_for_it(tmp_path, monkeypatch, thread):
    """Also from a thread, where no signal can be ignored, and of all that the command starts."""
    command(tmp_path, monkeypatch, "sh -c 'kill -TERM $PPID; kill -TERM $$; sleep 0.3; exit 0'")
    found = []
    if thread:
        worker = threading.Thread(target=lambda: found.append(slurm.requeue("10_2")))
        worker.start()
        worker.join()
    else:
        found.append(slurm.requeue("10_2"))
    assert found == [None]
