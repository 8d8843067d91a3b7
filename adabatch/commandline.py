"""What the commands that take the overrides of `adabatch` share: one message for a mistake, the same exit
codes (0 done, 1 a fault or what the command itself calls failed, 2 the user's mistake, 130 interrupted)."""

import os
import sys
import traceback

from adabatch import arguments, config, targets
from adabatch.errors import UserError


class Parser(arguments.Parser):
    """Options and overrides in any order."""

    def __init__(self, prog: str, description: str, epilog: str):
        super().__init__(prog, description, epilog)
        self.add_argument("overrides", nargs="*", metavar="key=value", help="as for adabatch")
        self.add_argument("--json", action="store_true", help="print one JSON object")
        self.add_argument("-cd", "--config-dir", metavar="DIR", help="options of your own, as for adabatch")


def answered(parser: Parser, line: list[str], work) -> int:
    """The exit code of work(options, overrides), which returns one."""
    targets.reach_cwd()
    overrides, config_dir = [], None
    try:
        asked = parser.parse_intermixed_args(line)
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
