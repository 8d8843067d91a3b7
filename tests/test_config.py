"""The check of a configuration: typos, kinds of values, `_target_` of one's own, and the folder that
follows."""

import sys
import textwrap

import pytest

from adabatch import config, mistakes, targets
from adabatch.errors import UserError

# What every network's node has beside its own keys.
EVERY_MODEL = {
    "init_from": None, "init_head": True, "train": "all", "base_lr": 0.05, "regime": None,
    "input_transform": None,
}  # fmt: skip


def checked(*overrides, config_dir=None) -> config.Checked:
    """The check as the command line does it, errors as the command line words them."""
    overrides = config.lenient(overrides)
    with config.composer(config_dir):
        try:
            return config.checked(config.load(overrides))
        except Exception as error:
            message = mistakes.explain(error, overrides)
            if message is None:
                raise
            raise UserError(message) from error


def refused(*overrides, **more) -> str:
    with pytest.raises(UserError) as caught:
        checked(*overrides, **more)
    return str(caught.value)


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A module of the user's own in the current directory."""
    (tmp_path / "mine_own.py").write_text(
        textwrap.dedent("""
        class Net:
            def __init__(self, num_classes, shape, depth=3, width=2): ...
        class Open:
            def __init__(self, num_classes, **rest): ...
        class Named:
            def __init__(self, num_classes, name="x"): ...
        def load(root="here", rows=10): ...
        def counted(root="here", classes=3): ...
        def loss(logits, labels, alpha=1.0): ...
        def optimizer(params, lr, momentum=0.5): ...
        from adabatch.schedules import Factor
        class Growth(Factor):
            def __init__(self, pace=2): ...
            def __call__(self, position): return 1.0
        number = 3
    """)
    )
    (tmp_path / "broken_module.py").write_text("import no_such_library\n")
    (tmp_path / "syntax_module.py").write_text("def f(:\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in ("mine_own", "broken_module", "syntax_module"):
        sys.modules.pop(name, None)


def test_the_default_configuration_is_good_and_complete():
    found = checked().config
    assert {"model", "dataset", "schedule", "hardware", "optimizer", "loss", "seed", "epochs"} <= set(found)
    for group, key in (
        ("evaluate", "every"),
        ("checkpoint", "keep"),
        ("log", "every_samples"),
        ("model", "init_from"),
    ):
        assert key in found[group]
    assert found["trackers"]["wandb"]["mode"] == "auto"
    assert "hydra" not in found and checked().name.startswith("default-")


@pytest.mark.parametrize(
    "override, said",
    [
        ("model=vg", "Did you mean 'vgg'"),
        ("schedule=adabtch", "Did you mean 'adabatch'"),
        ("modle=vgg", "Did you mean 'model'"),
        ("+modle=vgg", "Did you mean 'model'"),
        ("++modle=vgg", "Did you mean 'model'"),
        ("+schedul=adabatch", "Did you mean 'schedule'"),
        ("epoch=3", "Did you mean 'epochs'"),
        ("+epoch=3", "Did you mean 'epochs'"),
        ("schedule.base_bach=3", "Did you mean 'schedule.base_batch'"),
        ("+schedule.base_bach=3", "Did you mean 'schedule.base_batch'"),
        ("+schedule.decay.fakctor=3", "Did you mean 'schedule.decay.factor'"),
        ("trackers.wandb.mod=offline", "Did you mean 'trackers.wandb.mode'"),
        ("+trackers.wandb.mod=offline", "Did you mean 'trackers.wandb.mode'"),
        ("+trackers={wandbb: {mode: offline}}", "Did you mean 'trackers.wandb'"),
        ("hardware.presicion=bf16", "Did you mean 'hardware.precision'"),
        ("batch_size=64", "Did you mean 'schedule.base_batch'"),
        ("base_batch=64", "Did you mean 'schedule.base_batch'"),
        ("experiment=smok", "Did you mean 'smoke'"),
        ("schedule.growth.every=3", "schedule=adabatch or dont_decay or exponential has it"),
        ("+schedule.growth.every=3", "unknown key 'schedule.growth.every'"),
        ("+model=vgg", "write model=vgg"),
        ("seed.x=1", "seed is a single value"),
        ("trackers.wandb.mode=of", "one of auto, online, offline, disabled"),
        ("seed=[1", "cannot be read"),
        ("nonsense", "nonsense"),
        ("hydra.launcher.partition=a", "choose hardware=slurm"),
    ],
)
def test_a_typo_is_refused_with_what_was_meant(override, said):
    message = refused(override)
    assert said in message and "Traceback" not in message and "To append to your config" not in message


@pytest.mark.parametrize("chosen", ["hardware=slurm", "hydra/launcher=local"])
def test_a_typo_in_a_launchers_key_is_refused_with_what_was_meant(chosen):
    message = refused(chosen, "hydra.launcher.timout_min=3")
    assert "Did you mean 'timeout_min'" in message and "struct" not in message
    assert ("additional.OPTION" in message) == (chosen == "hardware=slurm")
    assert "Did you mean 'epochs'" in refused(chosen, "hydra.launcher.timeout_min=3", "epoch=3")


def test_options_of_sbatch_may_be_given_as_a_mapping():
    """As in the YAML and in docs/cluster.md; further keys are added to it."""
    lines = (
        "hydra.launcher.additional={constraint: a100, exclusive: true}",
        "hydra.launcher.additional.reservation=r",
    )
    with config.composer():
        tree = config.load(config.lenient(["hardware=slurm", *lines]))
    assert dict(tree.hydra.launcher.additional) == {
        "constraint": "a100",
        "exclusive": True,
        "reservation": "r",
    }


@pytest.mark.parametrize(
    "override, said",
    [
        ("epochs=0", "epochs is a number above 0, got 0"), ("epochs=-1", "got -1"),
        ("epochs=abc", "got 'abc'"),
        ("epochs=true", "got True"), ("epochs=null", "epochs"), ("epochs=.inf", "epochs"),
        ("seed=-1", "whole number"),
        ("schedule.base_batch=0", "base_batch is positive"), ("schedule.base_batch=3.5", "whole number"),
        ("hardware.threads=x", "hardware.threads"), ("hardware.threads=true", "got True"),
        ("hardware.threads=0", "above 0"), ("seed=18446744073709551616", "2^63"),
        ("hardware.processes=0", "null or a whole number above 0, got 0"),
        ("hardware.processes=1.5", "got 1.5"), ("hardware.processes=all", "got 'all'"),
        ("hardware.reduction=orderd", "one of fast, ordered, got 'orderd'. Did you mean 'ordered'"),
        ("hardware.prefer=fast", "Did you mean 'fastest'"), ("hardware.join_timeout=0", "above 0, got 0"),
        ("hardware.join_timeout=null", "a number of seconds"),
        ("timing=phase", "one of null, phases, got 'phase'. Did you mean 'phases'"),
        ("model.norm=gost", "ghost"),
        ("model.ghost=0", "whole number from 2"), ("model.dropout=2", "below 1"),
        ("dataset.augment.pad=-3", "pixels from 0"), ("checkpoint.best=true", "set dataset.validation"),
        ("schedule.scaling=liner", "linear"),
        ("hardware.precision=fp23", "fp32"), ("hardware.micro_batch=0", "whole number above 0"),
        ("schedule.decay.every=-1", "every is positive"),
        ("seed=0.5", "whole number"), ("seed=null", "seed"), ("label_smoothing=1", "below 1"),
        ("clip_norm=0", "above 0"), ("restart=maybe", "true or false"),
        ("checkpoint.best=1", "true or false"),
        ("checkpoint.keep=all", "last, none"), ("log.every_samples=0.5", "whole number"),
        ("evaluate.every=0", "above 0"),
        ("evaluate=3", "keys of its own"), ("trackers.wandb.tags=a", "list"),
        ("schedule.base_batch=big", "a number"),
        ("dataset.limit=0", "dataset.limit"), ("model=null", "The options are: airbench"),
        ("~loss", "loss is missing"),
        ("model._target_=null", "module.name"), ("~seed", "do not delete"), ("seed=${nothing}", "seed"),
        ("seed=???", "seed"),
    ],
)  # fmt: skip
def test_values_that_no_run_can_use_are_refused(override, said):
    assert said in refused(override)


@pytest.mark.parametrize(
    "override", ["epochs=0.5", "schedule.max_batch=512", "hardware.micro_batch=64", "hardware.threads=null",
                 "hardware=local", "hardware.processes=3", "hardware.reduction=ordered",
                 "hardware.join_timeout=9.5",
                 "schedule.decay.milestones=[1,2]", "trackers.wandb.tags=[a,b]", "clip_norm=1",
                 "+dataset.limit=100", "schedule.scaling=0.7", "schedule.base_lr=1"],
)  # fmt: skip
def test_values_that_make_sense_pass(override):
    checked(override)


def test_every_option_of_hardware_has_the_same_keys_and_a_fixed_number_of_threads_where_processes_vary():
    options = {
        name: checked(f"hardware={name}").config["hardware"] for name in ("auto", "cpu", "gpu", "local")
    }
    assert len({tuple(sorted(node)) for node in options.values()}) == 1
    alone = {name: (node["processes"], node["threads"]) for name, node in options.items()}
    assert alone == {"auto": (None, None), "cpu": (None, None), "gpu": (None, None), "local": (2, 1)}
    names = {checked("hardware=local", f"hardware.processes={n}").name for n in (1, 2, 5)}
    assert len(names) == 1, "one run, one folder, whatever the number of processes"


@pytest.mark.parametrize("experiment", ["typo: 1", "schedule:\n  grwth: 1", "hardware:\n  precison: bf16"])
def test_a_typo_in_an_experiment_is_refused_too(tmp_path, experiment):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(f"# @package _global_\n{experiment}\n")
    assert "unknown key" in refused("experiment=mine", config_dir=str(tmp_path))


def test_an_option_of_ones_own_is_its_own_schema(tmp_path, mine):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "special.yaml").write_text("_target_: mine_own.Net\nwidth: 5\n")
    found = checked("model=special", "model.width=6", config_dir=str(tmp_path)).config["model"]
    assert found == {"_target_": "mine_own.Net", "width": 6, **EVERY_MODEL}
    assert "Did you mean 'model.width'" in refused("model=special", "model.widht=6", config_dir=str(tmp_path))


