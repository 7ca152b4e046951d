#!/usr/bin/env bash
# Makes docs/report.png, the README's picture: the start of reports/report.html of the committed run, as Chromium shows it.
set -euo pipefail
# shellcheck source=.github/scripts/usage.sh
source "$(dirname "$0")/usage.sh"
takes_nothing "$@"
cd "$(dirname "$0")/../.."

chromium=$(command -v chromium || command -v chromium-browser || command -v google-chrome || true)
if [[ -z $chromium ]]; then
  echo "picture: needs Chromium: apt-get install chromium fonts-dejavu" >&2
  exit 1
fi
if [[ -n $(git status --porcelain -- dvc.lock) ]] || ! dvc status --quiet report; then
  echo "picture: reports/ is not what the committed dvc.lock names. Run dvc repro, and commit dvc.lock" >&2
  exit 1
fi

profile=$(mktemp -d)
trap 'rm -rf "$profile"' EXIT
"$chromium" --headless --no-sandbox --disable-gpu --disable-background-networking --hide-scrollbars \
  --force-device-scale-factor=1 --user-data-dir="$profile" --window-size=1040,860 \
  --screenshot="$PWD/docs/report.png" "file://$PWD/reports/report.html" 2>"$profile/log" || {
  cat "$profile/log" >&2
  exit 1
}
echo "picture: docs/report.png"
