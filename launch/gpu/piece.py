"""piece.py MINUTES COMMAND...: so many minutes of a command that goes on when it is given again.

At their end the command and all that it started are interrupted, as by Ctrl-C, which saves the run in
progress; the exit code is then 0, and a scheduler gives the next piece. Otherwise it is the command's own.
Ctrl-C and SIGTERM are handed on.
"""

import os
import signal
import subprocess
import sys

SAVING = 600  # seconds to save in, before all is killed


def main() -> int:
    try:
        minutes, command = float(sys.argv[1]), sys.argv[2:]
    except (IndexError, ValueError):
        minutes, command = 0, []
    if not (0 < minutes < float("inf") and command):
        print(f"a piece is a number of minutes above 0 and what to run, got {sys.argv[1:]}", file=sys.stderr)
        return 2
    told, started = [], None

    def hand_on(number=None, _=None) -> None:
        if number:
            told.append(number)
        while told and started:
            os.killpg(started.pid, told.pop(0))

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, hand_on)
    started = subprocess.Popen(command, start_new_session=True)
    hand_on()  # what came before there was anything to hand it to
    try:
        return ended(started.wait(60 * minutes))
    except subprocess.TimeoutExpired:
        os.killpg(started.pid, signal.SIGINT)
    try:
        code = started.wait(SAVING)
    except subprocess.TimeoutExpired:
        os.killpg(started.pid, signal.SIGKILL)
        print(f"{minutes:g} minutes are over, and it had not saved {SAVING} s later: killed", file=sys.stderr)
        return 1
    if code in (1, 2):  # it failed, and did not stop because it was told to
        return code
    print(f"{minutes:g} minutes are over: the same command goes on from here")
    return 0


def ended(code: int) -> int:
    return 128 - code if code < 0 else code


if __name__ == "__main__":
    sys.exit(main())
