"""The configuration: where it lies, its check before anything is made, and the run folder that follows.

Hydra composes; it asks our resolvers for the folder, and they refuse a configuration that is not good. So
nothing is left behind by a command that was refused, and torch is not imported before.
"""

import contextlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from adabatch import onlookers, profiles, published, runs, sanity, targets
from adabatch.errors import UserError
from adabatch.sanity import GROUPS

BUNDLES = ("experiment", "arm")  # bundles of overrides, not schema
_swept: list[str] = []  # the keys that this process's multirun varies
_checked: dict = {}  # what was checked in this process, by what the user typed
_schemas: dict = {}
_read: list = []  # what the composers in use read: our YAMLs by path, time and size, or what equals nothing


@dataclass(frozen=True)
class Checked:
    """A good configuration: resolved, left-over keys dropped; the folder's name; what to tell the user."""

    config: dict
    name: str
    notes: tuple


def conf_dir() -> Path:
    """The YAMLs: inside the installed package (a wheel), else beside it (a checkout)."""
    here = Path(__file__).resolve().parent
    for place in (here / "conf", here.parent / "conf"):
        if (place / "config.yaml").is_file():
            return place
    raise RuntimeError(f"adabatch was installed without its YAMLs: no conf/config.yaml in or beside {here}")


@contextlib.contextmanager
def composer(config_dir: str | None = None):
    """Hydra ready to compose our configuration, also inside a program with its own. config_dir: as -cd."""
    # What hydra.initialize_config_dir does, plus the directory of -cd, which it has no argument for.
    from hydra import version
    from hydra._internal.config_search_path_impl import SearchPathQuery
    from hydra._internal.hydra import Hydra
    from hydra._internal.utils import create_config_search_path

    _checked.clear()  # another composition may read other files
    if config_dir:
        _schemas.clear()
    before = GlobalHydra.instance().hydra
    found = [(str(path), path.stat()) for path in sorted(conf_dir().rglob("*.yaml"))]
    _read.append(object() if config_dir else tuple((p, s.st_mtime_ns, s.st_size) for p, s in found))
    GlobalHydra.instance().clear()
    try:
        version.setbase("1.3")
        path = create_config_search_path(str(conf_dir()))
        if config_dir:
            where = f"file://{os.path.abspath(config_dir)}"
            path.prepend(provider="command-line", path=where, anchor=SearchPathQuery(provider="schema"))
        Hydra.create_main_hydra2("adabatch", path)
        yield
    finally:
        GlobalHydra.instance().hydra = before
        _read.pop()


def load(overrides) -> DictConfig:
    """The composed configuration with Hydra's own node; inside `composer`."""
    return compose("config", overrides=list(overrides), return_hydra_config=True)


def parse(overrides):
    """The overrides as Hydra's parser understands them. HydraException where it does not."""
    return OverridesParser.create().parse_overrides(list(overrides))


def lenient(overrides) -> list[str]:
    """The overrides with what Hydra is needlessly strict about put right.

    A value that names an existing file (or FILE@KEY, a profile in it) is quoted: run folders have '=' in
    their names, and `model.init_from=outputs/model=vgg-1234abcd` should simply work. `+model.width=3` becomes
    `++model.width=3`: whether the replaced class happened to have a width is nothing that a user of another
    class should have to know. `hydra.launcher.additional` takes any option of sbatch.
    """
    result = []
    for override in overrides:
        key, _, value = override.partition("=")
        if "=" in value and "'" not in value and profiles.split(value)[0].exists():
            override = f"{key}='{value}'"
        if re.match(r"\+\w+\.", key):
            override = f"+{override}"
        elif key.startswith("hydra.launcher.additional.") or override.startswith(
            "hydra.launcher.additional={"
        ):
            override = f"++{override}"
        result.append(override)
    return result


def typed(overrides) -> set:
    """Paths (tuples of keys) of the values that the user set; a dictionary counts as each of its leaves."""
    found = set()

    def leaves(path, value):
        found.add(path)
        if isinstance(value, dict):
            for key, inner in value.items():
                leaves(path + (str(key),), inner)

    for override in parse(overrides):
        leaves(tuple(override.key_or_group.split(".")), override.value())
    return found


