#!/bin/sh
# AdaBatch on one process and on as many as there are GPUs (launch/adabatch_multi.sh has what it runs), in pieces:
#   PROCESSES=1,4 sh launch/gpu/adabatch_multi.sh 25 dataset.root=DIR            again and again, until it ends by itself
set -eu
here=$(cd "$(dirname "$0")/.." && pwd)
minutes=$1
shift
exec sh "$here/gpu/piece.sh" "$minutes" sh "$here/adabatch_multi.sh" hardware.precision=bf16 "$@"
