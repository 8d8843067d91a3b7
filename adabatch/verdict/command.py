"""adabatch-report: whether an adaptive batch beats a fixed one, from run folders. Writes report.json only.

Exit codes: 0 shown, whatever the verdict; 2 the user's mistake (one message); 130 interrupted.
"""

import json
import math
import shutil
import sys
from dataclasses import replace
from pathlib import Path

from adabatch import arguments
from adabatch.arguments import Parser
from adabatch.errors import UserError
from adabatch.files import finite
from adabatch.status import words
from adabatch.verdict import formats
from adabatch.verdict.arms import Verdict
from adabatch.verdict.decide import decide
from adabatch.verdict.folders import Found, look, write
from adabatch.verdict.plan import looks_of

WIDTH = 140  # columns at the most, and where there is no terminal
HELP = """The first line is the verdict: "adaptive: ...", the name of a fixed arm, "undecided: ...", "not
resolvable ...", or "interim, no verdict: ..." as long as runs are missing. An arm is a schedule; one whose
batch changes is adaptive. Runs of a comparison are equal in everything but schedule, seed and hardware, and
their times are compared where device, precision, threads, processes and versions are equal.

Margins and looks come from compare.yaml in the common folder, where there is one; what the command says
instead is remarked on. "shows" says whether a candidate beats a rival, else which clauses hold, each at the
look's share of alpha (report.json has their limits): not worse by the margin, more accurate by the margin,
fast (an adaptive arm: by r0) or not slow (a fixed one: by r0).

examples:
  adabatch-report outputs/                       the verdict and its tables; writes outputs/report.json
  adabatch-report sweep/ --looks 5,10 --delta 0.5  margin of half a percentage point, looks at 5 and 10 runs
  adabatch-report sweep/ --target 0.1            with the time to 10 % error
  adabatch-report sweep/ --format latex > table.tex
  adabatch-report outputs/RUN --format dawnbench > curve.tsv"""


def parser() -> Parser:
    p = Parser("adabatch-report", "Compare the arms of a sweep: the verdict, then the figures.", HELP)
    p.add_argument("folders", nargs="+", metavar="FOLDER", help="runs, or folders that hold some")
    p.add_argument("--json", action="store_true", help="print what report.json holds")
    p.add_argument("--format", choices=formats.FORMATS, default="text", help="of what is printed")
    p.add_argument("--delta", type=_number, metavar="POINTS", help="how much worse an error may be, in "
                   "percentage points (1)")  # fmt: skip
    p.add_argument("--r0", type=_number, metavar="RATIO", help="what counts as faster (1.05)")
    p.add_argument("--looks", metavar="N,N", help="runs of each arm at which a verdict is given (5,10,20)")
    p.add_argument("--target", type=_number, metavar="ERROR", help="an error rate, 0.1 for 10 %%: time to it")
    p.add_argument("--out", metavar="DIR", help="where report.json goes (the common folder)")
    return p


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


def main(line=None) -> None:
    """The console script."""
    arguments.main(command, line)


def command(line: list[str]) -> int:
    """Runs the command line and returns its exit code."""
    try:
        asked = parser().parse_args(line)
        show(asked)
        return 0
    except KeyboardInterrupt:
        return 130
    except SystemExit as end:  # --help
        return end.code or 0
    except UserError as error:
        print(f"adabatch-report: {words.line(error, 2000)}", file=sys.stderr)
        return 2


def show(asked) -> None:
    """Looks, decides, writes and prints."""
    found = look(asked.folders, margins(asked))
    if asked.format == "dawnbench" and not asked.json:
        words.say(formats.dawnbench(found.readings))
        return
    verdict = verdict_of(found)
    made = formats.as_json(verdict, found.plan, found.notes)
    trouble = write(out(asked, found), made)
    if asked.json:
        print(json.dumps(finite(made), indent=2, allow_nan=False))
    else:
        words.say(*printed(verdict, found, asked.format).split("\n"))
    if trouble:
        print(f"adabatch-report: {words.line(trouble)}", file=sys.stderr)


def margins(asked) -> dict:
    """What the command line sets of a plan. UserError: a value that none can have."""
    rules = (
        ("delta", 0.001, 50, "percentage points by which an error may be worse"),
        ("r0", 1.0, 10, "the ratio of times that counts as faster"),
        ("target", 0, 1, "an error rate: 10 % is 0.1"),
    )
    for name, low, high, what in rules:
        value = getattr(asked, name)
        if value is not None and not low <= value <= high:
            raise UserError(f"--{name} is {what}, from {low:g} to {high:g}, got {value:g}")
    return {
        "delta": None if asked.delta is None else asked.delta / 100,
        "r0": asked.r0,
        "looks": None if asked.looks is None else looks_of(asked.looks),
        "target": asked.target,
    }


def out(asked, found: Found) -> Path:
    if asked.out is None:
        return found.folder
    folder = Path(asked.out).resolve()
    if not folder.is_dir():
        raise UserError(f"--out {asked.out}: there is no such folder")
    return folder


def verdict_of(found: Found) -> Verdict:
    verdict = decide(found.arms, found.plan, found.pending)
    if found.runs > 1 or not found.arms:
        other = validated(found)
        return verdict if other is None else replace(verdict, notes=(*verdict.notes, other))
    n = found.plan.looks[0]
    seeds = ",".join(map(str, range(min(n, 5)))) + (",..." if n > 5 else "")
    sentence = (
        f"interim, no verdict: this is one run. A verdict takes an adaptive and a fixed arm at least, {n} "
        f"seeds of each, e.g. adabatch -m schedule=fixed,adabatch seed={seeds} and this run's other overrides"
    )
    return replace(verdict, sentence=sentence)


def validated(found: Found) -> str | None:
    """A note with the verdict on the validation split, where the one on test decides."""
    if found.plan.split != "test" or not found.validation:
        return None
    arms = [
        replace(arm, runs=tuple(replace(run, error=run.validation) for run in arm.runs)) for arm in found.arms
    ]
    plan = replace(found.plan, split="validation", evaluated=found.validation)
    sentence = decide(arms, plan, found.pending).sentence.partition("; ")[0]
    return f"on {found.validation:,} validation samples: {sentence}"


def printed(verdict: Verdict, found: Found, form: str) -> str:
    """The verdict in one of the formats."""
    if form == "csv":
        return formats.csv_text(verdict)
    if form == "text":
        width = min(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns)
        return formats.text(verdict, found.plan, found.notes, max(width, 40))
    return getattr(formats, form)(verdict, found.plan, found.notes)
