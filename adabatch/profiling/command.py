"""adabatch-profile: how long a step of this run takes on this machine, by batch size.

Exit codes: 0 measured, 1 a fault, 2 the user's mistake (one message), 130 interrupted. Writes a profile.json
and a picture, by default into outputs/profile-<overrides>-<8 hex>.
"""

import json
import os
import sys
import time
from pathlib import Path

from adabatch import arguments, commandline, config, files, places, processes, profiles, runs
from adabatch.commandline import Parser
from adabatch.errors import UserError
from adabatch.profiling import table

HELP = """examples:
  adabatch-profile model=resnet dataset=cifar10         batches from the schedule's first on
  adabatch-profile schedule.base_batch=32 --largest 4096
  adabatch-profile --batches 32,48,64,500               these sizes
  adabatch-profile hardware.processes=2                 in two processes, communication included
  adabatch-profile --sweep dataset.workers=1,4,8 --batches 256 dataset=imagenet dataset.root=DIR
                                                        one batch under several settings, side by side
  adabatch-profile --merge a.json b.json --out all.json profiles of several machines in one file

The overrides are those of `adabatch`. A run that finds a fitting profile beside it in outputs/ forecasts its
time and reports forecast against measured (forecast=auto); adabatch-plan --profile FILE plans by it."""


def parser() -> Parser:
    p = Parser("adabatch-profile", "Time the steps of a run on this machine, by batch size.", HELP)
    p.add_argument("--batches", metavar="N,...", help="these batch sizes instead of powers of two")
    p.add_argument("--largest", metavar="N", help="largest batch (default: 32 times the first, or the run's)")
    p.add_argument("--accumulation", default="2,4", metavar="N,...", help="passes per step (default: 2,4)")
    p.add_argument("--seconds", default="2", metavar="S", help="for each point (default: 2)")
    p.add_argument("--sustained", default="30", metavar="S", help="without a pause (default: 30; 0 = none)")
    p.add_argument("--out", metavar="FILE", help="write there instead of outputs/profile-.../profile.json")
    p.add_argument("--plot", metavar="FILE", help="the picture, .svg or .png (default: beside the profile)")
    p.add_argument(
        "--sweep", action="append", metavar="KEY=A,B", help="time one batch under each; repeatable"
    )
    p.add_argument("--merge", nargs="+", metavar="FILE", help="put these profiles into --out; times nothing")
    return p


def main(line=None) -> None:
    """The console script."""
    arguments.main(command, line)


def command(line: list[str]) -> int:
    """Runs the command line and returns its exit code."""
    return commandline.answered(parser(), line, lambda asked, overrides: profiled(asked, overrides, line))


def profiled(asked, overrides: list[str], line: list[str]) -> int:
    """Checks, measures or merges, writes and prints."""
    if asked.sweep:
        return swept(asked, overrides)
    out, drawn = _out(asked.out), _out(asked.plot, (".svg", ".png"), "--plot")
    if asked.merge:
        return merge(asked, overrides, out)
    wanted = {
        "batches": numbers(asked.batches, "--batches"),
        "largest": (numbers(asked.largest, "--largest") or [None])[0],
        "counts": tuple(numbers(asked.accumulation, "--accumulation", least=2)),
        "seconds": seconds(asked.seconds, "--seconds", 0.05),
        "sustained": seconds(asked.sustained, "--sustained", 0.0),
    }
    with config.composer(asked.config_dir):
        good = config.checked(config.load(overrides))
    place = places.detect()
    places.agree(place, good.config.get("hardware"))
    if place.kind == "single" and (count := processes.asked(good.config)) > 1:
        processes.refuse(good.config)
        from adabatch.profiling.processes import started

        return started(line, count)
    found = measured(good.config, wanted, place)
    if place.rank:
        return 0
    (profile,) = profiles.parsed({"format": files.FORMAT, "profiles": [found]}, "the profile")
    if out is None:
        readable = runs.folder_name(good.config, overrides).rpartition("-")[0]
        out = Path("outputs") / f"profile-{readable}-{profile.key}" / "profile.json"
    drawn = drawn or out.with_suffix(".svg")
    _written(out, [found])
    _drawn(drawn, profile)
    if asked.json:
        print(json.dumps({"file": str(out), **found}, indent=2, allow_nan=False))
    else:
        print(table.text(profile))
        print(f"\nwritten: {out}, {drawn}")
    return 0


