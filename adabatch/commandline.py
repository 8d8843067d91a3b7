"""What the commands beside `adabatch` share: the same overrides, one message for a mistake, the same exit
codes (0 done, 1 a fault or what the command itself calls failed, 2 the user's mistake, 130 interrupted)."""

import argparse
import os
import sys
import traceback

from adabatch import config, targets
from adabatch.errors import UserError, suggest


class Parser(argparse.ArgumentParser):
    """Options and overrides in any order; a mistake is a UserError instead of argparse's usage."""

    def __init__(self, prog: str, description: str, epilog: str):
        super().__init__(
            prog=prog,
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.add_argument("overrides", nargs="*", metavar="key=value", help="as for adabatch")
        self.add_argument("--json", action="store_true", help="print one JSON object")
        self.add_argument("-cd", "--config-dir", metavar="DIR", help="options of your own, as for adabatch")

    def error(self, message):
        known = [o for action in self._actions for o in action.option_strings]
        wrong = message.removeprefix("unrecognized arguments: ").split()[:1]
        near = suggest(wrong[0], known) if wrong and message.startswith("unrecognized") else ""
        raise UserError(f"{message}.{near} {self.prog} --help shows what there is.")


def main(command, arguments=None) -> None:
    """A console script: exits with what command(arguments) returns."""
    try:
        code = command(sys.argv[1:] if arguments is None else list(arguments))
        sys.stdout.flush()
    except BrokenPipeError:  # `adabatch-plan | head`: the reader has what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    sys.exit(code)


def answered(parser: Parser, arguments: list[str], work) -> int:
    """The exit code of work(options, overrides), which returns one."""
    targets.reach_cwd()
    overrides, config_dir = [], None
    try:
        asked = parser.parse_intermixed_args(arguments)
        config_dir = asked.config_dir
        overrides = config.lenient(asked.overrides)
        if config_dir is not None and not os.path.isdir(config_dir):
            raise UserError(f"--config-dir {config_dir}: there is no such folder")
        return work(asked, overrides)
    except KeyboardInterrupt:
        print(f"{parser.prog}: interrupted, what was running has ended", file=sys.stderr)
        return 130
    except SystemExit as end:  # --help
        return end.code or 0
    except BrokenPipeError:
        raise
    except Exception as error:
        from adabatch import mistakes

        message = mistakes.explain(error, overrides, config_dir)
        if message is None:
            traceback.print_exc()
            return 1
        print(f"{parser.prog}: {message}", file=sys.stderr)
        return 2
