"""The traceback of the rank that failed, for rank 0, which writes the log of the run."""

import contextlib
import re
import traceback

from adabatch.errors import RankLost

KEY = "adabatch/trace"  # in the store of the meeting, with the rank's number
LIMIT = 16000  # characters; the end, where the error stands, is kept


def text(error: BaseException) -> str:
    return "".join(traceback.format_exception(error)).rstrip()


def tell(meeting, error: BaseException) -> None:
    """Leaves this rank's traceback in the store. Before the note that it failed, which ends the others."""
    if meeting is not None:
        with contextlib.suppress(Exception):  # a store that is gone
            meeting.store.set(f"{KEY}/{meeting.place.rank}", text(error)[-LIMIT:])


def told(meeting, error: BaseException) -> str | None:
    """The traceback of the rank that is behind a RankLost, where it left one. From any thread."""
    if meeting is None or not isinstance(error, RankLost):
        return None
    named = re.match(r"rank (\d+) ", str(error))
    rank = int(named[1]) if error.rank is None and named else error.rank
    with contextlib.suppress(Exception):
        store = meeting.store.clone()  # a connection serves one call at a time
        if rank and store.check([f"{KEY}/{rank}"]):
            return f"rank {rank}: {store.get(f'{KEY}/{rank}').decode(errors='replace')}"
    return None
