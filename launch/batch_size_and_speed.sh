#!/bin/sh
# Batch size against accuracy at 224 pixels (conf/experiment/batch_size_and_speed.yaml), both networks, every arm, five seeds.
#   sh launch/batch_size_and_speed.sh dataset.root=DIR hardware.precision=bf16      what is given is given on to every run
#   NETWORKS=mobilenet_v2 sh launch/batch_size_and_speed.sh model.init_from=FILE model.init_head=false model.train=last
#   NETWORKS=mobilenet_v2 sh launch/batch_size_and_speed.sh dataset.size=64 dataset.limit=500 epochs=4 compare.seeds=1    a look
# A comparison with a verdict for each network, in outputs/ of where it is started. Stopped, it goes on when given again.
# Where a run fails the others go on, and the exit code is 1: compare.retry=failed with the same command tries it again.
# The speed studies beside it are commands of their own: docs/experiments.md.
set -eu
PATH="$(cd "$(dirname "$0")/.." && pwd)/.venv/bin:$PATH"

failed=0
for network in ${NETWORKS:-mobilenet_v2 proxylessnas_mobile}; do
    code=0
    adabatch -m experiment=batch_size_and_speed model="$network" "$@" || code=$?
    [ "$code" -le 1 ] || exit "$code" # 1: a run failed; otherwise nothing of it can run
    [ "$code" = 0 ] || failed=1
done
exit "$failed"
