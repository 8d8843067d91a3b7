"""Several processes of one run: who starts them, who writes, how they end.

Training and meeting are stand-ins here, which the children find before the real modules; tests/test_faults.py
kills real ones.
"""

import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import types

import pytest

from adabatch import alike, jobs, lead, owner, places, processes, runs, spawn, sweep
from adabatch.errors import Diverged, Interrupted, RankLost, UserError
from adabatch.signals import Stop

CONFIG = {
    "model": {"_target_": "adabatch.x.Net"}, "dataset": {"_target_": "adabatch.x.load"}, "seed": 0,
    "epochs": 1, "restart": False,
    "hardware": {"device": "cpu", "threads": 1, "processes": 2, "join_timeout": 60},
}  # fmt: skip
# What each rank does is in config["log"]["play"]; in config["log"]["notes"] each notes that it came, and its
# environment. Its meeting is a folder: importing torch in every process would take most of the time.
STAND_IN = """
import json, os, sys, threading, time, types
from pathlib import Path
from adabatch.errors import Interrupted, RankLost, UserError
from adabatch.places import started

def train(config, folder, stop, meeting=None):
    rank = meeting.place.rank if meeting else None
    with open(f"{config['log']['notes']}/{rank}.json", "x") as file:
        json.dump({"pid": os.getpid(), "environment": dict(os.environ)}, file)
    while len(list(Path(config["log"]["notes"]).glob("*.json"))) < (meeting.place.world if meeting else 1):
        time.sleep(0.02)
    act = config["log"]["play"].get(str(rank), "finish")
    if act == "kill":
        os.kill(os.getpid(), 9)
    if act == "silent":
        os._exit(0)
    if act == "user":
        raise UserError("no such data: do this")
    if act == "bug":
        raise RuntimeError("a bug")
    if act == "broken":  # what gloo says some time after another rank is gone
        time.sleep(0.5)
        raise RuntimeError("gloo: Connection closed by peer")
    if act == "hang":
        time.sleep(1000)
    if act == "told":
        while not stop():
            time.sleep(0.02)
        raise Interrupted(stop())
    print("said by training")
    return {"steps": 10, "epochs": 1, "final_test_error": 0.0125}

class Store:
    def __init__(self, folder):
        self.folder = Path(folder)
    def set(self, key, value):
        fresh = self.folder / f"fresh-{os.getpid()}-{threading.get_ident()}"
        fresh.write_text(value)
        fresh.rename(self.folder / key.replace("/", "-"))
    def check(self, keys):
        return all((self.folder / key.replace("/", "-")).exists() for key in keys)
    def get(self, key):
        return (self.folder / key.replace("/", "-")).read_text()

class Meeting:
    def __init__(self, place, patience, stop):
        self.place, self.on_lost, self.over = place, None, False
        self.store = Store(os.environ["MEETING"])
        self.store.set(f"here/{place.rank}", str(os.getpid()))
        while not self.store.check([f"here/{rank}" for rank in range(place.world)]):
            if stop():
                raise Interrupted(stop())
            time.sleep(0.02)
        threading.Thread(target=self._watch, daemon=True).start()
    def say(self, word):
        self.store.set("word", word)
    def hear(self):
        while not self.store.check(["word"]):
            if lost := self._lost():
                raise lost
            time.sleep(0.02)
        return self.store.get("word")
    def _lost(self):
        if self.store.check(["lost"]):
            return RankLost(*json.loads(self.store.get("lost")))
        for rank in set(range(self.place.world)) - {self.place.rank}:
            pid = self.store.get(f"here/{rank}")
            if not self.store.check([f"left/{rank}"]) and started(int(pid)) is None:
                return RankLost(f"rank {rank} (process {pid} on here) is gone", rank)
    def _watch(self):
        while not self.over and not self._lost():
            time.sleep(0.05)
        time.sleep(1.5 if "DEAF" not in os.environ else 1000)
        if not self.over:
            if self.on_lost:
                self.on_lost(self._lost())
            os._exit(1)
    def explain(self, error):
        return (self._lost() or error) if "gloo" in str(error) else error
    def fail(self, message, code):
        self.over = True
        name = f"rank {self.place.rank} (process {os.getpid()} on here)"
        if not self.store.check(["lost"]):
            self.store.set("lost", json.dumps([f"{name} failed: {message}", self.place.rank]))
    def leave(self):
        self.over = True
        self.store.set(f"left/{self.place.rank}", "")

sys.modules["adabatch.train"] = types.SimpleNamespace(train=train)
sys.modules["adabatch.meeting"] = types.SimpleNamespace(Meeting=Meeting)
sys.modules["adabatch.report"] = types.SimpleNamespace(write_run=lambda folder: None)
"""
ABSENT = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT",
          "ADABATCH_LOCAL", "ADABATCH_LISTEN_FD")  # fmt: skip


