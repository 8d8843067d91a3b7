#!/bin/sh
# AdaBatch on several GPUs (launch/adabatch_multi.sh has what it runs), in pieces: sh launch/gpu/adabatch_multi.sh MINUTES [OVERRIDES]
#   PROCESSES=1,4 sh launch/gpu/adabatch_multi.sh 25 dataset.root=DIR            again and again, until it ends by itself
# PROCESSES: 1,3 unless given; no more of them than there are GPUs, else they share one.
set -eu
. "$(dirname "$0")/piece.sh"
series adabatch_multi hardware.precision=bf16 "$@"
