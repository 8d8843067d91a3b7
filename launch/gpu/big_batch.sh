#!/bin/sh
# Big batches and training longer on a GPU (launch/big_batch.sh has what it runs), in pieces: sh launch/gpu/big_batch.sh MINUTES [OVERRIDES]
#   sh launch/gpu/big_batch.sh 25 model=resnet model.depth=44 dataset=cifar10 dataset.root=DIR            again and again, until it ends by itself
set -eu
. "$(dirname "$0")/piece.sh"
series big_batch hardware=gpu hardware.precision=bf16 "$@"
