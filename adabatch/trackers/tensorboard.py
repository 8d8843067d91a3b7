"""TensorBoard event files under <folder>/tensorboard, with position (samples seen) as their step."""

import importlib.util
from pathlib import Path

from adabatch.errors import UserError
from adabatch.trackers import CLOCKS, flat


def check() -> None:
    """Raise UserError, before anything is built, where the package is missing (it is an extra)."""
    if importlib.util.find_spec("tensorboard") is None:
        raise UserError(
            "trackers.tensorboard=true needs the package tensorboard, which is not installed: "
            "pip install tensorboard, or leave trackers.tensorboard=false"
        )


class TensorBoard:
    def __init__(self, folder: Path):
        self.folder = Path(folder) / "tensorboard"
        self._writer = None

    def resume(self, position: int, rows: int) -> None:
        """Later events are hidden (purge_step); the event files of before the resume stay as they are."""
        # Not earlier: this takes a second, and brings TensorFlow where it is installed.
        from torch.utils.tensorboard import SummaryWriter

        # Rows at `position` itself were logged before the checkpoint; with no rows at all nothing is kept.
        self._writer = SummaryWriter(str(self.folder), purge_step=position + 1 if rows else 0)

    def log(self, row: dict) -> None:
        for name, value in flat(row).items():
            if name not in CLOCKS:
                self._writer.add_scalar(name, value, global_step=row["position"])

    def sync(self) -> None:
        self._writer.flush()

    def close(self, exit_code: int = 0) -> None:
        if self._writer is not None:
            self._writer.close()
