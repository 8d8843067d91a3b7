"""A verdict as text, Markdown, LaTeX, CSV and JSON, and a run as DAWNBench's TSV. Every text is escaped."""

import csv
import io
import math
import re
import textwrap

from adabatch import statistics
from adabatch.errors import UserError
from adabatch.files import FORMAT
from adabatch.verdict import repeats, table
from adabatch.verdict.arms import Arm, Plan, Verdict, limits
from adabatch.verdict.decide import CLASSES
from adabatch.verdict.readings import Reading

FORMATS = ("text", "markdown", "latex", "csv", "dawnbench")


def settings(plan: Plan) -> str:
    """The margins in a line."""
    each = f"{plan.alpha:g} / {len(plan.looks)} a look" if len(plan.looks) > 1 else f"{plan.alpha:g}"
    looks = ", ".join(map(str, plan.looks))
    if plan.table:
        return f"errors on {plan.evaluated or 0:,} {plan.split} samples"
    sizes = f"{plan.evaluated:,} {plan.split} samples" if plan.evaluated else f"the {plan.split} split"
    return (
        f"margin {100 * plan.delta:.3g} pp, faster means {plan.r0:g}x, alpha {each}, looks at {looks} runs "
        f"of each arm{' (the defaults)' if plan.assumed else ''}; errors on {sizes}"
    )


# What holds of every comparison at equal samples.
CAVEAT = (
    "At equal samples the time depends nearly only on the number of updates, and a fixed batch with as many "
    "updates takes the same time: an adaptive batch wins by a lower error at equal updates."
)
SCOPE = "This holds for this device, this evaluation set and this budget of samples."
TABLED = "Arms that differ in more than their schedule, and may in how many samples they train, side by side."


def caveats(plan: Plan) -> tuple[str, str]:
    """What a reader of the figures must know."""
    return (TABLED, "Nothing is decided of them.") if plan.table else (CAVEAT, SCOPE)


def text(verdict: Verdict, plan: Plan, notes: list[str], width: int) -> str:
    """For a terminal of this width."""
    blocks = [wrapped(verdict.sentence, width)]
    if verdict.arms:
        blocks.append([*wrapped(" ".join(caveats(plan)), width), *wrapped(settings(plan), width)])
        blocks.append(table.grid(table.arms(verdict, plan), width))
    if columns := repeats.columns(verdict, plan):
        blocks.append(table.grid(columns, width))
    if columns := table.comparisons(verdict, plan):
        blocks.append(table.paired(columns, width))
    blocks.append([line for note in [*verdict.notes, *notes] for line in wrapped(f"note: {note}", width)])
    return "\n\n".join("\n".join(block) for block in blocks if block)


def tables(verdict: Verdict, plan: Plan) -> tuple:
    """Arms, repeated runs, comparisons; each a list of columns, which may be empty."""
    return table.arms(verdict, plan), repeats.columns(verdict, plan), table.comparisons(verdict, plan)


def wrapped(line: str, width: int) -> list[str]:
    return textwrap.wrap(line, width, break_long_words=True, subsequent_indent="  ") or [""]


def markdown(verdict: Verdict, plan: Plan, notes: list[str]) -> str:
    about = f"{' '.join(caveats(plan))} Here: {settings(plan)}."
    blocks = [f"**{_markdown(verdict.sentence)}**", _markdown(about)]
    for columns in tables(verdict, plan):
        if columns and columns[0].cells:
            rows = [[_markdown(x) for x in row] for row in zip(*([c.heading, *c.cells] for c in columns))]
            ruler = ["---:" if c.right else "---" for c in columns]
            blocks.append("\n".join(f"| {' | '.join(row)} |" for row in [rows[0], ruler, *rows[1:]]))
    listed = "\n".join(f"- {_markdown(note)}" for note in [*verdict.notes, *notes])
    return "\n\n".join(block for block in [*blocks, listed] if block)


def _markdown(value: str) -> str:
    """No character keeps a meaning; "." and "-" have one only where a line begins."""
    return re.sub(r"([\\`*_{}\[\]<>#|~$!&])", r"\\\1", value)


def latex(verdict: Verdict, plan: Plan, notes: list[str]) -> str:
    """Two tabulars (booktabs), with the sentence and the notes as comments around them."""
    blocks = [f"% {_latex(line)}" for line in (verdict.sentence, *caveats(plan))]
    for columns in tables(verdict, plan):
        if columns and columns[0].cells:
            rows = [
                " & ".join(_latex(x) for x in row) for row in zip(*([c.heading, *c.cells] for c in columns))
            ]
            align = "".join("r" if c.right else "l" for c in columns)
            body = " \\\\\n".join(rows[1:])
            blocks.append(
                f"\\begin{{tabular}}{{{align}}}\n\\toprule\n{rows[0]} \\\\\n\\midrule\n{body} \\\\\n"
                "\\bottomrule\n\\end{tabular}"
            )
    blocks += [f"% {_latex(note)}" for note in [settings(plan), *verdict.notes, *notes]]
    return "\n".join(blocks)


