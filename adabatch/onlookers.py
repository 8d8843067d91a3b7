"""What `shadow:` in the configuration asks for: whole nodes of the schedules that look on."""

import copy

from omegaconf import OmegaConf

from adabatch import targets
from adabatch.errors import UserError, suggest

# What a shadow takes from the schedule that drives: rules are compared at equal conditions.
SHARED = (
    "base_batch", "base_lr", "lr_batch", "max_batch", "multiple", "noise_exponent", "warmup_epochs",
    "warmup_from", "warmup_rule", "stretch", "compat", "decay", "noise_group", "measure_every",
    "differenced", "preconditioned",
)  # fmt: skip


def shadows(tree: dict, choices: dict, options: list, schema) -> dict:
    """{name: schedule node} of `shadow`: a list of options or {option: {key: value}}; the driver as it is.

    options: of the group schedule. schema: as `config.schema`.
    """
    asked = tree.get("shadow") or {}
    if not isinstance(asked, dict):
        if not isinstance(asked, list) or not all(isinstance(name, str) for name in asked):
            raise UserError(
                f"shadow is a list of options of schedule or {{option: {{key: value}}}}, got {asked!r}"
            )
        asked = dict.fromkeys(asked)
    found = {}
    for name, keys in asked.items():
        if not isinstance(keys, dict | None):
            raise UserError(f"shadow.{name} is a node with keys of schedule={name}, got {keys!r}")
        if name not in options:
            raise UserError(f"shadow={name}: there is no such schedule.{suggest(name, options)}")
        if name == choices.get("schedule"):
            found[name] = copy.deepcopy(tree["schedule"])
            continue
        node = copy.deepcopy(schema(choices | {"schedule": name})["schedule"])
        shared = [key for key in SHARED if key in node and key in tree["schedule"]]
        if (node.get("growth") or {}).get("exact"):
            shared.remove("measure_every")  # a sum over an epoch takes every step, whoever drives
        node |= {key: tree["schedule"][key] for key in shared}
        node = _resolved(node, tree)
        changes = {("schedule", *path) for path in _paths(keys or {})}
        merged = {"schedule": OmegaConf.to_container(OmegaConf.merge(node, keys or {}))}
        inner, _ = targets.check_tree(merged, {"schedule": node}, changes, {"schedule": name})
        found[name] = inner["schedule"]
    return found


def _resolved(node: dict, tree: dict) -> dict:
    """A node of an option's YAML with its interpolations read from the resolved tree."""
    whole = OmegaConf.create({**{k: v for k, v in tree.items() if k != "schedule"}, "schedule": node})
    return OmegaConf.to_container(whole.schedule, resolve=True)


def _paths(keys: dict, path: tuple = ()):
    for key, value in keys.items():
        yield (*path, key)
        if isinstance(value, dict):
            yield from _paths(value, (*path, key))
