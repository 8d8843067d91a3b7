#!/bin/sh
# 94 % on CIFAR-10 on a GPU (launch/cifar10_fast.sh has what it runs), in pieces: sh launch/gpu/cifar10_fast.sh MINUTES [OVERRIDES]
#   sh launch/gpu/cifar10_fast.sh 25 dataset.root=DIR            again and again, until it ends by itself
set -eu
here=$(cd "$(dirname "$0")/.." && pwd)
minutes=$1
shift
exec sh "$here/gpu/piece.sh" "$minutes" sh "$here/cifar10_fast.sh" hardware=gpu hardware.precision=bf16 "$@"
