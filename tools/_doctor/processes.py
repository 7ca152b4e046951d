"""Processes, which are looked at and never touched."""

from collections.abc import Iterator
from pathlib import Path

import psutil


def command_of(pid: int) -> list[str] | None:
    """The words of the command line of a process that lives; None for one that ended, a zombie among them."""
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.cmdline()
    except psutil.NoSuchProcess:
        return None
    except psutil.AccessDenied:
        return []


def is_dvc(words: list[str]) -> bool:
    """Whether DVC runs: by its name, as a file that a Python runs, or as a module. A path with dvc in it is none."""
    if not words:
        return False
    program, *rest = words
    if Path(program).name == "dvc":
        return True
    script = next((word for word in rest if not word.startswith("-")), "")
    # Where -m comes first the first word that is no option is the module.
    return Path(program).name.startswith("python") and Path(script).name == "dvc"


def trials_below(folder: Path) -> list[psutil.Process]:
    """The processes of this machine that are trials of tools.sweep in a folder or below it, whoever started them."""
    every = [(process, process.info["environ"] or {}) for process in psutil.process_iter(["environ"])]
    return [process for process, names in every if Path(names.get("SWEEP_TRIAL", "/")).is_relative_to(folder)]


def processes_below(folder: Path) -> Iterator[psutil.Process]:
    """The processes of this machine, as far as this user may see them, that work in a folder or below it."""
    for process in psutil.process_iter():
        try:
            if Path(process.cwd()).is_relative_to(folder.resolve()):
                yield process
        except (psutil.Error, OSError):
            continue
