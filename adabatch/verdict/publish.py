"""The verdict as a W&B report: the sentence, the tables, and live charts of the comparison's runs there.

W&B draws charts from its own runs and takes no picture of ours, so these are its charts of the same
figures, the arms as groups; report.html has ours. Needs the extra `dashboards` (wandb-workspaces) and a key;
runs recorded offline appear in it once `wandb sync` has sent them. Written for wandb-workspaces 0.4.
"""

import importlib.util
import os
import re
from pathlib import Path

from adabatch import labels
from adabatch.errors import UserError
from adabatch.files import read_yaml
from adabatch.report.facts import text
from adabatch.verdict import formats
from adabatch.verdict.arms import Verdict
from adabatch.verdict.folders import Found

SILENT = 30  # seconds until a server that does not answer is given up
CHARTS = (  # title, x, y, logarithmic (x, y)
    ("Error against epochs", "epoch", "{split}/error", (False, True)),
    ("Error against updates", "step", "{split}/error", (True, True)),
    ("Error against seconds", "seconds", "{split}/error", (False, True)),
    ("Batch size", "epoch", "batch_size", (False, True)),
    ("Learning rate", "epoch", "lr", (False, True)),
    ("Gradient noise scale", "epoch", "noise_scale", (False, True)),
)


def check(where: str) -> None:
    """UserError, before anything is looked at: the extra is missing, or where names no project."""
    if not all(re.fullmatch(r"[\w. -]+", part) for part in where.split("/")) or where.count("/") > 1:
        raise UserError(f"--wandb takes a project, or entity/project, got {text(where, 80)}")
    if importlib.util.find_spec("wandb_workspaces") is None:
        raise UserError("--wandb needs the package wandb-workspaces, which is not installed: pip install "
                        "'adabatch[dashboards]'")  # fmt: skip


def report(verdict: Verdict, found: Found, group: str, **place: str):
    """The report as an object of wandb-workspaces; nothing is sent. group: the runs'. place: entity and
    project."""
    import wandb_workspaces.reports.v2 as wr

    traces = [run.traces for arm in verdict.arms for run in arm.runs]
    split = next((each.split for each in traces), found.plan.split)
    measured = any(each.noise for each in traces)
    runset = wr.Runset(**place, name="the runs", filters=f"Group = {_quoted(group)}", groupby=["config.arm"])
    charts = [
        wr.LinePlot(title=title, x=x, y=[y.format(split=split)], log_x=logs[0], log_y=logs[1],
                    groupby_aggfunc="mean", groupby_rangefunc="stderr", smoothing_factor=0.0)
        for title, x, y, logs in CHARTS if measured or y != "noise_scale"
    ]  # fmt: skip
    last = wr.ScatterPlot(title="Final error against updates", x=wr.SummaryMetric("step"),
                          y=wr.SummaryMetric(f"final_{found.plan.split}_error"), log_x=True)  # fmt: skip
    blocks = [
        wr.MarkdownBlock(formats.markdown(verdict, found.plan, found.notes)),
        wr.PanelGrid(runsets=[runset], panels=[last, *charts]),
    ]
    return wr.Report(**place, title=verdict.sentence[:120], blocks=blocks, width="fluid")


def group_of(runs: list[Path]) -> str:
    """The runs' W&B group: as configured, else as the tracker calls it. UserError: none can be read."""
    for folder in runs:
        if not (folder / "config.yaml").is_file():
            continue
        config = read_yaml(folder / "config.yaml")
        if labels.searches(config):
            continue
        node = config.get("trackers") if isinstance(config.get("trackers"), dict) else {}
        given = node["wandb"].get("group") if isinstance(node.get("wandb"), dict) else None
        return text(labels.group(config, folder, given), 128)
    raise UserError("--wandb: no run has begun, so there is nothing to show")


def _quoted(value: str) -> str:
    return "'" + "".join(c for c in value if c not in "'\"\\") + "'"


def publish(verdict: Verdict, found: Found, runs: list[Path], where: str) -> str:
    """Saves the report on the server and returns its address. where: "project" or "entity/project".
    UserError: no key, or no answer."""
    import wandb

    os.environ.setdefault("WANDB_HTTP_TIMEOUT", str(SILENT))
    wandb.setup(wandb.Settings(silent=True))
    group = group_of(runs)
    if not wandb.login(prompt=False, verify=False):
        raise UserError("--wandb needs a key and none is configured: run `wandb login`, then this again")
    entity, _, project = where.rpartition("/")
    try:
        place = {"entity": entity or wandb.Api().default_entity, "project": project}
        return report(verdict, found, group, **place).save().url
    except Exception as error:  # of the network, of the server's answer, of the library's own checks
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"--wandb {text(where)}: the report was not saved ({text(first, 200)})") from None
