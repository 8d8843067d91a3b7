"""The parts of a run from its configuration: the one place where keys become objects."""

import functools
import inspect
from dataclasses import dataclass, replace

import torch

from adabatch import (
    checkpoint,
    convolution,
    cutting,
    draws,
    ema,
    evaluation,
    fading,
    finetune,
    ghostnorm,
    kept,
    layers,
    optim,
    persample,
    plan,
    witness,
)
from adabatch.data.augment import Prepare
from adabatch.data.resident import resident
from adabatch.data.samples import Samples, TensorSamples, as_samples
from adabatch.data.split import split_train
from adabatch.data.stream import Stream
from adabatch.errors import UserError
from adabatch.flat import Flat
from adabatch.inputs import first_look, preparation, seen_as, tell
from adabatch.measure import SINGLE, Meter
from adabatch.shadow import Shadows
from adabatch.step import Step
from adabatch.targets import locate, make

SHAPES = 256  # that torch.compile may compile in one process


@dataclass
class Data:
    """Splits and what they say of themselves. shape: of one stored sample. validation: None without a
    split."""

    train: Samples
    validation: Samples | None
    test: Samples
    classes: int
    shape: tuple

    def evaluated(self) -> tuple[str, Samples]:
        """The split that is evaluated during training."""
        return ("test", self.test) if self.validation is None else ("validation", self.validation)


def data(node: dict) -> Data:
    """Load and split. Loaders return (train, test)."""
    loaded = make(node, "dataset")
    if not isinstance(loaded, (tuple, list)) or len(loaded) != 2:
        raise UserError(
            f"a dataset returns (train, test); {node['_target_']} returned {type(loaded).__name__}"
        )
    whole, test = (as_samples(split) for split in loaded)
    if node.get("samples") and len(whole) != node["samples"]:
        raise UserError(
            f"{node['_target_']} has {len(whole)} training samples, its configuration says "
            f"dataset.samples={node['samples']}: "
            "files are missing or too many, or set dataset.samples to what you expect"
        )
    if node.get("test_samples") and len(test) != node["test_samples"]:
        raise UserError(
            f"{node['_target_']} has {len(test)} test samples, its configuration says "
            f"dataset.test_samples={node['test_samples']}: set it to what you expect, or to null"
        )
    train, validation = split_train(whole, node.get("limit"), node.get("validation") or 0)
    inputs, labels = whole.read(torch.zeros(1, dtype=torch.int64))
    classes = node.get("classes")
    if classes is None and not labels.dtype.is_floating_point and whole.labels is not None:
        classes = int(whole.labels.max()) + 1
    if classes is None and labels.ndim == 1 and not labels.dtype.is_floating_point:
        raise UserError(
            f"{node['_target_']} gives one number a sample and no list of labels to count: set the number of "
            "classes (outputs of the network), +dataset.classes=N"
        )
    if classes is None:
        classes = labels[0].numel()
    for split in (whole, test):
        found = split.labels
        if (
            found is not None
            and not found.dtype.is_floating_point
            and len(found)
            and not (0 <= int(found.min()) and int(found.max()) < classes)
        ):
            raise UserError(
                f"labels are whole numbers from 0 to {classes - 1} for {classes} classes; "
                f"{node['_target_']} gave "
                f"{int(found.min())} to {int(found.max())}"
            )
    return Data(train, validation, test, classes, tuple(inputs.shape[1:]))


def on_device(parts: Data, device) -> Data:
    """Splits that are tensors on the device; others stay where they are."""
    each = {name: getattr(parts, name) for name in ("train", "validation", "test")}
    return replace(parts, **{k: v.to(device) for k, v in each.items() if isinstance(v, TensorSamples)})


