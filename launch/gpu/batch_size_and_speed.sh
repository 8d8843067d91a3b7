#!/bin/sh
# Batch size against accuracy at 224 pixels on a GPU (launch/batch_size_and_speed.sh has what it runs), in pieces: sh launch/gpu/batch_size_and_speed.sh MINUTES [OVERRIDES]
#   sh launch/gpu/batch_size_and_speed.sh 25 dataset.root=DIR            again and again, until it ends by itself
set -eu
. "$(dirname "$0")/piece.sh"
series batch_size_and_speed hardware=gpu hardware.precision=bf16 "$@"