@pytest.fixture
def played(tmp_path, monkeypatch):
    """run(play) -> (summary, code, notes of the ranks by number) of a run in tmp_path/r."""
    (tmp_path / "stand_in").mkdir()
    (tmp_path / "stand_in" / "sitecustomize.py").write_text(STAND_IN)
    monkeypatch.setattr(sys, "path", [str(tmp_path / "stand_in"), *sys.path])
    for name in ABSENT:
        monkeypatch.delenv(name, raising=False)
    log = logging.getLogger("adabatch")
    monkeypatch.setattr(log, "handlers", [])
    monkeypatch.setattr(log, "propagate", True)
    monkeypatch.setattr(jobs, "terminal", lambda: log.setLevel(logging.INFO))
    notes = tmp_path / "notes"

    def fresh():
        shutil.rmtree(notes, ignore_errors=True)
        (notes / "meeting").mkdir(parents=True)
        monkeypatch.setenv("MEETING", str(notes / "meeting"))

    fresh()

    def run(play=None, config=None, **more):
        fresh()
        config = CONFIG | {"log": {"play": play or {}, "notes": str(notes)}} | (config or {})
        return jobs.run_job(config, tmp_path / "r", ["seed=0"], **more)

    def came():
        return {
            file.stem: json.loads(file.read_text()) for file in notes.glob("*.json") if file.stat().st_size
        }

    return types.SimpleNamespace(run=run, came=came, folder=tmp_path / "r", notes=notes)


def status(folder):
    return json.loads((folder / "status.json").read_text())


def gone(pid, seconds=10):
    """Whether the process ends within the time."""
    until = time.monotonic() + seconds
    while places.started(pid) is not None and time.monotonic() < until:
        time.sleep(0.05)
    return places.started(pid) is None


# --- the words and the tables


@pytest.mark.parametrize(
    "threads, count, device, cores, warned",
    [
        (1, 1, "cpu", 2, False), (None, 1, "cpu", 2, False), (2, 1, "auto", 2, False), (3, 1, "cpu", 2, True),
        (1, 2, "cpu", 2, False), (1, 3, "cpu", 2, True), (None, 2, "auto", 2, True), (2, 2, "cpu", 4, False),
        (None, 8, "cuda", 16, False), (2, 2, "cuda:1", 2, False),
    ],
)  # fmt: skip
def test_more_threads_than_cores_are_warned_about(monkeypatch, threads, count, device, cores, warned):
    monkeypatch.setattr(processes, "cores", lambda: cores)
    text = processes.crowded({"hardware": {"threads": threads, "device": device}}, count)
    assert bool(text) == warned
    if warned:
        fits = f"hardware.threads={cores // count} would do"
        assert (fits if count <= cores else f"At most {cores} of one thread") in text


def test_how_a_process_died_is_told_in_words():
    assert spawn.death(-9) == "killed by signal 9 (SIGKILL), out of memory?"
    assert spawn.death(-15) == "killed by signal 15 (SIGTERM)" and "signal 99" in spawn.death(-99)
    assert spawn.death(0) == "exited with code 0 without a word"


class Met:
    """A meeting in which nothing is sent; what rank 0 said at its end is in `said`."""

    def __init__(self, word, said=None):
        self.word, self.store, self.ended = word, self, []
        self.values = {} if said is None else {lead.OVER: json.dumps(said)}
        alike.publish(self, {})

    def hear(self):
        return self.word

    def check(self, keys):
        return all(key in self.values for key in keys)

    def get(self, key):
        return self.values[key]

    def set(self, key, value):
        self.values[key] = value

    def explain(self, error):
        return error

    def fail(self, message, code):
        self.ended.append((message, code))

    def leave(self):
        self.ended.append("left")


