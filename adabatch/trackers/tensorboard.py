"""TensorBoard event files under <folder>/tensorboard, with position (samples seen) as their step.

At the end of the run what arms differ in and are compared by is written as hparams: the arm, the seed, every
key of model, schedule and optimizer that holds a number or a word; errors and times.
"""

import importlib.util
from pathlib import Path

from adabatch import labels
from adabatch.errors import UserError
from adabatch.trackers import CLOCKS, flat

FIGURES = (
    "final_test_error", "best_test_error", "final_validation_error", "best_validation_error",
    "train_seconds", "images_per_second",
)  # fmt: skip
GROUPS = ("model", "schedule", "optimizer")


def settings(config: dict) -> dict:
    """{dotted key: value} of the configuration, as hparams takes them: numbers, truth values and words."""
    found = {"arm": labels.arm(config), **{key: config.get(key) for key in ("seed", "epochs")}}
    found |= {key: (config.get("options") or {}).get(key) for key in ("model", "dataset")}
    waiting = [(key, config.get(key)) for key in GROUPS]
    while waiting:
        name, value = waiting.pop(0)
        if isinstance(value, dict):
            waiting += [(f"{name}.{key}", inner) for key, inner in value.items() if key not in labels.TOLD]
        elif "." in name:
            found[name] = value
    return {key: value for key, value in found.items() if isinstance(value, (bool, int, float, str))}


def check() -> None:
    """Raise UserError, before anything is built, where the package is missing (it is an extra)."""
    if importlib.util.find_spec("tensorboard") is None:
        raise UserError(
            "trackers.tensorboard=true needs the package tensorboard, which is not installed: "
            "pip install tensorboard, or leave trackers.tensorboard=false"
        )


class TensorBoard:
    def __init__(self, folder: Path, config: dict):
        self.folder, self.config = Path(folder) / "tensorboard", config
        self._writer = None

    def resume(self, position: int, rows: int) -> None:
        """Later events are hidden (purge_step); the event files of before the resume stay as they are."""
        # Not earlier: this takes a second, and brings TensorFlow where it is installed.
        from torch.utils.tensorboard import SummaryWriter

        # Rows at `position` itself were logged before the checkpoint; with no rows at all nothing is kept.
        self._writer = SummaryWriter(str(self.folder), purge_step=position + 1 if rows else 0)

    def log(self, row: dict) -> None:
        for name, value in flat(row).items():
            if name not in CLOCKS:  # the figures that hparams names are scalars too
                self._writer.add_scalar(name, value, global_step=row["position"])
        if row.get("event") == "end":
            self._hparams(row)

    def _hparams(self, figures: dict) -> None:
        """Into the run's own event file: `SummaryWriter.add_hparams` would begin another run for them."""
        from torch.utils.tensorboard.summary import hparams

        metrics = {name: value for name, value in flat(figures).items() if name in FIGURES}
        for summary in hparams(settings(self.config), metrics):
            self._writer.file_writer.add_summary(summary)

    def sync(self) -> None:
        self._writer.flush()

    def close(self, exit_code: int = 0) -> None:
        if self._writer is not None:
            self._writer.close()
