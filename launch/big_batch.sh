#!/bin/sh
# Big batches and training longer (Hoffer, Hubara, Soudry 2017): the arms of conf/experiment/big_batch.yaml, five
# seeds of each, for mnist_f1 on MNIST or for what the further overrides say:
#
#   sh launch/big_batch.sh
#   sh launch/big_batch.sh model=resnet model.depth=44 dataset=cifar10
#   sh launch/big_batch.sh compare.seeds=1 epochs=1 dataset.limit=512     a look at what it does
#
# Writes outputs/compare-... in the folder that it is started in, a folder for each run and report.html of all. Given
# again it goes on. By default four arms train 50 epochs and the last one, which adapts the regime, 1,600.
set -eu
PATH="$(cd "$(dirname "$0")/.." && pwd)/.venv/bin:$PATH"

model=mnist_f1 dataset=mnist
for given in "$@"; do
    case $given in
        model=*) model= ;;
        dataset=*) dataset= ;;
    esac
done
exec adabatch -m experiment=big_batch ${model:+model=$model} ${dataset:+dataset=$dataset} "$@"
