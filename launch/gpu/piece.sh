#!/bin/sh
# piece.sh MINUTES COMMAND...: so many minutes of a command that goes on when it is given again. At their end the run in
# progress is told to save and stop, and the exit code is 0 too: a scheduler then gives the next piece.
set -eu
minutes=$1
shift
code=0
timeout --signal=INT --kill-after=120 "${minutes}m" "$@" || code=$?
if [ "$code" = 124 ]; then
    echo "$minutes minutes are over: the same command goes on from here"
    exit 0
fi
exit "$code"