def test_a_model_of_ones_own(mine):
    found = checked("model._target_=mine_own.Net", "+model.width=3")
    assert found.config["model"] == {
        "_target_": "mine_own.Net",
        "width": 3,
        **EVERY_MODEL,
    }
    (note,) = found.notes
    assert "mine_own.Net does not take" in note and "norm" in note and "model=convnet" in note
    assert "+model.depht" in refused("model._target_=mine_own.Net", "model.depht=3")
    assert "Did you mean 'depth'" in refused("model._target_=mine_own.Net", "+model.depht=3")
    assert "takes no argument 'norm'" in refused("model._target_=mine_own.Net", "model.norm=batch")
    assert "passed by adabatch itself" in refused("model._target_=mine_own.Net", "+model.num_classes=3")


def test_keys_left_over_go_but_typed_ones_reach_an_open_signature(mine):
    found = checked("model._target_=mine_own.Open", "+model.anything=1").config["model"]
    assert found == {"_target_": "mine_own.Open", "anything": 1, **EVERY_MODEL}


def test_the_name_of_a_replaced_model_goes_unless_the_new_one_takes_it(mine):
    assert "name" not in checked("model=torchvision", "model._target_=mine_own.Net").config["model"]
    assert checked("model=torchvision", "model._target_=mine_own.Named").config["model"]["name"] == "resnet18"
    typed = checked("model._target_=mine_own.Net", "+model.name=mine").config["model"]
    assert typed["name"] == "mine"


