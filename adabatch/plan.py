"""A run's schedule from its configuration, without torch: before a run, beside it, or instead of it."""

from adabatch.schedules.core import Schedule
from adabatch.targets import make

ADAM_TYPE = (
    "adam",
    "adan",
    "adabelief",
    "yogi",
    "novograd",
    "lamb",
    "rmsprop",
    "adagrad",
    "adadelta",
    "adafactor",
    "lion",
    "sign",
    "rprop",
    "sophia",
    "shampoo",
    "soap",
)


def noise_exponent(target: str) -> float:
    """How the learning rate keeps the gradient noise of a batch: 1 for SGD, 1/2 where steps are divided by a
    root of second moments or by a sign (Malladi et al. 2022, arXiv 2205.10287), told by the class's name."""
    name = target.rsplit(".", 1)[-1].lower()
    return 0.5 if any(known in name for known in ADAM_TYPE) else 1.0


def schedule(config: dict, samples: int) -> Schedule:
    """The schedule of a run over `samples` training samples per epoch. UserError: a setting that no run can
    have."""
    node = dict(config["schedule"])
    for name in ("growth", "decay"):
        node[name] = make(node[name], f"schedule.{name}")
    if node.get("noise_exponent", "auto") == "auto":
        node["noise_exponent"] = noise_exponent(config["optimizer"]["_target_"])
    return make(node, "schedule", samples=samples, epochs=config["epochs"])


def samples_of(dataset: dict) -> int | None:
    """Training samples per epoch as far as the configuration says: None where only the data can tell."""
    if not dataset.get("samples"):
        return None
    left = dataset["samples"] - (dataset.get("validation") or 0)
    return max(0, min(left, dataset.get("limit") or left))
