"""What each process of a training gets: its rows of an optimizer step, the checkpoint, and its generators' states."""

import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy
import torch
from accelerate.data_loader import SeedableRandomSampler
from torch.utils.data import Sampler

from stages._train.checkpointing import checkpoint_root
from stages._train.distributed import all_reduce_max, rank, world_size
from stages._train.fingerprint import fingerprint_changes
from stages.core.prompts import IGNORED
from stages.runtime.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset

# A row that trains nothing, added after the last row. Processes get it where there are not enough rows for all.
PADDING_ROW = {"input_ids": [0], "labels": [IGNORED], "seq_lengths": [1]}
GENERATORS = "generators.pt"  # in a checkpoint


def add_padding_row(rows: "Dataset") -> "Dataset":
    """The rows with PADDING_ROW, which only several processes need."""
    return rows if world_size() == 1 else rows.add_item(PADDING_ROW)


class EvenBatchSampler(Sampler[int]):
    """The order that one process has, then PADDING_ROW until all processes have as many batches.

    accelerate deals the batches out in turn. So an optimizer step has the rows that it has in one process. By itself it
    would fill up with rows from the beginning, which would be trained twice.

    Args:
        rows: the number of rows, with PADDING_ROW.
        batch_size: rows in a batch.
        seed: of the order. None: the order of the file.
    """

    def __init__(self, rows: int, batch_size: int, seed: int | None):
        self.rows = rows - 1  # without PADDING_ROW
        self.missing = -self.rows % (batch_size * world_size())
        self.order = range(self.rows)
        if seed is not None:
            self.order = SeedableRandomSampler(self.order, data_seed=seed)

    def __len__(self) -> int:
        return self.rows + self.missing

    def __iter__(self) -> Iterator[int]:
        yield from self.order
        yield from [self.rows] * self.missing

    def set_epoch(self, epoch: int) -> None:
        if isinstance(self.order, SeedableRandomSampler):
            self.order.set_epoch(epoch)


class NoCheckpoints:
    """Takes the place of Checkpoints in every process except rank 0."""

    def __init__(self) -> None:
        self.opened = time.monotonic()

    def save(self, step: int, write: Callable[[Path], None]) -> None:
        pass

    def remove(self) -> None:
        shutil.rmtree(received_folder(), ignore_errors=True)


def received_folder() -> Path:
    """Where a machine without rank 0 puts the checkpoint that it was sent. Several machines may share the parent."""
    return checkpoint_root() / f"received-{os.environ['GROUP_RANK']}"


def check_same_training(parts: dict[str, object]) -> None:
    """Checks that this machine has the code, values, rows and libraries of rank 0. parts: its fingerprint.

    Raises:
        UserError: names what differs.
    """
    if world_size() == 1:
        return
    first = [parts]
    torch.distributed.broadcast_object_list(first, 0)
    if changes := fingerprint_changes(first[0], parts):
        raise UserError(f"this machine does not train what the first one does: here differ {changes}")


def share_checkpoint(checkpoint: Path | None) -> Path | None:
    """The checkpoint of rank 0, in every process. Other machines get a copy of it in received_folder()."""
    if world_size() == 1:
        return checkpoint
    files = sorted(checkpoint.iterdir()) if checkpoint else []
    shared = [checkpoint and str(checkpoint), {path.name: path.stat().st_size for path in files}]
    torch.distributed.broadcast_object_list(shared, 0)
    name, sizes = shared
    if name is None or os.environ["GROUP_WORLD_SIZE"] == "1":
        return name and Path(name)
    return broadcast_files(Path(name), sizes)


def broadcast_files(source: Path, sizes: dict[str, int]) -> Path:
    """Copies a folder of rank 0 to every other machine, and returns where it is on this one.

    Args:
        source: the folder, on the machine of rank 0.
        sizes: {file: bytes} of the folder.
    """
    elsewhere = os.environ["GROUP_RANK"] != "0"
    folder = received_folder() / source.name if elsewhere else source
    writes = elsewhere and os.environ["LOCAL_RANK"] == "0"
    if writes:
        shutil.rmtree(received_folder(), ignore_errors=True)
        folder.mkdir(parents=True)
    for file, size in sizes.items():
        content = torch.empty(size, dtype=torch.uint8)
        if rank() == 0:
            content = torch.from_numpy(numpy.fromfile(source / file, dtype=numpy.uint8))
        torch.distributed.broadcast(content, 0)
        if writes:
            content.numpy().tofile(folder / file)
    all_reduce_max(0)  # waits until the files are there for the other processes of this machine too
    return folder


def generator_states() -> list[dict[str, object]] | None:
    """In rank 0 the states of all processes' generators, which dropout draws from. None elsewhere."""
    name, keys, *rest = numpy.random.get_state()
    states = {
        "python": random.getstate(),
        "numpy": (name, keys.tolist(), *rest),
        "cpu": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,
    }
    gathered = [None] * world_size() if rank() == 0 else None
    torch.distributed.gather_object(states, gathered)
    return gathered


def load_generators(checkpoint: Path) -> None:
    """Restores the states of this process's generators."""
    states = torch.load(checkpoint / GENERATORS, weights_only=True)[rank()]
    random.setstate(states["python"])
    numpy.random.set_state(states["numpy"])
    torch.set_rng_state(states["cpu"])
    if states["cuda"] is not None:
        torch.cuda.set_rng_state(states["cuda"])
