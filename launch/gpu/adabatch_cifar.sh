#!/bin/sh
# AdaBatch's CIFAR table on a GPU (launch/adabatch_cifar.sh has what it runs), in pieces: sh launch/gpu/adabatch_cifar.sh MINUTES [OVERRIDES]
#   sh launch/gpu/adabatch_cifar.sh 25 dataset.root=DIR            again and again, until it ends by itself
set -eu
. "$(dirname "$0")/piece.sh"
series adabatch_cifar hardware=gpu hardware.precision=bf16 "$@"
