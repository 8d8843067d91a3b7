"""Names, identities and files of run folders."""

import copy
import json
import math
import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import support

from adabatch import runs
from adabatch.errors import UserError

CONFIG = {
    "model": {"_target_": "adabatch.models.vgg.Vgg", "norm": "ghost", "init_from": None},
    "dataset": {"_target_": "d.load", "root": "/a", "cache": None, "download": True, "limit": None},
    "schedule": {"_target_": "s.Schedule", "base_lr": 0.05, "growth": {"factor": 2}},
    "hardware": {"device": "auto", "precision": "fp32", "threads": 2, "micro_batch": "auto", "processes": 1},
    "trackers": {"wandb": {"mode": "auto"}},
    "checkpoint": {"every_seconds": 60},
    "log": {"every_samples": 100},
    "seed": 0,
    "epochs": 20,
    "restart": False,
    "experiment": None,
    "timing": None,
}


changed = partial(support.changed, CONFIG)


@pytest.mark.parametrize(
    "path, value",
    [
        ("dataset.root", "/b"), ("dataset.cache", "/c"), ("dataset.download", False),
        ("trackers.wandb.mode", "off"),
        ("trackers.new", 1), ("checkpoint.every_seconds", 1), ("log.every_samples", 1), ("restart", True),
        ("experiment", "x"), ("timing", "t"), ("hardware.processes", 4), ("hardware.micro_batch", 8),
        ("hardware.prefer", "x"), ("hardware.join_timeout", 1), ("hardware.nodes", 2),
        ("hardware.parallel_runs", 2), ("hardware.own_process", False),
        ("hydra", {"a": 1}), ("shadow", 1), ("wait", 1),
        ("arm", "a"),
        ("compare", {"delta": 1}), ("epochs", 20.0),
    ],
)  # fmt: skip
def test_what_does_not_change_the_result_does_not_change_the_identity(path, value):
    assert runs.identity(changed(path, value)) == runs.identity(CONFIG)


@pytest.mark.parametrize(
    "path, value",
    [
        ("seed", 1), ("epochs", 21), ("model.norm", "group"), ("dataset.limit", 5),
        ("schedule.growth.factor", 3),
        ("hardware.precision", "bf16"), ("hardware.threads", 1), ("hardware.device", "cpu"),
        ("hardware.reduction", "ordered"),
        ("model.width", 3),
        ("dataset.rooted", 1), ("waiting", 1), ("seed", "0"), ("seed", None), ("seed", False),
    ],
)  # fmt: skip
def test_everything_else_does(path, value):
    assert runs.identity(changed(path, value)) != runs.identity(CONFIG)


def test_a_younger_key_changes_the_identity_only_where_it_changes_the_run():
    config = CONFIG | {"optimizer": {"_target_": "o.SGD"}, "evaluate": {"every": 1}}
    before = runs.identity(config)
    for path, same, other in (("optimizer.bias_lr", 1, 64), ("evaluate.flip", False, True),
                              ("evaluate.translate", 0, 1)):  # fmt: skip
        assert runs.identity(support.changed(config, path, same)) == before
        assert runs.identity(support.changed(config, path, float(same))) == before
        assert runs.identity(support.changed(config, path, other)) != before
    now = support.resolved("optimizer=adamw")
    older = copy.deepcopy(now)
    del older["optimizer"]["bias_lr"], older["evaluate"]["flip"], older["evaluate"]["translate"]
    assert runs.identity(now) == runs.identity(older)


def test_torchvisions_networks_keep_their_names_and_with_ghost_norm_do_not_depend_on_the_hardware():
    """The keys norm and ghost are younger than the option; under norm: own nothing reads ghost."""
    model = {"_target_": "adabatch.models.torchvision.Torchvision", "name": "resnet18"}
    node = {"processes": 1, "own_process": True}
    before = runs.identity({"model": model, "hardware": node})
    own = model | {"norm": "own", "ghost": 32}
    assert runs.identity({"model": own, "hardware": node}) == before
    assert runs.identity({"model": own | {"ghost": 16}, "hardware": node | {"own_process": False}}) == before
    assert runs.identity({"model": own, "hardware": node | {"processes": 4}}) != before
    ghost = runs.identity({"model": own | {"norm": "ghost"}, "hardware": node})
    assert ghost not in (before, runs.identity({"model": own | {"norm": "ghost", "ghost": 16}}))
    assert runs.identity({"model": own | {"norm": "ghost"}, "hardware": {"processes": 4}}) == runs.identity(
        {"model": own | {"norm": "ghost"}, "hardware": {"processes": 1}}
    )


