"""Whether the disk has room for what a stage is about to write."""

import shutil
from pathlib import Path

from stages.runtime.errors import UserError

GB = 1_000_000_000


def check_disk_for_merge(folder: Path, weights: int, parity: int) -> None:
    """Checks that the merge fits on the disk of `folder`.

    Args:
        folder: An existing folder on that disk.
        weights: Bytes of the merged weights.
        parity: Bytes that the comparison of the models needs for a while.

    Raises:
        UserError: Too little is free.
    """
    needed, free = weights + parity, shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"merging needs {needed / GB:.1f} GB on the disk of {folder}, {parity / GB:.1f} GB of it for a while to "
            f"compare the models, and {free / GB:.1f} GB are free. Free some space (`dvc gc --workspace` drops what "
            "no current file needs from DVC's cache), or compare on fewer merge.parity_rows"
        )
