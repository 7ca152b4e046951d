"""Looks at processes, and never changes them."""

from collections.abc import Iterator
from pathlib import Path

import psutil


def command_of(pid: int) -> list[str] | None:
    """The words of a living process's command line. None where it ended or is a zombie."""
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.cmdline()
    except psutil.NoSuchProcess:
        return None
    except psutil.AccessDenied:
        return []


def is_dvc(words: list[str]) -> bool:
    """Whether the command line is DVC's: by the program's name, a file that Python runs, or a module.

    A path that only contains `dvc` is not enough.
    """
    if not words:
        return False
    program, *rest = words
    if Path(program).name == "dvc":
        return True
    script = next((word for word in rest if not word.startswith("-")), "")
    # After -m this is the module.
    return Path(program).name.startswith("python") and Path(script).name == "dvc"


def trials_below(folder: Path) -> list[psutil.Process]:
    """The processes on this machine that are trials of tools.sweep in or below a folder, whoever started them."""
    every = [(process, process.info["environ"] or {}) for process in psutil.process_iter(["environ"])]
    return [process for process, names in every if Path(names.get("SWEEP_TRIAL", "/")).is_relative_to(folder)]


def processes_below(folder: Path) -> Iterator[psutil.Process]:
    """The processes that work in or below a folder, as far as this user may see them."""
    for process in psutil.process_iter():
        try:
            if Path(process.cwd()).is_relative_to(folder.resolve()):
                yield process
        except (psutil.Error, OSError):
            continue
