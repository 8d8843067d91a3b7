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
from hydra_plugins.adabatch_launcher._shell import ended_aloud
from omegaconf import OmegaConf, open_dict

from adabatch import claim, config, places, slurm, submission, submitted, sweep
from adabatch.errors import UserError
from adabatch.logs import terminal
from adabatch.status import verdict

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
    announced: object = None  # its folder as it was before (`submission.Announced`)

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
    queue = Queue(jobs)
    groups = shapes([job for job in jobs if needed(job, queue)], cluster)
    prefix = ""
    try:
        with ended_aloud():
            for group in groups:
                _legs.submit(cluster, group, named)
    except (KeyboardInterrupt, SystemExit):
        prefix = "interrupted; "
        raise
    except OSError as error:
        what = f"{error.filename or jobs[0].folder.parent} cannot be written ({error.strerror})"
        raise UserError(f"{what}: name another hydra.sweep.dir") from error
    finally:  # whatever it was: nothing that waits in a queue may stay untold
        _told(jobs, groups, cluster, prefix)
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


class Queue:
    """What SLURM says of the jobs that these runs have already, asked once for all."""

    def __init__(self, jobs: list[Job]):
        ids = {found for job in jobs if (found := submission.queued(job.folder))}
        self.answer = slurm.ask(ids)
        self.living = dict.fromkeys(ids)
        if self.answer.complete:
            self.living = {i: not found.ended if (found := self.answer.of(i)) else False for i in ids}

    def unneeded(self, folder: Path) -> str | None:
        """`submission.unneeded`, and where its job waits for ever, that."""
        number = submission.queued(folder)  # a job that another command has submitted since is asked about
        why = submission.unneeded(folder, self.living if number in self.living else None)
        record = submission.status_of(folder / "status.json").get("job") or {}
        for_ever = why and verdict.stuck(number, self.answer.of(number), record)
        return f"{why}; {for_ever}" if for_ever else why


def needed(job: Job, queue: Queue) -> bool:
    """Whether the job must be submitted, as far as can be said before its folder is taken for it."""
    job.known = submission.seen(job.folder)
    job.summary = claim.done(job.config, job.folder)
    if job.summary is not None:
        job.why = "finished already (restart=true runs it again)"
        return False
    if job.folder.is_dir() and (why := queue.unneeded(job.folder)):
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
    """Hydra's own overrides, as typed, that belong to the command that goes on with a run: who starts it,
    with which options, and where the folders are. They travel with the job, whose last words name that
    command, and stand in "job" of status.json, for `adabatch-status --failed`."""
    lines = OmegaConf.to_container(tree.hydra.overrides.hydra, resolve=False)
    for line in lines:
        if line.lstrip("+").startswith("hydra.run.dir"):
            raise UserError(
                f"hydra.run.dir is for a run in the foreground, got {line}. One that is submitted is in the "
                "folder hydra.sweep.dir/hydra.sweep.subdir: take hydra.sweep.dir=FOLDER for all runs, and "
                "hydra.sweep.subdir=NAME to name the one"
            )
    kept = ("hydra.mode=", "hydra/launcher=", "hydra.launcher", "hydra.sweep.")
    found = [line for line in lines if line.lstrip("+~").startswith(kept)]
    sources = OmegaConf.select(tree, "hydra.runtime.config_sources") or ()
    own = [source.path for source in sources if source.provider == "command-line"]  # --config-dir
    return (*found, *(("--config-dir", own[0]) if own else ()))


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
