#!/usr/bin/env bash
# Fails where dvc.lock is not what this commit's code, params and data make. Needs no data: nothing is run or fetched.
set -euo pipefail
# shellcheck source=.github/scripts/usage.sh
source "$(dirname "$0")/usage.sh"
takes_nothing "$@"

log=$(mktemp)
trap 'rm -f "$log"' EXIT
# DVC exits with 0 where a stage would run, and with an error where it would need data for that.
if ! dvc repro --dry --allow-missing 2>&1 | tee "$log" || grep -q '^Running stage' "$log"; then
  echo "dvc.lock is out of date: run dvc repro, or the workflow gpu, and commit dvc.lock and metrics.json" >&2
  exit 1
fi
# After `dvc commit` dvc.lock has new code next to the hashes of the former code, which DVC takes as current.
python -m tools.plan --check