def schema(choices: dict, config_name: str = "config") -> dict:
    """What the chosen options' YAMLs say, without overrides: {key: value}, interpolations unresolved."""
    chosen = {
        k: v for k, v in choices.items() if not k.startswith("hydra/") and k.split("/")[-1] not in BUNDLES
    }
    source = _read[-1] if _read else id(GlobalHydra.instance().hydra)
    key = (config_name, tuple(sorted(chosen.items(), key=str)), source)
    if key not in _schemas:
        lines = [f"{k}={'null' if v is None else v}" for k, v in chosen.items()]
        hydra = GlobalHydra.instance().hydra
        try:
            tree = hydra.compose_config(config_name, lines, RunMode.RUN, from_shell=False)
        except HydraException:  # a group that only `+` brought in: it is no part of the schema
            base = hydra.compose_config(config_name, [], RunMode.RUN, from_shell=False).hydra.runtime.choices
            lines = [line for line in lines if line.split("=")[0] in base]
            tree = hydra.compose_config(config_name, lines, RunMode.RUN, from_shell=False)
        _schemas[key] = plain(tree, resolve=False)
    return _schemas[key]


def plain(tree: DictConfig, resolve: bool = True) -> dict:
    """The tree without Hydra's own node as plain dictionaries. UserError: a missing or unresolvable value."""
    ours = OmegaConf.masked_copy(tree, [key for key in tree if key != "hydra"])
    try:
        return OmegaConf.to_container(ours, resolve=resolve, throw_on_missing=resolve)
    except OmegaConfBaseException as error:
        first = str(error).strip().splitlines()[0]
        raise sanity.unresolved(error.full_key or "the configuration", first) from error


def check(config: DictConfig, overrides, known: dict, choices: dict | None = None) -> Checked:
    """The configuration, if it is good; a UserError that says what is not, otherwise.

    config: composed tree. overrides: what the user typed. known: see `schema`. choices: {group: option}.
    """
    tree, notes = targets.check_tree(plain(config), known, typed(overrides), dict(choices or {}))
    options = sorted(file.stem for file in (conf_dir() / "schedule").glob("*.yaml"))
    tree["shadow"] = onlookers.shadows(tree, choices or {}, options, schema)
    sanity.sane(tree)
    tree["options"] = {
        group: (choices or {}).get(group)
        if tree[group]["_target_"] == known[group]["_target_"]
        else tree[group]["_target_"]
        for group in GROUPS
    }
    swept = [o for o in overrides if o.lstrip("+").partition("=")[0] in _swept]
    apart = [o for o in swept if runs.excluded(o.lstrip("+").partition("=")[0], runs.listed_for(tree))]
    name = runs.folder_name(tree, overrides, apart, runs.contents(tree))
    return Checked(tree, name, tuple(notes))


def typed_lines(hydra: DictConfig) -> list[str]:
    """The overrides that the user typed, from Hydra's node; an interpolation in them is text here."""
    return OmegaConf.to_container(hydra.overrides.task, resolve=False)


def checked(root: DictConfig, hydra: DictConfig | None = None) -> Checked:
    """`check` of the tree that Hydra is working with, once per command line. hydra: if not in the tree."""
    hydra = root.hydra if hydra is None else hydra
    overrides = typed_lines(hydra)
    choices = OmegaConf.to_container(hydra.runtime.choices)
    key = (tuple(overrides), tuple(sorted(choices.items(), key=str)), tuple(_swept), os.getcwd())
    if key not in _checked:
        if len(_checked) > 1000:
            _checked.clear()
        _checked[key] = check(root, overrides, schema(choices, hydra.job.config_name or "config"), choices)
    return _checked[key]


