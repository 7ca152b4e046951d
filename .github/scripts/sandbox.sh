#!/usr/bin/env bash
# Installs what generated code runs in, for the tests, and lets it make its user namespaces: Ubuntu's AppArmor allows
# that only to the programs it knows.
set -euo pipefail
# shellcheck source=.github/scripts/usage.sh
source "$(dirname "$0")/usage.sh"
takes_nothing "$@"
sudo apt-get install --yes bubblewrap
sudo sysctl --write kernel.apparmor_restrict_unprivileged_userns=0
