#!/bin/sh
# AdaBatch's ImageNet series (conf/experiment/adabatch_imagenet.yaml): a batch of 8,192 that stays, or grows 2, 4 or 8 times.
#   sh launch/adabatch_imagenet.sh dataset.root=DIR hardware=gpu hardware.precision=bf16
#   NETWORKS="alexnet vgg19_bn" sh launch/adabatch_imagenet.sh schedule.base_lr=0.01
# Runs in outputs/ of where it is started. Stopped, it goes on when given again; where a run fails the others go on.
set -eu
PATH="$(cd "$(dirname "$0")/.." && pwd)/.venv/bin:$PATH"

failed=0
for network in ${NETWORKS:-resnet18 resnet50}; do
    code=0
    adabatch -m experiment=adabatch_imagenet model.name="$network" schedule.growth.factor=1,2,4,8 "$@" || code=$?
    [ "$code" -le 1 ] || exit "$code" # 1: a run failed; otherwise nothing of it can run
    [ "$code" = 0 ] || failed=1
done
exit "$failed"
