"""One training at a time in a folder of checkpoints: the kernel frees the lock of a process however it ends."""

import fcntl
import os
from pathlib import Path
from typing import IO

from stages.runtime.errors import UserError


def take_lock(path: Path) -> IO[str]:
    """The open file that holds the lock until it is closed or the process ends.

    Raises:
        UserError: another process holds it.
    """
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "a+")  # noqa: SIM115 it stays open as long as the lock is held
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            owner = file.read().strip() or "unknown"
            file.close()
            raise UserError(
                f"process {owner} is training with the same values and holds {path.parent}. Wait until it ends, or "
                f"stop it with `kill {owner}`, which saves a checkpoint first, and run this again"
            ) from None
        # A training that ends removes its folder: a lock on a file that is gone keeps nobody out.
        if path.exists() and path.stat().st_ino == os.fstat(file.fileno()).st_ino:
            file.truncate(0)
            file.write(f"{os.getpid()}\n")
            file.flush()
            return file
        file.close()
