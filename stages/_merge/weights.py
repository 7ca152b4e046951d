"""Reads and writes safetensors files in blocks of rows. Names, shapes, dtypes and files stay those of the base.

A file has an 8-byte length, a JSON header of that length, and the tensors' bytes at the offsets in the header
(https://huggingface.co/docs/safetensors). The library's own writer needs all tensors of a file in memory. Here the
base's header is copied, and each tensor goes to the same offset as in the base. So only blocks are in memory, and
several threads can fill one file.
"""

import json
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from stages._merge.nf4 import FOUR_BIT_BLOCK
from stages.core.quantization import raw_bytes
from stages.runtime.errors import UserError

if TYPE_CHECKING:
    import torch

DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
BLOCK = 1 << 18  # elements in a block; the merge makes several copies of it in fp32
COPY_BYTES = 1 << 22  # bytes read at a time


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a safetensors file."""

    path: Path
    name: str
    dtype: str
    shape: list[int]
    start: int  # bytes from the file's beginning
    end: int

    def read(self, first: int, last: int) -> "torch.Tensor":
        """Rows `first` up to `last`, in the dtype of the file.

        Raises:
            UserError: The tensor is no matrix in one of DTYPES, or the file is cut short.
        """
        import torch

        if self.dtype not in DTYPES or len(self.shape) != 2:
            raise UserError(
                f"{self.path}: {self.name} has dtype {self.dtype} and shape {self.shape}. What is merged must be a "
                f"matrix in one of {', '.join(DTYPES)}"
            )
        rows = torch.empty((last - first, self.shape[1]), dtype=getattr(torch, DTYPES[self.dtype]))
        buffer = raw_bytes(rows)
        with open(self.path, "rb", buffering=0) as file:
            file.seek(self.start + first * self.shape[1] * rows.element_size())
            read = 0
            while read < len(buffer):
                read += file.readinto(buffer[read:]) or self.cut_short()
        return rows

    def cut_short(self) -> NoReturn:
        raise UserError(f"{self.path} is cut short. `dvc repro --force download_model` brings it again")

    def blocks(self) -> list[tuple[int, int]]:
        """(first, last) rows of parts of about BLOCK elements. Each but the last ends where a quantized block ends."""
        rows = max(BLOCK // self.shape[1] // FOUR_BIT_BLOCK, 1) * FOUR_BIT_BLOCK
        return [(first, min(first + rows, self.shape[0])) for first in range(0, self.shape[0], rows)]


def stored_tensors(path: Path) -> list[StoredTensor]:
    """The tensors of a safetensors file, in the order of their bytes."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    tensors = [
        StoredTensor(
            path, name, entry["dtype"], entry["shape"], *(8 + length + offset for offset in entry["data_offsets"])
        )
        for name, entry in header.items()
    ]
    return sorted(tensors, key=lambda entry: entry.start)


class OriginalWeight:
    """A 16-bit weight of the base."""

    def __init__(self, stored: StoredTensor, device: "torch.device | str"):
        self.stored, self.device = stored, device

    def blocks(self) -> "Iterator[tuple[int, torch.Tensor]]":
        """Yields (first row, rows) from top to bottom."""
        for first, last in self.stored.blocks():
            yield first, self.stored.read(first, last).to(self.device)


def write_header(source: Path, target: Path) -> None:
    """Makes a file with the header of `source` and the same length, without the tensors."""
    with open(source, "rb") as old, open(target, "wb") as new:
        length = old.read(8)
        new.write(length + old.read(int.from_bytes(length, "little")))
        new.truncate(source.stat().st_size)
    target.chmod(0o644)  # servers run as other users


class TargetFile:
    """An open file that several threads fill, one at a time.

    The kernel allows one write to a file at a time. The other threads would spin meanwhile; with the lock they sleep.
    """

    def __init__(self, number: int):
        self.number, self.lock = number, threading.Lock()

    def put(self, data: memoryview, position: int) -> None:
        """Writes all of `data` at `position`."""
        with self.lock:
            while data:
                written = os.pwrite(self.number, data, position)
                data, position = data[written:], position + written


def copy_tensor(stored: StoredTensor, target: TargetFile) -> None:
    """Copies a tensor without a change."""
    with open(stored.path, "rb", buffering=0) as file:
        file.seek(stored.start)
        position = stored.start
        while position < stored.end:
            data = file.read(min(COPY_BYTES, stored.end - position)) or stored.cut_short()
            target.put(memoryview(data), position)
            position += len(data)
