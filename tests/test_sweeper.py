"""The sweeper of experiment=compare: which runs it starts, skips, goes on with, and in what order.

Training is a stand-in that walks the schedule and writes rows, a few milliseconds a run, in processes forked
from this one; tests/test_sweeper_real.py starts the real thing.
"""

import json
import os
import signal
import sys
import threading
import time
import types
from pathlib import Path

import pytest

from adabatch import __main__ as cli
from adabatch import jobs, owner, plan, runs, sweep
from adabatch.errors import Diverged, Interrupted
from adabatch.pool import Pool

COMMON = ("-m", "experiment=compare", "dataset=digits", "dataset.limit=256", "epochs=2", "hardware.threads=1",
          "compare.looks=[2,3]", "trackers.wandb.mode=disabled", "hydra.sweep.dir=sweep")  # fmt: skip
FEW = ("compare.arms=[fixed,adaptive]", "compare.ladder=16")
ARMS = ["fixed 32", "fixed 256", "adabatch"]


def trained(config, folder, stop):
    """As `train` leaves a folder, without training."""
    samples = min(256, 1437 - config["dataset"]["validation"])
    schedule, rows, position = plan.schedule(config, samples), [], 0
    while position < schedule.budget:
        setting = schedule(position)
        position += setting.batch_size
        rows.append({"event": "train", "position": position, "epoch": position / samples, "lr": setting.lr,
                     "batch_size": setting.batch_size, "divisor": setting.divisor})  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arm, seed = config["compare"]["arm"], config["seed"]
    with open("began", "a") as file:  # in the order of runs
        file.write(f"{arm}|{seed}|{config['schedule'].get('base_lr')}\n")
    error = 0.1 + 0.001 * seed + abs(config["schedule"].get("base_lr", 0.05) - 0.025)
    phases = [{"start_position": 0, "batch_size": row["divisor"]} for row in rows]
    found = {"final_test_error": error, "steps": len(rows), "samples": position, "seed": seed,
             "train_seconds": len(rows) + 1.0, "phases": phases}  # fmt: skip
    if config["dataset"]["validation"]:
        found["final_validation_error"] = error
    return found


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """A folder to work in, and `train` as the test says: `place.train`."""
    work = types.SimpleNamespace(train=trained, folder=tmp_path)

    def train(config, folder, stop):
        summary = work.train(config, folder, stop)
        runs.write_json(folder / "summary.json", summary)
        return summary

    stand_in = types.SimpleNamespace(write_run=lambda folder: None)
    monkeypatch.setitem(sys.modules, "adabatch.train", types.SimpleNamespace(train=train))
    monkeypatch.setattr(jobs.claim, "report", stand_in.write_run)
    monkeypatch.setattr(sweep, "import_torch", lambda: None)
    monkeypatch.setattr(sweep, "may_fork", lambda config: True)
    monkeypatch.chdir(tmp_path)
    fresh(monkeypatch)
    work.fresh = lambda: fresh(monkeypatch)
    return work


def fresh(monkeypatch):
    monkeypatch.setattr(sweep, "records", [])
    monkeypatch.setattr(sweep, "epilogue", [])
    monkeypatch.setattr(sweep, "accepted", {"finished"})
    monkeypatch.setattr(sweep, "pool", Pool(sweep._record))


def compared(place, *overrides) -> int:
    place.fresh()
    few = () if any(o.startswith(("compare.arms=", "schedule=")) for o in overrides) else FEW
    return cli.command([*COMMON, *few, *overrides])


def began() -> list[tuple]:
    """(arm, seed) of the runs that trained, in order."""
    lines = Path("began").read_text().splitlines() if Path("began").exists() else []
    return [(arm, int(seed)) for arm, seed, _ in (line.split("|") for line in lines)]


def folders(parent="sweep") -> dict:
    """{(arm, seed): folder} of all runs."""
    found = {}
    for path in Path(parent).glob("*/config.yaml"):
        config = runs.Run(path.parent).config
        found[config["compare"]["arm"], config["seed"]] = path.parent
    return found