def network(node: dict, parts: Data, seed: int, hardware, dataset: dict):
    """The network on its device. dataset: the node, which says how pictures are shown. Weights are drawn on
    the CPU from the seed, so every device starts alike."""
    torch.manual_seed(draws.key(seed, draws.INIT) >> 1)
    shape = seen_as(parts.shape, dataset.get("size"), locate(node["_target_"], "model._target_"))
    model = make(node, "model", num_classes=parts.classes, channels=shape[0] if shape else 1, shape=shape)
    if node.get("init_from"):
        weights, head = checkpoint.weights_of(node["init_from"]), node.get("init_head", True)
        finetune.initialise(model, weights, str(node["init_from"]), head)
    else:
        first_look(dataset, parts.shape, parts.train, model)
    finetune.freeze(model, node.get("train", "all"))
    model = model.to(device=hardware.device, dtype=hardware.dtype)
    if hardware.products:
        convolution.adopt(model)
    norms = [norm for norm in layers.ghost_layers(model) if isinstance(norm, layers.GhostBatchNorm)]
    if hardware.native and norms:  # the kernel in C has no L1 form
        hardware.ghost_norm = ghostnorm.adopt(norms, hardware.ranks)
    return model.to(memory_format=hardware.memory_format)


def losses(config: dict):
    """(training loss, evaluation loss): the first with label smoothing."""
    target, smoothing = locate(config["loss"]["_target_"], "loss._target_"), config["label_smoothing"]
    kwargs = {k: v for k, v in config["loss"].items() if k != "_target_"}
    plain = target(**kwargs) if inspect.isclass(target) else functools.partial(target, **kwargs)
    if not smoothing:
        return plain, plain
    if inspect.isclass(target) or "label_smoothing" not in inspect.signature(target).parameters:
        raise UserError(
            f"label_smoothing={smoothing} needs a loss with that argument; {config['loss']['_target_']} "
            "has none"
        )
    return functools.partial(plain, label_smoothing=smoothing), plain


def optimizer(node: dict, model):
    """(Flat, optimizer). Ours update a vector per group, and are shown the parameters in it (`named`); others
    get the parameters themselves."""
    grouped = getattr(locate(node["_target_"], "optimizer._target_"), "groups", optim.groups)
    if not (kept := fading.apart(grouped(model, node), model)):
        raise UserError("the network has no trainable parameter")
    groups, own = zip(*kept)
    flat = Flat(model, groups)
    ours = node["_target_"].startswith("adabatch.")
    members = [[vector] for vector in flat.vectors()] if ours else [[p for _, p in group] for group in groups]
    params = [{"params": m, **o} for m, o in zip(members, own)]
    shown = {"named": [pair for group in groups for pair in group]} if ours else {}
    return flat, make(node, "optimizer", params=params, lr=0.0, **shown)


def measuring(schedule, flat, chosen, unit: int) -> Meter:
    """The meter for a closed-loop schedule. unit: samples in a ghost group."""
    wanted = schedule.measuring
    group = cutting.noise_group(wanted.group, unit, schedule.base_batch)
    wanted.group = group  # the schedule must know which batches are a single group
    if schedule.needs & SINGLE:
        persample.load()
    metric = optim.preconditioner(chosen, flat) if wanted.preconditioned else None
    return Meter(flat, group, unit, wanted.differenced, metric, schedule.samples)


def shadowing(config: dict, driver, step: Step, samples: int) -> Shadows:
    """The schedules that look on, with meters for those that measure."""

    def meter(schedule):
        return measuring(schedule, step.flat, step.optimizer, step.unit)

    def shared(schedule) -> bool:
        ours, theirs = step.meter, schedule.measuring
        if ours is None or theirs is None:
            return False
        alike = theirs.preconditioned == driver.measuring.preconditioned
        return alike and theirs.differenced == ours.differenced and meter(schedule).size == ours.size

    looking = plan.shadows(config, samples)
    for schedule in looking.values():
        if step.meter and schedule.measuring:
            # As often as the driver, or passes of their own lie between; their averages keep their horizon.
            schedule.measuring.horizon = driver.measuring.horizon
    return Shadows(looking, step, meter, shared)


