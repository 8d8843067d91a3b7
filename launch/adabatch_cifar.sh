#!/bin/sh
# AdaBatch's CIFAR table (conf/experiment/adabatch_cifar.yaml): three networks, two data sets, every arm, five seeds.
#   sh launch/adabatch_cifar.sh dataset.root=DIR hardware.precision=bf16         what is given is given on to every run
#   NETWORKS=alexnet DATASETS=cifar10 sh launch/adabatch_cifar.sh                a part of it
# Six comparisons with a verdict each, in outputs/ of where it is started. Stopped, it goes on when given again. Where a
# run fails the others go on, and the exit code is 1: compare.retry=failed with the same command tries it again.
set -eu
PATH="$(cd "$(dirname "$0")/.." && pwd)/.venv/bin:$PATH"

failed=0
for dataset in ${DATASETS:-cifar10 cifar100}; do
    for network in ${NETWORKS:-alexnet resnet vgg}; do
        case $network in
            alexnet) which=adabatch_cifar_alexnet ;; # experiment=adabatch_cifar_alexnet: 256 to 4,096
            *) which=adabatch_cifar ;;
        esac
        code=0
        adabatch -m experiment="$which" model="$network" dataset="$dataset" "$@" || code=$?
        [ "$code" -le 1 ] || exit "$code" # 1: a run failed; otherwise nothing of it can run
        [ "$code" = 0 ] || failed=1
    done
done
exit "$failed"
