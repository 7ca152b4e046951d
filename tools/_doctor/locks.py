"""Locks and folders that DVC and trainings leave behind when they are killed. A process is looked at, never touched."""

import fcntl
import json
from pathlib import Path

import psutil

from tools._doctor.finding import Finding, in_bytes


def command_of(pid: int) -> str | None:
    """The command line of a process that lives; None for one that ended, a zombie among them."""
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return None
    except psutil.AccessDenied:
        return ""


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


def check_rwlock(path: Path) -> list[Finding]:
    """DVC's list of who reads and writes what. Entries of the dead DVC removes itself, unless their number was given
    to another process: then it waits for that one."""
    remedy = f"Make sure that no DVC command runs in this repository, then: rm {path}"
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        readers = [info for infos in entries.get("read", {}).values() for info in infos]
        owners = {int(info["pid"]): info["cmd"] for info in (*readers, *entries.get("write", {}).values()) if info}
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError, AttributeError):
        return [Finding("locks", f"{path} cannot be read, and no DVC command will run", remedy)]
    found = []
    for pid, command in sorted(owners.items()):
        now = command_of(pid)
        if now is None:
            found.append(Finding("locks", f"{path} names process {pid} ({command}), which is dead", remedy))
        elif now and "dvc" not in now:
            found.append(
                Finding("locks", f"{path} names process {pid}, which is no DVC any more but {now[:60]!r}", remedy)
            )
        else:
            found.append(Finding("locks", f"`{command}` is at work (process {pid})"))
    return found


def check_trainings(checkpoints: Path) -> list[Finding]:
    """Who holds a folder of checkpoints, and whether a DVC waits for it."""
    found, idle, size = [], 0, 0
    for lock in sorted(checkpoints.glob("*/lock")):
        if not is_held(lock):
            idle += 1
            size += sum(path.stat().st_size for path in lock.parent.rglob("*") if path.is_file())
            continue
        pid = int(lock.read_text().strip() or 0)
        if has_dvc_above(pid):
            found.append(Finding("trainings", f"process {pid} trains in {lock.parent.name}"))
        else:
            found.append(
                Finding(
                    "trainings",
                    f"process {pid} holds {lock.parent}, and no DVC waits for its result",
                    f"Unless you started it by hand: kill {pid}, which saves a checkpoint (a stopped one needs "
                    f"kill -CONT {pid} as well), then `dvc repro` goes on from there",
                )
            )
    if idle:
        found.append(Finding("trainings", f"{idle} stopped, {in_bytes(size)}; the same values go on from them"))
    return found


def has_dvc_above(pid: int) -> bool:
    try:
        above = psutil.Process(pid).parents()
    except psutil.NoSuchProcess:
        return False
    return any("dvc" in (command_of(process.pid) or "") for process in above)


def check_copies(standalone: Path) -> list[Finding]:
    """Copies of the repository in which `dvc exp run --temp` or the queue worked; a killed one leaves its own."""
    in_use = set()
    for process in psutil.process_iter():
        try:
            in_use.add(Path(process.cwd()))
        except (psutil.Error, OSError):
            continue
    left = [
        path
        for path in sorted(standalone.glob("tmp*"))
        if path.is_dir() and not any(folder.is_relative_to(path.resolve()) for folder in in_use)
    ]
    return [
        Finding("experiments", f"{path} is the copy of an experiment that was killed", f"rm -r {path}") for path in left
    ]


def lock_findings(tmp: Path) -> list[Finding]:
    return [
        *check_rwlock(tmp / "rwlock"),
        *check_trainings(tmp / "checkpoints"),
        *check_copies(tmp / "exps" / "standalone"),
    ] or [Finding("locks", "none")]
