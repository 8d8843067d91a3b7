"""Where a comparison and its runs lie, and what Hydra is told of them."""

from pathlib import Path

from omegaconf import OmegaConf, open_dict

from adabatch import runs
from adabatch.compare.arms import key_of
from adabatch.composed import Composed, quoted


class Composer(Composed):
    """Composes within one command."""

    def __init__(self, sweeper, arguments: list[str]):
        super().__init__(sweeper.config, sweeper.hydra_context.config_loader, arguments)
        self.composed: dict = {}

    def launcher(self) -> str:
        return str(self.tree.hydra.launcher._target_)

    def folder(self) -> Path:
        """Where the comparison lies: as hydra.sweep.dir says, else outputs/compare-<overrides>-<hex>, the hex
        of everything that its runs share."""
        named = OmegaConf.to_container(self.tree.hydra.overrides.hydra, resolve=False)
        if any(key_of(line) == "hydra.sweep.dir" for line in named):
            return Path(str(self.tree.hydra.sweep.dir))
        whole = self.config | {"seed": "every"}
        shown = [line for line in self.arguments if line != "experiment=compare"]
        name = runs.folder_name(whole, shown, (), runs.contents(self.config))
        return runs.find(Path(str(self.tree.hydra.sweep.dir)), f"compare-{name}")

    def aim(self, folder: Path) -> None:
        """From now on jobs run inside this folder."""
        line = f"hydra.sweep.dir={quoted(folder)}"
        with open_dict(self.tree):
            lines = OmegaConf.to_container(self.tree.hydra.overrides.hydra, resolve=False)
            kept = [given for given in lines if key_of(given) != "hydra.sweep.dir"]
            self.tree.hydra.overrides.hydra = [*kept, line]
            self.tree.hydra.sweep.dir = str(folder)

    def overrides(self, job) -> list[str]:
        """The whole line of a job."""
        return [*self.line(job.arm.name, job.lines, job.stage), f"seed={job.seed}"]

    def place(self, job, parent: Path) -> Path:
        """The folder of a job's run. Composed once for all seeds: that takes 0.2 s."""
        if job.lines not in self.composed:
            made = self.compose(job.lines)
            self.composed[job.lines] = made, runs.contents(made)
        made, contents = self.composed[job.lines]
        lines = self.overrides(job)
        return runs.find(parent, runs.folder_name(made | {"seed": job.seed}, lines, (), contents))
