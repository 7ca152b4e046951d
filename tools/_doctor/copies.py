"""Finds copies of the repository in which experiments ran. A killed experiment leaves its copy, and nothing
removes it.
"""

import fcntl
from pathlib import Path

from tools._doctor.finding import Finding
from tools._doctor.processes import processes_below, trials_below


def is_held(lock: Path) -> bool:
    """Whether a process holds the lock. To find out, a shared lock is taken for a moment."""
    try:
        with open(lock, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def unused_folders(folders: list[Path]) -> list[Path]:
    return [folder for folder in sorted(folders) if folder.is_dir() and not any(processes_below(folder))]


def check_copies(tmp: Path) -> list[Finding]:
    """Copies of `dvc exp run --temp`, of DVC's queue and of tools.sweep. tmp: DVC's folder for temporary files."""
    experiments = [*tmp.glob("exps/standalone/tmp*"), *tmp.glob("exps/tmp*")]
    findings = [
        Finding(
            "experiments",
            f"{path} is the copy of a killed experiment",
            f"Make sure that no experiment is just starting, then: rm -r {path}",
        )
        for path in unused_folders(experiments)
    ]
    for sweep in sorted(path.parent for path in tmp.glob("sweeps/*/lock") if not is_held(path)):
        findings += check_sweep(sweep)
    return findings


def check_sweep(folder: Path) -> list[Finding]:
    """Findings about a sweep that does not run. Its trials have their own process groups, so they survive a kill."""
    if numbers := [str(process.pid) for process in trials_below(folder.absolute())]:
        text = f"the sweep {folder.name} was killed, and its trials still run: processes {', '.join(numbers)}"
        remedy = (
            "Start the sweep again, which ends them and continues from their checkpoints, or give it up: "
            f"kill {' '.join(numbers)} and, once they have ended, rm -r {folder}"
        )
        return [Finding("experiments", text, remedy)]
    findings = []
    for path in unused_folders([git.parent for git in folder.glob("*/.git")]):
        text = f"{path} is the clone of a stopped trial, and no sweep {path.parent.name} runs"
        remedy = f"Start the sweep again, which continues there, or give it up: rm -r {path.parent}"
        findings.append(Finding("experiments", text, remedy))
    return findings