def test_a_data_set_of_ones_own_starts_neutral(mine):
    found = checked(
        "dataset._target_=mine_own.load", "+dataset.rows=20", "+dataset.limit=5", "dataset=cifar10"
    ).config
    node = found["dataset"]
    assert node["limit"] == 5 and node["rows"] == 20
    assert node["samples"] is None and node["mean"] is None and node["classes"] is None
    assert not any(node["augment"][k] for k in ("pad", "flip", "cutout"))
    typed = checked("dataset._target_=mine_own.load", "dataset=cifar10", "dataset.augment.flip=true").config
    assert typed["dataset"]["augment"]["flip"] is True and not typed["dataset"]["augment"]["pad"]
    assert "augment" in refused(
        "dataset._target_=mine_own.load", "dataset=cifar10", "+dataset.augment.flipp=true"
    )


def test_what_a_class_of_ones_own_takes_over_from_the_replaced_option_is_told(mine):
    found = checked("dataset._target_=mine_own.counted")
    (note,) = [n for n in found.notes if "is given" in n]
    assert note == "dataset._target_=mine_own.counted is given classes=10, left over from dataset=digits"
    typed = checked("dataset._target_=mine_own.counted", "dataset.classes=4")
    assert not any("is given" in n for n in typed.notes) and typed.config["dataset"]["classes"] == 4


def test_loss_optimizer_and_parts_of_a_schedule_of_ones_own(mine):
    assert checked("loss._target_=mine_own.loss", "+loss.alpha=2").config["loss"] == {
        "_target_": "mine_own.loss", "alpha": 2
    }  # fmt: skip
    found = checked("optimizer._target_=mine_own.optimizer").config["optimizer"]
    assert found == {
        "_target_": "mine_own.optimizer", "momentum": 0.9, "decay_norm_and_bias": True, "bias_lr": 1,
    }  # fmt: skip
    found = checked(
        "schedule=adabatch", "schedule.growth._target_=mine_own.Growth", "+schedule.growth.pace=5"
    )
    assert found.config["schedule"]["growth"] == {"_target_": "mine_own.Growth", "pace": 5}
    assert "schedule.growth" in found.notes[0] and "factor" in found.notes[0]
    message = refused(
        "schedule=adabatch", "schedule.growth._target_=mine_own.Growth", "schedule.growth.factor=5"
    )
    assert "schedule.growth.factor" in message and "pace" in message


