#!/bin/sh
# Big batches and training longer on a GPU (launch/big_batch.sh has what it runs), in pieces: sh launch/gpu/big_batch.sh MINUTES [OVERRIDES]
#   sh launch/gpu/big_batch.sh 25 model=resnet model.depth=44 dataset=cifar10 dataset.root=DIR            again and again, until it ends by itself
set -eu
here=$(cd "$(dirname "$0")/.." && pwd)
PATH="$here/.venv/bin:$PATH" # for a Python; the series looks for itself
minutes=${1:?minutes of the piece, then overrides}
shift
exec python3 "$here/gpu/piece.py" "$minutes" sh "$here/big_batch.sh" hardware=gpu hardware.precision=bf16 "$@"