def compiled(model, hardware):
    """The network's forward pass in training, by torch.compile where that is asked for."""
    if not hardware.compile:
        return model
    if hardware.device.type == "cpu" and hardware.precision == "bf16" and layers.ghost_layers(model):
        # Seen with torch 2.15 in ResNet-20, not in smaller ones; it goes with vectorised code only.
        raise UserError(
            "hardware.compile=true with precision=bf16 and ghost batch norm makes gradients that are not "
            "numbers on a CPU, by a fault of the compiler's (docs/log.md): take hardware.compile=false, or "
            "precision=fp32"
        )
    import torch._dynamo  # seconds, which only those pay who compile

    # Beyond its own limit, 8, torch goes back to uncompiled code with nothing but a warning in its own
    # log; the shapes of all runs of one process count (hardware.own_process=false).
    torch._dynamo.config.recompile_limit = SHAPES
    return torch.compile(model, dynamic=False)


@dataclass
class Parts:
    """Everything a run consists of."""

    hardware: object
    data: Data
    prepare: Prepare
    schedule: object
    step: Step
    average: ema.Average | None
    loss: object  # of evaluation
    shadows: Shadows
    views: tuple = ()  # how evaluations show a picture (`evaluation.views`)


def views(config: dict, parts: Data, seen: tuple) -> tuple:
    """evaluate.flip and evaluate.translate; configurations from before them have none."""
    flip, translate = (config["evaluate"].get(key) or 0 for key in ("flip", "translate"))
    for asked, does in ((flip and "flip=true", "mirrors"), (translate and f"translate={translate}", "moves")):
        if asked and len(parts.shape) != 3:
            raise UserError(
                f"evaluate.{asked} {does} pictures [c, h, w], and a sample here is {list(parts.shape)}: "
                f"evaluate.{asked.partition('=')[0]}={'false' if does == 'mirrors' else 0}"
            )
    sides = seen[1:]
    if translate and translate >= min(sides):
        raise UserError(
            "evaluate.translate is below the side of the picture as the network sees it, whose border is "
            f"reflected, got {translate} for {sides[0]}x{sides[1]}"
        )
    return evaluation.views(bool(flip), translate)


def build(config: dict, ledger=None, meeting=None) -> Parts:
    """From the resolved configuration. Errors of data come before the network is built. meeting: of several
    ranks (`meeting.py`)."""
    hardware = make(config["hardware"], "hardware")
    hardware.set_up(meeting)
    if ledger:
        ledger.wait = hardware.synchronize
    parts = kept.splits(config, hardware.device, lambda: on_device(data(config["dataset"]), hardware.device))
    planned = plan.schedule(config, len(parts.train))
    plan.refuse_blind(planned, config["dataset"].get("validation"))
    model = network(config["model"], parts, config["seed"], hardware, config["dataset"]).train()
    if hardware.ranks.rank:  # torch's own dropout must not draw one mask for all ranks
        torch.manual_seed(draws.key(config["seed"], draws.INIT, hardware.ranks.rank) >> 1)
    prepare = preparation(config["dataset"], parts.shape, model, hardware)
    shown = views(config, parts, seen_as(parts.shape, config["dataset"].get("size"), model))
    tell(config["dataset"], parts.shape, model)
    micro = layers.MicroBatch(config["seed"])
    layers.bind(model, micro)
    flat, chosen = optimizer(config["optimizer"], model)
    loss, plain = losses(config)
    forward = compiled(model, hardware)
    source, rest = resident(parts.train, prepare)
    stream = Stream(
        kept.source(source, hardware.memory_format), rest, config["seed"], hardware.device,
        alternate=prepare.augment is not None and prepare.augment.alternate,
    )  # fmt: skip
    unit, steps = layers.ghost_size(model), planned.needs - {"validation"}
    meter = measuring(planned, flat, chosen, unit) if steps else None
    held = optim.Held(chosen, plan.hold(config["schedule"]))
    step = Step(
        model, forward, flat, chosen, loss, stream, hardware, micro, micro_batch=0,
        clip_norm=config["clip_norm"], ledger=ledger, meter=meter, held=held,
    )  # fmt: skip
    if config.get("rehearsal"):
        witness.attend(config, step, parts)
    shadows = shadowing(config, planned, step, len(parts.train))
    average = ema.Average(flat, config["ema"]) if config["ema"] else None
    return Parts(hardware, parts, prepare, planned, step, average, plain, shadows, shown)