def test_a_factor_of_ours_in_another_place():
    found = checked("schedule.growth._target_=adabatch.schedules.Steps", "+schedule.growth.factor=2").config
    assert found["schedule"]["growth"] == {"_target_": "adabatch.schedules.Steps", "factor": 2}


@pytest.mark.parametrize(
    "dotted, said",
    [
        ("no_such_module.Net", "no module 'no_such_module'"), ("mine_own.Nett", "Did you mean 'Net'"),
        ("broken_module.Net", "no_such_library"), ("syntax_module.Net", "SyntaxError"),
        ("mine_own.number", "not a class"),
        ("Net", "module.name"), ("mine_own.inner.Net", "has no 'inner'"), ("..Net", "module.name"),
    ],
)  # fmt: skip
def test_a_target_that_cannot_be_imported_says_why(mine, dotted, said):
    message = refused(f"model._target_={dotted}")
    assert said in message and message.startswith("model._target_")


def test_the_check_of_our_own_options_imports_schedules_only(monkeypatch):
    """They are plain Python and are tried at once; networks and data would import torch."""
    locate, asked = targets.locate, []
    monkeypatch.setattr(targets, "locate", lambda dotted, key: asked.append(dotted) or locate(dotted, key))
    config._checked.clear()
    checked("schedule=adabatch", "schedule.growth.factor=5", "model=resnet")
    assert asked and all(dotted.startswith("adabatch.schedules.") for dotted in asked)


def test_the_folder_follows_from_the_checked_configuration(mine, tmp_path):
    """Left-over keys are no part of it: two ways to the same class are one run."""
    a = checked("model=vgg", "model._target_=mine_own.Net", "+model.width=3")
    b = checked("model=resnet", "model._target_=mine_own.Net", "+model.width=3", "model.depth=3")
    c = checked("model=resnet", "model._target_=mine_own.Net", "+model.width=4", "model.depth=3")
    assert a.config["model"].keys() <= b.config["model"].keys()
    assert b.name[-8:] != c.name[-8:]
    one, two = checked("seed=1", "model=vgg"), checked("model=vgg", "seed=1", "trackers.wandb.mode=offline")
    assert one.name == two.name and one.name.startswith("model=vgg-seed=1-")


def test_paths_with_equal_signs_and_plus_need_no_quotes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model=vgg-12345678").mkdir()
    (tmp_path / "model=vgg-12345678" / "weights.pt").write_bytes(b"weights")
    assert checked("model.init_from=model=vgg-12345678").config["model"]["init_from"] == "model=vgg-12345678"
    assert "no such file" in refused("model.init_from=none")
    assert config.lenient(["+model.width=3", "+seed=3", "a='b=c'"]) == [
        "++model.width=3",
        "+seed=3",
        "a='b=c'",
    ]


def test_composing_leaves_a_hydra_that_was_there_alone():
    from hydra.core.global_hydra import GlobalHydra

    with config.composer():
        outer = GlobalHydra.instance().hydra
        with config.composer():
            assert GlobalHydra.instance().hydra is not outer
        assert GlobalHydra.instance().hydra is outer
    assert not GlobalHydra.instance().is_initialized()


def test_errors_of_the_program_are_not_explained_away():
    assert mistakes.explain(RuntimeError("bug"), []) is None
    assert mistakes.explain(ValueError("bug"), []) is None
    try:
        raise RuntimeError("outer") from UserError("what the user did")
    except RuntimeError as error:
        assert mistakes.explain(error, []) == "what the user did"


def test_an_edited_yaml_is_read_anew(tmp_path):
    """In a notebook the same overrides may mean something else the second time."""
    (tmp_path / "schedule").mkdir()
    text = (config.conf_dir() / "schedule" / "fixed.yaml").read_text()
    names = []
    for lr in ("0.05", "0.07"):
        (tmp_path / "schedule" / "mine.yaml").write_text(text.replace("${model.base_lr}", lr))
        with config.composer(str(tmp_path)):
            found = config.checked(config.load(["schedule=mine"]))
        assert found.config["schedule"]["base_lr"] == float(lr)
        names.append(found.name)
    assert names[0] != names[1]
