#!/usr/bin/env bash
# Installs what tools/review.py imports, as requirements.txt pins it, and not what trains: no torch.
set -euo pipefail
# shellcheck source=.github/scripts/usage.sh
source "$(dirname "$0")/usage.sh"
takes_nothing "$@"

packages='dvc|dvc-[a-z0-9]+|huggingface-hub|jinja2|markupsafe|numpy|pyarrow|pydantic|ruamel\.yaml(\.clib)?'
grep -oE "^($packages)==[^ ]+" requirements.txt >"${RUNNER_TEMP:-/tmp}/review-requirements.txt"
python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
  --requirement "${RUNNER_TEMP:-/tmp}/review-requirements.txt"
