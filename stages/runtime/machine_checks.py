"""Whether this machine can do the work: its number format, and room on its disks."""

import shutil
from pathlib import Path

from stages.core.machine import ResolvedMachine
from stages.core.paths import ADAPTER
from stages.runtime.errors import UserError

MEBIBYTE = 1 << 20
GB = 1_000_000_000
MARGIN = 16 * MEBIBYTE  # what a checkpoint holds besides its tensors: generators' states, the log, file systems' blocks


def check_bfloat16(machine: ResolvedMachine) -> None:
    """Checks that a GPU computes in bfloat16. In float16 gradients vanish below 6e-8 unless the loss is scaled.

    Raises:
        UserError: it does not.
    """
    import torch

    # PyTorch counts a GPU that only imitates bfloat16 as one that has it.
    if machine.on_cuda and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise UserError(
            f"{torch.cuda.get_device_name()} does not compute in bfloat16, in which the training runs; float16 is not "
            "offered. Use a GPU of compute capability 8.0 or more (since Ampere: A10, A100, L4, RTX 30), or set "
            "machine.device: cpu"
        )


def check_disk(parameters: int, checkpoints: Path, limit: int, adapters: int = 1) -> None:
    """Checks that the adapter and the checkpoints fit the disks.

    An adapter takes 4 bytes a parameter (fp32). AdamW's two moments take twice that in a checkpoint.

    Args:
        parameters: of the adapter.
        checkpoints: the folder for checkpoints. What is in it already counts as room.
        limit: how many checkpoints are kept.
        adapters: how many a checkpoint holds. The result takes at most as many.

    Raises:
        UserError: one of the disks has too little room.
    """
    adapter, checkpoint = 4 * adapters * parameters + MARGIN, 4 * (adapters + 2) * parameters + MARGIN
    # There is one more checkpoint for a while: the oldest goes when the newest is whole.
    needs = [
        (existing_parent(ADAPTER), adapter, f"{ADAPTER} takes"),
        (checkpoints, (limit + 1) * checkpoint - folder_bytes(checkpoints), "the checkpoints take"),
    ]
    shared = needs[0][0].stat().st_dev == needs[1][0].stat().st_dev
    for path, need, subject in needs:
        free = shutil.disk_usage(path).free
        if free < (sum(need for _, need, _ in needs) if shared else need):
            raise UserError(
                f"{subject} {need / MEBIBYTE:.0f} MiB, and the disk of {path} has {free / MEBIBYTE:.0f} MiB free"
                f"{', for adapter and checkpoints together' if shared else ''}. Free some space (`dvc gc --workspace` "
                "drops what no current file needs from DVC's cache) or lower machine.save_total_limit"
            )


def existing_parent(path: Path) -> Path:
    """The path itself, or its nearest parent that exists."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path


def folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


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