@pytest.mark.slow
def test_from_nothing_to_a_verdict_and_more_seeds_later(place, capfd):
    assert compared(place) == 0
    first, said = began(), capfd.readouterr().out
    assert sorted(first) == sorted((arm, seed) for arm in ARMS for seed in (0, 1))
    assert [seed for _, seed in first] == [0] * 3 + [1] * 3, "block by block"
    assert "6 runs: 3 arms x 2 seeds (looks at 2, 3), 52 updates, 3,072 samples" in said
    verdict = json.loads(Path("sweep/report.json").read_text())
    assert verdict["decision"] not in ("interim", None) and verdict["verdict"].split(":")[0] in said.replace(
        "\n", " "
    )
    assert {a["arm"] for a in verdict["arms"]} == set(ARMS)
    assert compared(place) == 0 and began() == first, "nothing is run twice"
    assert "6 finished already" in capfd.readouterr().out
    assert compared(place, "compare.seeds=3") == 0
    assert sorted(began()[6:]) == sorted((arm, 2) for arm in ARMS)
    assert compared(place, "compare.seeds=3", "compare.delta=2") == 2
    assert "declares delta: 1.0" in capfd.readouterr().err and len(began()) == 9


@pytest.mark.slow
def test_outcomes_are_recorded_and_the_sweep_goes_on(place, capfd):
    def breaks(config, folder, stop):
        arm, seed = config["compare"]["arm"], config["seed"]
        if (arm, seed) == ("fixed 256", 0):
            raise Diverged("the loss is nan")
        if (arm, seed) == ("fixed 32", 0):
            raise MemoryError("out of memory")
        if (arm, seed) == ("adabatch", 1) and not Path("mended").exists():
            raise RuntimeError("a bug")
        return trained(config, folder, stop)

    place.train = breaks
    assert compared(place) == 1
    states = {key: runs.Run(folder).state for key, folder in folders().items()}
    assert states.pop(("fixed 256", 0)) == "diverged" and states.pop(("fixed 32", 0)) == "out_of_memory"
    assert (
        states.pop(("adabatch", 1)) == "failed" and set(states.values()) == {"finished"} and len(states) == 2
    )
    assert "compare.retry=failed" in capfd.readouterr().out
    Path("mended").touch()
    assert compared(place) == 1 and len(began()) == 2, "no outcome is tried again without a word"
    assert compared(place, "compare.retry=[failed]") == 0
    assert began()[2:] == [("adabatch", 1)]


@pytest.mark.slow
@pytest.mark.parametrize("arm", ["fixed 256", "adabatch"])
def test_an_arm_that_ran_out_of_memory_starts_no_further_seeds(place, capfd, arm):
    def fits(config, folder, stop):
        if config["compare"]["arm"] == arm and not Path("larger").exists():
            raise MemoryError("out of memory")
        return trained(config, folder, stop)

    place.train = fits
    assert compared(place) == 0
    assert (arm, 0) in folders() and (arm, 1) not in folders() and len(began()) == 4
    said = capfd.readouterr()
    told = f"{arm} ran out of memory, so it takes no part: no other seed of it is begun"
    assert (said.out + said.err).replace("\n", " ").count(told) == 1
    decision = json.loads(Path("sweep/report.json").read_text())["decision"]
    assert decision == "undecided" if arm == "adabatch" else decision not in ("interim", None)
    Path("larger").touch()
    assert compared(place, "compare.seeds=3") == 0 and len(began()) == 6, "nor at the next look"
    assert compared(place, "compare.seeds=3", "compare.retry=[out_of_memory]") == 0
    assert sorted(began()[6:]) == [(arm, 0), (arm, 1), (arm, 2)]


