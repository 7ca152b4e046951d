#!/usr/bin/env bash
# The other scripts source this: --help prints the comment at a script's head, and an unknown argument ends it with 2.
set -euo pipefail

usage() {
  sed -n -e '2,${/^#/!q' -e 's/^# \{0,1\}//p' -e '}' "$0"
}

refuse() { # the reason
  echo "$(basename "$0" .sh): $1. --help explains it" >&2
  exit 2
}

takes_nothing() { # "$@", of a script without arguments
  if (($#)); then refuse "unknown argument: $1"; fi
}

if [[ ${1:-} == --help || ${1:-} == -h ]]; then
  usage
  exit
fi
if [[ $0 == "${BASH_SOURCE[0]}" ]]; then takes_nothing "$@"; fi
