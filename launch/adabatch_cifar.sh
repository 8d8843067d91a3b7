#!/bin/sh
# AdaBatch's CIFAR table (conf/experiment/adabatch_cifar.yaml): three networks, two data sets, every arm, five seeds.
#   sh launch/adabatch_cifar.sh dataset.root=DIR hardware.precision=bf16         what is given is given on to every run
#   NETWORKS=alexnet DATASETS=cifar10 sh launch/adabatch_cifar.sh                a part of it
# Six comparisons with a verdict each, in outputs/ of where it is started. Stopped, it goes on when given again.
set -eu
PATH="$(cd "$(dirname "$0")/.." && pwd)/.venv/bin:$PATH"

for dataset in ${DATASETS:-cifar10 cifar100}; do
    for network in ${NETWORKS:-alexnet resnet vgg}; do
        case $network in
            alexnet) set -- experiment=adabatch_cifar_alexnet "$@" ;;
            *) set -- experiment=adabatch_cifar model="$network" "$@" ;;
        esac
        adabatch -m "$@" dataset="$dataset"
        shift # the next one has its own
        [ "$network" = alexnet ] || shift
    done
done
