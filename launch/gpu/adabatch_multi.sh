#!/bin/sh
# AdaBatch on several GPUs (launch/adabatch_multi.sh has what it runs), in pieces: sh launch/gpu/adabatch_multi.sh MINUTES [OVERRIDES]
#   PROCESSES=1,4 sh launch/gpu/adabatch_multi.sh 25 dataset.root=DIR            again and again, until it ends by itself
# PROCESSES: 1,3 unless given; no more of them than there are GPUs, else they share one.
set -eu
here=$(cd "$(dirname "$0")/.." && pwd)
PATH="$here/.venv/bin:$PATH" # for a Python; the series looks for itself
minutes=${1:?minutes of the piece, then overrides}
shift
exec python3 "$here/gpu/piece.py" "$minutes" sh "$here/adabatch_multi.sh" hardware.precision=bf16 "$@"
