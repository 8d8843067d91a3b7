"""Hydra's sweeper for experiment=compare: arms, tuning, blocks, second stage. See docs/compare.md.

Hydra imports this at every start of the command; what does the work begins with an underscore, which Hydra
leaves alone.
"""

from hydra.plugins.sweeper import Sweeper


class CompareSweeper(Sweeper):
    """Expands `compare` into runs and starts them with the launcher that was chosen."""

    def __init__(self):
        self.hydra_context = self.config = self.task_function = None

    def setup(self, *, hydra_context, task_function, config) -> None:
        self.hydra_context, self.config, self.task_function = hydra_context, config, task_function

    def sweep(self, arguments):
        from hydra_plugins.adabatch_sweeper import _sweep

        return _sweep.run(self, arguments)
