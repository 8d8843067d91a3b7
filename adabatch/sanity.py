"""Values that no run can have, refused before torch is imported and before a folder is made."""

from adabatch import cutting, plan, profiles
from adabatch.errors import UserError, suggest
from adabatch.targets import TRAINED

GROUPS = ("model", "dataset", "schedule", "hardware", "optimizer")
WANDB_MODES = ("auto", "online", "offline", "disabled")
NORMS = ("ghost", "l1", "batch", "group", "layer", "none")
BLOCK_NORMALIZED, MUON = "adabatch.optim.BlockNormalized", "adabatch.muon.Muon"
# Keys that belong to one base of it, as its YAML has them: elsewhere they would do nothing.
BASES = {"sgd": {"momentum": 0.9, "nesterov": False}, "adam": {"betas": [0.9, 0.999], "eps": 1e-8}}
GHOST = ("ghost", "l1")  # those over ghost groups
DRAWN = {"scale": "[0.08,1]", "ratio": "[0.75,1.333]"}  # what torchvision draws parts of pictures from


class Values:
    """The values of a configuration by dotted path, and rules that they must keep."""

    def __init__(self, config: dict):
        self.config = config

    def at(self, path: str):
        value = self.config
        for key in path.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        return value

    def number(self, path: str, rule: str, fits, whole: bool = False) -> None:
        value, kind = self.at(path), int if whole else (int, float)
        if isinstance(value, bool) or not isinstance(value, kind) or not fits(value):
            raise UserError(f"{path} is {rule}, got {value!r}")

    def choice(self, path: str, allowed: tuple) -> None:
        value = self.at(path)
        if value not in allowed:
            words = ", ".join("null" if a is None else str(a) for a in allowed)
            raise UserError(f"{path} is one of {words}, got {value!r}.{suggest(value, allowed)}")


def unresolved(path: str, words: str) -> UserError:
    """For a value that refers to one that is not there. words: OmegaConf's."""
    if "model.regime" not in words and "model.input_transform" not in words:
        return UserError(f"{path}: {words}")
    return UserError(
        f"{path}: this experiment trains a network as its source does, by model.regime and "
        "model.input_transform, and this model has none: take one whose YAML has them, such as "
        "model=mnist_f1, or give both with the keys that conf/model/mnist_f1.yaml explains: "
        "'model.regime={epochs: 50, ...}'"
    )


def sane(config: dict) -> None:
    """UserError for the first value that no run can work with. The parts check their own arguments when they
    are built; what is asked here is what can be asked without torch."""
    for group in (*GROUPS, "loss"):
        node = config.get(group)
        if not isinstance(node, dict) or not isinstance(node.get("_target_"), str):
            raise UserError(f"{group} needs an option or a _target_ (a class or function), got {node!r}")
    values = Values(config)
    general(values)
    started(values)
    if config["optimizer"]["_target_"] == BLOCK_NORMALIZED:
        block_normalized(values)
    if config["optimizer"]["_target_"] == MUON:
        muon(values)
    if config["model"]["_target_"].startswith("adabatch."):
        network(values)
    if config["hardware"]["_target_"] == "adabatch.hardware.Hardware":
        hardware(values)
    node = config["schedule"]
    samples = plan.samples_of(config["dataset"])
    # A recorded trajectory fits one number of samples only; otherwise any number tells what no run can have.
    # Growth and decay of the user's own are made too: a mistake in them is best known before the run.
    if node["_target_"].startswith("adabatch.") and (samples or "run" not in node):
        for planned in (
            plan.schedule(config, samples or 10**6),
            *plan.shadows(config, samples or 10**6).values(),
        ):
            plan.refuse_blind(planned, values.at("dataset.validation"))
    for each in (node, *(config.get("shadow") or {}).values()):
        measuring(values, each)


