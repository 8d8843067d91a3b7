"""Chains of jobs (hardware.phases) without SLURM: what sbatch is told, which legs, and what is undone."""

import json

import pytest
import support
from hydra_plugins.adabatch_launcher import _clusters, _legs
from submissions import ALIVE, OPTIONS, job, stand_ins, status, written

from adabatch import slurm
from adabatch.errors import Interrupted, UserError


@pytest.fixture
def sbatch(tmp_path, monkeypatch):
    return stand_ins(tmp_path / "bin", monkeypatch)


def test_a_chain_keeps_its_own_order_whatever_the_user_adds(sbatch, tmp_path, monkeypatch):
    """One line for each sbatch: its directives about the order."""
    seen = tmp_path / "seen"
    words = 'grep "^#SBATCH" "$@" | grep -E "dependency|hold|kill-on-inv|comment" | sort | tr "\\n" " "'
    sbatch(f"({words}; echo) >> {seen}\necho Submitted batch job $(wc -l < {seen})")
    released = []
    monkeypatch.setattr(slurm, "release", released.append)
    own = {"dependency": "afterok:9", "kill_on_invalid_dep": "no", "comment": "x"}
    for more, free in (({}, ["1"]), ({"hold": False}, ["1"]), ({"hold": True}, [])):
        seen.write_text("")
        released.clear()
        one = job(tmp_path / "runs" / f"a{len(more)}{free}", legs=(1, 2, 4), leg={"closed": False})
        one.shape |= {"nodes": 4, "additional": own | more}
        _legs.submit(_clusters.Slurm(), [one], ())
        lines = [line.replace("#SBATCH --", "").split() for line in seen.read_text().splitlines()]
        assert lines == [
            ["comment=x", "dependency=afterok:9", "hold", "kill-on-invalid-dep=no"],
            ["comment=x", "dependency=afterok:1", "kill-on-invalid-dep=yes"],
            ["comment=x", "dependency=afterok:2", "kill-on-invalid-dep=yes"],
        ]
        assert released == free


@pytest.mark.parametrize(
    "recorded, legs", [(None, (1,)), (1, (1,)), (2, (2,)), (4, (4,)), (6, (4,)), (64, (8,)), ("x", (1,))]
)
def test_a_closed_loop_goes_on_with_as_many_processes_as_it_had_come_to(
    tmp_path, monkeypatch, recorded, legs
):
    """8 processes at the most, 4 on a node: more than a node takes whole ones."""
    config = {"hardware": {"phases": 32}, "schedule": {}, "dataset": {}}
    monkeypatch.setattr(_legs.plan, "schedule", lambda *_: None)
    monkeypatch.setattr(_legs, "samples_of", lambda _: 1000)
    first = _legs.legs.Leg(0, 1, 32)
    monkeypatch.setattr(_legs.legs, "legs", lambda *_: [first])
    monkeypatch.setattr(_legs.legs, "is_closed", lambda _: True)
    record = {"id": None} | ({"processes": recorded} if recorded else {})
    written(tmp_path, "interrupted", job=record)
    shape = {"nodes": 2, "tasks": 4}
    assert _legs.planned(config, shape, tmp_path)[0] == legs
    assert _legs.planned(config, shape)[0] == (1,)
    monkeypatch.setattr(_legs.legs, "is_closed", lambda _: False)
    assert _legs.planned(config, shape, tmp_path)[0] == (1,)


def test_what_a_closed_loop_had_come_to_is_not_forgotten_by_its_next_job(sbatch, tmp_path, monkeypatch):
    folder = tmp_path / "runs" / "a"
    folder.mkdir(parents=True)
    written(folder, "submitted", job=ALIVE | {"processes": 4})
    payload = job(folder).payload() | {"leg": {"closed": True}, "shape": {**OPTIONS, "nodes": 4, "tasks": 1}}
    monkeypatch.setattr(_legs.submitted, "run", lambda _: None)
    _legs.run(payload)
    found = status(folder)["job"]
    assert (found["id"], found["processes"]) == ("77", 4)


