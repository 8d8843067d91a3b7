"""hydra.launcher.*: what its keys may be, and how sbatch is told of them."""

import math
import shlex
import sys
from pathlib import Path

from adabatch.errors import UserError, suggest

CHAIN = ("dependency", "hold", "kill-on-invalid-dep")  # options of sbatch that tie the jobs of a chain


def _whole(least: int, most: float = math.inf):
    return lambda v: isinstance(v, int) and not isinstance(v, bool) and least <= v <= most


def _lines(value) -> bool:
    return value is None or (isinstance(value, list) and all(isinstance(line, str) for line in value))


def _plain(value) -> bool:
    """One value, or several, which sbatch takes with commas between them (nodelist)."""
    several = value if isinstance(value, list) and value else [value]
    return not any(isinstance(one, (dict, list)) for one in several)


def _name(value) -> bool:
    return value is None or (isinstance(value, (str, int)) and not isinstance(value, bool))


def _amount(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf


def _or_null(good):
    return lambda v: v is None or good(v)


# key -> (whether a value is good, what it is, what to do instead)
RULES = {
    "name": (_name, "a name", ""),
    "timeout_min": (_whole(1), "a whole number of minutes from 1", "Two hours: timeout_min=120"),
    "partition": (_name, "a name or null", ""),
    "account": (_name, "a name or null", ""),
    "qos": (_name, "a name or null", ""),
    "gpus_per_node": (
        _or_null(_whole(0)),
        "a whole number or null",
        "A kind of GPU is an option of sbatch: hydra.launcher.additional.gres='gpu:a100:2' and "
        "hardware.processes=2, or gpus_per_node=2 and hydra.launcher.additional.constraint=a100",
    ),
    "cpus_per_task": (_or_null(_whole(1)), "a whole number from 1 or null", ""),
    "mem_gb": (_or_null(_amount), "a number of GiB above 0 or null", "4 GiB: mem_gb=4, 512 MiB: mem_gb=0.5"),
    "array_parallelism": (_whole(1), "a whole number from 1", "One job after the other: array_parallelism=1"),
    "signal_delay_s": (_whole(0, 65535), "a whole number of seconds from 0 to 65535", ""),
    "setup": (_lines, "a list of lines of shell", "hydra.launcher.setup='[module load cuda]'"),
    "srun_args": (_lines, "a list of arguments", "hydra.launcher.srun_args='[--cpu-bind=cores]'"),
    "python": (_or_null(lambda v: isinstance(v, str)), "a command or null", ""),
    "additional": (
        lambda v: v is None or (isinstance(v, dict) and all(map(_plain, v.values()))),
        "options of sbatch, each with one value or a list of them",
        "hydra.launcher.additional.constraint=a100",
    ),
}
LOCAL = ("timeout_min", "array_parallelism", "signal_delay_s", "setup")


def checked(options: dict, keys=tuple(RULES)) -> None:
    """UserError: what submitit or sbatch could not take, or would take for something else."""
    if odd := [key for key in options if key not in keys]:
        raise UserError(
            f"hydra.launcher has the keys {', '.join(keys)}, got {odd[0]}.{suggest(odd[0], keys)} Any other "
            "option of sbatch: hydra.launcher.additional.OPTION=VALUE"
        )
    for key in keys:
        good, rule, remedy = RULES[key]
        if key not in options:
            raise UserError(f"hydra.launcher.{key} is {rule}, and it is missing. {remedy}".rstrip())
        if not good(value := options[key]):
            raise UserError(f"hydra.launcher.{key} is {rule}, got {value!r}. {remedy}".rstrip())
    if options["timeout_min"] * 60 < options["signal_delay_s"] + 30:
        raise UserError(
            f"hydra.launcher.timeout_min={options['timeout_min']} ends a job before it has begun: it is told "
            f"to save signal_delay_s={options['signal_delay_s']} s earlier. Give it more time, or a shorter "
            "delay"
        )


def _spelled(key) -> str:
    """As sbatch spells it."""
    return str(key).replace("_", "-")


def later(additional: dict | None) -> dict:
    """The user's options for a later job of a chain: what ties a job to others is for the first."""
    return {k: v for k, v in (additional or {}).items() if _spelled(k) not in CHAIN}


def held(additional: dict | None) -> bool:
    """Whether the user wants to let the job run himself (scontrol release)."""
    return any(_spelled(k) == "hold" and v for k, v in (additional or {}).items())


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
    for key, value in (shape["additional"] or {}).items():
        options[_spelled(key)] = ",".join(map(str, value)) if isinstance(value, list) else value
    options |= shape.get("chained") or {}  # a chain holds whatever else is asked for
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
    words = f"-m hydra_plugins.adabatch_launcher._last_words {shlex.quote(str(files))} $code"
    # What could not start the run may not start this either: then the Python that submitted it.
    said = f"{python(shape)} {words}" + (
        f" || {shlex.quote(sys.executable)} {words}" if shape["python"] else ""
    )
    return [
        # Since 22.05 srun does not take it from sbatch.
        '[ -z "${SLURM_CPUS_PER_TASK:-}" ] || export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"',
        *(shape["setup"] or ()),
        # A process that was killed says nothing; this runs after all of them, on the job's first node.
        f'srun() {{ command srun "$@" && return; local code=$?; {said}; return $code; }}',
    ]


def python(shape: dict) -> str:
    return shape["python"] or shlex.quote(sys.executable)