def measuring(values: Values, node: dict) -> None:
    """What a schedule's node asks of the network and the optimizer, as far as their names tell."""
    plan.hold(node)
    group, ghost = node.get("noise_group"), values.at("model.ghost")
    if group and ghost and values.at("model.norm") in GHOST:
        cutting.noise_group(group, ghost, 0)
    target = values.at("optimizer._target_")
    moments = plan.noise_exponent(target) != 1 and target != BLOCK_NORMALIZED
    if node.get("preconditioned") and not moments:
        raise UserError(
            f"schedule.preconditioned=true measures in Adam's metric, and {target} has no second moments "
            "of the gradient: take optimizer=adamw or preconditioned=false"
        )


def general(values: Values) -> None:
    number, at = values.number, values.at
    number("seed", "a whole number from 0 to 2^63 - 1", lambda v: 0 <= v < 1 << 63, whole=True)
    number("epochs", "a number above 0", lambda v: 0 < v < float("inf"))
    number("label_smoothing", "a number from 0 to below 1", lambda v: 0 <= v < 1)
    number("evaluate.every", "a number of epochs above 0", lambda v: v > 0)
    number("checkpoint.every_seconds", "a number of seconds from 0", lambda v: v >= 0)
    if "bias_lr" in values.config["optimizer"]:
        number("optimizer.bias_lr", "a number above 0", lambda v: 0 < v < float("inf"))
    for path in ("clip_norm", "ema"):
        if at(path) is not None:
            number(path, "null or a number above 0", lambda v: v > 0)
    for path in ("log.every_samples", "dataset.limit", "dataset.size", "dataset.test_samples"):
        if at(path) is not None:
            number(path, "null or a whole number above 0", lambda v: v > 0, whole=True)
    if at("dataset.validation") is not None:
        number("dataset.validation", "a whole number from 0", lambda v: v >= 0, whole=True)
    for path in ("dataset.augment.pad", "dataset.augment.cutout", "evaluate.translate"):
        if at(path) is not None:
            number(path, "a whole number of pixels from 0", lambda v: v >= 0, whole=True)
    pictures(values)
    values.choice("checkpoint.keep", ("last", "none"))
    values.choice("trackers.wandb.mode", WANDB_MODES)
    values.choice("timing", (None, "phases"))
    profile = at("forecast")
    if profile not in (None, "auto"):
        if not isinstance(profile, str):
            raise UserError(f"forecast is auto, null or a file of adabatch-profile's, got {profile!r}")
        profiles.read(profile)
    rehearsing(values)
    if at("checkpoint.best") and not at("dataset.validation"):
        raise UserError(
            "checkpoint.best=true chooses by evaluation, and nothing may choose by the test set: set "
            "dataset.validation"
        )


def pictures(values: Values) -> None:
    """Parts of pictures: in training at random, in evaluation from the middle."""
    at = values.at
    if at("dataset.crop_pct") is not None:
        values.number("dataset.crop_pct", "null or a number above 0, at most 1", lambda v: 0 < v <= 1)
    for key, most, words in (("scale", 1, ", at most 1 (all of it)"), ("ratio", float("inf"), "")):
        value = at(f"dataset.augment.{key}")
        pair = isinstance(value, list) and len(value) == 2 and all(type(v) in (int, float) for v in value)
        if value is not None and not (pair and 0 < value[0] <= value[1] <= most):
            rule = f"null or the least and the largest of what is drawn, both above 0{words}"
            raise UserError(f"dataset.augment.{key} is {rule}, got {value!r}: null or {DRAWN[key]}")
    if at("dataset.augment.flip") == "alternate" and ".imagenet." in str(at("dataset._target_")):
        raise UserError("pictures of folders are flipped by chance when decoded: dataset.augment.flip=false")
    pad, scale = at("dataset.augment.pad"), at("dataset.augment.scale")
    if scale is not None and pad:
        raise UserError(
            f"dataset.augment.scale={scale} takes a random part of a picture, and pad={pad} another: set "
            "dataset.augment.pad=0, or scale=null"
        )
    if scale is None and at("dataset.augment.ratio") is not None:
        raise UserError(
            "dataset.augment.ratio is that of the parts which dataset.augment.scale asks for, and that is "
            f"null, got {at('dataset.augment.ratio')}: set scale=[0.08,1], or ratio=null"
        )


