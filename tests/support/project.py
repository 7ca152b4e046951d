"""The project that the tests are about: its files, and its pages' code blocks."""

import re
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def committed(name: str) -> str:
    """A file's text in the last commit. In the working tree another run may have changed it."""
    return subprocess.run(["git", "show", f"HEAD:{name}"], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def tracked_files() -> list[str]:
    """The files that Git has, and those that `git add --all` would add."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    return [name for name in names if (ROOT / name).is_file()]


def copy_project(folder: Path, without: tuple[str, ...] = ()) -> None:
    """Copies the tracked files, but for those in `without`, and puts tests/params.yaml where params.yaml was."""
    for name in tracked_files():
        if name not in without:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    shutil.copy2(folder / "tests/params.yaml", folder / "params.yaml")


def blocks(page: str, language: str) -> list[str]:
    """The code blocks of a page in one language."""
    return re.findall(rf"(?m)^```{language}\n(.*?)^```", (ROOT / page).read_text(), re.DOTALL)
