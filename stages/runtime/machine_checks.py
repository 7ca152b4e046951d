"""Whether this machine can train: its number format, and room on its disks."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from stages.core.models import pick_device
from stages.core.params import Machine
from stages.core.paths import ADAPTER
from stages.runtime.errors import UserError

if TYPE_CHECKING:
    from stages._train.checkpointing import Checkpoints

MIB = 1 << 20


MARGIN = 16 * MIB  # of a checkpoint: states of generators, the log, file systems' blocks


def check_dtype(machine: Machine) -> None:
    """Raises UserError on a GPU that has float16 alone, whose gradients vanish below 6e-8 unless the loss is scaled."""
    import torch

    # PyTorch counts a GPU that only imitates bfloat16 as one that has it.
    if pick_device(machine).type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise UserError(
            f"{torch.cuda.get_device_name()} does not compute in bfloat16, in which the training runs; float16 is not "
            "offered. Use a GPU of compute capability 8.0 or more (since Ampere: A10, A100, L4, RTX 30), or set "
            "machine.device: cpu"
        )


def existing(path: Path) -> Path:
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path


def check_disk(parameters: int, checkpoints: "Checkpoints", adapters: int = 1) -> None:
    """An adapter takes 4 bytes a parameter (fp32), AdamW's two moments twice that. adapters: how many a checkpoint has.
    They are also what the result takes at most."""
    adapter, checkpoint = 4 * adapters * parameters + MARGIN, 4 * (adapters + 2) * parameters + MARGIN
    # One more than are kept: the oldest goes when the newest is whole.
    needs = [
        (existing(ADAPTER), adapter, f"{ADAPTER} takes"),
        (checkpoints.folder, (checkpoints.limit + 1) * checkpoint - checkpoints.bytes(), "the checkpoints take"),
    ]
    shared = needs[0][0].stat().st_dev == needs[1][0].stat().st_dev
    for path, need, what in needs:
        free = shutil.disk_usage(path).free
        if free < (sum(need for _, need, _ in needs) if shared else need):
            raise UserError(
                f"{what} {need / MIB:.0f} MiB, and the disk of {path} has {free / MIB:.0f} MiB free"
                f"{', for adapter and checkpoints together' if shared else ''}. Free some space (`dvc gc --workspace` "
                "drops what no current file needs from DVC's cache) or lower machine.save_total_limit"
            )
