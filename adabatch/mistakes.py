"""What to say when Hydra refuses a command line: what was wrong, what there is instead, and what was probably
meant."""

import difflib

import yaml
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from adabatch import config, targets
from adabatch.errors import UserError, suggest

# Names from other programs that resemble ours too little to be found by spelling.
ALIASES = {
    **dict.fromkeys(("batch_size", "batch", "bs"), "schedule.base_batch"),
    **dict.fromkeys(("lr", "learning_rate"), "schedule.base_lr"),
    **dict.fromkeys(("gpu", "cuda"), "hardware=gpu"),
    **dict.fromkeys(("net", "arch"), "model"),
    "data": "dataset",
    "amp": "hardware.precision=bf16",
    "wd": "optimizer.weight_decay",
}


def explain(error: BaseException, overrides, config_dir: str | None = None) -> str | None:
    """The message for the user, or None when the error is not the user's but the program's.

    overrides: what the user typed. Composes the defaults again where Hydra has forgotten them (after its
    main).
    """
    chain = _chain(error)
    for link in chain:
        if isinstance(link, UserError):
            return str(link)
    ours = [link for link in chain if isinstance(link, (HydraException, OmegaConfBaseException))]
    if not ours and not _from_hydra(error):
        return None
    try:
        if GlobalHydra.instance().is_initialized():
            found = _culprit(overrides)
        else:
            with config.composer(config_dir):
                found = _culprit(overrides)
    except Exception:  # explaining must not fail: then Hydra's own words have to do
        found = None
    return found or _plain(str(ours[-1] if ours else error))


def _chain(error) -> list[BaseException]:
    links = []
    while error is not None and error not in links:
        links.append(error)
        error = error.__cause__ or error.__context__
    return links


def _from_hydra(error: BaseException) -> bool:
    """A plain ValueError that Hydra raises for options that do not go together, e.g. --cfg with
    --multirun."""
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    where = last.tb_frame.f_globals.get("__name__", "") if last else ""
    return type(error) is ValueError and where.startswith("hydra.")


def _plain(text: str) -> str:
    """Hydra's message without its advice to append unknown keys with '+', which would hide a typo."""
    lines = [line for line in text.splitlines() if line.strip() and "To append to your config" not in line]
    return "\n".join(line for line in lines if "HYDRA_FULL_ERROR" not in line)


def _culprit(overrides) -> str | None:
    """The first override that is wrong, explained; None when each one for itself looks right."""
    loader = GlobalHydra.instance().config_loader()
    groups = [g for g in loader.list_groups("") if g != "hydra"]
    parsed = []
    for override in overrides:
        try:
            parsed.append(config.parse([override])[0])
        except HydraException as error:
            first = _plain(str(error)).splitlines()[0]
            return f"{override!r} cannot be read: {first}. It should be key=value; quote text with , or =."
    choices = {}
    for override in parsed:
        key = override.key_or_group
        if key == "arm":
            line = override.input_line
            return f"{line}: arms are those of a comparison: experiment=compare compare.arms=[...]"
        if key.startswith("hydra/"):
            choices[key] = _options(override)[0]
        if key in groups:
            options = loader.get_group_options(key, ObjectType.CONFIG)
            if override.is_add():
                written = f"{key}={override.value()}"
                return f"{override.input_line}: {key} is always chosen, so it takes no '+': write {written}"
            wanted = _options(override)
            for option in wanted:
                if option not in options and (option != "null" or key in config.GROUPS):
                    return (f"{key}={option}: there is no such {key}.{suggest(option, options)} "
                            f"The options are: {', '.join(options)}.")  # fmt: skip
            choices[key] = wanted[0]
    lines = [f"{group}={option}" for group, option in choices.items()]
    tree = config.load(lines)
    known = config.plain(tree, resolve=False)
    chosen = dict(tree.hydra.runtime.choices)
    paths = {override.key_or_group for override in parsed}
    for override in parsed:
        key = override.key_or_group
        if key.startswith("hydra.launcher.") and (message := _launcher(key.split(".")[2], tree)):
            return message
        if key in groups or key.startswith(("hydra.", "hydra/")) or override.is_add():
            continue
        if (message := _unknown(key, known, groups, chosen, paths)) is not None:
            return message
    return None


def _launcher(name: str, tree) -> str | None:
    """Why the launcher in use has no key of this name; None if it has."""
    known = [str(key) for key in tree.hydra.launcher if key != "_target_"]
    if name in known:
        return None
    if not known:
        return (
            f"hydra.launcher.{name} is for jobs that are submitted: choose hardware=slurm, or "
            "hydra/launcher=local for the background of this machine"
        )
    more = (
        " Any other option of sbatch: hydra.launcher.additional.OPTION=VALUE" if "additional" in known else ""
    )
    return (
        f"hydra.launcher has no key {name!r}.{suggest(name, known)} The keys are: {', '.join(known)}.{more}"
    )


def _options(override) -> list[str]:
    value = override.value()
    if override.is_sweep_override():
        return [str(v) for v in override.sweep_string_iterator()] or ["null"]
    return ["null" if value is None else str(value)]


def _unknown(key: str, known: dict, groups, choices: dict, paths: set) -> str | None:
    """Why `key` is not in the configuration; None if it is."""
    node = known
    path = tuple(key.split("."))
    for depth, part in enumerate(path):
        if isinstance(node, dict) and part in node:
            node = node[part]
            continue
        if depth == 0:
            near = None if part in ALIASES else suggest(part, [*known, *groups])
            return (
                str(targets.unknown((part,), sorted({*known, *groups}), choices))
                if near
                else _far(key, known, groups)
            )
        parent = path[:depth]
        if not isinstance(node, dict):
            return f"unknown key {key!r}: {'.'.join(parent)} is a single value and has no keys"
        if ".".join((*parent, "_target_")) in paths:
            return (f"{key} is not a key of {path[0]}={choices.get(path[0])}; to pass it to your own "
                    f"{'.'.join(parent)}._target_ write it with a plus: +{key}=...")  # fmt: skip
        message = str(targets.unknown(path[: depth + 1], node, choices))
        elsewhere = _options_with(path)
        return message + (f" {path[0]}={' or '.join(elsewhere[:3])} has it." if elsewhere else "")
    return None


def _far(key: str, known: dict, groups) -> str:
    """A first word that resembles nothing: perhaps its last word is a key further in (every=5, batch=64)."""
    inner = {}

    def collect(node, path):
        for name, value in node.items():
            inner.setdefault(name, ".".join((*path, name)))
            if isinstance(value, dict):
                collect(value, (*path, name))

    collect(known, ())
    last = key.split(".")[-1]
    near = difflib.get_close_matches(last, list(inner), n=1, cutoff=0.7)
    meant = ALIASES.get(last) or (inner[near[0]] if near else None)
    hint = f" Did you mean {meant!r}?" if meant else ""
    names = sorted({*known, *groups})
    return f"unknown key {key!r}.{hint} The keys are: {', '.join(names)}."


def _options_with(path: tuple) -> list[str]:
    """Options of our group path[0] whose YAML has the key, e.g. schedule.growth.factor."""
    found = []
    for file in sorted((config.conf_dir() / path[0]).glob("*.yaml")):
        node = yaml.load(file.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        for part in path[1:]:
            node = node.get(part, ...) if isinstance(node, dict) else ...
        if node is not ...:
            found.append(file.stem)
    return found
