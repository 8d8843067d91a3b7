#!/bin/sh
# Every benchmark on a machine with a GPU, in pieces, for machines that are lent by the minute.
#
#   sh benchmarks/gpu.sh MINUTES [FOLDER]          work for so many minutes, then stop; FOLDER: outputs/bench-gpu
#   DRY=1 sh benchmarks/gpu.sh MINUTES [FOLDER]    the same on the CPU in tiny sizes, to see that all pieces run
#
# A piece leaves FOLDER/<piece>.json when it is done and is skipped by the next call; one that fails, or that the
# time cut short, leaves <piece>.log and is tried again. 8 MINUTES should let any piece finish (an estimate:
# compiling takes most). The exit code is 0 when all pieces are done, 3 when some are left, 1 when one failed.
# Nothing is downloaded or installed: PYTHON (default: .venv's, else python3; 3.11 to 3.13) has torch >= 2.11,
# torchvision, hydra-core and PyYAML; adabatch itself is read from this checkout.
# CIFAR10=FOLDER (no spaces): torchvision's root of it instead of made-up pictures. AIRBENCH=FILE besides: that
# airbench94_muon.py against experiment=cifar10_faster.
set -u
cd "$(dirname "$0")/.." || exit 1
minutes=${1:?usage: sh benchmarks/gpu.sh MINUTES [FOLDER]}
folder=${2:-outputs/bench-gpu}
end=$(($(date +%s) + 60 * minutes))
python=${PYTHON:-}
[ -n "$python" ] || { [ -x .venv/bin/python ] && python=.venv/bin/python || python=python3; }
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
dry=${DRY:-}
data=${CIFAR10:+--data "$CIFAR10"}

"$python" - "$dry" <<'CHECK' || exit 1
import importlib.util, sys
missing = [m for m in ("torch", "torchvision", "hydra", "yaml", "numpy") if not importlib.util.find_spec(m)]
if missing:
    sys.exit(f"{sys.executable} lacks {', '.join(missing)}: name another with PYTHON=...")
import torch
if not sys.argv[1] and not torch.cuda.is_available():
    sys.exit(f"torch {torch.__version__} sees no GPU; DRY=1 tries the pieces on the CPU")
print(f"torch {torch.__version__}", *(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())))
CHECK
mkdir -p "$folder" || exit 1
failed=0 left=0

# piece NAME COMMAND...   where OUT among the arguments stands for the JSON to be written
piece() {
  name=$1; shift
  [ -f "$folder/$name.json" ] && return
  seconds=$((end - $(date +%s)))
  if [ "$seconds" -lt 20 ]; then left=$((left + 1)); return; fi
  rm -f "$folder/$name.part"
  count=$#
  while [ "$count" -gt 0 ]; do
    argument=$1; shift; count=$((count - 1))
    [ "$argument" = OUT ] && argument=$folder/$name.part
    set -- "$@" "$argument"
  done
  echo "== $name (at most $seconds s)"
  timeout -k 10 "$seconds" "$python" "$@" > "$folder/$name.log" 2>&1
  code=$?
  if [ "$code" = 0 ] && [ -f "$folder/$name.part" ]; then
    mv "$folder/$name.part" "$folder/$name.json"
    cat "$folder/$name.log"
  elif [ "$code" = 124 ] || [ "$code" = 137 ]; then
    left=$((left + 1))
    echo "   cut short after $seconds s: the next call begins it anew"
  else
    failed=$((failed + 1))
    echo "   failed with code $code, the last lines of $folder/$name.log:"
    tail -n 5 "$folder/$name.log"
  fi
}

if [ -n "$dry" ]; then
  small=convnet threads=hardware.threads=1
  device=cpu models=alexnet batches=32 curve=32,64 seconds=0.1 rounds=2 pairs=2
  sizes="--samples 256 --threads 1" few="--samples 256 --rounds 2 --batches 64" contenders="reference,hand,bf16,matmul-fp32"
  runs=1 folders="--pictures 32 --images 64 --batches 16 --paces 0 --change" short="dataset=digits epochs=1"
else
  small= threads=
  device=cuda models="resnet vgg alexnet resnet9" batches="128 256 512 1024 2048" seconds=2 rounds=7 pairs=7
  curve=16,32,64,128,256,512,1024,2048,4096,8192 sizes= few="--rounds 7"
  contenders="matmul-fp32,matmul-bf16,reference,hand,hand-ghost,fp32,tf32,bf16,fp32+compile,bf16+compile"
  runs=5 folders= short="model=resnet dataset=synthetic epochs=2 hardware.deterministic=true"
fi
loop="benchmarks/train_loop.py --device $device --seconds $seconds --rounds $rounds --out OUT $sizes $data"

# shellcheck disable=SC2086  # lists of options
for model in $models; do
  for batch in $batches; do
    piece "loop-$model-$batch" $loop --models "$model" --batches "$batch" --only "$contenders"
  done
  # Time per image against the batch, which the forecast of a speed-up rests on.
  piece "curve-$model" $loop --models "$model" --batches "$curve" --only bf16
  piece "measuring-$model" benchmarks/kept.py OUT benchmarks/measuring.py --pairs "$pairs" \
    "model=${small:-$model}" "hardware.device=$device" $threads
done
# shellcheck disable=SC2086
piece data-path benchmarks/data_path.py $few --out OUT
piece imagenet benchmarks/imagenet.py --rounds "$rounds" $folders --out OUT
piece startup benchmarks/startup.py --rounds "$rounds" --what digits synthetic --out OUT "hardware.device=$device" $threads
piece seeds benchmarks/seeds.py --seeds 3 --rounds 2 --out OUT $short "hardware.device=$device" $threads
if [ -n "${AIRBENCH:-}" ] && [ -n "${CIFAR10:-}" ]; then
  piece airbench benchmarks/airbench.py "$AIRBENCH" "$CIFAR10" --runs "$runs" --out OUT ${dry:+--dry}
fi
piece distributed benchmarks/kept.py OUT benchmarks/distributed.py --rounds "$rounds" --steps 3 --batches 128 \
  hardware.device=cpu "model=${small:-resnet}"
echo "done: $(find "$folder" -name '*.json' | wc -l), left: $left, failed: $failed, in $folder"
[ "$failed" -gt 0 ] && exit 1
[ "$left" -gt 0 ] && exit 3
exit 0
