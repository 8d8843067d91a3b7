"""experiment=compare where something goes wrong around its runs: a process that cannot be started, a second
sweeper, a torn status, a search that fails, a queue that must not be asked too often."""

import errno
import json
import os
import signal
import time
import types
from pathlib import Path

import pytest
from hydra_plugins.adabatch_sweeper import _sweep
from test_sweeper import ARMS, began, compared, folders, place, trained  # noqa: F401 (a fixture)

from adabatch import config, owner, runs, slurm, sweep
from adabatch.composed import quoted
from adabatch.errors import Diverged

EVERY = sorted((arm, seed) for arm in ARMS for seed in (0, 1))


def at_the_second_call(what, error):
    """`what`, which raises instead when it is called for the second time."""
    calls = []

    def called(*given):
        calls.append(given)
        if len(calls) == 2:
            raise error
        return what(*given)

    return called


@pytest.fixture(autouse=True)
def nothing_waits_for_ever(monkeypatch):
    def waits(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(_sweep, "time", types.SimpleNamespace(sleep=waits))


@pytest.mark.slow
def test_what_keeps_a_run_from_starting_ends_the_sweep(place, monkeypatch, capfd):  # noqa: F811
    before = signal.getsignal(signal.SIGINT)
    full = OSError(errno.ENOSPC, "No space left on device", "sweep")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fork", at_the_second_call(os.fork, full))
        assert compared(place) == 2
    assert len(began()) == 1 and "No space left on device" in capfd.readouterr().err
    assert [r["state"] for r in sweep.records] == ["finished"], "what never began is not running"
    assert signal.getsignal(signal.SIGINT) is before, "Ctrl-C reaches this process again"
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ())
    with monkeypatch.context() as patch:  # before there is anything of the run
        patch.setattr(
            sweep, "import_torch", at_the_second_call(sweep.import_torch, RuntimeError("a library"))
        )
        assert compared(place) == 1
    assert len(began()) == 2 and "a library" in capfd.readouterr().err
    assert compared(place) == 0 and sorted(began()) == EVERY


@pytest.mark.slow
def test_a_torn_status_keeps_nothing_else_from_running(place, capfd):  # noqa: F811
    def tears(config, folder, stop):
        found = trained(config, folder, stop)
        if len(began()) == 2:
            (folder / "status.json").write_text('{"state": "fin')
            os._exit(0)
        return found

    place.train = tears
    assert compared(place) == 1, "that one is told, with a remedy"
    said = capfd.readouterr()
    assert sorted(began()) == EVERY and "report.json" in os.listdir("sweep")
    assert compared(place) == 1 and "Delete it" in said.out + said.err + capfd.readouterr().err


@pytest.mark.slow
def test_a_run_that_another_sweeper_was_faster_to_begin_is_no_failure(place, monkeypatch):  # noqa: F811
    """It begins between the look at the folder and the claim of it."""
    launch, held = _sweep.Comparison.launch, []

    def too_late(self, launcher, batch):
        if held:
            return launch(self, launcher, batch)
        folder = batch[0].folder
        held.append(owner.Owner.claim(folder))
        launch(self, launcher, batch)
        assert sweep.records[0]["state"] == "in use"
        runs.write_json(folder / "summary.json", {"final_test_error": 0.1, "samples": 512})
        return held[0].finish("finished")

    monkeypatch.setattr(_sweep.Comparison, "launch", too_late)
    assert compared(place) == 0
    assert len(sweep.records) == len(began()) == 5, "the sixth is the other's"


@pytest.mark.parametrize(
    "outcome",
    [Diverged("the loss is nan"), pytest.param(MemoryError("out of memory"), marks=pytest.mark.slow)],
)
def test_a_comparison_of_which_no_run_finished_has_a_verdict(place, capfd, outcome):  # noqa: F811
    """Every run is over, and the same command could do nothing more."""

    def breaks(config, folder, stop):
        raise outcome

    place.train = breaks
    for _ in range(2):
        assert compared(place) == 0
        said = " ".join(capfd.readouterr().out.split())
        assert "undecided: " in said and "the same command goes on" not in said
    report = json.loads(Path("sweep/report.json").read_text())
    assert report["decision"] == "undecided"