@pytest.mark.slow
def test_a_source_that_cannot_be_replayed_refuses_its_control_alone(place, capfd):
    """A row of its metrics is lost: that control is told once in a command, and everything else is made."""

    def loses(config, folder, stop):
        found = trained(config, folder, stop)
        if (config["compare"]["arm"], config["seed"]) == ("noise_scale", 0) and not Path("whole").exists():
            rows = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
            (folder / "metrics.jsonl").write_text("".join(rows[:2] + rows[3:]))
        return found

    place.train = loses
    control, line = "mean-matched to noise_scale", ("schedule=noise_scale", "compare.ladder=16")
    every = [(a, s) for a in ("fixed 32", "fixed 256", "noise_scale") for s in (0, 1)] + [(control, 1)]
    for _ in range(2):
        assert compared(place, *line) == 1
        assert sorted(began()) == sorted(every), "all others, and nothing twice"
        said = capfd.readouterr()
        told = " ".join((said.out + said.err).split())
        assert told.count(f"{control}, seed 0 cannot be made") == 1 and "holds no whole trajectory" in told
        assert "Move sweep/" in told and Path("sweep/report.json").exists()
    folders()["noise_scale", 0].rename("elsewhere")
    Path("whole").touch()
    assert compared(place, *line) == 0
    assert sorted(began()[len(every) :]) == [(control, 0), ("noise_scale", 0)]


@pytest.mark.slow
def test_a_stopped_sweep_goes_on_where_it_was(place):
    stopped = threading.Event()

    def waits(config, folder, stop):
        if len(began()) == 2 and not Path("on").exists():
            Path("waiting").touch()
            while stop() is None:
                time.sleep(0.01)
            raise Interrupted(stop())
        return trained(config, folder, stop)

    def tell():
        while not Path("waiting").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)
        stopped.set()

    place.train = waits
    threading.Thread(target=tell).start()
    assert compared(place) == 130 and stopped.wait(5)
    assert len(began()) == 2
    states = [runs.Run(folder).state for folder in folders().values()]
    assert sorted(states) == ["finished", "finished", "interrupted"]
    Path("on").touch()
    assert compared(place) == 0
    assert len(began()) == len(set(began())) == 6


