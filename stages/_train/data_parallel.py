"""What each process of a training gets: its rows of an optimizer step, the checkpoint, its states of the generators."""

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

from stages._train.checkpointing import difference, root
from stages._train.distributed import agree, rank, world
from stages.core.prompts import IGNORED
from stages.runtime.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset

# A row that trains nothing, the last of a data set. Where the rows do not come out even, some processes get it.
EMPTY = {"input_ids": [0], "labels": [IGNORED], "seq_lengths": [1]}
GENERATORS = "generators.pt"


def received() -> Path:
    """Where a machine other than that of rank 0 puts the checkpoint it was sent. Several may share the folder."""
    return root() / f"received-{os.environ['GROUP_RANK']}"


def even(rows: "Dataset") -> "Dataset":
    """The rows and EMPTY, where there are several processes."""
    return rows if world() == 1 else rows.add_item(EMPTY)


class Even(Sampler[int]):
    """The order that one process has, and EMPTY until all processes have as many batches.

    accelerate deals the batches out in turn, so an optimizer step has the rows that it has in one process. Left to
    itself it would fill up with rows from the beginning, which would be trained twice. Without a seed the order is that
    of the file.
    """

    def __init__(self, rows: int, batch_size: int, seed: int | None):
        self.rows = rows - 1  # without EMPTY
        self.missing = -self.rows % (batch_size * world())
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
    """What Checkpoints is in every process but that of rank 0."""

    def __init__(self) -> None:
        self.opened = time.monotonic()

    def save(self, step: int, write: Callable[[Path], None]) -> None:
        pass

    def remove(self) -> None:
        shutil.rmtree(received(), ignore_errors=True)


def refuse_other_work(parts: dict[str, object]) -> None:
    """Raises UserError where this machine has other code, values, rows or libraries than that of rank 0."""
    if world() == 1:
        return
    first = [parts]
    torch.distributed.broadcast_object_list(first, 0)
    if changed := difference(first[0], parts):
        raise UserError(f"this machine does not train what the first one does: here differ {changed}")


def share_checkpoint(checkpoint: Path | None) -> Path | None:
    """The checkpoint of rank 0, which on other machines is put into their own folder of checkpoints."""
    if world() == 1:
        return checkpoint
    files = sorted(checkpoint.iterdir()) if checkpoint else []
    shared = [checkpoint and str(checkpoint), {path.name: path.stat().st_size for path in files}]
    torch.distributed.broadcast_object_list(shared, 0)
    name, sizes = shared
    if name is None or os.environ["GROUP_WORLD_SIZE"] == "1":
        return name and Path(name)
    elsewhere = os.environ["GROUP_RANK"] != "0"
    folder = received() / Path(name).name if elsewhere else Path(name)
    writes = elsewhere and os.environ["LOCAL_RANK"] == "0"
    if writes:
        shutil.rmtree(received(), ignore_errors=True)
        folder.mkdir(parents=True)
    for file, size in sizes.items():
        content = torch.empty(size, dtype=torch.uint8)
        if rank() == 0:
            content = torch.from_numpy(numpy.fromfile(Path(name) / file, dtype=numpy.uint8))
        torch.distributed.broadcast(content, 0)
        if writes:
            content.numpy().tofile(folder / file)
    agree(0)  # the file is there for the other processes of this machine too
    return folder


def generator_states() -> list[dict[str, object]] | None:
    """In rank 0 the states of all processes' generators, which dropout draws from."""
    name, keys, *others = numpy.random.get_state()
    states = {
        "python": random.getstate(),
        "numpy": (name, keys.tolist(), *others),
        "cpu": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,
    }
    gathered = [None] * world() if rank() == 0 else None
    torch.distributed.gather_object(states, gathered)
    return gathered


def load_generators(checkpoint: Path) -> None:
    states = torch.load(checkpoint / GENERATORS, weights_only=True)[rank()]
    random.setstate(states["python"])
    numpy.random.set_state(states["numpy"])
    torch.set_rng_state(states["cpu"])
    if states["cuda"] is not None:
        torch.cuda.set_rng_state(states["cuda"])