def rehearsing(values: Values) -> None:
    """The node `rehearsal`: {steps, kill_after, witness, nudge}, none of them needed."""
    asked, known = values.at("rehearsal"), ("steps", "kill_after", "witness", "nudge")
    if asked is None:
        return
    if not isinstance(asked, dict):
        raise UserError(f"rehearsal is null or {{steps: 12}}, got {asked!r}")
    for key, value in asked.items():
        if key not in known:
            raise UserError(f"rehearsal has the keys {', '.join(known)}, got {key!r}.{suggest(key, known)}")
        if key == "witness" and value is not None and not isinstance(value, str):
            raise UserError(f"rehearsal.witness is null or a folder, got {value!r}")
        if key == "nudge" and not isinstance(value, bool):
            raise UserError(f"rehearsal.nudge is true or false, got {value!r}")
        least = {"steps": 4, "kill_after": 1}.get(key)
        if least and value is not None:
            rule = f"a whole number of steps from {least}"
            values.number(f"rehearsal.{key}", rule, lambda v, least=least: v >= least, whole=True)


def network(values: Values) -> None:
    """Keys that networks of ours share."""
    own = values.config["model"]
    if "norm" in own:
        foreign = own["_target_"].startswith("adabatch.models.torchvision.")
        values.choice("model.norm", ("own", "ghost") if foreign else NORMS)
    if "ghost" in own:
        values.number("model.ghost", "a whole number from 2", lambda v: v >= 2, whole=True)
    if own.get("whiten_bias_epochs"):
        values.number("model.whiten_bias_epochs", "null or a number from 0", lambda v: v > 0)
    if "dropout" in own:
        values.number("model.dropout", "a number from 0 to below 1", lambda v: 0 <= v < 1)


def started(values: Values) -> None:
    """What any network starts from, and what of it is trained."""
    own = values.config["model"]
    if "train" in own:
        values.choice("model.train", TRAINED)
    if not isinstance(own.get("init_head", True), bool):
        raise UserError(f"model.init_head is true or false, got {own['init_head']!r}")
    if own.get("init_head") is False and not own.get("init_from"):
        raise UserError(
            "model.init_head=false leaves out the last layer of the weights that model.init_from names, and "
            "it names none: set model.init_from to a weights file or a run's folder, or init_head to true"
        )


def block_normalized(values: Values) -> None:
    """Keys of optimizer=block_normalized, and what it makes void."""
    own, base = values.config["optimizer"], values.at("optimizer.base") or "sgd"
    for key, known in (("blocks", ("layer", "tensor")), ("base", tuple(BASES))):
        if key in own:  # only by its class it may come without
            values.choice(f"optimizer.{key}", known)
    if own.get("ratio") is not None:
        values.number("optimizer.ratio", "null or a number above 0", lambda v: v > 0)
    other = next(kind for kind in BASES if kind != base)
    for key, default in BASES[other].items():
        if own.get(key, default) != default:
            raise UserError(
                f"optimizer.{key} is a key of base={other}, and the base is {base}, got {own[key]!r}: "
                f"leave it at {default}, or take base={other}"
            )
    if values.at("clip_norm") is not None:
        raise UserError(
            "clip_norm shortens the gradient, and optimizer=block_normalized sets its length, so it would do "
            f"nothing; got clip_norm={values.at('clip_norm')}: set it to null"
        )


