"""The parts of a run from its configuration: the one place where keys become objects."""

import functools
import inspect
import logging
from dataclasses import dataclass

import torch

from adabatch import (
    checkpoint,
    convolution,
    cutting,
    draws,
    ema,
    finetune,
    ghostnorm,
    layers,
    optim,
    persample,
    plan,
    witness,
)
from adabatch.data.augment import Augment, Prepare
from adabatch.data.resident import resident
from adabatch.data.samples import Samples, TensorSamples, as_samples
from adabatch.data.split import split_train
from adabatch.data.stream import Stream
from adabatch.errors import UserError
from adabatch.flat import Flat
from adabatch.measure import SINGLE, Meter
from adabatch.shadow import Shadows
from adabatch.step import Step
from adabatch.targets import locate, make

log = logging.getLogger("adabatch")


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


def on_device(samples: Samples | None, device) -> Samples | None:
    return samples.to(device) if isinstance(samples, TensorSamples) else samples


def seen_as(shape: tuple, size: int | None, network) -> tuple:
    """Shape of one sample as the network sees it. network: the class, or an instance where only that knows
    its size."""
    if len(shape) != 3:
        return shape
    needed, channels = getattr(network, "size", None), getattr(network, "needs_channels", None) or shape[0]
    if channels != shape[0] and shape[0] != 1:
        name = getattr(network, "__name__", type(network).__name__)
        raise UserError(
            f"{name} takes {channels} channels, the dataset has {shape[0]}: only grey pictures are repeated"
        )
    side = size or (needed if isinstance(needed, int) else 0)
    return (channels, side, side) if side > min(shape[1:]) else (channels, *shape[1:])


def network(node: dict, parts: Data, seed: int, hardware, size: int | None):
    """The network on its device. size: dataset.size, the side that pictures are enlarged to (None: what the
    network asks for). Weights are drawn on the CPU from the seed, so every device starts alike."""
    torch.manual_seed(draws.key(seed, draws.INIT) >> 1)
    shape = seen_as(parts.shape, size, locate(node["_target_"], "model._target_"))
    model = make(node, "model", num_classes=parts.classes, channels=shape[0] if shape else 1, shape=shape)
    if node.get("init_from"):
        weights, head = checkpoint.weights_of(node["init_from"]), node.get("init_head", True)
        finetune.initialise(model, weights, str(node["init_from"]), head)
    finetune.freeze(model, node.get("train", "all"))
    model = model.to(device=hardware.device, dtype=hardware.dtype)
    if hardware.products:
        convolution.adopt(model)
    norms = [norm for norm in layers.ghost_layers(model) if isinstance(norm, layers.GhostBatchNorm)]
    if hardware.native and norms:  # the kernel in C has no L1 form
        hardware.ghost_norm = ghostnorm.adopt(norms, hardware.ranks)
    return model.to(memory_format=hardware.memory_format)


def preparation(node: dict, parts: Data, model, hardware) -> Prepare:
    """Stored samples -> network inputs. Pictures smaller than the network was made for are enlarged, and that
    is said."""
    stored, seen = parts.shape, seen_as(parts.shape, node.get("size"), model)
    image, varied = len(stored) == 3, dict(node.get("augment") or {})
    for key in ("mean", "std"):
        if image and node.get(key) is not None and len(node[key]) not in (1, stored[0]):
            raise UserError(
                f"dataset.{key} has one value, or one for each channel: got {len(node[key])} for pictures of "
                f"{stored[0]}"
            )
    if seen != stored:
        why = "dataset.size" if node.get("size") else f"what {type(model).__name__} asks for"
        log.info(
            "pictures  %s are shown to the network as %s (%s)",
            "x".join(map(str, stored)),
            "x".join(map(str, seen)),
            why,
        )
    return Prepare(
        hardware.device, hardware.dtype, hardware.memory_format, mean=node.get("mean"), std=node.get("std"),
        size=seen[1] if image and seen[1:] != stored[1:] else None, channels=seen[0] if image else None,
        augment=Augment(**varied) if varied and image else None,
    )  # fmt: skip


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
    decays = ({}, {"weight_decay": 0.0})
    split = zip(optim.decayed(model, node.get("decay_norm_and_bias", True)), decays)
    kept = [(group, decay) for group, decay in split if group]
    if not kept:
        raise UserError("the network has no trainable parameter")
    groups, decays = zip(*kept)
    flat = Flat(model, groups)
    ours = node["_target_"].startswith("adabatch.")
    members = [[vector] for vector in flat.vectors()] if ours else [[p for _, p in group] for group in groups]
    params = [{"params": m, **d} for m, d in zip(members, decays)]
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

    return Shadows(plan.shadows(config, samples), step, meter, shared)


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


def build(config: dict, ledger=None, meeting=None) -> Parts:
    """From the resolved configuration. Errors of data come before the network is built. meeting: of several
    ranks (`meeting.py`)."""
    hardware = make(config["hardware"], "hardware")
    hardware.set_up(meeting)
    parts = data(config["dataset"])
    planned = plan.schedule(config, len(parts.train))
    plan.refuse_blind(planned, config["dataset"].get("validation"))
    model = network(config["model"], parts, config["seed"], hardware, config["dataset"].get("size")).train()
    if hardware.ranks.rank:  # torch's own dropout must not draw one mask for all ranks
        torch.manual_seed(draws.key(config["seed"], draws.INIT, hardware.ranks.rank) >> 1)
    prepare = preparation(config["dataset"], parts, model, hardware)
    parts.train, parts.validation, parts.test = (
        on_device(split, hardware.device) for split in (parts.train, parts.validation, parts.test)
    )
    micro = layers.MicroBatch(config["seed"])
    layers.bind(model, micro)
    flat, chosen = optimizer(config["optimizer"], model)
    loss, plain = losses(config)
    forward = compiled(model, hardware)
    stream = Stream(*resident(parts.train, prepare), config["seed"], hardware.device)
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
    return Parts(hardware, parts, prepare, planned, step, average, plain, shadows)
