"""Where jobs go: SLURM by sbatch, or this machine. Both through submitit's executors."""

import contextlib
import io
import os
import secrets
import shlex
import shutil
import signal
import sys
import time
from pathlib import Path

from adabatch import places, submission
from adabatch.errors import UserError
from adabatch.owner import status_of

# Of the submitting shell, or of the job from which one submits; in a job they would speak of another one.
# SBATCH_* are the user's own defaults, and SLURM_CONF and SLURM_CLUSTERS say which cluster it is: they stay.
FOREIGN = (
    "SLURM_",
    "SLURMD_",
    "SLURMSTEPD_",
    "SRUN_",
    "SUBMITIT_",
    "PMI",
    "PMIX_",
    "TORCHELASTIC_",
    "ADABATCH_LOCAL",
    "ADABATCH_LISTEN_FD",
)
ALONE = (
    *places.TORCHRUN,
    "LOCAL_WORLD_SIZE",
    "GROUP_RANK",
    "ROLE_RANK",
    "CUDA_VISIBLE_DEVICES",
    "GPU_DEVICE_ORDINAL",
    "ROCR_VISIBLE_DEVICES",
    "HIP_VISIBLE_DEVICES",
)
KEPT = ("SLURM_CONF", "SLURM_CLUSTERS")


@contextlib.contextmanager
def own_environment():
    """Without what belongs to another job."""
    before = dict(os.environ)
    for name in before:
        if (name.startswith(FOREIGN) and name not in KEPT) or name in ALONE:
            del os.environ[name]
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _files(group: list) -> Path:
    """A new folder for submitit's files and the jobs' output. None of them has the job's id in its path:
    SLURM does not make folders for output, and a job may be faster than whoever submits it."""
    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    folder = (group[0].folder.parent / ".submitit" / name).absolute()
    folder.mkdir(parents=True)
    return folder


def _announced(group: list, cluster: str, files: Path) -> list:
    job = {"id": None, "cluster": cluster, "logs": str(files / "%j_*_log.*"), "submitted": time.time()}
    found = []
    try:
        for one in group:
            found.append(submission.Announced(one.folder, dict(job)))
    except OSError as error:
        for one in found:
            one.withdraw()
        raise UserError(
            f"{error.filename} cannot be written ({error.strerror}): name another hydra.sweep.dir"
        ) from error
    return found