@pytest.fixture
def follower(monkeypatch):
    """follow(met, error) -> (code, error) of rank 2 of 3, with a training that raises the error."""
    log = logging.getLogger("adabatch")
    monkeypatch.setattr(log, "handlers", [])
    monkeypatch.setattr(log, "propagate", log.propagate)
    monkeypatch.setattr(lead, "ALIKE", 0.2)
    level = log.level

    def follow(met, error=None, stop=None):
        def train(config, folder, stop, meeting):
            assert meeting is met
            if error:
                raise error

        monkeypatch.setitem(sys.modules, "adabatch.train", types.SimpleNamespace(train=train))
        monkeypatch.setattr(lead, "meet", lambda place, config, stop: met)
        place = places.Place("torchrun", 2, 3, 2, 3, "127.0.0.1", 1)
        return lead.follow({}, "nowhere", place, stop or Stop())

    yield follow
    log.setLevel(level)


def test_a_rank_with_another_configuration_does_not_train(follower, capfd):
    met = Met("go")
    alike.publish(met, {"seed": 3})
    code, error = follower(met, RuntimeError("was called"))
    assert code == 2 and isinstance(error, UserError)
    assert met.ended == [(str(error), 2)] and "seed is 'nothing' on rank 2 and 3 on rank 0" in str(error)


@pytest.mark.parametrize(
    "word, told, code", [("done", None, 0), ("refused", None, 2), ("refused", "SIGINT", 130)]
)
def test_a_rank_that_is_not_needed_goes_as_rank_0_says(follower, capfd, word, told, code):
    stop = Stop()
    stop.reason = told
    met = Met(word)
    assert follower(met, RuntimeError("was called"), stop) == (code, None)
    assert met.ended == ["left"] and capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "error, said, code, shown",
    [
        (None, None, 0, ""),
        (UserError("no data"), ["no data", 2], 2, ""),  # rank 0 says the same
        (UserError("no data"), None, 2, "rank 2: no data\n"),
        (UserError("no data here"), ["no data there", 2], 2, "rank 2: no data here\n"),
        (Diverged("at 5"), ["at 5", 1], 1, ""),
        (ValueError("a bug"), ["ValueError: a bug", 1], 1, ""),
        (ValueError("a bug"), None, 1, "Traceback"),
        (RankLost("rank 1 is gone", 1), None, 1, ""),  # rank 0 says it
        (RankLost("rank 0 is gone", 0), None, 1, "rank 2: rank 0 is gone\n"),
        (RankLost("rank 0 failed: x", 0), ["x", 1], 1, ""),
        (RankLost("the store is gone", None), None, 1, "rank 2: the store is gone\n"),
        (Interrupted("SIGTERM"), None, 130, ""),
        (KeyboardInterrupt(), None, 130, ""),
    ],
)  # fmt: skip
def test_a_rank_says_only_what_rank_0_does_not(follower, capfd, error, said, code, shown):
    met = Met("go", said)
    found = follower(met, error)
    assert found == (code, error)
    left = error is None or isinstance(error, Interrupted)
    assert met.ended == ["left"] if left else met.ended == [(lead.words(error), code)]
    out, err = capfd.readouterr()
    assert out == "" and (
        err == shown if shown != "Traceback" else err.endswith("rank 2: ValueError: a bug\n")
    )
    assert ("Traceback" in err) == (shown == "Traceback")


def test_told_twice_a_rank_that_others_have_left_was_interrupted_too():
    stop = Stop()
    assert lead._explain(None, error := RankLost("x", 1), stop) is error and stop.over
    stop.twice = True
    assert isinstance(lead._explain(None, RankLost("x", 1), stop), KeyboardInterrupt)


# --- a parent and its processes


def test_n_processes_make_one_run(played, capfd, caplog):
    summary, code = played.run(config={"hardware": CONFIG["hardware"] | {"processes": 3}})
    assert code == 0 and summary["final_test_error"] == 0.0125 and summary == runs.Run(played.folder).summary
    came = played.came()
    assert sorted(came) == ["0", "1", "2"] and len({note["pid"] for note in came.values()}) == 3
    environments = [came[rank]["environment"] for rank in "012"]
    assert [e["RANK"] for e in environments] == [e["LOCAL_RANK"] for e in environments] == ["0", "1", "2"]
    assert {
        e["WORLD_SIZE"] + e["LOCAL_WORLD_SIZE"] + e["MASTER_ADDR"] + e["ADABATCH_LOCAL"] for e in environments
    }
    assert ["ADABATCH_LISTEN_FD" in e for e in environments] == [True, False, False]
    assert len({e["MASTER_PORT"] for e in environments}) == 1
    assert (
        status(played.folder)["state"] == "finished"
        and status(played.folder)["owner"]["pid"] == came["0"]["pid"]
    )
    out, err = capfd.readouterr()
    assert out.count("1.25 %") == 1 and "finished" not in caplog.text, "rank 0 tells it, the parent nothing"
    assert (played.folder / "log.txt").read_text().count("1.25 %") == 1
    again = played.run()
    assert again == (summary, 0) and played.came() == {} and "finished already" in caplog.text