def test_the_identity_is_eight_hex_digits_and_the_same_in_every_version_of_this_code():
    assert runs.identity({"b": 1, "a": {"c": [1.5, None, True]}, "log": 3}) == "95b34d14"
    assert runs.identity({"a": {"c": [1.5, None, True]}, "b": 1.0}) == "95b34d14"


def test_under_plain_batch_norm_the_cut_of_a_batch_belongs_to_the_identity():
    plain = changed("model.norm", "batch")
    other = copy.deepcopy(plain)
    other["hardware"]["micro_batch"] = 8
    assert runs.identity(plain) != runs.identity(other)
    other = copy.deepcopy(plain)
    other["hardware"]["parallel_runs"] = 4
    assert runs.identity(plain) == runs.identity(other)
    other = copy.deepcopy(plain)
    other["trackers"]["wandb"]["mode"] = "offline"
    assert runs.identity(plain) == runs.identity(other)


def test_weights_to_start_from_enter_by_content(tmp_path):
    (tmp_path / "a.pt").write_bytes(b"weights")
    (tmp_path / "b.pt").write_bytes(b"weights")
    (tmp_path / "c.pt").write_bytes(b"others")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "weights.pt").write_bytes(b"others")

    def of(name):
        config = changed("model.init_from", str(tmp_path / name))
        return runs.identity(config, runs.contents(config))

    assert of("a.pt") == of("b.pt") != of("c.pt")
    assert of("run") == of("c.pt") and len({of("a.pt"), of("run"), runs.identity(CONFIG)}) == 3
    with pytest.raises(UserError, match="no such file or run"):
        of("none.pt")


def test_folder_names_are_readable_bounded_and_independent_of_the_order():
    name = runs.folder_name(
        CONFIG, ["seed=1", "model=vgg", "trackers.wandb.mode=off", "hydra.run.dir=x", "+a.b=2"]
    )
    assert name == f"model=vgg-seed=1-a.b=2-{runs.identity(CONFIG)}"
    assert runs.folder_name(CONFIG, ["model=vgg", "seed=1"]) == runs.folder_name(
        CONFIG, ["seed=1", "model=vgg"]
    )
    assert runs.folder_name(CONFIG, []) == f"default-{runs.identity(CONFIG)}"
    nasty = runs.folder_name(CONFIG, ["dataset.path=/a b/../c;$(rm -r ~)\n'ü", "~ema"])
    assert set(nasty) <= set("abcdefghijklmnopqrstuvwxyz0123456789.=,+-_") and "/" not in nasty
    assert len(runs.folder_name(CONFIG, [f"key{i}={i}" for i in range(100)])) <= runs.READABLE + 9


def test_an_existing_folder_is_found_by_its_hex(tmp_path):
    name = runs.folder_name(CONFIG, ["seed=0"])
    assert runs.find(tmp_path / "none", name) == tmp_path / "none" / name
    assert runs.find(tmp_path, name) == tmp_path / name
    first = tmp_path / runs.folder_name(CONFIG, ["model=vgg"])
    first.mkdir()
    assert runs.find(tmp_path, name) == first
    runs.set_aside(first)
    assert runs.find(tmp_path, name) == tmp_path / name, "a run that was moved aside is not found again"


def test_swept_excluded_keys_keep_their_runs_apart(tmp_path):
    three, two = (runs.folder_name(CONFIG, ["seed=1"], [f"hardware.processes={n}"]) for n in (3, 2))
    assert three == f"seed=1-processes=3-{runs.identity(CONFIG)}"
    (tmp_path / three).mkdir()
    assert runs.find(tmp_path, two) == tmp_path / two
    assert runs.find(tmp_path, runs.folder_name(CONFIG, [])).name == f"default-{runs.identity(CONFIG)}"
    assert runs.find(tmp_path, runs.folder_name(CONFIG, [], ["hardware.processes=3"])) == tmp_path / three
    for override in ("trackers.wandb.mode=off", "log.every_samples=5", "dataset.cache=/a-b=c"):
        name = runs.folder_name(CONFIG, [], [override])
        (tmp_path / name).mkdir()
        assert runs.find(tmp_path, runs.folder_name(CONFIG, ["seed=7"], [override])) == tmp_path / name


def test_set_aside_keeps_every_earlier_run(tmp_path):
    for number in (1, 2, 3):
        folder = tmp_path / "run"
        folder.mkdir()
        (folder / "file").write_text(str(number))
        assert runs.set_aside(folder).name == f"run.old{number}"
    assert [(tmp_path / f"run.old{n}" / "file").read_text() for n in (1, 2, 3)] == ["1", "2", "3"]


