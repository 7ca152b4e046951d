"""Rows of the files that a data set comes in, each with where it stood."""

import csv
import gzip
import io
import json
import sys
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TextIO

from stages._download_data.json_list import elements
from stages.runtime.errors import UserError


def opened(path: Path, errors: str = "replace", newline: str | None = None) -> TextIO:
    """The text of a file, decompressed as its name says."""
    if path.suffix.lower() == ".zst":
        import pyarrow

        binary = pyarrow.input_stream(str(path), compression="zstd")
    else:
        binary = (gzip.open if path.suffix.lower() == ".gz" else open)(path, "rb")
    return io.TextIOWrapper(binary, encoding="utf-8-sig", errors=errors, newline=newline)


def jsonl_rows(path: Path, name: str) -> Iterator[dict]:
    with opened(path) as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield {"source": f"{name}:{number}", **parsed(line)}


def without_repetition(pairs: list[tuple[str, object]]) -> dict:
    """Python would keep the last value of a key that comes twice and lose the others."""
    row = dict(pairs)
    if len(row) < len(pairs):
        raise ValueError(f"the object with the keys {', '.join(name for name, _ in pairs)} has one of them twice")
    return row


def parsed(line: str) -> dict:
    try:
        return {"row": json.loads(line, object_pairs_hook=without_repetition)}
    except (ValueError, RecursionError):
        return {"unreadable": line.rstrip("\n")}


def json_rows(path: Path, name: str) -> Iterator[dict]:
    decoder = json.JSONDecoder(object_pairs_hook=without_repetition)
    try:
        with opened(path, errors="strict") as file:
            for number, row in enumerate(elements(file, decoder), 1):
                yield {"source": f"{name}:{number}", "row": row}
    except TypeError as error:
        raise UserError(f"{path} holds a JSON {error}, not a list of rows") from None
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path} is not valid JSON: {error}. A file with one object a line must be named .jsonl"
        ) from None


def csv_rows(path: Path, name: str, delimiter: str = ",") -> Iterator[dict]:
    with opened(path, newline="") as file:
        csv.field_size_limit(sys.maxsize)  # its 128 kB would end the stage at the first longer text
        reader = csv.DictReader(file, delimiter=delimiter)
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


TEXTS = {".jsonl": jsonl_rows, ".json": json_rows, ".csv": csv_rows, ".tsv": partial(csv_rows, delimiter="\t")}
COMPRESSED = {name + packed: reader for packed in (".gz", ".zst") for name, reader in TEXTS.items()}
READERS = {**TEXTS, ".parquet": parquet_rows, **COMPRESSED}
KNOWN = f"{', '.join(TEXTS)}, each also with .gz or .zst, and .parquet"


def ending(path: Path) -> str | None:
    """The ending by which a file is known, such as .jsonl.gz, or None."""
    return next((ending for ending in READERS if path.name.lower().endswith(ending)), None)


def file_rows(path: Path, name: str) -> Iterator[dict]:
    """Every row of a file, with where it stood: `name` and the line."""
    known = ending(path)
    if known is None:
        raise UserError(f"{path} ends in none of {KNOWN}. Convert it, or name the files to read in data.files")
    try:
        yield from READERS[known](path, name)
    except (EOFError, zlib.error, OSError) as error:
        if getattr(error, "errno", None):  # the disk's, such as no permission: the stage explains those
            raise
        raise UserError(f"{path} is damaged or cut short ({error}). Copy or download it again") from None


def folder_files(folder: Path, pattern: str | None) -> list[str]:
    """The files below a folder that match the glob, or without one all of a known ending, by their relative paths."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.glob(pattern or "**/*") if path.is_file())
    shown = [name for name in names if not any(part.startswith(".") for part in name.split("/"))]
    found = shown if pattern else [name for name in shown if ending(Path(name))]
    if not found:
        asked = (
            f"data.files: no file below {folder} matches {pattern!r}"
            if pattern
            else f"data.path: {folder} holds no data"
        )
        raise UserError(f"{asked}. Put files there that end in {KNOWN}, or correct the key")
    return found


def path_rows(path: Path, pattern: str | None) -> Iterator[dict]:
    """Every row of data.path: of the file, or of the files in the folder that data.files chooses."""
    if path.is_dir():
        for name in folder_files(path, pattern):
            yield from file_rows(path / name, name)
        return
    if not path.is_file():
        raise UserError(f"data.path: there is no file or folder {path}. Set it to one")
    if pattern:
        raise UserError(
            f"data.files: {pattern} chooses files of a folder, but data.path {path} is a file. Set it to null"
        )
    yield from file_rows(path, path.name)