def test_what_can_be_refused_is_refused_without_processes(played, monkeypatch, caplog):
    monkeypatch.setattr(spawn, "supervise", lambda *_: pytest.fail("processes were started"))
    held = owner.Owner.claim(played.folder)
    assert played.run() == (None, 2) and "is in use" in caplog.text
    assert played.run(config={"restart": True}) == (None, 2)
    held.finish("interrupted")
    kept = {"format": 1, "identity": "00000000"}
    runs.write_yaml(played.folder / "overrides.yaml", kept)
    assert played.run() == (None, 2) and "another configuration" in caplog.text


def test_a_number_of_processes_that_torchrun_did_not_start_is_refused(played, monkeypatch, caplog):
    given = {
        "RANK": "0",
        "WORLD_SIZE": "3",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "1",
    }
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert played.run() == (None, 2) and "hardware.processes" in caplog.text and not played.folder.exists()


def test_a_mistake_that_all_make_is_told_once(played, capfd, caplog):
    assert played.run({"0": "user", "1": "user"}) == (None, 2)
    out, err = capfd.readouterr()
    assert (out + err).count("no such data: do this") == 1 and "Traceback" not in out + err
    assert status(played.folder)["error"] == "no such data: do this"
    assert [r for r in caplog.records if r.levelno >= logging.WARNING] == []
    with pytest.raises(UserError, match="no such data: do this"):
        played.run({"0": "user", "1": "user"}, reraise=True)


def test_an_error_of_one_rank_is_told_by_it_and_named_by_rank_0(played, capfd):
    assert played.run({"0": "hang", "1": "bug"}) == (None, 1)
    out, err = capfd.readouterr()
    assert "rank 1: Traceback" in err and "rank 1: RuntimeError: a bug" in err
    named = re.compile(r"rank 1 \(process \d+ on .*\) failed: RuntimeError: a bug")
    assert named.search(status(played.folder)["error"]) and named.search(
        (played.folder / "log.txt").read_text()
    )
    assert status(played.folder)["state"] == "failed" and "adabatch seed=0" in status(played.folder)["error"]


@pytest.mark.parametrize("end", ["kill", "silent"])
@pytest.mark.parametrize("rank", ["0", "1"])
def test_the_death_of_a_rank_ends_all_and_is_recorded(played, caplog, capfd, rank, end):
    other = {"0": "1", "1": "0"}[rank]
    assert played.run({rank: end, other: "broken"}) == (None, 1)
    found = status(played.folder)
    assert found["state"] == "failed" and found["error"].startswith(f"rank {rank} ")
    assert f"rank {rank} " in (played.folder / "log.txt").read_text()
    assert (f"rank {rank} was killed by signal 9 (SIGKILL)" in caplog.text) == (end == "kill")
    assert all(gone(note["pid"]) for note in played.came().values()) and len(played.came()) == 2
    if (rank, end) == ("0", "kill"):
        assert (
            found["error"].startswith("rank 0 was killed by signal 9") and "adabatch seed=0" in found["error"]
        )
        assert played.run()[1] == 0, "the same command goes on"


def test_who_does_not_end_is_killed(played, monkeypatch, caplog):
    monkeypatch.setenv("DEAF", "1")  # a rank whose own watch does nothing
    monkeypatch.setattr(spawn, "GRACE", 0.5)
    assert played.run({"0": "hang", "1": "kill"}) == (None, 1)
    assert "rank 0 did not end by itself" in caplog.text
    found = status(played.folder)
    assert found["state"] == "failed" and found["error"].startswith("rank 1 was killed by signal 9")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_parent_stops_all(played, number, capfd):
    def send():
        while len(played.came()) < 2:
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    threading.Thread(target=send).start()
    before = signal.getsignal(number)
    assert played.run({"0": "told", "1": "told"}) == (None, 130)
    found = status(played.folder)
    assert found["state"] == "interrupted" and f"({number.name})" in found["error"]
    assert signal.getsignal(number) is before and capfd.readouterr().err.count("saving at the next step") == 1


