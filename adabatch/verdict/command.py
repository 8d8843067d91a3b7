"""adabatch-report: whether an adaptive batch beats a fixed one, from run folders. Writes report.json and
report.html only.

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
from adabatch.files import finite, write_bytes
from adabatch.status import words
from adabatch.status.folders import MARKS, find
from adabatch.verdict import formats, page, publish, readings, watch
from adabatch.verdict import plan as plans
from adabatch.verdict.arms import Verdict
from adabatch.verdict.decide import decide
from adabatch.verdict.folders import Found, common, look, write
from adabatch.verdict.plan import looks_of

WIDTH = 140  # columns at the most, and where there is no terminal
ARMS = 200  # of one comparison, in which every arm meets every arm of the other class
UNTESTED = (
    "top1Accuracy is that of the test split, which a run with dataset.validation evaluates at its end only: "
    "dataset.validation=0 has every epoch's"
)
HELP = """The first line is the verdict: "adaptive: ...", the name of a fixed arm, "undecided: ...", "not
resolvable ...", or "interim, no verdict: ..." as long as runs are missing. An arm is a schedule; one whose
batch changes is adaptive, unless compare.yaml says otherwise. Runs of a comparison are equal in everything
but schedule, seed and hardware, and their times are compared where device, precision, threads, processes and
versions are equal.

Margins and looks come from compare.yaml in the common folder, where there is one; what the command says
instead is remarked on. "shows" says whether a candidate beats a rival, else which clauses hold, each at the
look's share of alpha (report.json has their limits): not worse by the margin, more accurate by the margin,
fast (an adaptive arm: by r0) or not slow (a fixed one: by r0). report.html has all of it with pictures, in
one file; docs/reading.md says how to read it.

