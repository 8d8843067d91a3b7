#!/bin/sh
# Batch size against accuracy at 224 pixels on a GPU (launch/batch_size_and_speed.sh has what it runs), in pieces: sh launch/gpu/batch_size_and_speed.sh MINUTES [OVERRIDES]
#   sh launch/gpu/batch_size_and_speed.sh 25 dataset.root=DIR            again and again, until it ends by itself
set -eu
here=$(cd "$(dirname "$0")/.." && pwd)
PATH="$here/.venv/bin:$PATH" # for a Python; the series looks for itself
minutes=${1:?minutes of the piece, then overrides}
shift
exec python3 "$here/gpu/piece.py" "$minutes" sh "$here/batch_size_and_speed.sh" hardware=gpu hardware.precision=bf16 "$@"
