#!/usr/bin/env bash
# Installs what generated code runs in, for the tests, and lets it make its user namespaces: Ubuntu's AppArmor allows
# that to the programs it knows alone.
set -euo pipefail
sudo apt-get install --yes bubblewrap
sudo sysctl --write kernel.apparmor_restrict_unprivileged_userns=0
