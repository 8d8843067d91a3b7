"""Where jobs go: SLURM by sbatch, or this machine. Both through submitit's executors."""

import contextlib
import io
import os
import secrets
import shlex
import shutil
import sys
import time
from pathlib import Path

from hydra_plugins.adabatch_launcher import _options
from hydra_plugins.adabatch_launcher._shell import apart, own_environment, undisturbed

from adabatch import submission
from adabatch.errors import UserError
from adabatch.owner import locked, status_of, write_status
from adabatch.sharing import SHARED


def _files(group: list) -> Path:
    """A new folder for submitit's files and the jobs' output. None of them has the job's id in its path:
    SLURM does not make folders for output, and a job may be faster than whoever submits it."""
    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    folder = (group[0].folder.parent / ".submitit" / name).absolute()
    folder.mkdir(parents=True)
    return folder


def _announced(group: list, cluster: str, files: Path, named) -> list:
    """The group's folders say that they are submitted, and with which of Hydra's own overrides. What somebody
    else has taken since leaves the group, and a group of which nothing is left its folder for files."""
    job = {"id": None, "cluster": cluster, "logs": str(files / "%j_*_log.*"), "submitted": time.time()}
    job["named"] = list(named)
    found, left = [], []
    try:
        for one in group:
            try:
                found.append(submission.Announced(one.folder, job | one.noted, one.known, one.anew))
                left.append(one)
            except submission.Taken as error:
                one.why = f"not submitted again: {error}"
                one.record = status_of(one.folder / "status.json").get("job") or {}
                one.job = one.record.get("id")
    except BaseException:
        for said in found:
            said.withdraw()
        shutil.rmtree(files, ignore_errors=True)
        raise
    group[:] = left
    if not group:
        shutil.rmtree(files, ignore_errors=True)
    return found


def _submitted(one, announced, **job) -> None:
    one.job, one.announced = job["id"], announced
    announced.submitted(**job)
    with locked(announced.folder):
        status = status_of(announced.path)
        one.record = status.get("job") or {}
        if one.record.get("id") == one.job and "%j" in str(one.record.get("logs")):
            # A job that was faster has filled in its id, and that only.
            one.record["logs"] = str(one.record["logs"]).replace("%j", one.job)
            write_status(announced.path, status)


def taken_back(one) -> None:
    """The folder of a job that was submitted and cancelled before it could begin is as it was before."""
    said = one.announced
    with locked(said.folder):
        status = status_of(said.path)
        record = status.get("job") or {}
        if status.get("state") == "submitted" and record.get("id") == one.job:
            write_status(said.path, status | {"job": record | {"id": None}})
    said.withdraw()


