#!/bin/sh
# 94 % on CIFAR-10 on a GPU (launch/cifar10_fast.sh has what it runs), in pieces: sh launch/gpu/cifar10_fast.sh MINUTES [OVERRIDES]
#   sh launch/gpu/cifar10_fast.sh 25 dataset.root=DIR            again and again, until it ends by itself
set -eu
. "$(dirname "$0")/piece.sh"
series cifar10_fast hardware=gpu hardware.precision=bf16 "$@"
