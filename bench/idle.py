"""How long `dvc repro` takes when there is nothing to do, next to nine trivial stages.

    python -m bench.idle [--runs N] [--folder FOLDER]

Run it in a repository whose results are up to date, as after `make run`. The other side is a repository of nine stages
with one input and one output each, which the command makes in a temporary folder. The two take turns; each figure is in
seconds. Also prints how many inputs, outputs and params DVC compares. --folder writes the figures as JSON there.
"""

from stages.runtime.command import command_parser
from stages.runtime.stage_options import positive

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from stages.core.yaml_files import read_yaml

STAGES = 9
ENVIRONMENT = os.environ | {"DVC_NO_ANALYTICS": "1"}


def run(folder: Path, *command: str) -> str:
    done = subprocess.run(command, cwd=folder, env=ENVIRONMENT, check=True, capture_output=True, text=True)  # noqa: S603
    return done.stdout


def dvc(folder: Path, *arguments: str) -> str:
    return run(folder, sys.executable, "-m", "dvc", *arguments)


def make_trivial(folder: Path) -> None:
    """A chain of STAGES stages that have run."""
    stages = {
        f"stage{number}": {
            "cmd": f"echo {number} > out{number}",
            "deps": [f"out{number - 1}" if number else "source"],
            "outs": [f"out{number}"],
        }
        for number in range(STAGES)
    }
    (folder / "dvc.yaml").write_text(json.dumps({"stages": stages}))
    (folder / "source").write_text("")
    run(folder, "git", "init", "--quiet")
    dvc(folder, "init", "--quiet")
    for option in ("analytics", "check_update"):
        dvc(folder, "config", f"core.{option}", "false")
    dvc(folder, "repro", "--quiet")


def seconds(folder: Path) -> float:
    started = time.perf_counter()
    dvc(folder, "repro", "--quiet")
    return time.perf_counter() - started


def compared(folder: Path) -> dict[str, int]:
    """{kind: count} of what dvc.lock has."""
    stages = read_yaml(folder / "dvc.lock")["stages"].values()
    counts = {kind: sum(len(stage.get(kind, [])) for stage in stages) for kind in ("deps", "outs")}
    return {"stages": len(stages)} | counts


def main() -> None:
    parser = command_parser("bench.idle", __doc__)
    parser.add_argument("--runs", type=positive, default=10, help="of each side (default %(default)s)")
    parser.add_argument("--folder", type=Path, help="where idle.json is written, such as bench/results")
    options = parser.parse_args()
    here = Path.cwd()
    if json.loads(dvc(here, "status", "--json")):
        sys.exit("idle: the results are not up to date. Run `dvc repro` first")
    with tempfile.TemporaryDirectory() as name:
        trivial = Path(name)
        make_trivial(trivial)
        folders = {"this repository": here, f"{STAGES} trivial stages": trivial}
        times: dict[str, list[float]] = {side: [] for side in folders}
        for folder in folders.values():
            seconds(folder)  # the first run fills the operating system's caches
        for _ in range(options.runs):
            for side, folder in folders.items():
                times[side].append(seconds(folder))
        figures = {
            side: {"median": statistics.median(times[side]), "min": min(times[side]), "runs": times[side]}
            | compared(folder)
            for side, folder in folders.items()
        }
    ours, others = figures.values()
    print(f"{'':20}{'median':>8}{'min':>8}{'stages':>8}{'deps':>8}{'outs':>8}")
    for side, each in figures.items():
        counts = "".join(f"{each[kind]:>8}" for kind in ("stages", "deps", "outs"))
        print(f"{side:20}{each['median']:>8.2f}{each['min']:>8.2f}{counts}")
    print(f"{'ratio':20}{ours['median'] / others['median']:>8.2f}{ours['min'] / others['min']:>8.2f}")
    if options.folder:
        options.folder.mkdir(parents=True, exist_ok=True)
        (options.folder / "idle.json").write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
