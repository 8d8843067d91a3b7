"""The command `adabatch`: Hydra composes, config.py checks, jobs.py and sweep.py run. No torch before all is
good."""

import contextlib
import errno
import os
import sys
import traceback

from adabatch import places
from adabatch.errors import UserError

UNWRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR)
results: list[int] = []  # exit codes of the jobs that ran in this process


class JobFailed(RuntimeError):
    """A job of a multirun failed in a process that another launcher started; its message was printed
    there."""


def task(tree):
    """One job: called by Hydra with the composed configuration. Returns the summary (None if it failed)."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from adabatch import config, jobs

    hydra = HydraConfig.get()
    good = config.checked(tree, hydra)
    folder = os.path.relpath(hydra.runtime.output_dir)
    overrides = config.typed_lines(hydra)
    own = _option(sys.argv[1:], "--config-dir", "-cd")
    own = ["--config-dir", own] if own else []
    if hydra.mode != RunMode.MULTIRUN:
        named = [
            line for line in hydra.overrides.hydra if line.startswith(("hydra.run.dir", "hydra.sweep.dir"))
        ]
        summary, code = jobs.run_job(good.config, folder, overrides, good.notes, places=[*named, *own])
        results.append(code)
        return summary
    if hydra.launcher._target_.endswith(".BasicLauncher"):
        from adabatch import sweep

        _alone()  # a YAML may say hydra.mode=MULTIRUN
        jobs.terminal()
        named = ([] if os.path.dirname(folder) == "outputs" else [f"hydra.run.dir={folder}"]) + own
        record = sweep.run_isolated(good.config, folder, overrides, good.notes, named=named)
        chosen = not hydra.sweeper._target_.endswith((".BasicSweeper", ".CompareSweeper"))
        return sweep.score(record) if chosen else record["summary"]
    summary, code = jobs.run_job(good.config, folder, overrides, good.notes)
    if code:
        raise JobFailed(f"job {' '.join(overrides)} ended with code {code}: see {folder}/log.txt")
    return summary


def main() -> None:
    """The console script. Exit codes: 0 done, 1 failed, 2 the user's mistake, 130 interrupted."""
    try:
        code = command(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:  # `adabatch --help | head`: the reader has what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    if _one_of_several():
        from adabatch import processes

        processes.end(code)
    sys.exit(code)


def command(arguments: list[str]) -> int:
    """Runs the command line and returns its exit code."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors shall reach us, not Hydra's own printing
    from adabatch import config, targets

    targets.reach_cwd()
    results.clear()
    arguments = config.lenient(arguments)
    try:
        if {"-m", "--multirun", "hydra.mode=MULTIRUN"} & set(arguments):
            _alone()
        code = _hydra(arguments)
        _the_last_jobs()
    except KeyboardInterrupt:
        _jobs_so_far()
        return 130
    except JobFailed as error:
        return _say(str(error), 1)
    except Exception as error:
        from adabatch import mistakes

        message = mistakes.explain(error, _overrides(arguments), _option(arguments, "--config-dir", "-cd"))
        if message is not None:
            return _say(message, 2)
        if isinstance(error, OSError) and error.errno in UNWRITABLE:
            why = f"{error.filename} cannot be written ({error.strerror})"
            return _say(f"{why}: name another hydra.run.dir", 2)
        traceback.print_exc()
        return 1
    return max([code, _jobs_so_far(), *results])


def _one_of_several() -> bool:
    with contextlib.suppress(UserError):
        return places.detect().world > 1
    return False


def _alone() -> None:
    """UserError where several processes were started on a multirun: each of them would run every job."""
    place = places.detect()
    if place.world > 1:
        raise UserError(
            f"a multirun is one process that starts its jobs, got {place.world} (started by {place.kind}). "
            "Leave that out and take hardware.processes=N, or start each run by itself without -m"
        )


def _hydra(arguments: list[str]) -> int:
    """Hydra's main with our configuration; 0, or the code with which it ended the program itself (--help:
    0)."""
    import hydra

    from adabatch import config

    before = sys.argv
    try:
        sys.argv = [before[0], *_overrides_first(arguments)]
        if _option(arguments, "--cfg", "-c"):
            with config.composer(_option(arguments, "--config-dir", "-cd")):
                config.checked(config.load(_overrides(arguments)))
        hydra.main(config_path=str(config.conf_dir()), config_name="config", version_base="1.3")(task)()
    except SystemExit as end:
        if isinstance(end.code, str):
            return _say(end.code, 1)
        return end.code or 0
    finally:
        sys.argv = before
    return 0


def _the_last_jobs() -> None:
    """Waits for those that hardware.parallel_runs left running."""
    if sweep := sys.modules.get("adabatch.sweep"):
        sweep.drain()


def _jobs_so_far() -> int:
    sweep = sys.modules.get("adabatch.sweep")
    return sweep.show() if sweep is not None and (sweep.records or sweep.epilogue) else 0


def _overrides_first(arguments: list[str]) -> list[str]:
    """The arguments as Hydra can read them: of overrides on both sides of an option it refuses the later
    ones. Not last, because --info would take an override for its value."""
    found, options = _parsed(arguments), list(arguments)
    for override in found:
        options.remove(override)
    return [*found, *options]


def _parsed(arguments: list[str]) -> list[str]:
    """The overrides among the arguments, wherever they stand. SystemExit: --version, or an option's value
    is wrong."""
    from hydra._internal.utils import get_args_parser

    return get_args_parser().parse_known_intermixed_args(arguments)[0].overrides


def _overrides(arguments: list[str]) -> list[str]:
    """Likewise; none where the line cannot be read."""
    with contextlib.suppress(SystemExit):
        return _parsed(arguments)
    return []


def _option(arguments: list[str], *names: str) -> str | None:
    """The value after --name (or --name=value)."""
    for index, argument in enumerate(arguments):
        if argument in names:
            return arguments[index + 1] if index + 1 < len(arguments) else None
        if argument.partition("=")[0] in names and "=" in argument:
            return argument.partition("=")[2]
    return None


def _say(message: str, code: int) -> int:
    from adabatch import processes

    tells = True
    with contextlib.suppress(UserError):
        tells = processes.tells(places.detect())
    if tells:
        print(f"adabatch: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    from adabatch.__main__ import main as importable  # other launchers pickle `task` by its module's name

    importable()
