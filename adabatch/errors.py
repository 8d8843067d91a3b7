"""The errors that the command line knows how to report, and the suggestions that go with them."""

import difflib


class UserError(ValueError):
    """The user's mistake: printed as one message (rule, value received, remedy) without a traceback; exit
    code 2."""


class Diverged(RuntimeError):
    """The loss or the gradient stopped being finite; the message names the position and the setting. Exit
    code 1."""


class Interrupted(RuntimeError):
    """The run was told to stop and has saved its state; the message is the reason. Exit code 130."""


class Lost(RuntimeError):
    """Another process took the folder over; nothing may be written into it any more."""


def suggest(word: str, known) -> str:
    """ " Did you mean 'vgg'?" for the known word nearest to `word`, or an empty string where none is near."""
    near = difflib.get_close_matches(str(word), [str(k) for k in known], n=1, cutoff=0.6)
    return f" Did you mean {near[0]!r}?" if near else ""
