"""A record, `{id, messages: [{role, content}…], source}`, and the Parquet files it is kept in."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Record:
    """A conversation. `source` says where it stood, as `document:line`; `id` is a hash of the messages alone."""

    id: str
    messages: list[dict[str, str]]
    source: str


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


def write_records(path: Path, records: Iterable[Record], **more: list[str]) -> None:
    """A Parquet file with columns id, messages, source, and after them those of `more`."""
    import pyarrow
    import pyarrow.parquet

    message = pyarrow.struct([("role", pyarrow.string()), ("content", pyarrow.string())])
    columns = [("id", pyarrow.string()), ("messages", pyarrow.list_(message)), ("source", pyarrow.string())]
    rows = [asdict(record) for record in records]
    for name, values in more.items():
        columns.append((name, pyarrow.string()))
        rows = [row | {name: value} for row, value in zip(rows, values, strict=True)]
    table = pyarrow.Table.from_pylist(rows, schema=pyarrow.schema(columns))
    pyarrow.parquet.write_table(table, path, compression="zstd")


def read_records(path: Path) -> list[Record]:
    import pyarrow.parquet

    rows = pyarrow.parquet.read_table(path, columns=["id", "messages", "source"]).to_pylist()
    return [Record(**row) for row in rows]
