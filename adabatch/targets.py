"""`_target_` and the keys beside it: each option's YAML is its schema, a class of the user's own brings a
signature.

Where `_target_` is the option's own, exactly the keys of its YAML are known. Where the user replaced it, the
new target is imported and its signature decides: keys left over from the replaced option are dropped (and
listed), keys that the user typed and the signature lacks are refused.
"""

import copy
import importlib
import inspect
import os
import sys

from adabatch.errors import UserError, suggest
from adabatch.labels import TOLD

# Keys that our code reads itself and does not pass to the target, by node. They hold for every option.
GENERIC = {
    "dataset": tuple("samples test_samples classes limit validation size crop_pct mean std augment".split()),
    "model": ("base_lr", "init_from", "init_head", "train", "name", *TOLD),
    "optimizer": ("decay_norm_and_bias", "bias_lr"),
    "schedule": ("hold", "run"),
}
TRAINED = ("all", "last", "norm_last")  # model.train
# What they become where the user's own loader replaces a data set: that one's figures say nothing about other
# data.
NEUTRAL = {
    "samples": None, "test_samples": None, "classes": None, "limit": None, "validation": 0, "size": None,
    "mean": None, "std": None, "crop_pct": None,
    "augment": {"pad": 0, "flip": False, "cutout": 0, "scale": None, "ratio": None},
}  # fmt: skip
STEPS = "adabatch.schedules.Steps"
WORDS = {("dataset", "augment", "flip"): ("alternate",)}  # what is true, false or a word
# Arguments that code passes by itself (data, devices): the configuration must not name them.
INTERFACE = {
    "model": ("num_classes", "channels", "shape"),
    "optimizer": ("params", "lr"),
    "schedule": ("samples", "epochs", "trajectory", "measuring"),
    "loss": ("logits", "labels"),
}


def reach_cwd() -> None:
    """Makes the user's modules in the current directory importable, as `python -m` does, for every way of
    starting."""
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())


def locate(dotted: str, key: str):
    """The callable that `key` = `dotted` names. UserError: no such module or name, or its import fails (with
    cause)."""
    if not isinstance(dotted, str) or "." not in dotted or not all(dotted.split(".")):
        raise UserError(f"{key} names a class or function as module.name, got {dotted!r}")
    reach_cwd()
    parts = dotted.split(".")
    for split in range(len(parts) - 1, 0, -1):
        module = ".".join(parts[:split])
        try:
            found = importlib.import_module(module)
            break
        except ModuleNotFoundError as error:
            if error.name and (module + ".").startswith(error.name + "."):
                missing = error.name  # this module or a parent of it: try the shorter path
                continue
            raise UserError(f"{key}={dotted}: module {module} cannot be imported: {error}") from error
        except Exception as error:
            cause = f"{type(error).__name__}: {error}"
            raise UserError(f"{key}={dotted}: module {module} cannot be imported: {cause}") from error
    else:
        raise UserError(
            f"{key}={dotted}: there is no module {missing!r} in {os.getcwd()}, on PYTHONPATH or installed. "
            "Run the command where the module lies, or install it."
        )
    for name in parts[split:]:
        if not hasattr(found, name):
            known = [n for n in dir(found) if not n.startswith("_")]
            where = getattr(found, "__name__", found)
            raise UserError(f"{key}={dotted}: {where} has no {name!r}.{suggest(name, known)}")
        found = getattr(found, name)
    if not callable(found):
        raise UserError(f"{key}={dotted} is a {type(found).__name__}, not a class or function")
    return found