@pytest.mark.slow
def test_a_comparison_of_which_every_run_failed_is_no_success(place, capfd):  # noqa: F811
    def breaks(config, folder, stop):
        raise RuntimeError("a bug")

    place.train = breaks
    for _ in range(2):
        assert compared(place) == 1
        assert "6 failed: adabatch-status --failed sweep shows why" in capfd.readouterr().out
    place.train = trained
    assert compared(place, "compare.retry=failed") == 0, "one word stands for a list of it"
    assert sorted(began()) == EVERY


@pytest.mark.slow
def test_an_arm_that_no_learning_rate_trained_is_told_and_counted(place, capfd):  # noqa: F811
    """Its runs take the smallest rate that was tried, and the verdict counts what becomes of them."""

    def breaks(config, folder, stop):
        if config["compare"]["arm"] == "fixed 256":
            with open("rates", "a") as file:
                file.write(f"{config['seed']} {config['schedule']['base_lr']}\n")
            raise Diverged("the loss is nan")
        return trained(config, folder, stop)

    place.train = breaks
    assert compared(place, "compare.tune_lr=true", "dataset.validation=100") == 0
    said = capfd.readouterr()
    told = "every learning rate of the search broke down for fixed 256"
    twice = " ".join((said.out + said.err).split()).count(told)
    assert twice == 2, "when the search has ended, and in the verdict"
    assert told in json.loads(Path("sweep/report.json").read_text())["verdict"]
    rates = [line.split() for line in Path("rates").read_text().splitlines()]
    least = min(float(rate) for seed, rate in rates if seed == "1000")
    assert {float(rate) for seed, rate in rates if seed != "1000"} == {least}


@pytest.mark.slow
def test_two_sweepers_share_a_folder(place, monkeypatch):  # noqa: F811
    """Each run is made once, and both end well."""
    looks = iter(range(600))  # the last run may be the other's: a minute for it

    def waits(seconds):
        next(looks)
        time.sleep(0.1)

    monkeypatch.setattr(_sweep, "time", types.SimpleNamespace(sleep=waits))
    pid = os.fork()
    if pid == 0:
        os._exit(100 + compared(place))
    code = compared(place)
    assert (code, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])) == (0, 100)
    assert sorted(began()) == EVERY


@pytest.mark.slow
def test_a_search_with_a_failed_run_chooses_nothing(place, capfd):  # noqa: F811
    def fails(config, folder, stop):
        if config["compare"]["arm"] == "fixed 256" and not Path("mended").exists():
            raise RuntimeError("a bug")
        return trained(config, folder, stop)

    place.train = fails
    tune = ("compare.tune_lr=true", "dataset.validation=100")
    assert compared(place, *tune) == 2
    said = capfd.readouterr().err.replace("\n", " ")
    assert "fixed 256, seed 1000, lr x 0.5" in said and "compare.retry=failed" in said
    assert not Path("sweep/tuning.yaml").exists() and {seed for _, seed in began()} == {1000}
    Path("mended").touch()
    assert compared(place, *tune, "compare.retry=[failed]") == 0
    assert Path("sweep/tuning.yaml").exists() and {seed for _, seed in began()} == {0, 1, 1000}


@pytest.mark.slow
def test_slurm_is_asked_once_for_all_runs(place, monkeypatch):  # noqa: F811
    assert compared(place) == 0
    left = {}
    for number, folder in enumerate(folders().values()):
        left[str(number)] = folder
        job = {"id": str(number), "cluster": "slurm", "submitted": 0}
        owner.write_status(folder / "status.json", {"format": 1, "state": "running", "error": None,
                                                    "owner": None, "job": job})  # fmt: skip
        (folder / "summary.json").rename(folder / "kept")
    asked = []

    def alive(jobs):
        asked.append(sorted(jobs))
        return dict.fromkeys(jobs, True)

    def ends(seconds):
        for folder in left.values():
            (folder / "kept").rename(folder / "summary.json")
            owner.write_status(folder / "status.json", {"format": 1, "state": "finished", "error": None})

    monkeypatch.setattr(slurm, "alive", alive)
    monkeypatch.setattr(_sweep, "time", types.SimpleNamespace(sleep=ends))
    before = began()
    assert compared(place) == 0 and began() == before
    assert asked == [sorted(left)] * 2, "when the command began, and before it waited"


@pytest.mark.parametrize("text", ["it's", "a\\b", "a\\'b", "end\\", '"x"', "a b,c=[d]", "it\\\\'s\\"])
def test_a_quoted_text_is_read_as_it_was(text):
    assert config.parse([f"schedule.run={quoted(text)}"])[0].value() == text