def test_json_is_written_whole_with_null_for_what_is_not_finite(tmp_path):
    path = tmp_path / "a.json"
    runs.write_json(path, {"x": math.nan, "y": [math.inf, 1.5], "path": tmp_path})
    assert json.loads(path.read_text()) == {"x": None, "y": [None, 1.5], "path": str(tmp_path)}
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_failed_write_leaves_the_old_file_and_no_debris(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    runs.write_json(path, {"x": 1})
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError):
        runs.write_json(path, {"x": 2})
    assert json.loads(path.read_text()) == {"x": 1} and os.listdir(tmp_path) == ["a.json"]


def test_threads_may_write_one_file_and_a_reader_finds_it_whole(tmp_path):
    path, sizes = tmp_path / "status.json", (10, 10_000, 100_000)

    def write(size):
        for _ in range(20):
            runs.write_json(path, {"format": 1, "words": "x" * size})

    write(10)
    with ThreadPoolExecutor(3) as pool:
        writers = [pool.submit(write, size) for size in sizes]
        while not all(writer.done() for writer in writers):
            assert len(runs.read_json(path)["words"]) in sizes
    assert [writer.exception() for writer in writers] == [None] * 3
    assert os.listdir(tmp_path) == ["status.json"]


@pytest.mark.parametrize("text", ["", "[1]", '"x"', "{", "[" * 100_000, '{"format": 2}', '{"format": "x"}'])
def test_json_that_is_not_ours_is_refused(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"a\.json"):
        runs.read_json(path)


def test_sizes_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr("adabatch.files.SMALL", 100)
    (tmp_path / "a.json").write_text(json.dumps({"x": "y" * 200}))
    with pytest.raises(UserError, match="larger than"):
        runs.read_json(tmp_path / "a.json")


@pytest.mark.parametrize(
    "text", ["- 1", "a: !!python/object/apply:os.system [x]", "a: &x 1\nb: *x", "format: 2", "a: [", "x"]
)
def test_yaml_that_is_not_ours_is_refused(tmp_path, text):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=r"a\.yaml"):
        runs.read_yaml(path)


def test_yaml_round_trip(tmp_path):
    value = {"format": 1, "b": [1, 1e-8, None, "ü", "1e3", "no"], "a": {"x": True}}
    runs.write_yaml(tmp_path / "a.yaml", value)
    read = runs.read_yaml(tmp_path / "a.yaml")
    assert read == value and list(read) == list(value)


def test_rows_lose_a_torn_last_line_but_not_silence_about_damage(tmp_path):
    assert runs.read_rows(tmp_path) == []
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"event": "train"}\n\n{"event": "eval"}\n{"event": "tr')
    assert [row["event"] for row in runs.read_rows(tmp_path)] == ["train", "eval"]
    path.write_text('{"event": "train"}\n{"event": "ev\n{"event": "eval"}\n')
    with pytest.raises(UserError, match="line 2"):
        runs.read_rows(tmp_path)
    path.write_text('{"event": "train"}\n3\n')
    with pytest.raises(UserError, match="line 2"):
        runs.read_rows(tmp_path)


def test_a_run_is_read_from_its_folder(tmp_path):
    with pytest.raises(UserError, match="no such run"):
        runs.Run(tmp_path / "none")
    run = runs.Run(tmp_path)
    assert (run.config, run.overrides, run.state, run.summary, run.rows, run.identity) == (
        None,
        [],
        None,
        None,
        [],
        None,
    )
    runs.write_yaml(tmp_path / "config.yaml", {"format": 1, "seed": 3})
    runs.write_yaml(tmp_path / "overrides.yaml", {"format": 1, "identity": "0a", "overrides": ["seed=3"]})
    runs.write_json(tmp_path / "status.json", {"format": 1, "state": "finished"})
    runs.write_json(tmp_path / "summary.json", {"format": 1, "steps": 5})
    assert run.config == {"seed": 3} and run.overrides == ["seed=3"] and run.identity == "0a"
    assert run.state == "finished" and run.summary["steps"] == 5 and run.state in runs.STATES


@pytest.mark.parametrize("target", ["mine.Net", "adabatch.models.torchvision.Torchvision"])
def test_hardware_counts_where_a_network_may_depend_on_the_cut(target):
    """Networks that are not ours may hold plain batch norm or torch's dropout; nobody knows before they are
    built."""
    theirs = CONFIG | {"model": {"_target_": target, "init_from": None}}
    cut = theirs | {"hardware": CONFIG["hardware"] | {"micro_batch": 8}}
    assert runs.identity(theirs) != runs.identity(cut)


def test_a_family_shares_all_but_the_epochs():
    assert runs.family(changed("epochs", 3)) == runs.family(CONFIG) != runs.family(changed("seed", 1))