def _submitted(one, announced, **job) -> None:
    announced.submitted(**job)
    one.job = job["id"]
    one.record = status_of(announced.path).get("job") or {}
    one.record["logs"] = str(one.record.get("logs") or "").replace("%j", job["id"])


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
        node = config.get("hardware") or {}
        nodes, processes = node.get("nodes") or 1, node.get("processes")
        tasks = processes or nodes * (options["gpus_per_node"] or 1)
        if tasks % nodes:
            raise UserError(f"hardware.processes is a multiple of hardware.nodes={nodes}, got {tasks}")
        if options["timeout_min"] * 60 < options["signal_delay_s"] + 30:
            raise UserError(
                f"hydra.launcher.timeout_min={options['timeout_min']} ends a job before it has begun: it "
                "is told to save "
                f"signal_delay_s={options['signal_delay_s']} s earlier. Give it more time, or a shorter delay"
            )
        return {**options, "nodes": nodes, "tasks": tasks // nodes}

    def submit(self, group: list, named, shape: dict | None = None, announce: bool = True) -> list[str]:
        """One sbatch for the group, an array where it has several; the ids. shape: instead of their own.
        announce: their folders say so. UserError: sbatch refuses, and the folders are as before."""
        import submitit

        files, shape = _files(group), shape or group[0].shape
        executor = submitit.SlurmExecutor(folder=files, python=_deaf(_python(shape)))
        executor.update_parameters(**parameters(shape, files))
        with _undisturbed():
            announced = _announced(group, "slurm", files) if announce else []
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
            for one, job, said in zip(group, made, announced):
                _submitted(one, said, id=job.job_id)
            for one, job in zip(group, made):
                logs = str(files / f"{job.job_id}_*_log.*")
                one.chain.append(
                    {"id": job.job_id, "logs": logs, "processes": shape["nodes"] * shape["tasks"]}
                )
        return [job.job_id for job in made]

    def told(self, group: list) -> str:
        shape = group[0].shape
        size = f"{shape['nodes']} node{'s' * (shape['nodes'] > 1)} x {shape['tasks']} process"
        size += "es" * (shape["tasks"] > 1)
        if len(group) == 1:
            return f"submitted as job {group[0].job}: {size}"
        number, most = group[0].job.split("_")[0], shape["array_parallelism"]
        return f"submitted {len(group)} jobs as array {number}: {size} each" + (
            f", {most} at a time" if most < len(group) else ""
        )

    def cancel(self, jobs: list) -> str:
        ids = [leg["id"] for job in jobs for leg in job.chain or [{"id": job.job}]]
        return "scancel " + " ".join(dict.fromkeys(number.split("_")[0] for number in ids))


def parameters(shape: dict, files: Path) -> dict:
    """submitit's parameters for a shape. Options of sbatch that submitit need not know go through as they
    are."""
    options = {
        "partition": shape["partition"], "account": shape["account"], "qos": shape["qos"],
        "gpus-per-node": shape["gpus_per_node"], "cpus-per-task": shape["cpus_per_task"],
        "mem": None if shape["mem_gb"] is None else f"{round(shape['mem_gb'] * 1024)}M",
        "requeue": True,  # also where a site has set JobRequeue=0
        "signal": f"USR2@{shape['signal_delay_s']}",
    }  # fmt: skip
    options |= shape.get("chained") or {}
    options |= {str(k).replace("_", "-"): v for k, v in (shape["additional"] or {}).items()}
    return {
        "job_name": shape["name"], "time": shape["timeout_min"], "nodes": shape["nodes"],
        "ntasks_per_node": shape["tasks"], "array_parallelism": shape["array_parallelism"],
        "signal_delay_s": shape["signal_delay_s"],
        "wckey": None,  # submitit's own is refused where a site keeps account of them
        "setup": setup(shape, files),
        "srun_args": ["--kill-on-bad-exit=1", *(shape["srun_args"] or ())],
        "additional_parameters": {k: v for k, v in options.items() if v is not None and v is not False},
    }  # fmt: skip


def setup(shape: dict, files: Path) -> list[str]:
    """Lines of the batch script before srun: the user's own and two of ours."""
    words = f"{_python(shape)} -m hydra_plugins.adabatch_launcher._last_words {shlex.quote(str(files))}"
    return [
        # Since 22.05 srun does not take it from sbatch.
        '[ -z "${SLURM_CPUS_PER_TASK:-}" ] || export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"',
        *(shape["setup"] or ()),
        # A process that was killed says nothing; this runs after all of them, on the job's first node.
        f'srun() {{ command srun "$@" && return; local code=$?; {words} $code; return $code; }}',
    ]


def _python(shape: dict) -> str:
    return shape["python"] or shlex.quote(sys.executable)


def _deaf(python: str) -> str:
    """The command, deaf to SIGUSR2 until the program listens: it would end Python while that starts."""
    return f"""sh -c 'trap "" USR2; exec "$@"' sh {python}"""


def _refusal(error: Exception, told: str, count: int) -> str:
    text = f"{error}\n{told}" if "sbatch" not in str(error) else str(error)
    lines = [
        line.removeprefix("sbatch: ").removeprefix("error: ") for line in text.splitlines() if line.strip()
    ]
    said = "; ".join(dict.fromkeys(lines)) or type(error).__name__
    return f"sbatch refuses {count} job(s): {said}. Its options are set by hydra.launcher.KEY=VALUE"


@contextlib.contextmanager
def _undisturbed():
    """Ctrl-C waits meanwhile, also for sbatch: a job may not be submitted without being told of."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Local:
    """submitit's local executor: processes in the background of this machine."""

    most = 1000

    @staticmethod
    def shape(config: dict, options: dict) -> dict:
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
        executor = submitit.LocalExecutor(folder=files)
        executor.update_parameters(
            timeout_min=shape["timeout_min"], signal_delay_s=shape["signal_delay_s"], tasks_per_node=1,
            setup=list(shape["setup"] or ()),
        )  # fmt: skip
        # submitit hides all GPUs from a job that asks it for none, and counts them from 0 otherwise.
        given = {"CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES")}
        slots = {"folder": str(files), "count": shape["array_parallelism"]}
        for one in group:
            (said,) = _announced([one], "local", files)
            payload = one.payload(named) | {"environment": given, "slots": slots}
            # Not `_undisturbed`: what is started would hold signals back for ever.
            with own_environment(), _apart(files / "background.log"):
                job = executor.submit(one.work, payload)
                _submitted(one, said, **submission.local_job(int(job.job_id)))
        return [one.job for one in group]

    def told(self, group: list) -> str:
        most = group[0].shape["array_parallelism"]
        return f"{len(group)} job{'s' * (len(group) > 1)} in the background of this machine, {most} at a time"

    def cancel(self, jobs: list) -> str:
        return "kill " + " ".join(job.job for job in jobs)


@contextlib.contextmanager
def _apart(log: Path):
    """What is started meanwhile outlives this terminal. It ignores Ctrl-C and a hangup, and writes into
    `log`: a pipe that it held would keep its reader waiting."""
    sys.stdout.flush()
    sys.stderr.flush()
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGHUP)}
    kept = [os.dup(number) for number in (0, 1, 2)]
    nothing = os.open(os.devnull, os.O_RDONLY)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    for number, source in enumerate((nothing, file, file)):
        os.dup2(source, number)
    try:
        yield
    finally:
        for number, source in enumerate(kept):
            os.dup2(source, number)
        for number in (*kept, nothing, file):
            os.close(number)
        for number, handler in before.items():
            signal.signal(number, handler)


CLUSTERS = {"slurm": Slurm, "local": Local}
