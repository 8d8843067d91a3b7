"""Hydra's launchers for adabatch: hydra/launcher=slurm and local (submitit). See conf/hydra/launcher.

Hydra imports this at every start of the command, and takes launchers only from here; what does the work
begins with an underscore, which Hydra leaves alone. There is no __init__.py in hydra_plugins: it is a
namespace.
"""

from hydra.plugins.launcher import Launcher

from adabatch.errors import UserError


class SlurmLauncher(Launcher):
    """Submits the jobs of a multirun to SLURM: one array for each shape of job."""

    cluster = "slurm"

    def __init__(self, **options):
        self.options = options  # each job's own are read from its composed configuration
        self.config = self.hydra_context = None

    def setup(self, *, hydra_context, task_function, config) -> None:
        self.hydra_context, self.config = hydra_context, config
        sweeper = str(config.hydra.sweeper._target_)
        hardware = config.get("hardware") or {}
        if hardware.get("own_process") is False:
            raise UserError(
                "hardware.own_process=false makes runs in the process of the command, and "
                f"hydra/launcher={self.cluster} submits each as a job of its own: leave one of them out"
            )
        if hardware.get("parallel_runs", 1) > 1:
            raise UserError(
                "hardware.parallel_runs is for runs in the foreground; of those that are submitted, "
                "hydra.launcher.array_parallelism says how many run at a time"
            )
        if not config.get("wait") and not sweeper.endswith((".BasicSweeper", ".CompareSweeper")):
            raise UserError(
                f"{sweeper} chooses each job by the results of earlier ones, and wait=false does not wait "
                "for them: "
                "take wait=true"
            )

    def launch(self, job_overrides, initial_job_idx: int) -> list:
        from hydra_plugins.adabatch_launcher import _launch

        return _launch.launch(self, job_overrides, initial_job_idx)


class LocalLauncher(SlurmLauncher):
    """The same in the background of this machine, by submitit's local executor."""

    cluster = "local"
