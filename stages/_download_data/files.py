"""Rows of the files that a data set comes in, each with where it stood."""

import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from stages.shared.errors import UserError


def jsonl_rows(path: Path, name: str) -> Iterator[dict]:
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield {"source": f"{name}:{number}", **parsed(line)}


def parsed(line: str) -> dict:
    try:
        return {"row": json.loads(line)}
    except (ValueError, RecursionError):
        return {"unreadable": line.rstrip("\n")}


def json_rows(path: Path, name: str) -> Iterator[dict]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path} is not valid JSON: {error}. A file with one object a line must be named .jsonl"
        ) from None
    if not isinstance(rows, list):
        raise UserError(f"{path} holds a JSON {type(rows).__name__}, not a list of rows")
    return ({"source": f"{name}:{number}", "row": row} for number, row in enumerate(rows, 1))


def csv_rows(path: Path, name: str) -> Iterator[dict]:
    with open(path, encoding="utf-8-sig", errors="replace", newline="") as file:
        csv.field_size_limit(sys.maxsize)  # its 128 kB would end the stage at the first longer text
        reader = csv.DictReader(file)
        columns = reader.fieldnames or []
        if len(set(columns)) < len(columns):
            raise UserError(f"{path} names a column twice in its first line: {', '.join(columns)}. Rename one")
        for row in reader:
            if None in row or None in row.values():
                yield {"source": f"{name}:{reader.line_num}", "unreadable": json.dumps(list(row.values()))}
            else:
                yield {"source": f"{name}:{reader.line_num}", "row": row}


def parquet_rows(path: Path, name: str) -> Iterator[dict]:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
    except pyarrow.ArrowInvalid as error:
        raise UserError(f"{path} is not a Parquet file: {error}") from None
    rows = (row for batch in file.iter_batches(batch_size=1000) for row in batch.to_pylist())
    return ({"source": f"{name}:{number}", "row": row} for number, row in enumerate(rows, 1))


READERS = {".jsonl": jsonl_rows, ".json": json_rows, ".csv": csv_rows, ".parquet": parquet_rows}


def file_rows(path: Path, name: str) -> Iterator[dict]:
    """Every row of a .json, .jsonl, .csv or .parquet file, with where it stood: `name` and the line."""
    if not path.is_file():
        raise UserError(f"data.path: there is no file {path}. Set data.path to a file ending in {', '.join(READERS)}")
    if path.suffix.lower() not in READERS:
        raise UserError(f"data.path: {path} ends in {path.suffix!r}; known are {', '.join(READERS)}")
    return READERS[path.suffix.lower()](path, name)
