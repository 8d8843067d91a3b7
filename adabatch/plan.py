"""A run's schedule from its configuration, without torch: before a run, beside it, or instead of it."""

from adabatch import runs, throughput
from adabatch.errors import UserError, suggest
from adabatch.schedules import rehearsal
from adabatch.schedules.closed import Controller
from adabatch.schedules.core import Schedule
from adabatch.schedules.foreign import rehearse
from adabatch.targets import make

HOLDS = ("momentum", "weight_decay")
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
    "muon",
    "normalized",
    "normalised",
)


def noise_exponent(target: str) -> float:
    """How the learning rate keeps the gradient noise of a batch: 1 for SGD, 1/2 where steps are divided by a
    root of second moments, by a sign (Malladi et al. 2022, arXiv 2205.10287) or by the gradient's own norm,
    which where noise rules falls as batch^(-1/2) all the same. Told by the class's name."""
    name = target.rsplit(".", 1)[-1].lower()
    return 0.5 if any(known in name for known in ADAM_TYPE) else 1.0


def factor(node: dict, name: str, **interface):
    """Growth or decay. UserError also where a class of the user's own cannot be made."""
    try:
        return make(node, name, **interface)
    except Exception as error:
        if node["_target_"].startswith("adabatch.") or isinstance(error, UserError):
            raise
        words = f"{type(error).__name__}: {error}"
        raise UserError(f"{name}._target_={node['_target_']} cannot be made: {words}") from error


def schedule(config: dict, samples: int) -> Schedule:
    """The schedule of a run over `samples` training samples per epoch. UserError: a setting that no run can
    have."""
    node = dict(config["schedule"])
    profile = node.pop("profile", None)
    points = throughput.profile(profile) if profile else None
    for name in ("growth", "decay"):
        if name in node:
            node[name] = factor(node[name], f"schedule.{name}", profile=points)
    recorded = {}
    if "run" in node:
        if not node["run"]:
            raise UserError("a replay needs the run to replay: schedule.run=outputs/NAME, a finished run")
        recorded["trajectory"] = runs.trajectory(node["run"])
        recorded["compat"] = (runs.Run(node["run"]).config or {}).get("schedule", {}).get("compat")
    if node.get("noise_exponent", "auto") == "auto":
        node["noise_exponent"] = noise_exponent(config["optimizer"]["_target_"])
    planned = make(node, "schedule", samples=samples, epochs=config["epochs"], **recorded)
    if isinstance(planned, Schedule) and isinstance(planned.growth, Controller):
        rehearse(planned.growth.rule, planned.frame)
    if asked := config.get("rehearsal"):
        ghost = (config.get("model") or {}).get("ghost")
        return rehearsal.rehearse(planned, asked.get("steps") or rehearsal.STEPS, ghost)
    return planned


def hold(node: dict) -> tuple:
    """The horizons that a run holds (`optim.Held`); those of a replay are the recorded run's. UserError:
    there is no such horizon, or a replay was asked for others."""
    asked = node.get("hold") or ()
    if not isinstance(asked, (list, tuple)) or not set(asked) <= set(HOLDS):
        wrong = asked if isinstance(asked, str) else next((h for h in asked if h not in HOLDS), asked)
        words = f"schedule.hold lists some of {', '.join(HOLDS)}, got {asked!r}"
        raise UserError(f"{words}.{suggest(str(wrong), HOLDS)}")
    if not node.get("run"):
        return tuple(asked)
    recorded = (runs.Run(node["run"]).config or {}).get("schedule", {}).get("hold") or ()
    if asked and set(asked) != set(recorded):
        raise UserError(f"a replay holds what the recorded run held, {list(recorded)}, got {list(asked)}")
    return tuple(recorded)


def shadows(config: dict, samples: int) -> dict[str, Schedule]:
    """{name: schedule} of those that look on."""
    return {
        name: schedule(config | {"schedule": node}, samples)
        for name, node in (config.get("shadow") or {}).items()
    }


def refuse_blind(planned: Schedule, validation) -> None:
    """UserError where a schedule follows the validation loss and there is no such split."""
    if "validation" in planned.needs and not validation:
        raise UserError(
            "this schedule decides by the validation loss, and nothing may choose by the test set: set "
            "dataset.validation to a number of samples (they are taken from the training set), got "
            f"{validation}"
        )


def samples_of(dataset: dict) -> int | None:
    """Training samples per epoch as far as the configuration says: None where only the data can tell."""
    if not dataset.get("samples"):
        return None
    left = dataset["samples"] - (dataset.get("validation") or 0)
    return max(0, min(left, dataset.get("limit") or left))
