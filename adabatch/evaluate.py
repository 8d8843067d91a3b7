"""adabatch-evaluate RUN...: loss and error of a run's kept weights on its data, counted anew."""

import json
import sys
from pathlib import Path

from adabatch import arguments, runs, targets
from adabatch.errors import UserError

TRUSTED = tuple(
    f"adabatch.{part}." for part in "models data schedules optim muon hardware losses step".split()
)
TRUSTED += ("torch.nn.", "torch.optim.")


def parser() -> arguments.Parser:
    about = "Evaluate the kept weights of finished or unfinished runs on their own data."
    p = arguments.Parser("adabatch-evaluate", about, "")
    p.add_argument("runs", nargs="+", metavar="RUN", help="a run's folder")
    p.add_argument("--split", choices=("test", "validation"), default="test")
    p.add_argument(
        "--weights", metavar="FILE", help="a state_dict file; default: best.pt, else the last weights"
    )
    p.add_argument("--device", default=None, help="auto, cpu, cuda:N; default: as the run was")
    p.add_argument("--root", default=None, help="folder of the data sets, if not where the run had them")
    p.add_argument("--json", action="store_true", help="one JSON object per run instead of a line")
    p.add_argument(
        "--trust", action="store_true", help="run code that the folder names outside adabatch and torch"
    )
    return p


def foreign(node) -> list[str]:
    """The `_target_`s in a configuration that are no parts of ours or torch's: evaluating would run them."""
    if isinstance(node, list):
        return [name for item in node for name in foreign(item)]
    if not isinstance(node, dict):
        return []
    own = node.get("_target_")
    found = [] if own is None or _trusted(own) else [str(own)]
    return found + [name for value in node.values() for name in foreign(value)]


def _trusted(target) -> bool:
    """Whether a name stands for something that was defined where the name says:
    `adabatch.data.cache.os.system` was not."""
    if not isinstance(target, str) or not target.startswith(TRUSTED):
        return False
    defined = f"{getattr(targets.locate(target, '_target_'), '__module__', None)}."
    return defined.startswith(TRUSTED)


def checked(folder: str, trust: bool) -> dict:
    """The run's configuration, if it may be run."""
    config = runs.Run(folder).config
    if config is None:
        raise UserError(f"{folder} has no config.yaml: it is no run of adabatch")
    if not trust and (names := foreign(config)):
        raise UserError(
            f"{folder} names code outside adabatch: {', '.join(names)}. If you wrote it or trust it: --trust"
        )
    return config


def evaluate(folder, config: dict, split: str = "test", weights=None) -> dict:
    """{"run", "weights", "split", "samples", "loss", "error"} of one run; imports torch."""
    from adabatch import checkpoint, evaluation, memory
    from adabatch.build import build

    source = Path(weights or folder)
    kept = checkpoint.weights_of(source, ("best.pt", *checkpoint.LAST))
    config["model"]["init_from"] = None
    parts = build(config)
    checkpoint.fit(parts.step.model, kept, str(source))
    samples = parts.data.test if split == "test" else parts.data.validation
    if samples is None:
        raise UserError(f"{folder} was trained without dataset.validation: --split test")
    chunk = evaluation.chunk_of(memory.choose(parts.step, parts.schedule, config, parts.data.classes))
    loss, error = evaluation.evaluate(
        parts.step.model, parts.hardware, samples, parts.prepare, parts.loss, chunk, parts.views
    )
    for each in (parts.data.train, parts.data.test):
        each.close()
    return dict(
        run=str(folder), weights=str(source), split=split, samples=len(samples), loss=loss, error=error
    )


def main(line=None) -> None:
    """The console script."""
    arguments.main(command, line)


def command(line: list[str]) -> int:
    """Runs the command line; exit code 0 (evaluated), 2 (the user's mistake) or 130 (interrupted)."""
    try:
        asked = parser().parse_args(line)
        for folder, config in [(folder, checked(folder, asked.trust)) for folder in asked.runs]:
            if asked.device:
                config["hardware"]["device"] = asked.device
            if asked.root:
                config["dataset"]["root"] = asked.root
            found = evaluate(folder, config, asked.split, asked.weights)
            if asked.json:
                print(json.dumps(found))
            else:
                error = "" if found["error"] is None else f"error {100 * found['error']:.2f} %  "
                print(
                    f"{error}loss {found['loss']:.5f}  {found['samples']:,} {found['split']} samples  "
                    f"{folder}"
                )
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("adabatch-evaluate: interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    main()
