"""A record, `{id, messages: [{role, content}…], source}`, and the Parquet files that hold records.

A text for continued pre-training is a record with one turn of the role `text`. A conversation with tools has turns of
the roles `tools` (always the first), `tool_calls` and `tool`, whose content is JSON as mistral-common writes it.
A turn that is not trained has the key `train` too, which is false. The turns of a file have this field only if some
record of the data set has such a turn.

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
ANSWER_ROLES = ("assistant", "tool_calls")
TRAINED_ROLES = (*ANSWER_ROLES, "text")
Message = dict[str, str | bool]  # role, content, and `train` on a turn that is not trained


@dataclass(frozen=True)
class Record:
    """A conversation. `source` is the `file:line` that it comes from; `id` is a hash of nothing but the texts."""

    id: str
    messages: list[Message]
    source: str
    tests: str | None = None
    fields: dict[str, str | None] = field(default_factory=dict)


def is_trained(message: Message) -> bool:
    """Whether the turn is trained: an answer that is not marked, or a text."""
    return message["role"] in TRAINED_ROLES and message.get("train", True)


def is_raw_text(messages: list[Message]) -> bool:
    """Whether this is a text for continued pre-training, not a conversation."""
    return messages[0]["role"] == "text"


def with_trained_turns(messages: list[Message], train_turns: str) -> list[Message]:
    """Returns the messages with `train` as tokenize.train_turns wants it: with `last`, only the last answer stays."""
    if train_turns == "all":
        return messages
    last = max((place for place, message in enumerate(messages) if message["role"] in ANSWER_ROLES), default=None)
    return [
        message | {"train": False} if message["role"] in ANSWER_ROLES and place != last else message
        for place, message in enumerate(messages)
    ]


def content_id(messages: list[Message]) -> str:
    """Returns 32 hex digits of the SHA-256 of the messages in canonical JSON.

    It leaves out whether a turn is trained, so that a record stays in its split when that changes.
    """
    texts = [{key: value for key, value in message.items() if key != "train"} for message in messages]
    canonical = json.dumps(texts, ensure_ascii=True, sort_keys=True, separators=(",", ":"))
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


def opening(messages: list[Message]) -> list[Message]:
    """Returns the turns before the first user's: the tools and the system prompt, where there are any."""
    return [message for message in messages[:2] if message["role"] in ("tools", "system")]


def turn_keys(messages: Iterable[Message]) -> set[str]:
    """Returns the keys of the turns that only some data sets have."""
    return set().union(*messages) - {"role", "content"}


def record_schema(*extra: str, turns: Iterable[str] = ()) -> "pyarrow.Schema":
    """Returns the columns id, messages and source, and after them a column of strings for each name in `extra`.

    Args:
        turns: the turn_keys() of the data set.
    """
    import pyarrow

    fields = [("role", pyarrow.string()), ("content", pyarrow.string())]
    message = pyarrow.struct(fields + ([("train", pyarrow.bool_())] if "train" in turns else []))
    columns = [("id", pyarrow.string()), ("messages", pyarrow.list_(message)), ("source", pyarrow.string())]
    return pyarrow.schema([*columns, *((name, pyarrow.string()) for name in extra)])


def record_table(records: Iterable[Record], **extra: list[str]) -> "pyarrow.Table":
    import pyarrow

    records = list(records)
    turns = turn_keys(message for record in records for message in record.messages)
    columns = {name: [getattr(record, name) for record in records] for name in ("id", "messages", "source")}
    return pyarrow.Table.from_pydict(columns | extra, schema=record_schema(*extra, turns=turns))


@contextmanager
def record_file(path: Path, *extra: str, turns: Iterable[str] = ()) -> Iterator["pyarrow.parquet.ParquetWriter"]:
    """Opens a Parquet file for record_table()s. Each becomes a row group, so that only one is in memory.

    Args:
        turns: the turn_keys() of the data set.
    """
    import pyarrow.parquet

    with pyarrow.parquet.ParquetWriter(path, record_schema(*extra, turns=turns), compression="zstd") as writer:
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


def turn_keys_of_file(path: Path) -> set[str]:
    """Returns the turn_keys() of a file of records."""
    import pyarrow.parquet

    message = pyarrow.parquet.read_schema(path).field("messages").type.value_type
    return {part.name for part in message} - {"role", "content"}


def messages_of_column(column: "pyarrow.Array") -> list[list[Message]]:
    """Returns the messages in the column of a file, without the keys that are null."""
    conversations = column.to_pylist()
    if column.type.value_type.num_fields == 2:
        return conversations
    return [list(map(without_nulls, messages)) for messages in conversations]


def without_nulls(message: Message) -> Message:
    return {key: value for key, value in message.items() if value is not None}


def record_of(row: dict) -> Record:
    known = {name: row.pop(name) for name in ("id", "messages", "source")}
    known["messages"] = list(map(without_nulls, known["messages"]))
    return Record(**known, tests=row.pop("tests", None), fields=row)
