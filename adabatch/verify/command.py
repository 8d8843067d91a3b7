"""adabatch-verify: the promises of exactness, tried on the run that the same overrides name.

Exit codes: 0 all promises kept, 1 a promise broken (or a fault of the program), 2 the user's mistake (one
message), 130 interrupted. Writes nothing but what --keep names.
"""

import contextlib
import json
import signal
import tempfile
from pathlib import Path

from adabatch import arguments, commandline, config
from adabatch.commandline import Parser
from adabatch.errors import UserError, suggest
from adabatch.verify.check import KINDS

HELP = """examples:
  adabatch-verify                                     the default run: about 15 short runs, one by one
  adabatch-verify model=resnet schedule=adabatch      any run: the overrides are those of `adabatch`
  adabatch-verify model._target_=my.Net --only twice,killed
  adabatch-verify --json                              for machines

A run of 12 steps with a change of batch is made again and again: twice the same, killed and resumed, in other
micro-batches, in several processes. What is promised of each: docs/verify.md."""


def parser() -> Parser:
    p = Parser("adabatch-verify", "Try the promises of exactness on your own run.", HELP)
    p.add_argument("--steps", default="12", metavar="N", help="steps of a run, 4 or more (default: 12)")
    p.add_argument("--processes", default="2,3", metavar="N,...", help="numbers of processes (default: 2,3)")
    p.add_argument(
        "--micro-batches", metavar="N,...", help="micro-batches to compare (default: two are chosen)"
    )
    p.add_argument("--only", metavar="KIND,...", help=f"some of {', '.join(KINDS)}")
    p.add_argument("--keep", metavar="DIR", help="keep the runs in this new folder")
    return p


def numbers(text: str | None, option: str, least: int = 1) -> list[int]:
    """ "2,3" -> [2, 3]."""
    parts = [part.strip() for part in (text or "").split(",") if part.strip()]
    if any(not part.isdigit() or int(part) < least for part in parts):
        raise UserError(f"{option} lists whole numbers from {least}, got {text!r}")
    return [int(part) for part in parts]


def main(line=None) -> None:
    """The console script."""
    arguments.main(command, line)


def command(line: list[str]) -> int:
    """Runs the command line and returns its exit code."""
    with interruptible():
        return commandline.answered(parser(), line, verified)


@contextlib.contextmanager
def interruptible():
    """The first SIGTERM ends the command as Ctrl-C does; what is running is then being ended."""

    def noted(number, _frame):
        signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, noted)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def verified(asked, overrides: list[str]) -> int:
    """Checks the command line, makes the runs, prints the verdict."""
    (steps,) = numbers(asked.steps, "--steps", 4)[:1] or [12]
    worlds, micros = numbers(asked.processes, "--processes"), numbers(asked.micro_batches, "--micro-batches")
    rehearsal = [f"++rehearsal={{steps:{steps}}}"]
    with config.composer(asked.config_dir):
        good = config.checked(config.load([*overrides, *rehearsal]))
    kinds = chosen(asked.only)
    base = new_folder(asked.keep) if asked.keep else None
    with contextlib.ExitStack() as stack:
        if base is None:
            base = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="adabatch-verify-")))
        return judged(asked, good.config, overrides, base, steps, worlds, micros, kinds)


def judged(asked, tree: dict, overrides, base: Path, steps: int, worlds, micros, kinds) -> int:
    """The runs and the verdict; torch is imported here, once the command line is known to be good."""
    from rich.console import Console

    from adabatch.verify import table
    from adabatch.verify.checks import Verification
    from adabatch.verify.processes import Processes

    note = Console(stderr=True, highlight=False, markup=False)

    def tell(text):
        note.print(text, soft_wrap=True)

    with Processes(base, overrides, asked.config_dir, steps, tell) as made:
        found = Verification(made, tree, worlds, micros, kinds).checks()
    if asked.json:
        print(json.dumps({"checks": [check.json() for check in found]}, indent=2, allow_nan=False))
    else:
        console = Console(highlight=False, markup=False)
        if not console.is_terminal:
            console = Console(width=200, highlight=False, markup=False)
        table.shown(found, console)
        if asked.keep:
            console.print(f"runs: {base}", soft_wrap=True)
    return int(any(not check.passed for check in found))


def chosen(only: str | None) -> list[str] | None:
    """The kinds that --only names."""
    names = None if only is None else [name.strip() for name in only.split(",") if name.strip()]
    for name in names or ():
        if name not in KINDS:
            raise UserError(f"--only lists some of {', '.join(KINDS)}, got {name!r}.{suggest(name, KINDS)}")
    return names


def new_folder(name: str) -> Path:
    path = Path(name)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"--keep {name}: it exists and is not empty; name a new folder")
    path.mkdir(parents=True, exist_ok=True)
    return path.resolve()
