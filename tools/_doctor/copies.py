"""Copies of the repository in which experiments worked. A killed one leaves its own, and nothing takes it away."""

import fcntl
from pathlib import Path

from tools._doctor.finding import Finding
from tools._doctor.processes import below


def is_held(lock: Path) -> bool:
    """Whether a process holds the lock, asked by taking it for a moment beside others who only read."""
    try:
        with open(lock, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def unused(folders: list[Path]) -> list[Path]:
    return [folder for folder in sorted(folders) if folder.is_dir() and not any(below(folder))]


def check_copies(tmp: Path) -> list[Finding]:
    """Of `dvc exp run --temp`, of DVC's queue, and of tools.sweep. tmp: DVC's own folder for what passes."""
    experiments = [*tmp.glob("exps/standalone/tmp*"), *tmp.glob("exps/tmp*")]
    clones = [path.parent for path in tmp.glob("sweeps/*/*/.git") if not is_held(path.parents[1] / "lock")]
    found = [
        Finding(
            "experiments",
            f"{path} is the copy of an experiment that was killed",
            f"Make sure that no experiment is just starting, then: rm -r {path}",
        )
        for path in unused(experiments)
    ]
    for path in unused(clones):
        text = f"{path} is the clone of a trial that was stopped, and no sweep {path.parent.name} runs"
        remedy = f"Start the sweep again, which goes on from there, or give it up: rm -r {path.parent}"
        found.append(Finding("experiments", text, remedy))
    return found
