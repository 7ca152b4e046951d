#!/usr/bin/env python3
"""Makes docs/session.svg, the README's terminal: real commands with what they print, after the committed run.

    python .github/scripts/session.py

It needs the outputs of `dvc repro` and the environment of requirements.txt. The commands run in a clone of this
repository that uses its cache, so nothing here changes. No model is trained.
"""

import argparse
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import CONSOLE_SVG_FORMAT, Console
from rich.text import Text

ROOT = Path(__file__).parents[2]
PICTURE = Path("docs/session.svg")
WIDTH = 100
MOST_LINES = 44
QUESTION = r"Write `Complex.__add__` of the Python module `numbers`.\n\ndef __add__(self, other):\n\nself + other"
EXPERIMENT = "dvc exp run -S report.samples=3"
COMMANDS = (
    "dvc repro | tail --lines 1",
    "python -m stages.report --show",
    "python -m tools.plan -S train.learning_rate=1e-3",
    f"{EXPERIMENT} | sed --quiet 10,11p",
    "dvc params diff",
    f"python -m tools.generate --compare --max-new-tokens 32 $'{QUESTION}'",
)
FONT = "ui-monospace, SFMono-Regular, Menlo, Consolas, monospace"


def environment() -> dict[str, str]:
    """The variables of all commands: this Python's programs first, an author for the experiment."""
    return os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "COLUMNS": str(WIDTH),
        **{f"GIT_{who}_{what}": "session" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
    }


def run(command: str, folder: Path) -> str:
    """What a command prints. Ends the process if it fails."""
    done = subprocess.run(  # noqa: S603
        ["bash", "-o", "pipefail", "-c", command],  # noqa: S607
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"session: `{command}` failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def check_that_results_are_of_this_commit() -> None:
    if changed := run("git status --porcelain --untracked-files=no", ROOT).splitlines():
        sys.exit(f"session: {changed[0][3:]} differs from the Git commit. Commit it")
    if run("dvc status --quiet || echo stale", ROOT):
        sys.exit(
            "session: the outputs here are not those of the committed dvc.lock. Run dvc repro, and commit dvc.lock"
        )


def cloned(folder: Path) -> Path:
    """A clone of this commit in `folder`, with its outputs from the cache and the times of its run.

    The experiment has run there once.
    """
    cache = run("dvc cache dir", ROOT).strip()
    clone = folder / "pipeline"
    run(f"git clone --quiet {shlex.quote(str(ROOT))} {shlex.quote(str(clone))}", folder)
    run(f"dvc config --local cache.dir {shlex.quote(cache)} && dvc checkout --quiet", clone)
    if (ROOT / "metrics/timing").is_dir():
        shutil.copytree(ROOT / "metrics/timing", clone / "metrics/timing")
    # The recorded one then comes from the run cache, and prints neither its time nor a new name.
    run(f"{EXPERIMENT} && git checkout --quiet . && dvc checkout --quiet", clone)
    return clone


def draw(outputs: dict[str, str]) -> str:
    """The picture. outputs: by command.

    It loads no font: a page may not be allowed to, and its reader need not be known to a font's host.
    """
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True, legacy_windows=False)
    for command, output in outputs.items():
        console.print(Text.assemble(("$ ", "bold green"), (command, "bold")))
        console.print(Text(output.rstrip("\n")), end="\n\n")
    template = re.sub(r"@font-face \{\{.*?\}\}\n", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    return console.export_svg(
        title="pipeline", code_format=template.replace("Fira Code, monospace", FONT), unique_id="session"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="session.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.parse_args()
    check_that_results_are_of_this_commit()
    with tempfile.TemporaryDirectory() as folder:
        clone = cloned(Path(folder))
        outputs = {command: run(command, clone) for command in COMMANDS}
    lines = sum(output.count("\n") + 2 for output in outputs.values())
    if lines > MOST_LINES:
        sys.exit(f"session: {lines} lines are more than a reader looks at ({MOST_LINES}). Shorten COMMANDS")
    (ROOT / PICTURE).write_text(draw(outputs), encoding="utf-8")
    print(f"session: {PICTURE}, {lines} lines")


if __name__ == "__main__":
    main()
