"""A record, `{id, messages: [{role, content}…], source}`, and the Parquet files that hold records.

Records of the test split may also have `tests`, code that an answer has to pass, and the fields that
`clean.keep_fields` names. The file has a column `tests` only if some record of the data set has tests.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Record:
    """A conversation. `source` is the `file:line` that it comes from; `id` is a hash of nothing but the messages."""

    id: str
    messages: list[dict[str, str]]
    source: str
    tests: str | None = None
    fields: dict[str, str | None] = field(default_factory=dict)


def content_id(messages: list[dict[str, str]]) -> str:
    """Returns 32 hex digits of the SHA-256 of the messages in canonical JSON."""
    canonical = json.dumps(messages, ensure_ascii=True, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:32]


def split_position(record_id: str) -> float:
    """Returns a number from 0 to 1 that decides the record's split."""
    return int.from_bytes(hashlib.sha256(f"split:{record_id}".encode()).digest()[:8]) / 2**64


def split_of(record_id: str, validation_fraction: float, test_fraction: float) -> str:
    """Returns the record's split, which depends only on its content, so that more data never moves it.

    The id is hashed again. Cleaning keeps the duplicate with the lowest id, so low ids are more frequent and would
    make one split too large.
    """
    position = split_position(record_id)
    if position < test_fraction:
        return "test"
    return "validation" if position < test_fraction + validation_fraction else "train"


def record_schema(*extra: str) -> "pyarrow.Schema":
    """Returns the columns id, messages and source, and after them a column of strings for each name in `extra`."""
    import pyarrow

    message = pyarrow.struct([("role", pyarrow.string()), ("content", pyarrow.string())])
    columns = [("id", pyarrow.string()), ("messages", pyarrow.list_(message)), ("source", pyarrow.string())]
    return pyarrow.schema([*columns, *((name, pyarrow.string()) for name in extra)])


def record_table(records: Iterable[Record], **extra: list[str]) -> "pyarrow.Table":
    import pyarrow

    records = list(records)
    columns = {name: [getattr(record, name) for record in records] for name in ("id", "messages", "source")}
    return pyarrow.Table.from_pydict(columns | extra, schema=record_schema(*extra))


@contextmanager
def record_file(path: Path, *extra: str) -> Iterator["pyarrow.parquet.ParquetWriter"]:
    """Opens a Parquet file for record_table()s. Each becomes a row group, so that only one is in memory."""
    import pyarrow.parquet

    with pyarrow.parquet.ParquetWriter(path, record_schema(*extra), compression="zstd") as writer:
        yield writer


def read_batches(path: Path, size: int) -> Iterator["pyarrow.RecordBatch"]:
    """Yields all rows in batches of `size`, across row groups. The last may be shorter; an empty file has no batch."""
    import pyarrow.parquet

    # Buffers that are read ahead are kept to the end, which would be the whole file.
    with pyarrow.parquet.ParquetFile(path, pre_buffer=False) as file:
        yield from file.iter_batches(size)


def read_records(path: Path, size: int = 10_000) -> Iterator[list[Record]]:
    """Yields the records in lists of `size`; the last may be shorter."""
    for batch in read_batches(path, size):
        yield [record_of(row) for row in batch.to_pylist()]


def record_of(row: dict) -> Record:
    known = {name: row.pop(name) for name in ("id", "messages", "source")}
    return Record(**known, tests=row.pop("tests", None), fields=row)