def check_sweep(root: DictConfig) -> None:
    """Every job of a multirun is checked before the first one starts; also notes which keys are swept."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    sweeper, here = root.hydra.sweeper, str(root.hydra.launcher._target_).endswith(".BasicLauncher")
    params = sweeper.get("params") or {}
    overrides = parse([f"{k}={v}" for k, v in params.items()] + typed_lines(root.hydra))
    _swept[:] = [o.key_or_group for o in overrides if o.is_sweep_override()]
    if not str(sweeper.get("_target_")).endswith(".BasicSweeper"):
        return choosing(root)
    jobs = BasicSweeper.split_arguments(overrides, None)[0]
    for number, job in enumerate(jobs):
        try:
            tree = GlobalHydra.instance().config_loader().load_sweep_config(root, list(job))
            one_launcher(root, tree)
            good = checked(tree)
            why = here and published.missing(good.config)
            if why and not (folder(tree, str(root.hydra.sweep.dir)) / "summary.json").exists():
                raise why  # a finished run needs no data
        except UserError as error:
            raise UserError(f"job {number} of {len(jobs)} ({' '.join(job)}): {error}") from None


def choosing(root: DictConfig) -> None:
    """UserError where a sweeper that chooses its jobs by the results of others cannot."""
    name = str(root.hydra.sweeper.get("_target_"))
    if name.endswith(".CompareSweeper"):
        return  # it looks into the folders
    if not root.dataset.get("validation"):
        raise UserError(
            f"{name} chooses by the error, and nothing may choose by the test set: set dataset.validation "
            f"to a number of samples, got {root.dataset.get('validation')}"
        )
    if (root.hardware.get("parallel_runs") or 1) > 1:
        raise UserError(f"{name} waits for each run: hardware.parallel_runs=1")


def one_launcher(root: DictConfig, job: DictConfig) -> None:
    """UserError where a job would choose another launcher than the multirun, which has one, has."""
    ours, wanted = (tree.hydra.launcher.get("_target_") for tree in (root, job))
    if ours != wanted:
        raise UserError(
            f"one launcher starts all jobs of a multirun ({ours}), and this one asks for {wanted}: "
            "do not sweep over what is submitted and what is not, give two commands"
        )


def one_comparison(root: DictConfig) -> None:
    """UserError where keys of a comparison are given and none is made, or one without a multirun."""
    if str(root.hydra.sweeper._target_).endswith(".CompareSweeper"):
        if root.hydra.mode != RunMode.MULTIRUN and not root.compare.arm:
            name = f"experiment={root.hydra.runtime.choices.get('experiment')}"
            raise UserError(f"{name} runs every arm with several seeds: adabatch -m {name} ...")
        return
    given = next((o for o in typed_lines(root.hydra) if o.lstrip("+~").startswith("compare.")), None)
    if given and not root.compare.arm:
        raise UserError(f"{given} is for a comparison: adabatch -m experiment=compare ...")


def _check(_root_) -> str:
    one_comparison(_root_)
    if _root_.hydra.mode == RunMode.MULTIRUN:
        check_sweep(_root_)
    else:
        _swept.clear()
        if not str(_root_.hydra.launcher._target_).endswith(".BasicLauncher"):
            option = _root_.hydra.runtime.choices["hydra/launcher"]
            raise UserError(f"hydra/launcher={option} starts the jobs of a multirun: adabatch -m ...")
        checked(_root_)
    return "good"


def folder(root: DictConfig, parent: str = "outputs") -> Path:
    """The run's folder inside `parent`: an existing one of the same identity, else a new name."""
    return runs.find(Path(parent), checked(root).name)


class Gate:
    """A Hydra callback that does nothing: Hydra builds it before any folder, and so `${adabatch.check:}`."""

    def __init__(self, **_):
        pass

    def __getattr__(self, name):
        if name.startswith("on_"):
            return lambda **_: None
        raise AttributeError(name)


def _subdir(swept, *, _root_) -> str:
    _swept[:] = swept  # this may be another process than the one that knows what is swept
    return folder(_root_, str(_root_.hydra.sweep.dir)).name


def register() -> None:
    """The resolvers that conf/config.yaml uses."""
    add = OmegaConf.register_new_resolver
    add("adabatch.check", _check, replace=True)
    add("adabatch.run_dir", lambda parent, *, _root_: str(folder(_root_, parent)), replace=True)
    add("adabatch.subdir", _subdir, replace=True)
    # Cached by OmegaConf and copied into every job, so that a job in another process knows what was swept.
    add("adabatch.swept", lambda: list(_swept), use_cache=True, replace=True)


register()
