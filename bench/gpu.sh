#!/bin/sh
# The figures of docs/performance.md, on a CUDA GPU with at least 80 GB. Needs models/base (its tokenizer) and
# data/tokenized with rows of 2,048 tokens: set tokenize.max_length and run `dvc repro tokenize` first.
set -e
python -m bench.train --config 7b --steps 6
for gib in 16 24 48 80; do python -m stages.train --plan "$gib"; done
