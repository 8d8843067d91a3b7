"""What every command's line has in common: a mistake is a UserError, a reader that went away is no failure.
No Hydra, so that commands which only read start at once."""

import argparse
import os
import sys

from adabatch.errors import UserError, suggest


class Parser(argparse.ArgumentParser):
    """argparse without its usage for a mistake, which becomes a UserError with the nearest option."""

    def __init__(self, prog: str, description: str, epilog: str):
        super().__init__(
            prog=prog,
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message):
        known = [option for action in self._actions for option in action.option_strings]
        wrong = message.removeprefix("unrecognized arguments: ").split()[:1]
        near = suggest(wrong[0], known) if wrong and message.startswith("unrecognized") else ""
        raise UserError(f"{message}.{near} {self.prog} --help shows what there is.")


def separated(line: list[str], option: str, otherwise: float) -> list[str]:
    """A command line in which an option that may take a number has one: `--watch outputs/` names a folder,
    `--watch 2` a number of seconds, and argparse cannot tell them apart."""
    found = []
    for word, following in zip(line, [*line[1:], ""]):
        try:
            float(following)
            bare = False
        except ValueError:
            bare = word == option
        found.append(f"{option}={otherwise}" if bare else word)
    return found


def main(command, line=None) -> None:
    """A console script: exits with what command(line) returns."""
    try:
        code = command(sys.argv[1:] if line is None else list(line))
        sys.stdout.flush()
    except BrokenPipeError:  # `adabatch-plan | head`: the reader has what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    sys.exit(code)
