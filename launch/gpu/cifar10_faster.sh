#!/bin/sh
# 94 % for little arithmetic on a GPU (launch/cifar10_faster.sh has what it runs), in pieces: sh launch/gpu/cifar10_faster.sh MINUTES [OVERRIDES]
#   sh launch/gpu/cifar10_faster.sh 25 dataset.root=DIR            again and again, until it ends by itself
set -eu
here=$(cd "$(dirname "$0")/.." && pwd)
PATH="$here/.venv/bin:$PATH" # for a Python; the series looks for itself
minutes=${1:?minutes of the piece, then overrides}
shift
exec python3 "$here/gpu/piece.py" "$minutes" sh "$here/cifar10_faster.sh" hardware=gpu hardware.precision=bf16 "$@"
