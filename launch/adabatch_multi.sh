#!/bin/sh
# AdaBatch on one and on three processes (conf/experiment/adabatch_multi.yaml): equal runs, whatever their number.
#   sh launch/adabatch_multi.sh dataset.root=DIR seed=0,1,2           what is given is given on to every run
#   PROCESSES=1,2,4 sh launch/adabatch_multi.sh model=vgg dataset=cifar100
# Runs in outputs/ of where it is started. Stopped, it goes on when given again.
set -eu
PATH="$(cd "$(dirname "$0")/.." && pwd)/.venv/bin:$PATH"

adabatch -m experiment=adabatch_multi schedule=fixed,adabatch hardware.processes="${PROCESSES:-1,3}" "$@"
