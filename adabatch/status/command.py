"""adabatch-status: what runs do. Reads only.

Exit codes: 0 shown, 2 the user's mistake (one message), 130 interrupted; with --exit-code 0, 1 or 3 say how
the runs stand.
"""

import json
import sys
import time

from adabatch import arguments, slurm
from adabatch.arguments import Parser
from adabatch.errors import UserError
from adabatch.status import rows, words
from adabatch.status.facts import Reader
from adabatch.status.folders import MOST, find
from adabatch.status.verdict import jobs_of, judge

EVERY = 5.0  # seconds between two looks of --watch
ASKED = 30.0  # seconds for which --watch keeps what SLURM said
HELP = """states: submitted, running, finished, failed, diverged, out of memory, interrupted, preempted; and
  lost      it says running or submitted, but its process or job is gone, or silent elsewhere for 60 s
  unknown   its status.json is missing or damaged
Beside submitted and preempted stands what SLURM says of the job, where squeue is there. seen: since the last
heartbeat (every 20 s), or the end. left: seconds of training at the present speed, evaluations not counted.

--exit-code: 0 all runs are finished; 1 a run has ended without being finished (failed, diverged, out of
  memory, interrupted, lost, unknown, preempted with no job left), whatever the others do; 3 none of these,
  and some are still going on. 2 is a mistake in the command, 130 Ctrl-C.

examples:
  adabatch-status                                   all runs in outputs/
  adabatch-status outputs/ /scratch/me/sweep        several folders, each a run or a tree of runs
  adabatch-status --watch                           until all have ended
  adabatch-status --failed                          errors, ends of logs, and the commands that resume
  adabatch-status --watch --exit-code sweep/ && adabatch-report sweep/
  adabatch-status --json | jq 'select(.state == "lost").folder'"""


def parser() -> Parser:
    about = "State, progress, errors and places of runs, from their folders."
    p = Parser("adabatch-status", about, HELP)
    p.add_argument(
        "folders", nargs="*", metavar="FOLDER", help="a run, or a folder that holds some (outputs/)"
    )
    p.add_argument("--watch", nargs="?", const=EVERY, type=float, metavar="SECONDS",
                   help=f"look again every so many seconds ({EVERY:g}) until all have ended")  # fmt: skip
    p.add_argument("--failed", action="store_true",
                   help="of those that failed the whole error, the log's end, and how to resume")  # fmt: skip
    p.add_argument("--json", action="store_true", help="one JSON object a run and line")
    p.add_argument("--exit-code", action="store_true", help="say by the exit code how the runs stand (below)")
    return p


def main(line=None) -> None:
    """The console script."""
    arguments.main(command, line)


def command(line: list[str]) -> int:
    """Runs the command line and returns its exit code."""
    try:
        asked = parser().parse_args(arguments.separated(line, "--watch", EVERY))
        if asked.watch is not None and not 0.1 <= asked.watch <= 86400:
            raise UserError(f"--watch takes seconds from 0.1 to 86400, got {asked.watch:g}")
        if asked.watch is not None and asked.failed:
            raise UserError("--watch and --failed do not go together: ask for --failed when it has ended")
        return show(asked)
    except KeyboardInterrupt:
        return 130
    except SystemExit as end:  # --help
        return end.code or 0
    except UserError as error:
        print(f"adabatch-status: {words.line(error, 2000)}", file=sys.stderr)
        return 2


def show(asked) -> int:
    """Looks, prints, and returns the exit code."""
    look = Look(asked.folders or ["outputs"])
    if asked.watch is not None:
        from adabatch.status.watch import watch

        return _code(asked, watch(look, asked.watch, asked.json))
    common, found = look()
    if asked.failed:
        _failed(found, asked.json)
    elif asked.json:
        _json(found)
    else:
        _table(found, common)
    sys.stdout.flush()
    for note in look.notes:
        print(f"adabatch-status: {words.line(note)}", file=sys.stderr)
    return _code(asked, found)


class Look:
    """Called, it finds, reads and judges the runs: (the folder that they have in common, rows)."""

    def __init__(self, named: list[str]):
        self.named, self.reader = named, Reader()
        self.notes: list[str] = []  # of the last look: what is left out, and why
        self._answer, self._asked = slurm.Answer(), (-float("inf"), set())

    def __call__(self):
        found = find(self.named)
        runs = [run for folder in found.runs if (run := self.reader.read(folder))]
        answer = self._slurm(runs)
        judged = [(run, judge(run, answer)) for run in runs]
        again = [i for i, (_, verdict) in enumerate(judged) if verdict.state == "lost"]
        for i in again:  # it may have ended between our reading it and asking after its process
            if run := self.reader.read(judged[i][0].folder):
                judged[i] = (run, judge(run, answer))
        if not judged:
            raise UserError(f"{' '.join(self.named)}: its runs are gone, or were put aside by restart=true")
        self.notes = [answer.note] if answer.note else []
        if found.aside:
            self.notes.append(f"{found.aside} put aside by restart=true (*.old1, ...) left out")
        if found.unreadable:
            self.notes.append(f"{found.unreadable} folders could not be read")
        if found.more:
            self.notes.append(f"stopped after {MOST:,} folders: name folders that hold fewer")
        return rows.rows(judged, self.named)

    def _slurm(self, runs: list) -> slurm.Answer:
        """One question for all; while watching only every ASKED seconds, unless a run says something new."""
        jobs = jobs_of(runs)
        said = {(run.folder, run.recorded, str(run.owner.get("pid")), run.job) for run in runs}
        now, (at, before) = time.monotonic(), self._asked
        if jobs and (now - at > ASKED or not said <= before):
            self._answer = slurm.ask(jobs)
            self._asked = (time.monotonic(), said)
        return self._answer


def _code(asked, found: list) -> int:
    if not asked.exit_code:
        return 0
    return exit_code([row.verdict for row in found])


def exit_code(verdicts: list) -> int:
    """0 all finished, 1 one has ended without being finished, 3 some go on."""
    if any(verdict.bad for verdict in verdicts):
        return 1
    return 3 if any(verdict.going for verdict in verdicts) else 0


def _json(found: list, more=lambda row: {}) -> None:
    for row in found:
        print(json.dumps(rows.as_json(row) | more(row)))


def _table(found: list, common: str) -> None:
    from adabatch.console import is_live, shared_console
    from adabatch.status import table

    console = shared_console()
    if not is_live(console):
        words.say(*rows.plain(found, common))
        return
    console.print(table.table(found, common, console.width), highlight=False)


def _failed(found: list, as_json: bool) -> None:
    from adabatch.console import is_live, shared_console
    from adabatch.status import failed

    wrong = [row for row in found if row.verdict.bad]
    if as_json:
        _json(
            wrong,
            lambda row: {"log": failed.log_tail(row.run.folder), "resume": failed.resume(row.run.folder)},
        )
        return
    lines = [line for row in wrong for line in failed.block(row)]
    if is_live(shared_console()):
        for text, style in lines:
            shared_console().say(text, style)
    else:
        words.say(*(text for text, _ in lines))
    words.say(rows.totals(found))
