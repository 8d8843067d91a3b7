"""What failed, at length: the whole last error, the end of log.txt, and the command that goes on."""

import shlex
from pathlib import Path

from adabatch import files, runs
from adabatch.errors import UserError
from adabatch.status import words
from adabatch.status.rows import Row, state

TAIL = 15  # lines of log.txt
ERROR = 60  # lines of an error


def block(row: Row) -> list[tuple[str, str]]:
    """Lines about one run, each with its style."""
    run, verdict = row.run, row.verdict
    folder = words.line(run.folder, 400)
    found = [(f"{folder}: {state(row)}", row.style)]
    error = run.error if verdict.state != "lost" else verdict.error
    found += [(f"  {text}", "") for text in words.lines(error or "(no error was recorded)", ERROR)]
    if tail := log_tail(run.folder):
        found.append((f"  the end of {folder}/log.txt:", "dim"))
        found += [(f"  | {text}", "") for text in tail]
    if isinstance(logs := run.submitted.get("logs"), str):
        found.append((f"  the job's own log: {words.line(logs, 400)}", "dim"))
    if again := resume(run.folder):
        found.append(("  resume with:", "dim"))
        found.append((f"  {again}", ""))
    return [*found, ("", "")]


def log_tail(folder: Path) -> list[str]:
    """The last lines of log.txt, [] without one."""
    try:
        text = files.read_tail(folder / "log.txt", 64 << 10)
    except UserError:
        return []
    return words.lines(text, TAIL) if text.strip() else []


def resume(folder: Path) -> str | None:
    """The command that goes on with the run, quoted for a shell; None where the folder does not say what was
    typed."""
    try:
        overrides, (swept, launched) = runs.Run(folder).overrides, _launched(folder)
        if not (folder / "overrides.yaml").is_file():
            return None
    except (UserError, OSError, TypeError):
        return None
    default = Path("outputs").resolve() / folder.name
    if "${" in str(folder) or "\\" in str(folder):  # OmegaConf and Hydra would read it otherwise
        return None
    # A multirun, as a submitted run is one, finds the run's folder in the sweep's by the run's identity.
    named = any(line.lstrip("+").startswith("hydra.sweep.subdir=") for line in launched)
    key, where = ("hydra.sweep.dir", folder.parent) if swept else ("hydra.run.dir", folder)
    place = [] if folder.resolve() == default else [f"{key}={_quoted(str(where))}"]
    place += [f"hydra.sweep.subdir={_quoted(folder.name)}"] if named else []
    launched = [line for line in launched if not line.lstrip("+").startswith("hydra.sweep.")]
    if "--config-dir" not in launched:
        launched += _own_options(folder)
    command = shlex.join(["adabatch", *overrides, *launched, *place])
    # A command that was changed to be shown is no command.
    return words.line(command, 20_000) if command.isprintable() else None


def _launched(folder: Path) -> tuple[bool, list[str]]:
    """Whether a launcher submitted the run, and with which of Hydra's own overrides (`_launch._named`)."""
    job = (runs.Run(folder).status or {}).get("job")
    named = job.get("named") if isinstance(job, dict) else None
    good = isinstance(named, list) and all(isinstance(line, str) for line in named)
    typed = runs.Run(folder).overrides  # a folder whose status.json was lost says no more than this
    return isinstance(job, dict) or "hardware=slurm" in typed, named if good else []


def _own_options(folder: Path) -> list[str]:
    """--config-dir DIR of the command that began the run, [] where it had none."""
    argv = (runs.Run(folder).environment or {}).get("argv")
    typed = [str(word) for word in argv] if isinstance(argv, list) else []
    for word, after in zip(typed, [*typed[1:], ""]):
        name, equal, value = word.partition("=")
        if name in ("--config-dir", "-cd") and (found := value if equal else after):
            return ["--config-dir", found]
    return []


def _quoted(text: str) -> str:
    """As Hydra's grammar quotes a value: '=', spaces and brackets are then text."""
    plain = text.replace("/", "").replace("_", "").replace("-", "").replace(".", "")
    return text if plain.isalnum() and plain.isascii() else "'" + text.replace("'", "\\'") + "'"