@pytest.mark.slow
def test_controls_of_a_closed_loop_come_after_their_source_in_its_block(place):
    """The source grows, in each seed elsewhere; the folder has a quote and a name of the program's own."""

    def grows(config, folder, stop):
        found = trained(config, folder, stop)
        if config["compare"]["arm"] == "noise_scale":
            small = 8 if config["seed"] == 0 else 4  # batches of 32, then of 64, 512 samples in all
            sizes = [32] * small + [64] * ((512 - 32 * small) // 64)
            rows = [{"event": "train", "position": sum(sizes[: i + 1]), "epoch": sum(sizes[: i + 1]) / 256,
                     "lr": 0.05, "batch_size": n, "divisor": n} for i, n in enumerate(sizes)]  # fmt: skip
            (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            found["steps"] = len(rows)
            found["phases"] = [{"start_position": 0, "batch_size": n} for n in (32, 64)]
        return found

    place.train = grows
    assert compared(place, "schedule=noise_scale", "compare.ladder=16", 'hydra.sweep.dir="it\'s/tuning"') == 0
    order = began()
    for seed in (0, 1):
        block = [arm for arm, s in order if s == seed]
        assert block[-1] == "mean-matched to noise_scale" and "noise_scale" in block[:-1]
    found = folders("it's/tuning")
    assert {runs.Run(folder).config["compare"]["stage"] for folder in found.values()} == {"verdict"}
    control, source = found["mean-matched to noise_scale", 1], found["noise_scale", 1]
    config = runs.Run(control).config["schedule"]
    assert config["control"] == "mean_matched" and Path(config["run"]).resolve() == source.resolve()
    for seed, updates in ((0, 12), (1, 10)):  # 8 x 32 + 4 x 64 and 4 x 32 + 6 x 64 samples
        rows = runs.Run(found["mean-matched to noise_scale", seed]).rows
        assert {row["divisor"] for row in rows} == {round(512 / updates)}
    report = json.loads(Path("it's/tuning/report.json").read_text())
    assert report["decision"] not in ("interim", None)
    arms = {a["arm"]: a["runs"] for a in report["arms"]}
    assert arms["mean-matched to noise_scale"] == 2, "one arm, though each seed replays another run"


@pytest.mark.slow
def test_a_control_of_a_source_that_broke_down_is_left_out(place):
    def breaks(config, folder, stop):
        if config["compare"]["arm"] == "noise_scale" and config["seed"] == 0:
            raise Diverged("the loss is nan")
        return trained(config, folder, stop)

    place.train = breaks
    assert compared(place, "schedule=noise_scale", "compare.ladder=16") == 0
    assert ("mean-matched to noise_scale", 1) in began() and ("mean-matched to noise_scale", 0) not in began()
    decision = json.loads(Path("sweep/report.json").read_text())["decision"]
    assert decision not in ("interim", None), "what could not be replayed is not waited for"


@pytest.mark.slow
def test_the_search_for_learning_rates_comes_first_and_once(place, capfd):
    assert compared(place, "compare.tune_lr=true") == 2
    assert "dataset.validation=143" in capfd.readouterr().err
    more = ("compare.tune_lr=true", "dataset.validation=100")
    assert compared(place, *more) == 0
    order = began()
    search = [arm for arm, seed in order if seed == 1000]
    assert order[: len(search)] == [(arm, 1000) for arm in search], "before the first run of the verdict"
    # The stand-in's best is 0.025, half the rule: an edge, so a quarter is tried as well; fixed 256 begins at
    # 1 / sqrt(8) = 0.354 of the rule, where a half is no edge.
    assert {arm: search.count(arm) for arm in search} == {"fixed 32": 4, "fixed 256": 4, "adabatch": 4}
    chosen = runs.read_yaml(Path("sweep/tuning.yaml"))["arms"]
    assert {arm: found["multiplier"] for arm, found in chosen.items()} == dict.fromkeys(chosen, 0.5)
    assert {runs.Run(f).config["schedule"]["base_lr"] for f in folders().values()} == {0.025}
    report = json.loads(Path("sweep/report.json").read_text())
    assert "tuned" in report["verdict"] and "untuned" not in report["verdict"]
    assert {a["base_lr"] for a in report["arms"]} == {0.025}
    told = capfd.readouterr().out
    before, after = told.index("learning rate by rule"), told.index("learning rate by the search")
    rates = [[line.split()[3] for line in told[at:].splitlines() if line.startswith("  fixed 32 ")][0]
             for at in (before, after)]  # fmt: skip
    assert rates == ["0.05", "0.025"], "the rates that the runs have, once they are known"
    assert [a["runs"] for a in report["arms"]] == [2, 2, 2]
    assert compared(place, *more) == 0 and began() == order
    told = capfd.readouterr().out
    assert "learning rate by the search" in told and "learning rate by rule" not in told


@pytest.mark.slow
def test_runs_that_another_process_has_are_left_to_it_and_waited_for(place, monkeypatch):
    """The other process is this one, which holds a run's folder while the sweep goes past it."""
    assert compared(place) == 0
    first = folders()["adabatch", 0]
    (first / "summary.json").unlink()
    held = owner.Owner.claim(first)

    def lets_go():
        while not Path("asked").exists():
            time.sleep(0.01)
        runs.write_json(first / "summary.json", {"final_test_error": 0.1, "samples": 512})
        held.finish("finished")

    def waiting(seconds):
        Path("asked").touch()
        real(0.05)

    from hydra_plugins.adabatch_sweeper import _sweep

    real = time.sleep
    monkeypatch.setattr(_sweep, "time", types.SimpleNamespace(sleep=waiting))
    threading.Thread(target=lets_go).start()
    try:
        assert compared(place, "compare.seeds=3") == 0
    finally:
        held.release()
    assert Path("asked").exists() and {seed for _, seed in began()[6:]} == {2}


SLOW = pytest.mark.slow  # each composes anew


@pytest.mark.parametrize(
    "line, said",
    [
        (["experiment=compare"], "adabatch -m experiment=compare"),
        (["compare.delta=2"], "compare.delta=2 is for a comparison"),
        pytest.param(["arm=fixed"], "compare.arms=[...]", marks=SLOW),
        pytest.param([*COMMON, "seed=0,1"], "compare.seeds=10", marks=SLOW),
        pytest.param([*COMMON, "seed=3"], "compare.seeds=10", marks=SLOW),
        ([*COMMON, "dataset=digits,mnist5k"], "give a command for each"),
        pytest.param([*COMMON, "restart=true"], "name another folder", marks=SLOW),
        pytest.param([*COMMON, "compare.arm=x"], "leave it out", marks=SLOW),
        ([*COMMON, "hydra/launcher=local", "hardware.parallel_runs=2"], "hydra.launcher.array_parallelism"),
        ([*COMMON, "dataset=cifar10", "dataset.root=none"], "data_batch_1 is missing"),
        ([*COMMON, "hydra/launcher=local", "hardware.own_process=false"], "as a job of its own"),
    ],
)  # fmt: skip
def test_what_a_comparison_refuses(capfd, line, said):
    assert cli.command(line) == 2
    assert said in capfd.readouterr().err.replace("\n", " ") and not began()


def test_what_a_search_makes_smaller():
    assert sweep.score({"state": "diverged", "summary": None}) == float("inf")
    assert sweep.score({"state": "failed", "summary": None}) is None
    summary = {"final_validation_error": 0.2, "final_test_error": 0.1}
    assert sweep.score({"state": "finished", "summary": summary}) == 0.2


# -- several runs at once ---------------------------------------------------------------------------


def meet(config, folder, stop):
    """Ends when another run has begun that has not ended: only runs at once come to an end."""
    name = f"{config['compare']['arm']} {config['seed']}"
    Path("now").mkdir(exist_ok=True)
    (Path("now") / name).touch()
    until = time.monotonic() + 20
    while not any(other != name for other in os.listdir("met")) and len(os.listdir("now")) < 2:
        assert time.monotonic() < until, "alone"
        time.sleep(0.01)
    Path("met", name).touch()
    return trained(config, folder, stop)


@pytest.mark.slow
def test_parallel_runs_overlap_and_say_so(place):
    Path("met").mkdir()
    place.train = meet
    assert compared(place, "hardware.parallel_runs=2") == 0
    assert len(began()) == len(set(began())) == 6
    assert all(runs.Run(folder).summary["shared"] is True for folder in folders().values())
    assert [r["state"] for r in sweep.records] == ["finished"] * 6
    report = json.loads(Path("sweep/report.json").read_text())
    assert "no time verdict: runs shared the machine" in json.dumps(report)
    other = {k: v for k, v in folders().items()}
    place.train = trained
    assert compared(place, "compare.seeds=3") == 0, "the same runs: their number is no part of the identity"
    assert {k: v for k, v in folders().items() if k[1] < 2} == other
    assert all("shared" not in runs.Run(v).summary for k, v in folders().items() if k[1] == 2)


@pytest.mark.slow
def test_a_run_that_goes_on_alone_has_still_shared_the_machine(place, monkeypatch):
    def stops_once(config, folder, stop):
        if not Path("on").exists():
            raise RuntimeError("once")
        return trained(config, folder, stop)

    place.train = stops_once
    assert compared(place, "hardware.parallel_runs=2") == 1
    Path("on").touch()
    assert compared(place, "compare.retry=[failed]") == 0
    assert all(runs.Run(folder).summary["shared"] is True for folder in folders().values())


def test_all_of_several_runs_are_told_to_stop(place):
    def waits(config, folder, stop):
        Path(f"waiting{config['compare']['arm']}").touch()
        while stop() is None:
            time.sleep(0.01)
        raise Interrupted(stop())

    def tell():
        while len(list(Path().glob("waiting*"))) < 2:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    place.train = waits
    threading.Thread(target=tell).start()
    assert compared(place, "hardware.parallel_runs=2") == 130
    assert [r["state"] for r in sweep.records] == ["interrupted"] * 2
    assert [runs.Run(folder).state for folder in folders().values()] == ["interrupted"] * 2
