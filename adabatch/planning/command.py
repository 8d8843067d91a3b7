"""adabatch-plan: what the same overrides would train under, without training.

Exit codes: 0 shown, 2 the user's mistake (one message), 1 a fault of the program. Writes nothing but the file
that --plot names.
"""

import contextlib
import json
import os
import shutil
import sys

from adabatch import arguments, commandline, config, worlds
from adabatch.combinations import Compared, combinations
from adabatch.commandline import Parser
from adabatch.errors import UserError
from adabatch.planning import picture, spending, table, times
from adabatch.planning.job import Plan, planned

HELP = """examples:
  adabatch-plan schedule=adabatch                        the phases of this run, and warnings
  adabatch-plan -m schedule=fixed,adabatch seed=0        every combination, one line each
  adabatch-plan dataset=cifar10 epochs=100 --json        for machines
  adabatch-plan schedule=adabatch --plot plan.svg        a picture (.svg or .png)
  adabatch-plan schedule=adabatch --profile FILE         its time, and its worth over each fixed batch
  adabatch-plan ... --profile FILE --world h100 --devices 8 --price 2.5   another machine, and money

The overrides are those of `adabatch`: key=value, group=option. Nothing is trained or written."""


def parser() -> Parser:
    p = Parser("adabatch-plan", "Show a run's schedule before anything runs: phases, totals, warnings.", HELP)
    p.add_argument("-m", "--multirun", action="store_true", help="plan every combination: seed=0,1")
    p.add_argument("--plot", metavar="FILE", help="also draw it: a .svg or .png file")
    p.add_argument("--profile", metavar="FILE", help="forecast by this profile (adabatch-profile writes it)")
    p.add_argument("--world", metavar="FILE|NAME", help=f"on another device: {', '.join(worlds.names())}")
    p.add_argument("--devices", metavar="N", help="with --world: so many of them")
    p.add_argument("--price", metavar="EUR", help="with --profile: EUR per device and hour")
    return p


def main(line=None) -> None:
    """The console script."""
    arguments.main(command, line)


def command(line: list[str]) -> int:
    """Runs the command line and returns its exit code."""
    return commandline.answered(parser(), line, shown)


def shown(asked, overrides: list[str]) -> int:
    """Plans, draws and prints."""
    path = picture.checked(asked.plot) if asked.plot else None
    wanted = forecasting(asked)
    plans, compared = plan_all(overrides, asked.multirun, asked.config_dir)
    if wanted:
        plans = times.forecasts(plans, wanted)
    if path:
        picture.write(path, plans, table.differing(plans))
    show(plans, asked.multirun, asked.json, compared)
    return 0


def forecasting(asked) -> times.Asked | None:
    """What the options ask of a forecast. UserError: a value that is none, or --profile is missing."""
    if asked.profile is None:
        for name in ("world", "devices", "price"):
            if getattr(asked, name) is not None:
                raise UserError(f"--{name} needs --profile FILE, which adabatch-profile writes")
        return None
    price, devices = None, None
    if asked.price is not None:
        with contextlib.suppress(ValueError):
            price = float(asked.price)
        if price is None or not 0 <= price < 1e9:
            raise UserError(f"--price is EUR per device and hour, a number from 0, got {asked.price!r}")
    if asked.devices is not None:
        if not asked.world:
            raise UserError("--devices goes with --world; of the profiled machine: hardware.processes=N")
        devices = int(asked.devices) if asked.devices.isdecimal() and asked.devices.isascii() else 0
        if not 1 <= devices <= 100_000:
            raise UserError(f"--devices is a whole number from 1 to 100000, got {asked.devices!r}")
    return times.Asked(asked.profile, asked.world, devices, price)


def plan_all(
    overrides: list[str], multirun: bool, config_dir: str | None = None
) -> tuple[list[Plan], Compared | None]:
    """The plan of the run, or with `multirun` of every combination; and what a comparison makes of them."""
    with config.composer(config_dir):
        if not multirun:
            return [plan_of(overrides)], None
        jobs, compared = combinations(overrides)
        plans = []
        for number, job in enumerate(jobs):
            try:
                plans.append(plan_of(job))
            except UserError as error:
                raise UserError(f"job {number} of {len(jobs)} ({' '.join(job)}): {error}") from None
        return plans, compared


def plan_of(overrides: list[str]) -> Plan:
    """The plan of one run; inside `config.composer`."""
    good = config.checked(config.load(overrides))
    return planned(good.config, overrides, good.notes)


def show(plans: list[Plan], multirun: bool, as_json: bool, compared: Compared | None = None) -> None:
    """Print the plans: JSON, or text that fits the terminal."""
    if as_json:
        found = {"jobs": [plan.json() for plan in plans]} if multirun else plans[0].json()
        found |= {"notes": list(compared.notes)} if compared else {}
        print(json.dumps(found, indent=2, allow_nan=False))
        return
    width = min(table.WIDTH, shutil.get_terminal_size((table.WIDTH, 24)).columns)
    unicode = _writes("▁→")
    text = table.comparison(plans, width) if multirun else table.text(plans[0], unicode, width)
    if compared and compared.notes:
        text = "\n".join([text, "", *(table.wrapped(note, width) for note in compared.notes)])
    if compared and not plans[0].forecast:
        told = (table.wrapped(line, width) for line in times.resolution(plans, compared))
        text = "\n".join([text, "", *told])
    if plans[0].forecast:
        more = spending.comparison(plans, width, compared) if multirun else spending.text(plans[0], width)
        text = f"{text}\n\n{more}"
    print(coloured(text) if _colours() else text)


def coloured(text: str) -> str:
    """Warnings stand out; only for a terminal."""
    lines, inside = [], False
    for line in text.split("\n"):
        inside = line.startswith("warning") or (inside and line.startswith("  "))
        lines.append(f"\x1b[33m{line}\x1b[0m" if inside else line)
    return "\n".join(lines)


def _colours() -> bool:
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return sys.stdout.isatty() and not plain


def _writes(text: str) -> bool:
    """Whether standard output knows these characters."""
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
