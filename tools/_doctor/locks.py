"""Finds locks that DVC and trainings leave when they are killed."""

import json
from pathlib import Path

import psutil

from tools._doctor.copies import check_copies, is_held
from tools._doctor.finding import Finding, in_bytes
from tools._doctor.processes import command_of, is_dvc
from tools._doctor.torn import check_git_index


def check_rwlock(path: Path) -> list[Finding]:
    """Findings about DVC's list of who reads and writes what.

    DVC itself removes entries of dead processes. But if another process got the same number, DVC waits for that one.
    """
    remedy = f"Make sure that no DVC command runs in this repository, then: rm {path}"
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        readers = [info for infos in entries.get("read", {}).values() for info in infos]
        owners = {int(info["pid"]): info["cmd"] for info in (*readers, *entries.get("write", {}).values()) if info}
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError, AttributeError):
        return [Finding("locks", f"{path} cannot be read, so no DVC command will run", remedy)]
    findings = []
    for pid, command in sorted(owners.items()):
        now = command_of(pid)
        if now is None:
            findings.append(Finding("locks", f"{path} names process {pid} ({command}), which is dead", remedy))
        elif now and not is_dvc(now):
            name = " ".join(now)[:60]
            findings.append(Finding("locks", f"{path} names process {pid}, which is now {name!r}, not DVC", remedy))
        else:
            findings.append(Finding("locks", f"`{command}` is running (process {pid})"))
    return findings


def check_trainings(checkpoints: Path) -> list[Finding]:
    """Who holds a folder of checkpoints, and whether a DVC waits for the result."""
    findings, idle, size = [], 0, 0
    for lock in sorted(checkpoints.glob("*/lock")):
        if not is_held(lock):
            idle += 1
            size += sum(path.stat().st_size for path in lock.parent.rglob("*") if path.is_file())
            continue
        pid = int(lock.read_text().strip() or 0)
        if has_dvc_above(pid):
            findings.append(Finding("trainings", f"process {pid} trains in {lock.parent.name}"))
        else:
            findings.append(
                Finding(
                    "trainings",
                    f"process {pid} holds {lock.parent}, and no DVC waits for its result",
                    f"Unless you started it by hand: kill {pid}, which saves a checkpoint (a stopped one needs "
                    f"kill -CONT {pid} as well), then `dvc repro` continues from there",
                )
            )
    if idle:
        findings.append(
            Finding("trainings", f"{idle} stopped, {in_bytes(size)}; a run with the same values continues one")
        )
    return findings


def has_dvc_above(pid: int) -> bool:
    try:
        above = psutil.Process(pid).parents()
    except psutil.NoSuchProcess:
        return False
    return any(is_dvc(command_of(process.pid) or []) for process in above)


def lock_findings(root: Path, tmp: Path) -> list[Finding]:
    """All findings about locks. root: the repository's folder. tmp: DVC's folder for temporary files."""
    return [
        *check_git_index(root),
        *check_rwlock(tmp / "rwlock"),
        *check_trainings(tmp / "checkpoints"),
        *check_copies(tmp),
    ] or [Finding("locks", "none")]
