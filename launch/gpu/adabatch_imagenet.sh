#!/bin/sh
# AdaBatch's ImageNet series on a GPU (launch/adabatch_imagenet.sh has what it runs), in pieces: sh launch/gpu/adabatch_imagenet.sh MINUTES [OVERRIDES]
#   sh launch/gpu/adabatch_imagenet.sh 25 dataset.root=DIR            again and again, until it ends by itself
set -eu
. "$(dirname "$0")/piece.sh"
series adabatch_imagenet hardware=gpu hardware.precision=bf16 "$@"
