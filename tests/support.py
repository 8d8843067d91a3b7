"""What several test files share: a resolved configuration, a run in a folder, and comparing two runs."""

import contextlib
import copy
import functools
import os
import signal
import subprocess
from pathlib import Path

import torch

from adabatch import config as configuration
from adabatch import runs

ROOT = Path(__file__).parents[1]
QUIET = ("trackers.wandb.mode=disabled", "hardware=cpu", "hardware.threads=1")
SMALL = (
    "dataset=synthetic",
    "dataset.samples=300",
    "dataset.test_samples=60",
    "dataset.side=8",
    "model=convnet",
)


def resolved(*overrides: str) -> dict:
    """The checked configuration as the command line would pass it to `train`."""
    return copy.deepcopy(_resolved(overrides))


@functools.cache  # Hydra takes 0.2 s
def _resolved(overrides: tuple) -> dict:
    with configuration.composer():
        return configuration.checked(configuration.load([*QUIET, *overrides])).config


def run(folder, *overrides: str, stop=lambda: None) -> dict:
    """Train in `folder` in this process."""
    from adabatch.train import train

    Path(folder).mkdir(parents=True, exist_ok=True)
    config = resolved(*overrides)
    runs.write_yaml(Path(folder) / "config.yaml", {"format": runs.FORMAT, **config})
    runs.write_yaml(Path(folder) / "overrides.yaml", {"format": runs.FORMAT, "family": runs.family(config)})
    return train(config, Path(folder), stop)


def killed(folder, *overrides: str, arrange) -> None:
    """The same in a forked child in which `arrange()` has planted a SIGKILL; asserts that it struck."""
    pid = os.fork()
    if pid == 0:
        try:
            arrange()
            run(folder, *overrides)
        finally:
            os._exit(3)  # not struck
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, (
        f"the child ended with status {status}"
    )


def launched(script: str, *words: str, cwd, seconds: float = 280, **variables) -> subprocess.CompletedProcess:
    """`sh launch/SCRIPT WORDS`, started in the folder cwd; what it started ends with it. variables: of the
    environment."""
    environment = os.environ | {"ADABATCH_DATA": os.environ["ADABATCH_REAL_DATA"]} | variables
    line = ["sh", str(ROOT / "launch" / script), *words]
    given = dict(cwd=cwd, env=environment, text=True, start_new_session=True)
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **given) as started:
        try:
            said = started.communicate(timeout=seconds)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(started.pid, signal.SIGKILL)
    return subprocess.CompletedProcess(line, started.returncode, *said)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def without_time(value):
    """The value with everything measured taken out."""
    if isinstance(value, dict):
        return {k: without_time(v) for k, v in value.items() if k not in runs.MEASURED}
    if isinstance(value, list):
        return [without_time(v) for v in value]
    return value


def outcome(folder) -> dict:
    """Everything of a finished run that must not depend on kills."""
    files = [path for path in (Path(folder) / "weights.pt", Path(folder) / "best.pt") if path.exists()]
    return {
        "rows": without_time(runs.read_rows(folder)),
        "summary": without_time(runs.read_json(Path(folder) / "summary.json")),
        "weights": [
            {name: tensor.numpy().tobytes() for name, tensor in torch.load(path, weights_only=True).items()}
            for path in files
        ],
    }


def difference(a: dict, b: dict) -> float:
    """max |a - b| over all elements / max |b| over the whole model, for two state_dicts."""
    top = max(float((a[k].double() - b[k].double()).abs().max()) for k in b if b[k].numel())
    return top / max(float(b[k].double().abs().max()) for k in b if b[k].numel())


def changed(tree, path: str, value):
    """A copy of nested dictionaries and lists with one value replaced: "points.0.seconds"."""
    found = copy.deepcopy(tree)
    *way, last = [int(k) if k.isdigit() else k for k in path.split(".")]
    node = found
    for key in way:
        node = node[key]
    node[last] = value
    return found