@pytest.mark.parametrize("anew", [False, True])
@pytest.mark.parametrize("gone", [True, False])
def test_a_chain_that_is_refused_later_leaves_the_folder_as_it_was(sbatch, tmp_path, monkeypatch, gone, anew):
    """The second sbatch refuses. Where SLURM does not say that the first job is gone, it is told."""
    calls = tmp_path / "calls"
    sbatch(f"echo >> {calls}; [ $(wc -l < {calls}) = 1 ] || exit 1; echo Submitted batch job 77")
    folder = tmp_path / "runs" / "a"
    if anew:
        folder.mkdir(parents=True)
        before = written(folder, "finished")
        (folder / "summary.json").write_text("{}")
    cancelled = []
    monkeypatch.setattr(slurm, "cancel", lambda jobs: cancelled.extend(jobs))
    monkeypatch.setattr(slurm, "alive", lambda jobs: {job: not gone for job in jobs})
    one = job(folder, legs=(1, 2), leg={"closed": False}, anew=anew)
    one.shape |= {"nodes": 2}
    with pytest.raises(UserError, match="sbatch refuses") as told:
        _legs.submit(_clusters.Slurm(), [one], ())
    assert cancelled == ["77"] and ("scancel 77" in str(told.value)) is not gone
    if not gone:
        assert status(folder)["job"]["id"] == one.job == "77"
        return
    assert one.job is None and sorted(p.name for p in folder.parent.glob("a*")) == ["a"] * anew
    if anew:
        assert status(folder) == before and (folder / "summary.json").exists()


def test_legs_that_lie_behind_the_checkpoint_are_not_queued_again(tmp_path, monkeypatch):
    """Joins at 100 and 300. The last one is always left: it trains the rest, or finds that there is none."""
    config = {"hardware": {"phases": 32}, "schedule": {}, "dataset": {}}
    skipping = type("S", (), {"start": staticmethod(lambda position: 300 if position >= 290 else position)})
    monkeypatch.setattr(_legs.plan, "schedule", lambda *_: skipping)
    monkeypatch.setattr(_legs, "samples_of", lambda _: 1000)
    cut = [_legs.legs.Leg(0, 1, 32), _legs.legs.Leg(100, 2, 64), _legs.legs.Leg(300, 4, 128)]
    monkeypatch.setattr(_legs.legs, "legs", lambda *_: cut)
    monkeypatch.setattr(_legs.legs, "is_closed", lambda _: False)
    shape = {"nodes": 4, "tasks": 1}

    def planned(position):
        row = {"event": "train", "position": position, "epoch": 0.1, "seconds": 1.0}
        (tmp_path / "metrics.jsonl").write_text(json.dumps(row) + "\n")
        return _legs.planned(config, shape, tmp_path)[0]

    written(tmp_path, "interrupted")
    assert planned(200) == (1, 2, 4)  # without a checkpoint it begins at the beginning
    (tmp_path / "checkpoint.pt").touch()
    found = {position: planned(position) for position in (99, 100, 289, 290, 300, 900)}
    assert found == {99: (1, 2, 4), 100: (2, 4), 289: (2, 4), 290: (4,), 300: (4,), 900: (4,)}
    assert _legs.planned(config, shape)[0] == (1, 2, 4)


@pytest.mark.parametrize("steps, left", [(5, (1, 2, 4)), (14, (2, 4)), (20, (4,))])
def test_a_run_that_was_stopped_in_a_leg_is_queued_from_that_leg_on(tmp_path, steps, left):
    """A real run of 300 samples and 2 epochs; joins at 192 and 384. Its folder says where it stands."""
    lines = (*support.SMALL, "epochs=2", "schedule=adabatch", "schedule.base_batch=16")
    lines += ("schedule.max_batch=64", "schedule.growth.every=0.6")
    done = []

    def stop():
        done.append(1)
        return "enough" if len(done) >= steps else None

    with pytest.raises(Interrupted):
        support.run(tmp_path, *lines, stop=stop)
    config = support.resolved(*lines)
    config["hardware"]["phases"] = "auto"
    assert _legs.planned(config, {"nodes": 4, "tasks": 1}, tmp_path)[0] == left