def swept(asked, overrides: list[str]) -> int:
    """--sweep: one batch under several settings."""
    from adabatch.profiling import bars, sweep

    for option in ("largest", "accumulation", "sustained", "merge"):
        if getattr(asked, option) != parser().get_default(option):
            raise UserError(f"--sweep times one batch under each setting, and --{option} is for a profile")
    out, drawn = _out(asked.out), _out(asked.plot, (".svg",), "--plot of a --sweep")
    batches = numbers(asked.batches, "--batches")
    if len(batches) > 1:
        raise UserError(f"--sweep times one batch, got --batches {asked.batches}")
    spent = seconds(asked.seconds, "--seconds", 0.05)
    if (place := places.detect()).kind != "single":
        raise UserError(
            f"--sweep starts a process after the other by itself, and was started by {place.kind}"
        )
    with config.composer(asked.config_dir):
        chosen = sweep.settings(overrides, asked.sweep)
    found = sweep.measured(
        chosen, (batches or [None])[0], spent, lambda text: print(text, file=sys.stderr, flush=True)
    )
    out = out or sweep.folder(chosen, overrides, found["batch_size"]) / "sweep.json"
    drawn = drawn or out.with_suffix(".svg")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        files.write_json(out, found)
        files.write_bytes(drawn, bars.svg(found).encode())
    except OSError as error:
        raise UserError(f"{error.filename} cannot be written ({error.strerror}): name another") from None
    print(json.dumps({"file": str(out), **found}, indent=2) if asked.json else sweep.text(found))
    if not asked.json:
        print(f"\nwritten: {out}, {drawn}")
    return 0


def numbers(text: str | None, option: str, least: int = 1) -> list[int]:
    """ "32,64" -> [32, 64]."""
    parts = [part.strip() for part in (text or "").split(",") if part.strip()]
    if any(not (p.isascii() and p.isdecimal()) or not least <= int(p) <= profiles.LARGEST for p in parts):
        raise UserError(f"{option} lists whole numbers from {least}, got {text!r}")
    if len(parts) > 100:
        raise UserError(f"{option} lists at most 100 numbers, got {len(parts)}")
    return [int(part) for part in parts]


def seconds(text: str, option: str, least: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not least <= value <= 3600:
        raise UserError(f"{option} is a number of seconds from {least:g} to 3600, got {text!r}")
    return value


def _out(name: str | None, kinds=(".json",), option: str = "--out") -> Path | None:
    if name is None:
        return None
    path = Path(name).expanduser()
    if path.suffix.lower() not in kinds:
        raise UserError(f"{option} names a {' or '.join(kinds)} file, got {name}")
    return path


def merge(asked, overrides: list[str], out: Path | None) -> int:
    """--merge: the profiles of several files in one."""
    if overrides:
        raise UserError(f"--merge takes files and no overrides, got {' '.join(overrides)}")
    if out is None:
        raise UserError("--merge needs a file to write: --out FILE.json")
    found = profiles.merged(asked.merge)
    _written(out, found)
    for profile in profiles.read(out):
        sizes = sorted(p.batch_size for p in profile.points)
        model = str((profile.configuration.get("model") or {}).get("_target_"))
        spread = f"{len(sizes)} points, batches {sizes[0]:,} to {sizes[-1]:,}"
        print(f"{profile.key}  {profile.words()}; {model}; {spread}")
    print(f"written: {out}")
    return 0


def _written(out: Path, found: list[dict]) -> None:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        profiles.write(out, found)
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error.strerror}): name another --out") from None


def _drawn(path: Path, profile) -> None:
    from adabatch.profiling import picture

    try:
        files.write_bytes(path, picture.draw(profile, path.suffix.lower()))
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}): name another --plot") from None


def measured(tree: dict, wanted: dict, place) -> dict:
    """The profile as its file has it, on rank 0; torch is imported here, once the command line is good."""
    from adabatch.environment import before_torch

    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    before_torch()
    began = time.perf_counter()
    from adabatch.profiling.measure import measure

    meeting = None
    if place.world > 1:
        from adabatch.meeting import Meeting

        if place.kind == "local":
            from adabatch.signals import die_with_parent

            die_with_parent(os.getppid())
        meeting = Meeting(place, (tree.get("hardware") or {}).get("join_timeout") or 300.0)

    def tell(text: str) -> None:
        if place.rank == 0:
            print(text, file=sys.stderr, flush=True)

    found = measure(tree, wanted, meeting, tell, began)
    if meeting:
        meeting.leave()
    return found