def test_told_to_stop_before_all_have_come_nobody_waits(played, monkeypatch, caplog):
    """Rank 0 alone of two, as under torchrun; a rank above 0 says nothing."""
    given = {
        "RANK": "0",
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "1",
    }
    for name, value in given.items():
        monkeypatch.setenv(name, value)

    def meeting(place, config, stop):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)
        raise Interrupted(stop.reason)

    monkeypatch.setattr(lead, "meet", meeting)
    assert played.run() == (None, 130) and "SIGTERM" in caplog.text and not played.folder.exists()


def test_told_to_stop_before_they_were_started_all_stop(played):
    with Stop() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.reason == "SIGTERM"
        assert played.run({"0": "told", "1": "told"}, stop=stop) == (None, 130)
    assert all(gone(note["pid"]) for note in played.came().values())


def test_a_parent_that_is_killed_leaves_nobody(played, tmp_path):
    config = CONFIG | {"log": {"play": {"0": "told", "1": "told"}, "notes": str(played.notes)}}
    code = f"from adabatch import jobs\njobs.run_job({config!r}, {str(played.folder)!r}, ['seed=0'])"
    paths = os.pathsep.join([str(tmp_path / "stand_in"), *sys.path])
    parent = subprocess.Popen([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": paths})
    until = time.monotonic() + 60
    while len(played.came()) < 2 and time.monotonic() < until:
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    assert all(gone(note["pid"], 30) for note in played.came().values()) and len(played.came()) == 2
    assert status(played.folder)["state"] == "interrupted", "they were told to save, as by SIGTERM"


def test_a_job_of_a_multirun_may_have_several_processes(played, monkeypatch):
    monkeypatch.setattr(sweep, "records", [])
    config = CONFIG | {"log": {"play": {}, "notes": str(played.notes)}}
    record = sweep.run_isolated(config, played.folder, ["seed=0"], fork=False)
    assert record["state"] == "finished" and record["summary"]["steps"] == 10 and len(played.came()) == 2


@pytest.mark.parametrize("flags", [["-m", "seed=0,1"], ["hydra.mode=MULTIRUN", "seed=0,1"]])
def test_a_multirun_in_each_of_several_processes_is_refused(flags, tmp_path, monkeypatch, capsys):
    from adabatch import __main__ as cli

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(processes, "PATIENCE", 0.1)
    for local, said in (("0", 1), ("1", 0)):
        given = {
            "RANK": local,
            "WORLD_SIZE": "2",
            "LOCAL_RANK": local,
            "MASTER_ADDR": "h",
            "MASTER_PORT": "1",
        }
        for name, value in given.items():
            monkeypatch.setenv(name, value)
        assert cli.command(flags) == 2
        assert capsys.readouterr().err.count("hardware.processes=N") == said, "once for each machine"
    assert not list(tmp_path.iterdir())


def test_processes_that_no_machine_should_start_are_refused(monkeypatch):
    monkeypatch.setattr(processes, "cores", lambda: 2)
    processes.refuse({"hardware": {"processes": 16}})
    with pytest.raises(UserError, match="at most 16 on a machine of 2 core.*got 17"):
        processes.refuse({"hardware": {"processes": 17}})
    monkeypatch.setattr(processes, "cores", lambda: 64)
    processes.refuse({"hardware": {"processes": 512}})


def test_a_network_of_the_program_itself_is_refused_for_several_processes():
    with pytest.raises(UserError, match="__main__.Net.*a module of its own"):
        processes.refuse({"model": {"_target_": "__main__.Net"}, "hardware": {"processes": 2}})


def test_who_is_told_to_stop_while_it_starts_processes_starts_no_more(tmp_path, monkeypatch):
    started = []

    class Child:
        pid, returncode = 0, 130

        def poll(self):
            return 130

        wait = send_signal = lambda self, *_: None

    monkeypatch.setattr(spawn, "fresh", lambda *_: started.append(1) or Child())
    stop = Stop()
    stop.reason = "SIGTERM"
    code, _ = spawn.supervise(({}, str(tmp_path), [], ()), 500, stop, (), "")
    assert len(started) == 1 and code == 130