class Slurm:
    """sbatch."""

    most = 1000  # jobs in an array; SLURM's own limit (MaxArraySize) is 1001 unless a site changed it

    def __init__(self):
        if missing := [name for name in ("sbatch", "srun") if shutil.which(name) is None]:
            raise UserError(
                f"hydra/launcher=slurm needs SLURM's commands, and {' and '.join(missing)} "
                f"{'is' if len(missing) == 1 else 'are'} not on this machine: submit from a login node, "
                "or take "
                "hydra/launcher=local (in the background, here) or hardware=auto (in the foreground)"
            )

    @staticmethod
    def shape(config: dict, options: dict) -> dict:
        """What sbatch is told about a job. UserError: what no job can be."""
        _options.checked(options)
        node = config.get("hardware") or {}
        nodes, processes = node.get("nodes") or 1, node.get("processes")
        tasks = processes or nodes * (options["gpus_per_node"] or 1)
        if tasks % nodes:
            raise UserError(f"hardware.processes is a multiple of hardware.nodes={nodes}, got {tasks}")
        return {**options, "nodes": nodes, "tasks": tasks // nodes}

    def submit(self, group: list, named, shape: dict | None = None, announce: bool = True) -> list[str]:
        """One sbatch for the group, an array where it has several; the ids. shape: instead of their own.
        announce: their folders say so, and whose folder another command has taken leaves the group.
        UserError: sbatch refuses, or its files cannot be written; the folders are as before."""
        import submitit

        files, shape = _files(group), shape or group[0].shape
        executor = submitit.SlurmExecutor(folder=files, python=_deaf(_options.python(shape)))
        executor.update_parameters(**_options.parameters(shape, files))
        with undisturbed():
            announced = _announced(group, "slurm", files, named) if announce else []
            if not group:
                return []
            told = io.StringIO()
            try:
                with own_environment(), contextlib.redirect_stderr(told):
                    made = executor.map_array(group[0].work, [one.payload(named) for one in group])
            except BaseException as error:
                for one in announced:
                    one.withdraw()
                shutil.rmtree(files, ignore_errors=True)
                if not isinstance(error, Exception):
                    raise
                raise UserError(_refusal(error, told.getvalue(), len(group))) from error
            for one, job in zip(group, made):  # all of them, before a folder that fails can end this
                logs = str(files / f"{job.job_id}_*_log.*")
                one.chain.append(
                    {"id": job.job_id, "logs": logs, "processes": shape["nodes"] * shape["tasks"]}
                )
                one.job, one.record = one.chain[0]["id"], one.record or {"logs": logs}
            for one, said in zip(group, announced):
                _submitted(one, said, id=one.job)
        return [job.job_id for job in made]

    def told(self, group: list) -> str:
        shape, chain = group[0].shape, group[0].chain if group[0].legs else ()
        nodes, tasks = shape["nodes"], shape["tasks"]
        if chain:  # its first job
            tasks = min(chain[0]["processes"], tasks)
            nodes = chain[0]["processes"] // tasks
        size = f"{nodes} node{'s' * (nodes > 1)} x {tasks} process{'es' * (tasks > 1)}"
        if len(group) == 1:
            return f"submitted as job {group[0].job}: {size}"
        number, most = group[0].job.split("_")[0], shape["array_parallelism"]
        return f"submitted {len(group)} jobs as array {number}: {size} each" + (
            f", {most} at a time" if most < len(group) else ""
        )

    def cancel(self, jobs: list) -> str:
        ids = [leg["id"] for job in jobs for leg in job.chain or [{"id": job.job}]]
        return "scancel " + " ".join(dict.fromkeys(number.split("_")[0] for number in ids))


def _deaf(python: str) -> str:
    """The command with SIGUSR2 held back until the program listens: it would end Python while that starts.
    Where env cannot do that (coreutils before 8.31) the signal is lost meanwhile."""
    hold = "env --block-signal=USR2"
    return f"""sh -c '{hold} true 2>/dev/null && exec {hold} "$@"; trap "" USR2; exec "$@"' sh {python}"""


def _refusal(error: Exception, told: str, count: int) -> str:
    from submitit.core import utils

    if not isinstance(error, (utils.FailedJobError, utils.FailedSubmissionError)):  # not sbatch's own words
        return (
            f"{count} job(s) could not be submitted ({type(error).__name__}: {error}). Should `squeue --me` "
            "show one all the same, sbatch had taken it before: it fails when it begins, since its files are "
            "gone, and scancel ends it sooner"
        )
    text = f"{error}\n{told}" if "sbatch" not in str(error) else str(error)
    lines = [
        line.removeprefix("sbatch: ").removeprefix("error: ") for line in text.splitlines() if line.strip()
    ]
    said = "; ".join(dict.fromkeys(lines)) or type(error).__name__
    return f"sbatch refuses {count} job(s): {said}. Its options are set by hydra.launcher.KEY=VALUE"


def _after(setup) -> str:
    """The command that starts Python after the lines of `setup`, in their shell's stead: no process stands
    between a job and who ends it (submitit's own `setup` gives the job the number of a shell)."""
    lines = "\n".join(["set -e", *(setup or ()), 'exec "$@"'])
    start = shlex.quote(sys.executable)
    return f"sh -c {shlex.quote(lines)} sh {start}" if setup else start


class Local:
    """submitit's local executor: processes in the background of this machine."""

    most = 1000

    @staticmethod
    def shape(config: dict, options: dict) -> dict:
        _options.checked(options, _options.LOCAL)
        node = config.get("hardware") or {}
        if (nodes := node.get("nodes") or 1) > 1:
            raise UserError(f"hydra/launcher=local has one node, got hardware.nodes={nodes}")
        if phases := node.get("phases"):
            raise UserError(
                f"hardware.phases={phases} needs hydra/launcher=slurm, whose jobs can follow each other"
            )
        return options

    def submit(self, group: list, named) -> list[str]:
        """A process in the background for each; `array_parallelism` of them train at a time, the others
        wait."""
        import submitit

        files, shape = _files(group), group[0].shape
        executor = submitit.LocalExecutor(folder=files, python=_after(shape["setup"]))
        executor.update_parameters(
            timeout_min=shape["timeout_min"], signal_delay_s=shape["signal_delay_s"], tasks_per_node=1
        )
        # submitit hides all GPUs from a job that asks it for none, and counts them from 0 otherwise.
        given = {"CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES")}
        if shape["array_parallelism"] > 1:
            given[SHARED] = "1"
        slots = {"folder": str(files), "count": shape["array_parallelism"]}
        announced = _announced(group, "local", files, named)
        for number, (one, said) in enumerate(zip(group, announced)):
            payload = one.payload(named) | {"environment": given, "slots": slots}
            try:
                # Not `undisturbed`: what is started would hold signals back for ever.
                with own_environment(), apart(files / "background.log"):
                    job = executor.submit(one.work, payload)
                    _submitted(one, said, **submission.local_job(int(job.job_id)))
            except BaseException as error:
                for waiting in announced[number:]:
                    waiting.withdraw()
                if not isinstance(error, Exception):
                    raise
                why = f"{type(error).__name__}: {error}"
                raise UserError(f"{one.folder} could not be started in the background ({why})") from error
        return [one.job for one in group]

    def told(self, group: list) -> str:
        most = group[0].shape["array_parallelism"]
        return f"{len(group)} job{'s' * (len(group) > 1)} in the background of this machine, {most} at a time"

    def cancel(self, jobs: list) -> str:
        return "kill " + " ".join(job.job for job in jobs)


CLUSTERS = {"slurm": Slurm, "local": Local}