def muon(values: Values) -> None:
    """Keys of optimizer=muon, and a horizon that it has two of."""
    for key, rule, fits, whole in (
        ("steps", "a whole number from 1", lambda v: v >= 1, True),
        ("head_lr", "a number above 0", lambda v: 0 < v < float("inf"), False),
        ("momentum", "a number from 0 to below 1", lambda v: 0 <= v < 1, False),
        ("sgd_momentum", "a number from 0 to below 1", lambda v: 0 <= v < 1, False),
    ):
        if key in values.config["optimizer"]:  # only by its class it may come without
            values.number(f"optimizer.{key}", rule, fits, whole)
    own = values.config["optimizer"]
    if own.get("nesterov") and 0 in (own.get("momentum"), own.get("sgd_momentum")):
        raise UserError("optimizer.nesterov=true looks ahead along a momentum, and one of the two is 0")
    if values.at("model.train") == "last":
        raise UserError("optimizer=muon leaves the last layer to SGD: with model.train=last optimizer=sgd")
    if "momentum" in (values.at("schedule.hold") or ()):
        raise UserError(
            "schedule.hold=[momentum] makes up for a longer momentum by the learning rate, and a step of "
            f"optimizer=muon is as long with any; got {values.at('schedule.hold')}: leave momentum out"
        )


def hardware(values: Values) -> None:
    values.choice("hardware.precision", ("fp32", "bf16", "tf32", "fp64"))
    values.choice("hardware.memory_format", ("auto", "contiguous", "channels_last"))
    if values.at("hardware.threads") is not None:
        values.number("hardware.threads", "null or a whole number above 0", lambda v: v > 0, whole=True)
    if values.at("hardware.micro_batch") != "auto":
        rule = "auto or a whole number above 0"
        values.number("hardware.micro_batch", rule, lambda v: v > 0, whole=True)
    if values.at("hardware.processes") is not None:
        values.number("hardware.processes", "null or a whole number above 0", lambda v: v > 0, whole=True)
    if values.at("hardware.nodes") is not None:
        values.number("hardware.nodes", "a whole number above 0", lambda v: v > 0, whole=True)
    phases = values.at("hardware.phases")
    if phases not in (None, "auto") and not (isinstance(phases, str) and profiles.split(phases)[0].exists()):
        rule = (
            "null, auto (a process for each schedule.base_batch samples), samples for a process, or a file "
            "of adabatch-profile's"
        )
        values.number("hardware.phases", rule, lambda v: v > 0, whole=True)
    if values.at("hardware.parallel_runs") is not None:
        values.number("hardware.parallel_runs", "a whole number above 0", lambda v: v > 0, whole=True)
    if values.at("hardware.own_process") is False:
        for key in ("processes", "parallel_runs"):
            if (values.at(f"hardware.{key}") or 1) > 1:
                raise UserError(
                    f"hardware.own_process=false makes all runs in one process, got hardware.{key}="
                    f"{values.at(f'hardware.{key}')}: set one of them back"
                )
    tried = values.config["hardware"].get("benchmark", "auto")
    if tried != "auto" and not isinstance(tried, bool):
        raise UserError(f"hardware.benchmark is auto, true or false, got {tried!r}")
    if tried != "auto" and values.at("hardware.device") == "cpu":
        raise UserError(
            "hardware.benchmark says whether cuDNN times its kernels, and on a CPU there is none, got "
            f"hardware.benchmark={str(tried).lower()}: leave it at auto"
        )
    values.choice("hardware.convolution", ("auto", "library"))
    values.choice("hardware.ghost_norm", ("auto", "library"))
    values.choice("hardware.reduction", ("fast", "ordered"))
    values.choice("hardware.prefer", ("largest", "fastest"))
    rule = "a number of seconds above 0"
    values.number("hardware.join_timeout", rule, lambda v: 0 < v < float("inf"))
    if values.at("hardware.precision") == "tf32" and values.at("hardware.device") == "cpu":
        raise UserError("hardware.precision=tf32 exists on NVIDIA GPUs only: on a CPU take fp32 or bf16")
