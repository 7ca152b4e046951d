"""Finds what is wrong with this machine, environment or repository, and says what to do about it. It changes nothing.

    python -m tools.doctor
    python -m tools.doctor --deep --network    # more checks, which take longer

Each finding is one line. A line that begins with ✗ ends with a remedy, and the exit code is 1 if there is such a line.
--deep hashes the cache's copies of the outputs in dvc.lock; otherwise only their sizes are compared. --network asks the
hub whether the base model can be downloaded, and under which licence.
"""

from stages.runtime.command import command_parser, explained

import os
import sys
from collections.abc import Iterator

from tools._doctor.finding import Finding
from tools._doctor.libraries import check_installed

NEEDED = ("pydantic", "ruamel.yaml", "psutil", "dvc")  # by the other checks


def findings_here(deep: bool, network: bool) -> Iterator[Finding]:
    """What can be found out with the libraries that there are."""
    if missing := check_installed(NEEDED):
        yield missing
        return
    from tools._doctor.checks import findings

    yield from findings(deep, network)


def main(arguments: list[str]) -> int:
    parser = command_parser("tools.doctor", __doc__)
    parser.add_argument("--deep", action="store_true", help="hash the cache's objects")
    parser.add_argument("--network", action="store_true", help="ask the hub for the base model")
    options = parser.parse_args(arguments)
    os.environ |= {"DVC_NO_ANALYTICS": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1"}
    wrong = 0
    for finding in findings_here(options.deep, options.network):
        print(finding, flush=True)
        wrong += bool(finding.remedy)
    return 1 if wrong else 0


if __name__ == "__main__":
    with explained("doctor", online=True):  # only --network uses it
        sys.exit(main(sys.argv[1:]))
