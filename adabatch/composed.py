"""A comparison's command as Hydra composes it: its configuration and its arms."""

import os

import yaml
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.types import Quote, QuotedString
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from adabatch import config, mistakes, plan
from adabatch.compare import tabulated
from adabatch.compare.arms import Arm, key_of
from adabatch.compare.asked import Asked, asked
from adabatch.compare.making import Maker
from adabatch.errors import UserError


def quoted(text) -> str:
    """A text as the value of an override, whatever quotes and backslashes it has."""
    return QuotedString(str(text), Quote.single).with_quotes()


class Composed:
    """The command of a comparison, and what it asks Hydra: its configuration, an arm's, files of conf/arm.

    tree: the composed configuration. loader: Hydra's. arguments: the overrides. UserError: one that a
    comparison cannot have.
    """

    def __init__(self, tree, loader, arguments: list[str]):
        self.tree, self.loader, self.arguments = tree, loader, arguments
        self.choices = OmegaConf.to_container(tree.hydra.runtime.choices)
        self.option = self.choices["schedule"]
        self.refuse()
        self.typed = [line for line in arguments if key_of(line).startswith("schedule.")]
        self.common = [line for line in arguments if not key_of(line).startswith("schedule")]
        self.config = config.checked(tree).config
        self.asked: Asked = asked(self.config["compare"], self.option)

    def line(self, name: str, lines, stage: str = "verdict") -> list[str]:
        """The whole line of an arm's job but for its seed."""
        return [*self.common, *lines, f"compare.arm={quoted(name)}", f"compare.stage={stage}"]

    def refuse(self) -> None:
        """UserError for overrides that a comparison cannot have."""
        for override in config.parse(self.arguments):
            key = override.key_or_group
            if override.is_sweep_override():
                raise UserError(
                    f"{override.input_line}: a comparison sweeps over its arms and seeds only; give a "
                    "command for each. Schedules: compare.adaptive=[adabatch,noise_scale]; seeds: "
                    "compare.seeds=10"
                )
            if key == "seed":
                raise UserError(
                    f"{override.input_line}: a comparison takes seeds 0, 1, ...: compare.seeds=10"
                )
            if key == "restart" and override.value():
                raise UserError(
                    "restart=true would begin every run of the comparison again: name another folder "
                    "(hydra.sweep.dir=...), or remove a single run's folder"
                )
            if key in ("compare.arm", "compare.stage"):
                raise UserError(f"{key} is set by the comparison itself: leave it out")

    def schema(self, option: str) -> dict | None:
        """The node of a schedule's YAML; None where there is none of that name."""
        if option not in self.options("schedule"):
            return None
        return config.schema({**self.choices, "schedule": option})["schedule"]

    def options(self, group: str) -> list[str]:
        return self.loader.get_group_options(group, ObjectType.CONFIG)

    def load(self, name: str) -> tuple[dict, str | None] | None:
        """The content of arm/NAME.yaml, and the file where it is the user's own. UserError: it cannot be
        read, or two have the name, of which Hydra would take ours without a word."""
        sources = [s for s in self.loader.repository.get_sources() if s.is_config(f"arm/{name}")]
        if not sources:
            return None
        real = {os.path.realpath(os.path.join(source.path, "arm", f"{name}.yaml")) for source in sources}
        files, ours = sorted(real), os.path.realpath(config.conf_dir())
        own = [os.path.relpath(f) for f in files if os.path.dirname(os.path.dirname(f)) != ours]
        if len(files) > 1:
            raise UserError(f"{own[-1]}: an arm called {name} is there already: give the file another name")
        try:
            found = OmegaConf.to_container(sources[0].load_config(f"arm/{name}").config, resolve=True)
        except (yaml.YAMLError, OmegaConfBaseException, OSError, UnicodeError) as error:
            at = getattr(error, "problem_mark", None)
            why = f"line {at.line + 1}: {error.problem}" if at else str(error).splitlines()[0]
            raise UserError(
                f"{os.path.relpath(files[0])} cannot be read ({why}): correct the YAML"
            ) from error
        if not isinstance(found, dict):
            raise UserError(
                f"{os.path.relpath(files[0])} says overrides, or control and of, by these keys, got {found!r}"
            )
        return found, own[0] if own else None

    def compose(self, lines) -> dict:
        """The checked configuration of an arm."""
        try:
            return config.checked(self.loader.load_sweep_config(self.tree, [*self.common, *lines])).config
        except Exception as error:  # of the command's own overrides all is known to be good
            if (why := mistakes.explain(error, lines)) is None:
                raise
            raise UserError(why) from error

    def arms(self) -> tuple[list[Arm], list[str]]:
        """The arms, and what is to be said of them."""
        if self.asked.table:
            samples = plan.samples_of(self.config["dataset"])
            return tabulated.arms(self.asked, self.arguments, samples, self.compose)
        known = sorted({*self.options("arm"), *self.options("schedule")})
        ours = (self.compose, self.schema, self.load)
        return Maker(self.config, self.option, self.typed, self.asked, *ours, known).all()
