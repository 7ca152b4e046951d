"""Finds what a kill damages or leaves while DVC writes dvc.lock, or Git its index."""

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from tools._doctor.finding import Finding
from tools._doctor.processes import command_of, is_dvc, processes_below

if TYPE_CHECKING:
    from dvc.repo import Repo


def check_git_index(root: Path) -> list[Finding]:
    """Findings about Git's lock on its index. While it is there, neither Git nor DVC can stage anything."""
    asked = ["git", "-C", str(root), "rev-parse", "--git-path", "index.lock"]
    try:
        done = subprocess.run(asked, capture_output=True, text=True, timeout=30, check=False)  # noqa: S603 no shell
    except (OSError, subprocess.TimeoutExpired):
        return []
    path = root / done.stdout.strip()
    if done.returncode or not path.is_file():
        return []
    for process in processes_below(root):
        words = command_of(process.pid) or []
        if is_dvc(words) or Path(*words[:1]).name == "git":
            return [Finding("locks", f"{path} is there, and process {process.pid} ({' '.join(words)[:60]}) is running")]
    remedy = f"Make sure that no program works with Git here, then: rm {path}"
    return [Finding("locks", f"{path} is there, but neither Git nor DVC is running; nothing can be staged", remedy)]


def check_lock_file(repo: "Repo") -> list[Finding]:
    """Findings about dvc.lock. DVC writes it in place, so a kill in that moment leaves only its beginning."""
    from dvc.dvcfile import Lockfile
    from dvc.exceptions import DvcException
    from dvc.stage.exceptions import StageFileDoesNotExistError

    path = Path(repo.root_dir, "dvc.lock")
    try:
        Lockfile(repo, str(path)).load()
    except StageFileDoesNotExistError:
        return []
    except DvcException as error:
        if "<<<<<<<" in path.read_text(encoding="utf-8", errors="replace"):
            remedy = "It has a merge's conflicts: see docs/pull-requests.md"
        else:
            remedy = "git checkout dvc.lock, then `dvc repro`, which brings what had ended from the run cache"
        return [Finding("dvc.lock", f"no DVC command can read it ({str(error).rstrip('.')})", remedy)]
    return []
