"""A multirun's jobs: composed and checked, sorted by what is to be done with each, submitted, told, waited
for."""

import json
import logging
import os
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus
from hydra_plugins.adabatch_launcher import _clusters, _legs, _wait
from omegaconf import OmegaConf, open_dict

from adabatch import claim, config, places, submission, submitted, sweep
from adabatch.errors import UserError
from adabatch.logs import terminal

log = logging.getLogger("adabatch")


@dataclass
class Job:
    """One run of the multirun. shape: what sbatch is told; jobs of one shape share an array. legs: numbers of
    processes, one after the other, where the run is a chain of jobs (`_legs.py`)."""

    overrides: list
    config: dict
    notes: tuple
    folder: Path
    shape: dict
    job: str | None = None  # its id, once it is submitted or was found to be
    why: str | None = None  # why it was not submitted
    summary: dict | None = None  # of a run that is finished
    record: dict = field(default_factory=dict)  # "job" of its status.json
    legs: tuple = ()
    leg: dict | None = None  # what the run must know of them
    anew: bool = False  # the run that is there is set aside
    known: tuple | None = None  # whose the folder was when it was decided to submit (`submission.seen`)
    noted: dict = field(default_factory=dict)  # what else "job" of its status.json shall say
    chain: list = field(default_factory=list)  # its jobs as submitted: {"id", "logs", "processes"}

    @property
    def work(self):
        """What the nodes call with the payload."""
        return _legs.run if self.leg else submitted.run

    def payload(self, named=()) -> dict:
        """What travels to the nodes (`adabatch.submitted`)."""
        found = {
            "config": self.config, "folder": str(self.folder.absolute()), "overrides": self.overrides,
            "notes": self.notes, "named": tuple(named), "cwd": os.getcwd(), "argv": list(sys.argv),
        }  # fmt: skip
        return found | {"leg": self.leg, "shape": self.shape} if self.leg else found


def launch(launcher, job_overrides, first: int) -> list[JobReturn]:
    """Hydra's call: submits, and with wait=true waits."""
    terminal()
    if (place := places.detect()).world > 1:
        raise UserError(
            f"jobs are submitted by one process, got {place.world} (started by {place.kind}). Leave that "
            "out: "
            "hardware.nodes and hardware.processes say what each job gets"
        )
    named = _named(launcher.config)
    cluster = _clusters.CLUSTERS[launcher.cluster]()
    jobs = [composed(launcher, list(line), first + number) for number, line in enumerate(job_overrides)]
    if len(set(folders := [str(job.folder) for job in jobs])) < len(jobs):
        twice = next(f for f in folders if folders.count(f) > 1)
        raise UserError(f"two jobs of this multirun are the same run: {twice}. Leave one out")
    groups = shapes([job for job in jobs if needed(job)], cluster)
    try:
        for group in groups:
            _legs.submit(cluster, group, named)
    except KeyboardInterrupt:
        _told(jobs, groups, cluster, "interrupted; ")
        raise
    except UserError as error:
        _told(jobs, groups, cluster, "")
        raise error
    _told(jobs, groups, cluster)
    if not launcher.config.get("wait"):
        return [
            JobReturn(overrides=job.overrides, status=JobStatus.COMPLETED, _return_value=None) for job in jobs
        ]
    records = _wait.wait(jobs)
    sweep.records += records
    return [
        JobReturn(overrides=r["overrides"], status=JobStatus.COMPLETED, _return_value=r["summary"])
        for r in records
    ]


def composed(launcher, overrides: list, number: int) -> Job:
    """The job of these overrides. UserError where its configuration is not good."""
    tree = launcher.hydra_context.config_loader.load_sweep_config(launcher.config, overrides)
    with open_dict(tree):
        tree.hydra.job.id = tree.hydra.job.num = number
    state = Singleton.get_state()
    try:
        HydraConfig.instance().set_config(tree)
        good = config.checked(tree)
        folder = Path(str(tree.hydra.sweep.dir)) / str(tree.hydra.sweep.subdir)
        options = OmegaConf.to_container(tree.hydra.launcher, resolve=True)
    finally:
        Singleton.set_state(state)
    options.pop("_target_")
    shape = _clusters.CLUSTERS[launcher.cluster].shape(good.config, options)
    one = Job(config.typed_lines(tree.hydra), good.config, good.notes, folder, shape)
    one.anew = claim.anew(good.config, folder)
    if shape.get("tasks"):
        one.legs, one.leg = _legs.planned(good.config, shape, None if one.anew else folder)
    if one.leg and one.leg["closed"]:
        one.noted = {"processes": one.legs[0]}  # should it not come to its end
    return one


def needed(job: Job) -> bool:
    """Whether the job must be submitted, as far as can be said before its folder is taken for it."""
    job.known = submission.seen(job.folder)
    job.summary = claim.done(job.config, job.folder)
    if job.summary is not None:
        job.why = "finished already (restart=true runs it again)"
        return False
    if job.folder.is_dir() and (why := submission.unneeded(job.folder)):
        job.why = f"not submitted again: {why}"
        job.record = (submission.status_of(job.folder / "status.json").get("job")) or {}
        job.job = job.record.get("id")
        return False
    job.anew = claim.replaces(job.config, job.folder)
    return True


def shapes(jobs: list[Job], cluster) -> list[list[Job]]:
    """The jobs by shape, in the order in which each shape first occurs; an array takes `cluster.most`."""
    groups = {}
    for job in jobs:
        groups.setdefault(json.dumps([job.shape, job.legs], sort_keys=True, default=str), []).append(job)
    return [g[i : i + cluster.most] for g in groups.values() for i in range(0, len(g), cluster.most)]


def _named(tree) -> tuple:
    """Hydra's own overrides that belong to the command that goes on: where the folders are."""
    lines = OmegaConf.to_container(tree.hydra.overrides.hydra, resolve=False)
    for line in lines:
        if line.lstrip("+").startswith("hydra.run.dir"):
            raise UserError(
                f"hydra.run.dir is for a run in the foreground, got {line}. One that is submitted is in the "
                "folder hydra.sweep.dir/hydra.sweep.subdir: take hydra.sweep.dir=FOLDER for all runs, and "
                "hydra.sweep.subdir=NAME to name the one"
            )
    return tuple(line for line in lines if line.lstrip("+").startswith(("hydra.sweep.", "hydra.launcher")))


def _told(jobs: list[Job], groups: list[list[Job]], cluster, prefix: str = "") -> None:
    """What was done, for the terminal."""
    shown = [job for group in groups for job in group if job.job]
    lines = [f"{prefix}{cluster.told(group)}" for group in groups if group and group[0].job]
    common = set.intersection(*(set(job.overrides) for job in jobs)) if len(jobs) > 1 else set()

    def line(job: Job) -> str:
        apart = " ".join(o for o in job.overrides if o not in common)
        return f"  {job.job}  {os.path.relpath(job.folder)}  {apart}  {_legs.told(job)}"

    lines += [line(job).rstrip() for job in shown]
    left = [job for job in jobs if job.why]
    lines += [f"{os.path.relpath(job.folder)}: {job.why}" for job in left]
    if shown:
        folders = shlex.join(os.path.relpath(job.folder) for job in shown)
        lines += [
            f"logs:   {os.path.relpath(shown[0].record['logs'])}" + (" ..." if len(shown) > 1 else ""),
            f"watch:  adabatch-status {folders}",
            f"cancel: {cluster.cancel(shown)}",
        ]
    if prefix and not shown:
        lines.append(f"{prefix}nothing was submitted")
    if lines:
        print("\n".join(lines), flush=True)
