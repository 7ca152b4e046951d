"""A record, `{id, messages: [{role, content}…], source}`, and the Parquet files it is kept in.

A record of the test split may bring more: `tests`, code that an answer has to pass, and the fields that
`clean.keep_fields` names. A file has a column of each only where some record of the data set brings one.
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
    """A conversation. `source` says where it stood, as `document:line`; `id` is a hash of the messages alone."""

    id: str
    messages: list[dict[str, str]]
    source: str
    tests: str | None = None
    fields: dict[str, str | None] = field(default_factory=dict)


def content_id(messages: list[dict[str, str]]) -> str:
    """32 hex digits of the SHA-256 of the messages in canonical JSON."""
    canonical = json.dumps(messages, ensure_ascii=True, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:32]


def split_of(record_id: str, validation_fraction: float, test_fraction: float) -> str:
    """The split a record belongs to: a function of its content, so that growth of the data never moves it.

    The id is hashed once more, because of duplicates the lowest id survives, which would fill one split first.
    """
    position = int.from_bytes(hashlib.sha256(f"split:{record_id}".encode()).digest()[:8]) / 2**64
    if position < test_fraction:
        return "test"
    return "validation" if position < test_fraction + validation_fraction else "train"


def record_schema(*more: str) -> "pyarrow.Schema":
    """Columns id, messages, source, and after them those named in `more`, of strings."""
    import pyarrow

    message = pyarrow.struct([("role", pyarrow.string()), ("content", pyarrow.string())])
    columns = [("id", pyarrow.string()), ("messages", pyarrow.list_(message)), ("source", pyarrow.string())]
    return pyarrow.schema([*columns, *((name, pyarrow.string()) for name in more)])


def record_table(records: Iterable[Record], **more: list[str]) -> "pyarrow.Table":
    import pyarrow

    records = list(records)
    columns = {name: [getattr(record, name) for record in records] for name in ("id", "messages", "source")}
    return pyarrow.Table.from_pydict(columns | more, schema=record_schema(*more))


@contextmanager
def record_file(path: Path, *more: str) -> Iterator["pyarrow.parquet.ParquetWriter"]:
    """A Parquet file to write record_table()s to: each becomes a row group, so that no more than one is in memory."""
    import pyarrow.parquet

    with pyarrow.parquet.ParquetWriter(path, record_schema(*more), compression="zstd") as writer:
        yield writer


def read_batches(path: Path, size: int) -> Iterator["pyarrow.RecordBatch"]:
    """The columns in batches of `size` rows, whatever the row groups; the last may be shorter.

    An empty file has none.
    """
    import pyarrow.parquet

    # Buffers read ahead are kept to the end: the whole file, in time.
    with pyarrow.parquet.ParquetFile(path, pre_buffer=False) as file:
        yield from file.iter_batches(size)


def read_records(path: Path, size: int = 10_000) -> Iterator[list[Record]]:
    """The same as lists of records."""
    for batch in read_batches(path, size):
        yield [record_of(row) for row in batch.to_pylist()]


def record_of(row: dict) -> Record:
    known = {name: row.pop(name) for name in ("id", "messages", "source")}
    return Record(**known, tests=row.pop("tests", None), fields=row)
