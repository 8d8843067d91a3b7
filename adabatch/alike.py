"""Whether all ranks of a run were given the same configuration. torchrun and srun start a command on every
node, and a line that differs in one of them would train with a loss, or a data set, that nobody asked for."""

import json

from adabatch import runs
from adabatch.errors import UserError

# What may differ between nodes: where things lie on them, and what only rank 0 does.
OWN = (
    "trackers",
    "checkpoint",
    "log",
    "wait",
    "restart",
    "dataset.root",
    "dataset.cache",
    "dataset.download",
)
KEY = "configuration"


def leaves(value, path: str = "") -> dict:
    """{"model.width": 16, ...} without the keys of OWN."""
    if runs.excluded(path, OWN):
        return {}
    if isinstance(value, dict) and (value or not path):
        found = [leaves(inner, f"{path}.{key}" if path else str(key)) for key, inner in value.items()]
        return {k: v for part in found for k, v in part.items()}
    return {path: value}


def publish(store, config: dict) -> None:
    """Rank 0's, for the others. store: of the meeting."""
    store.set(KEY, json.dumps(leaves(config), default=str))


def compare(store, config: dict, name: str) -> None:
    """UserError where this rank (its name) was given another configuration than rank 0."""
    theirs = json.loads(store.get(KEY))
    ours = json.loads(json.dumps(leaves(config), default=str))
    nothing = "nothing"
    for key in sorted(theirs.keys() | ours.keys()):
        own, first = ours.get(key, nothing), theirs.get(key, nothing)
        if own != first:
            raise UserError(
                f"all ranks need the same configuration: {key} is {own!r} on {name} and {first!r} on rank 0. "
                "Give the same overrides on every node"
            )