_SPECIAL = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
    ">": r"\textgreater{}", "|": r"\textbar{}", '"': r"\textquotedbl{}", "`": r"\textasciigrave{}",
    "[": "{[}", "]": "{]}", **{c: f"\\{c}" for c in "{}$&#%_"},
}  # fmt: skip


def _latex(value: str) -> str:
    """ASCII without a special character: other letters need packages that a paper may not load."""
    return "".join(_SPECIAL.get(c, c if " " <= c < "\x7f" else "?") for c in value)


ARMS = (
    "arm,class,runs,finished,diverged,out_of_memory,final_error,final_error_low,final_error_high,best_error,"
    "best_error_low,best_error_high,updates,seconds,samples_per_second,device_hours,reached,reached_low,"
    "reached_high,median_time_to_target,validation_error,validation_error_low,validation_error_high,left_out"
).split(",")


def csv_text(verdict: Verdict) -> str:
    """The table of arms with plain numbers; report.json has the comparisons."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(ARMS)
    for arm in verdict.arms:
        made = arm_json(arm)
        writer.writerow([_cell(made[key]) for key in ARMS])
    return out.getvalue().rstrip("\n")


def _cell(value):
    """A spreadsheet computes what begins with one of these."""
    formula = isinstance(value, str) and value.startswith(("=", "+", "-", "@"))
    return f"'{value}" if formula else "inf" if value == math.inf else value


def arm_json(arm: Arm) -> dict:
    """One arm's figures: errors are fractions, times seconds."""
    found = list(arm.counted.values())
    hours = [run.device_seconds and run.device_seconds / 3600 for run in found]
    times = [run.target for run in arm.runs if run.target is not None]
    hits = sum(math.isfinite(t) for t in times)
    fraction = (hits / len(times), *statistics.fraction_interval(hits, len(times))) if times else (None,) * 3
    made = {
        "arm": arm.name, "class": CLASSES.get(arm.adaptive, "neither"), "runs": len(arm.runs),
        "finished": len(found), "diverged": arm.diverged, "out_of_memory": arm.infeasible,
        "left_out": arm.outside, "budget_ratio": arm.budget, "seeds": [run.seed for run in arm.runs],
        "states": [run.state for run in arm.runs], "folders": [run.folder for run in arm.runs],
        "errors": [run.error for run in arm.runs], "train_seconds": [run.seconds for run in arm.runs],
    }  # fmt: skip
    for name, values in {
        "final_error": arm.errors, "best_error": [run.best for run in found],
        "validation_error": [run.validation for run in found],
    }.items():  # fmt: skip
        known = [v for v in values if v is not None]
        ends = limits(statistics.mean(known), 0.95) if len(known) > 1 else [None, None]
        made |= {name: _mean(known), f"{name}_low": ends[0], f"{name}_high": ends[1]}
    made |= {
        "updates": _mean([run.updates for run in found]), "seconds": _mean([run.seconds for run in found]),
        "samples_per_second": _mean([run.speed for run in found]), "device_hours": _mean(hours),
        "reached": fraction[0], "reached_low": fraction[1], "reached_high": fraction[2],
        "median_time_to_target": table.median(times) if times else None,
    }  # fmt: skip
    return made


def _mean(values) -> float | None:
    known = [v for v in values if v is not None]
    return table.fmean(known) if known else None


def as_json(verdict: Verdict, plan: Plan, notes: list[str]) -> dict:
    """report.json; the only figures that are no fractions or seconds are the ratios."""
    return {
        "format": FORMAT, "verdict": verdict.sentence, "decision": verdict.decision,
        "winner": verdict.winner, "seeds_that_would_decide": verdict.seeds,
        "settings": {
            "delta": plan.delta, "r0": plan.r0, "alpha": plan.alpha, "looks": list(plan.looks),
            "split": plan.split, "evaluated": plan.evaluated, "tuned": plan.tuned, "target": plan.target,
            "remark": plan.remark,
        },
        "arms": [
            arm_json(arm) | repeats.figures(arm, plan)
            | (found.json() if (found := table.search_of(arm, plan)) else {})
            for arm in verdict.arms
        ],
        "comparisons": [c.json(plan) for c in verdict.comparisons],
        "notes": [*verdict.notes, *notes], "caveats": list(caveats(plan)),
    }  # fmt: skip


def dawnbench(readings: list[Reading]) -> str:
    """The TSV of one run: epoch, hours of training, correct answers of the test split in per cent."""
    if len(readings) != 1:
        raise UserError(
            f"--format dawnbench is about one run, and these are {len(readings)}: name its folder"
        )
    rows = readings[0].tested
    lines = [f"{epoch:g}\t{seconds / 3600:.8f}\t{100 * (1 - error):.2f}" for epoch, seconds, error in rows]
    return "\n".join(["epoch\thours\ttop1Accuracy", *lines])