def parameters(target) -> tuple[list[str], bool]:
    """Names that can be passed by keyword, and whether any other name is taken too (**kwargs)."""
    try:
        found = inspect.signature(target).parameters.values()
    except (
        TypeError,
        ValueError,
    ):  # some builtins have no signature: nothing can be said, so everything goes
        return [], True
    names = [p.name for p in found if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    return names, any(p.kind == p.VAR_KEYWORD for p in found)


def make(node: dict, name: str, **interface):
    """Call a node's `_target_` with its keys, less those that our code reads itself, and with those of
    `interface` that its signature names. name: the node's path in the configuration, for messages."""
    target = locate(node["_target_"], f"{name}._target_")
    names, anything = parameters(target)
    ours = [key for key in GENERIC.get(name, ()) if key not in names]
    kwargs = {key: value for key, value in node.items() if key != "_target_" and key not in ours}
    return target(**kwargs, **{k: v for k, v in interface.items() if k in names or (anything and not names)})


def check_tree(config: dict, schema: dict, typed: set, choices: dict) -> tuple[dict, list[str]]:
    """The configuration with left-over keys dropped, and a note on each node where that happened.

    config: the resolved tree. schema: the tree as the chosen options' YAMLs give it (interpolations
    unresolved). typed: paths (tuples of keys) that the user set on the command line. choices: {group:
    option}, for messages. UserError: an unknown or missing key, a value of another kind, a `_target_` that
    cannot be imported.
    """
    notes = []
    return _node(copy.deepcopy(config), schema, (), typed, choices, notes), notes


def _node(node: dict, known: dict, path: tuple, typed: set, choices: dict, notes: list) -> dict:
    if "_target_" in node and node["_target_"] != known.get("_target_"):
        return _swapped(node, known, path, typed, choices, notes)
    generic = GENERIC.get(".".join(path), ()) if "_target_" in node else ()
    for key, value in node.items():
        if key not in known and key not in generic:
            raise unknown(path + (key,), known, choices)
        if key == "factor" and isinstance(value, list) and node.get("_target_") == STEPS:
            continue  # a growth list: one factor for each milestone
        node[key] = _value(value, known.get(key), path + (key,), typed, choices, notes)
    missing = [key for key in known if key not in node]
    if missing:
        name = ".".join(path + (missing[0],))
        raise UserError(
            f"{name} is missing from the configuration: do not delete it (~{name}), set it to null instead"
        )
    return node


def _value(value, known, path, typed, choices, notes):
    """One value against what the option's YAML has in its place."""
    if isinstance(value, dict):
        if isinstance(known, dict) and (known or "_target_" in value):
            return _node(value, known, path, typed, choices, notes)
        if known is None or isinstance(
            known, dict
        ):  # an open place: anything, and our rules where it names a target
            return _node(value, {}, path, typed, choices, notes) if "_target_" in value else value
    elif value is None and path[0] == "schedule" and len(path) == 2 and isinstance(known, (int, float, dict)):
        kind = "a number" if isinstance(known, (int, float)) else "a node with keys of its own"
        raise UserError(f"{'.'.join(path)} is {kind}, got null")
    elif value is None or known is None or (isinstance(known, str) and "${" in known):
        return value
    name, got = ".".join(path), f"got {value!r}"
    if isinstance(known, bool) or path in WORDS:
        words = WORDS.get(path, ())
        if not isinstance(value, bool) and value not in words:
            rule = f"true, false or {' or '.join(words)}" if words else "true or false"
            raise UserError(f"{name} is {rule}, {got}")
    elif isinstance(known, (int, float)):
        if value != "auto" and (isinstance(value, bool) or not isinstance(value, (int, float))):
            raise UserError(f"{name} is a number, {got}")
    elif isinstance(known, (list, dict)) and not isinstance(value, type(known)):
        raise UserError(
            f"{name} is a {'list' if isinstance(known, list) else 'node with keys of its own'}, {got}"
        )
    elif isinstance(known, str) and isinstance(value, (list, dict)):
        raise UserError(f"{name} is a single value, {got}")
    return value


def _swapped(node: dict, known: dict, path: tuple, typed: set, choices: dict, notes: list) -> dict:
    """A node whose `_target_` is not the option's own: the new target's signature says which keys there
    are."""
    name = ".".join(path)
    dotted = node["_target_"]
    names, open_ended = parameters(locate(dotted, f"{name}._target_"))
    generic, interface = GENERIC.get(name, ()), INTERFACE.get(name, ())
    kept, dropped, taken = {}, [], []
    for key, value in node.items():
        here = path + (key,)
        left_over = key in known and here not in typed
        if key in interface:
            raise UserError(f"{name}.{key} is passed by adabatch itself: leave it out")
        if key in generic and key not in names:
            if not left_over or name not in ("dataset", "model") or (name == "model" and key != "name"):
                kept[key] = _value(value, known.get(key), here, typed, choices, notes)
            elif name == "dataset":
                value = _value(value, known.get(key), here, typed, choices, notes)
                kept[key] = _neutral(key, value, here, typed)
        elif key == "_target_":
            kept[key] = value
        elif key in names or (open_ended and not left_over):
            inner = known.get(key)
            nested = isinstance(value, dict) and "_target_" in value
            inner = inner if isinstance(inner, dict) else {}
            kept[key] = _node(value, inner, here, typed, choices, notes) if nested else value
            taken += [f"{key}={value}"] if left_over and not nested else []
        elif left_over:
            dropped.append(key)
        else:
            takes = [n for n in names if n not in interface]
            raise UserError(
                f"{name}.{key}: {dotted} takes no argument {key!r}.{suggest(key, [*takes, *generic])}"
                f" It takes: {', '.join(takes) or 'none'}."
            )
    left = f"left over from {path[0]}={choices.get(path[0], 'the replaced class')}"
    if dropped:
        notes.append(f"{name}._target_={dotted} does not take {', '.join(dropped)}: dropped, {left}")
    if taken:
        notes.append(f"{name}._target_={dotted} is given {', '.join(taken)}, {left}")
    return kept


def _neutral(key: str, value, path: tuple, typed: set):
    """A generic key of a replaced data set that the user did not type."""
    if not isinstance(value, dict):
        return NEUTRAL[key]
    return {k: v if path + (k,) in typed else NEUTRAL[key].get(k, v) for k, v in value.items()}


def unknown(path: tuple, known, choices: dict) -> UserError:
    """The error for a key that does not exist; `known`: the keys there are beside it."""
    parent, key = ".".join(path[:-1]), path[-1]
    names = [k for k in known if k != "_target_"]
    if not parent:
        return UserError(f"unknown key {key!r}.{suggest(key, known)} The keys are: {', '.join(names)}.")
    near = suggest(key, names)
    if near:
        near = near.replace("Did you mean '", f"Did you mean '{parent}.")
    group = path[0]
    where = f"{parent} ({group}={choices[group]})" if choices.get(group) else parent
    target = known.get("_target_") if isinstance(known, dict) else None
    listing = ", ".join(names) or (f"none ({target})" if target else "none")
    return UserError(f"unknown key {'.'.join(path)!r}.{near} The keys of {where} are: {listing}.")
