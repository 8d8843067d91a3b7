#!/bin/sh
# experiment=cifar10_faster, RUNS times (seeds 0, 1, ...) in one process with the report of all, then the question of
# experiment=cifar10_faster_batch, to its verdict: does a growing batch beat the best fixed one for this recipe?
#   sh launch/cifar10_faster.sh hardware.precision=bf16              further overrides go to every run, compare.KEY=... to the question's
#   RUNS=20 sh launch/cifar10_faster.sh hardware.precision=bf16 compare.seeds=20
# From any directory; outputs/ lies in it. The same command again goes on, and with more RUNS adds seeds. RUNS=5,
# OUT=outputs/cifar10_faster, TARGET=0.06 (an error: 94 %) are of the first part (launch/cifar10_fast.sh). Where a run fails
# the others go on, and the exit code is 1.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
PATH="$(cd "$here/.." && pwd)/.venv/bin:$PATH"

recipe() {
    count=$#
    for given in "$@"; do
        case $given in compare.*) ;; *) set -- "$@" "$given" ;; esac
    done
    shift "$count"
    OUT=${OUT:-outputs/cifar10_faster} sh "$here/cifar10_fast.sh" experiment=cifar10_faster "$@"
}

code=0
recipe "$@" || code=$?
[ "$code" -le 1 ] || exit "$code" # 1: a run failed; otherwise nothing of it can run
failed=$code code=0
adabatch -m experiment=cifar10_faster_batch "$@" || code=$?
[ "$code" = 0 ] || failed=$code
exit "$failed"
