#!/bin/sh
# experiment=cifar10_fast, RUNS times (seeds 0, 1, ...) in one process, then the report of all and DAWNBench's TSV of each.
#   sh launch/cifar10_fast.sh hardware.precision=bf16                     further overrides go to adabatch
#   RUNS=20 OUT=outputs/page sh launch/cifar10_fast.sh experiment=cifar10_fast_page
# From any directory; OUT lies in it. The same command again goes on, and with more RUNS adds seeds. Other overrides want
# another OUT. RUNS=5, OUT=outputs/cifar10_fast, TARGET=0.06 (an error: 94 %).
set -eu
PATH="$(cd "$(dirname "$0")/.." && pwd)/.venv/bin:$PATH"
out=${OUT:-outputs/cifar10_fast}

runs=${RUNS:-5} seeds=0 next=1
case $runs in '' | 0* | *[!0-9]*) echo "RUNS is a whole number from 1, got '$runs'" >&2; exit 2 ;; esac
while [ "$next" -lt "$runs" ]; do
    seeds=$seeds,$next
    next=$((next + 1))
done

# hardware.own_process=false: read once, warm from the second run on. An experiment= or a key in "$@" comes later and wins.
case " $* " in *" experiment="*) ;; *) set -- experiment=cifar10_fast "$@" ;; esac
code=0
adabatch -m "seed=$seeds" hardware.own_process=false "hydra.sweep.dir=$out" "$@" || code=$?
[ "$code" -le 1 ] || exit "$code" # 1: a run failed, and the others are reported

for summary in "$out"/*/summary.json; do
    [ -f "$summary" ] || continue
    run=$(dirname "$summary")
    adabatch-report "$run" --format dawnbench > "$run/dawnbench.tsv"
done
adabatch-report "$out" --target "${TARGET:-0.06}"
exit "$code"
