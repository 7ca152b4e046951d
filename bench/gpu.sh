#!/bin/sh
# The GPU's figures of docs/performance.md, on a CUDA GPU with at least 80 GB; the part `devices` needs two. Run `dvc repro
# tokenize` first, with the values that params.yaml comes with. The 7B's base, with random weights, and its rows of 2,048
# tokens are made here. UNSLOTH may name a Python interpreter with Unsloth, which needs other versions of the libraries;
# FOLDER a place for 120 GB of models (default: /tmp/seven).
set -eu
if [ $# -gt 0 ]; then # it takes hours, so --help must not start it
  sed -n 's/^# //p' "$0"
  echo "Start it with: sh bench/gpu.sh"
  [ "$1" = --help ] && exit 0 || exit 2
fi
python -m bench.train --config 7b --steps 8 ${UNSLOTH:+--unsloth "$UNSLOTH"}
python -m bench.train --config 7b --profile ours
python -m bench.train --config 7b --profile "ours, as little as possible"
python -m bench.train --curve 3 --steps 200 --only ours "TRL, packing"
python -m bench.pipeline --config 7b --steps 20 --folder "${FOLDER:-/tmp/seven}" --parts plan train kill devices merge evaluate
