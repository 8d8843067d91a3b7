#!/bin/sh
# 94 % for little arithmetic on a GPU (launch/cifar10_faster.sh has what it runs), in pieces: sh launch/gpu/cifar10_faster.sh MINUTES [OVERRIDES]
#   sh launch/gpu/cifar10_faster.sh 25 dataset.root=DIR            again and again, until it ends by itself
set -eu
. "$(dirname "$0")/piece.sh"
series cifar10_faster hardware=gpu hardware.precision=bf16 "$@"
