"""One training at a time in a folder of checkpoints. The kernel frees the lock however its process ends."""

import os
from contextlib import ExitStack
from pathlib import Path

from filelock import FileLock, Timeout

from stages.runtime.errors import UserError

WAIT = 0.2  # seconds: for tools/_doctor, which takes the lock to look, and for a training that removes the folder


def name_owner(descriptor: int) -> None:
    """Writes this process's number into the open lock file, for the message to others."""
    os.truncate(descriptor, 0)
    os.write(descriptor, f"{os.getpid()}\n".encode())


def take_lock(path: Path) -> ExitStack:
    """Takes the lock at this path. The stack holds it until it is closed or the process ends.

    Raises:
        UserError: another process holds the lock.
    """
    lock = FileLock(path, timeout=WAIT, thread_local=False, fallback_to_soft=False, on_acquired=name_owner)
    held = ExitStack()
    try:
        held.enter_context(lock)
    except Timeout:
        owner = (path.read_text().strip() if path.exists() else "") or "unknown"
        raise UserError(
            f"process {owner} is training with the same values and holds {path.parent}. Wait until it ends, or "
            f"stop it with `kill {owner}`, which saves a checkpoint first, and run this again"
        ) from None
    return held