examples:
  adabatch-report outputs/                       the verdict; writes outputs/report.html and report.json
  adabatch-report sweep/ --watch                 again every 10 s until no run goes on any more
  adabatch-report sweep/ --looks 5,10 --delta 0.5  margin of half a percentage point, looks at 5 and 10 runs
  adabatch-report sweep/ --target 0.1            with the time to 10 % error
  adabatch-report sweep/ --format latex > table.tex
  adabatch-report outputs/RUN --format dawnbench > curve.tsv"""


def parser() -> Parser:
    p = Parser("adabatch-report", "Compare the arms of a sweep: the verdict, then the figures.", HELP)
    p.add_argument("folders", nargs="+", metavar="FOLDER", help="runs, or folders that hold some")
    p.add_argument("--json", action="store_true", help="print what report.json holds")
    p.add_argument("--format", choices=formats.FORMATS, default="text", help="of what is printed")
    p.add_argument("--delta", type=number, metavar="POINTS", help="how much worse an error may be, in "
                   "percentage points (1)")  # fmt: skip
    p.add_argument("--r0", type=number, metavar="RATIO", help="what counts as faster (1.05)")
    p.add_argument("--looks", metavar="N,N", help="runs of each arm at which a verdict is given (5,10,20)")
    p.add_argument("--target", type=number, metavar="ERROR", help="an error rate, 0.1 for 10 %%: time to it")
    p.add_argument("--watch", nargs="?", const=watch.EVERY, type=number, metavar="SECONDS",
                   help=f"look again every so many seconds ({watch.EVERY:g}) until all are over")  # fmt: skip
    p.add_argument("--plot", metavar="FILE.svg", help="also the picture of final error against updates alone")
    p.add_argument("--wandb", metavar="[ENTITY/]PROJECT", help="save the verdict as a W&B report, too")
    p.add_argument("--out", metavar="DIR", help="where report.html and report.json go (the common folder)")
    return p


def number(text: str) -> float:
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
        asked = checked(parser().parse_args(arguments.separated(line, "--watch", watch.EVERY)))
        show(asked) if asked.watch is None else watched(asked)
        return 0
    except KeyboardInterrupt:
        return 130
    except SystemExit as end:  # --help
        return end.code or 0
    except UserError as error:
        print(f"adabatch-report: {words.line(error, 2000)}", file=sys.stderr)
        return 2


def checked(asked):
    """UserError: options that do not go together, or a value that none can have."""
    if asked.watch is not None and not 0.1 <= asked.watch <= 86400:
        raise UserError(f"--watch takes seconds from 0.1 to 86400, got {asked.watch:g}")
    if asked.watch is not None and (asked.json or asked.format != "text"):
        raise UserError("--watch shows text: ask for --json or --format when the runs are over")
    if asked.wandb is not None:
        publish.check(asked.wandb)
    if asked.plot is not None and not asked.plot.endswith(".svg"):
        raise UserError(f"--plot names a file that ends in .svg, got {words.line(asked.plot)}")
    return asked


def show(asked) -> None:
    """Looks, decides, writes and prints."""
    found = seen(asked.folders, margins(asked))
    if asked.format == "dawnbench" and not asked.json:
        words.say(formats.dawnbench(found.readings))
        if found.validation:
            print(f"adabatch-report: {UNTESTED}", file=sys.stderr)
        return
    verdict = verdict_of(found)
    trouble = written(verdict, found, asked)
    if asked.json:
        print(
            json.dumps(finite(formats.as_json(verdict, found.plan, found.notes)), indent=2, allow_nan=False)
        )
    else:
        words.say(*printed(verdict, found, asked.format).split("\n"))
    _publish(verdict, found, asked)
    _complain(trouble, asked)


def _publish(verdict: Verdict, found: Found, asked) -> None:
    """Last: what is here is written and shown, whatever a server says."""
    if asked.wandb is not None:
        address = publish.publish(verdict, found, sorted(find(asked.folders).runs), asked.wandb)
        print(f"adabatch-report: saved as {words.line(address)}", file=sys.stderr)


def _complain(trouble: str | None, asked) -> None:
    """UserError where a place was named: a report that cannot be written beside its runs is no failure."""
    if trouble and (asked.plot or asked.out):
        raise UserError(trouble)
    if trouble:
        print(f"adabatch-report: {words.line(trouble)}", file=sys.stderr)


def watched(asked) -> None:
    """Looks again and again until nothing goes on; the files are those of the last look, each whole."""
    given, read, troubles = margins(asked), watch.Reader(), []

    def looked() -> tuple[Verdict, Found]:
        found = seen(asked.folders, given, read, waiting=True)
        verdict = verdict_of(found)
        troubles[:] = [written(verdict, found, asked)]
        return verdict, found

    def shown(last: tuple[Verdict, Found], width: int | None) -> str:
        return printed(*last, "text", width)

    verdict, found = watch.watch(looked, watch.Going(asked.folders), shown, asked.watch)
    runs = [run for arm in verdict.arms for run in arm.runs]
    over, there = sum(run.over for run in runs), len(runs) + found.pending
    said = f"all {over} runs are over" if over == there else f"no run goes on; {over} of {there} are over"
    words.say("", said)
    _publish(verdict, found, asked)
    _complain(troubles[0], asked)


def seen(folders: list[str], given: dict, read=readings.read, waiting: bool = False) -> Found:
    """The comparison in these folders, also one that was declared and of which no run has begun. waiting: so
    too where nothing was declared yet."""
    try:
        return look(folders, given, read)
    except UserError:
        paths = [Path(name) for name in folders]
        expected = waiting or all((path / plans.FILE).is_file() for path in paths)
        if not expected or not all(map(Path.is_dir, paths)) or begun(folders):
            raise
    folder = common(paths)
    return Found(folder, [], plans.overridden(plans.declared(folder), given), 0, 0, [], [], 0)


def begun(folders: list[str]) -> bool:
    """Whether they hold any run."""
    try:
        return bool(find(folders).runs)
    except UserError:
        return False


def written(verdict: Verdict, found: Found, asked) -> str | None:
    """Writes report.json, report.html and the picture that was asked for; else why not."""
    folder = out(asked, found)
    if trouble := write(folder, formats.as_json(verdict, found.plan, found.notes)):
        return trouble
    made = {}
    if not any((folder / mark).is_file() for mark in MARKS):  # a run's own folder has a page of its own
        made[folder / "report.html"] = page.render(verdict, found)
    if asked.plot is not None:
        made[Path(asked.plot)] = page.picture(verdict, found)
    for path, content in made.items():
        if content is None:
            return f"{path} was not written: no run has finished, so there is nothing to draw"
        try:
            write_bytes(path, content)
        except OSError as error:
            return f"{path} was not written ({error.strerror}): say where with --out or --plot"
    return None


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
    """UserError: more schedules than a comparison has."""
    if len(found.arms) > ARMS:
        raise UserError(f"{len(found.arms):,} schedules: name the folders of one comparison (at most {ARMS})")
    verdict = decide(found.arms, found.plan, found.pending)
    if not found.runs:
        return replace(verdict, sentence="interim, no verdict: no run has begun")
    if found.runs > 1 or not found.arms or found.plan.declared:
        other = validated(found)
        return verdict if other is None else replace(verdict, notes=(*verdict.notes, other))
    sentence = (
        "interim, no verdict: this is one run. A verdict takes an adaptive and a fixed arm at least, "
        f"{found.plan.looks[0]} seeds of each: adabatch -m experiment=compare and this run's other overrides"
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


def printed(verdict: Verdict, found: Found, form: str, width: int | None = None) -> str:
    """The verdict in one of the formats. width: of the window, asked for where None."""
    if form == "csv":
        return formats.csv_text(verdict)
    if form == "text":
        width = shutil.get_terminal_size((WIDTH, 24)).columns if width is None else width
        return formats.text(verdict, found.plan, found.notes, max(min(WIDTH, width), 40))
    return getattr(formats, form)(verdict, found.plan, found.notes)
