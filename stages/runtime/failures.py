"""Words for errors that come from below: a full disk, a missing permission, too little memory."""

import contextlib
import errno
from collections.abc import Callable, Iterator

from stages.runtime.errors import UserError

# What PyTorch says on the CPU, and what CUDA and cuBLAS say.
OUT_OF_MEMORY = ("can't allocate memory", "out of memory", "ALLOC_FAILED")
DISK_FULL = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "your quota on this disk is used up"}
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


def explain_os_error(error: OSError) -> str | None:
    """What went wrong with a file and what to do. None for an error that the user cannot mend."""
    where = error.filename or "while writing"
    if error.errno in DISK_FULL:
        return f"{DISK_FULL[error.errno]} ({where}). Free some space and run it again"
    if error.errno == errno.EFBIG:
        return f"a file may not become so large here ({where}). Raise the limit (ulimit -f) and run it again"
    if error.errno in FORBIDDEN:
        return f"{error.strerror}: {where}. Allow this user to read and write there, and run it again"
    return None


@contextlib.contextmanager
def explained_failures(when: Callable[[], str], next_run: Callable[[], str]) -> Iterator[None]:
    """Explains the errors inside the block that params.yaml can mend.

    Args:
        when: returns when it happened, such as "in step 3".
        next_run: returns a sentence that says where the next run continues.

    Raises:
        UserError: memory ran out, or an operation cannot be deterministic.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if explained := explain_failure(error, when(), next_run()):
            raise explained from None
        raise


def explain_failure(error: Exception, when: str, next_run: str) -> UserError | None:
    """None for an error that nothing in params.yaml can mend."""
    text = str(error)
    if isinstance(error, MemoryError) or any(words in text for words in OUT_OF_MEMORY):
        return UserError(
            f"out of memory {when} ({error}). {next_run}. Give it more memory, or find a machine.memory that needs "
            "less with `python -m stages.train --plan`: changing that keeps the checkpoints. A smaller "
            "train.batch_size or tokenize.max_length needs less too, but starts the training afresh"
        )
    if "use_deterministic_algorithms" in text:  # PyTorch names it where it has no such operation
        return UserError(
            f"an operation {when} gives other bits each time on this device ({text.partition(', but')[0]}), and "
            "train.deterministic is true. Set it to false. That starts the training afresh, and two runs then end with "
            "slightly different adapters"
        )
    return None
