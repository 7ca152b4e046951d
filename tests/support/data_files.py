"""Files of data/, as the stages write them."""

from pathlib import Path

import pyarrow

from stages._tokenize.packing import row_schema
from stages.core.records import Record, record_file, record_table, turn_keys
from stages.tokenize import BATCH_ROWS


def write_records(path: Path, records: list[Record]) -> None:
    """A file of data/clean."""
    turns = turn_keys(message for record in records for message in record.messages)
    with record_file(path, turns=turns) as file:
        file.write_table(record_table(records))


def write_rows(path, rows: list[dict]) -> None:
    """A file of data/tokenized, in batches of the stage's size."""
    with pyarrow.ipc.new_stream(path, row_schema()) as writer:
        for start in range(0, len(rows), BATCH_ROWS):
            writer.write(pyarrow.RecordBatch.from_pylist(rows[start : start + BATCH_ROWS], row_schema()))
