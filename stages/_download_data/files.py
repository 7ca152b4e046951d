"""Reads the rows of data files, each with the file and line that it came from."""

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

from stages._download_data.json_list import list_elements
from stages.runtime.errors import UserError


def open_text(path: Path, errors: str = "replace", newline: str | None = None) -> TextIO:
    """Opens a file as text and decompresses it if its name ends in .gz or .zst."""
    if path.suffix.lower() == ".zst":
        import pyarrow

        binary = pyarrow.input_stream(str(path), compression="zstd")
    else:
        binary = (gzip.open if path.suffix.lower() == ".gz" else open)(path, "rb")
    return io.TextIOWrapper(binary, encoding="utf-8-sig", errors=errors, newline=newline)


def jsonl_rows(path: Path, name: str) -> Iterator[dict]:
    with open_text(path) as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield {"source": f"{name}:{number}", **parse_line(line)}


def object_without_repeated_keys(pairs: list[tuple[str, object]]) -> dict:
    """Makes an object of its pairs. Python itself would keep only the last value of a key that comes twice."""
    row = dict(pairs)
    if len(row) < len(pairs):
        raise ValueError(f"the object with the keys {', '.join(name for name, _ in pairs)} has one of them twice")
    return row


def parse_line(line: str) -> dict:
    try:
        return {"row": json.loads(line, object_pairs_hook=object_without_repeated_keys)}
    except (ValueError, RecursionError):
        return {"unreadable": line.rstrip("\n")}


def json_rows(path: Path, name: str) -> Iterator[dict]:
    decoder = json.JSONDecoder(object_pairs_hook=object_without_repeated_keys)
    try:
        with open_text(path, errors="strict") as file:
            for number, row in enumerate(list_elements(file, decoder), 1):
                yield {"source": f"{name}:{number}", "row": row}
    except TypeError as error:
        raise UserError(f"{path} holds a JSON {error}, not a list of rows") from None
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path} is not valid JSON: {error}. A file with one object a line must be named .jsonl"
        ) from None


def csv_rows(path: Path, name: str, delimiter: str = ",") -> Iterator[dict]:
    with open_text(path, newline="") as file:
        csv.field_size_limit(sys.maxsize)  # the default, 128 kB, would stop the stage at a longer text
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


TEXT_READERS = {".jsonl": jsonl_rows, ".json": json_rows, ".csv": csv_rows, ".tsv": partial(csv_rows, delimiter="\t")}
COMPRESSED_READERS = {name + packed: reader for packed in (".gz", ".zst") for name, reader in TEXT_READERS.items()}
READERS = {**TEXT_READERS, ".parquet": parquet_rows, **COMPRESSED_READERS}
KNOWN_ENDINGS = f"{', '.join(TEXT_READERS)}, each also with .gz or .zst, and .parquet"


def known_ending(path: Path) -> str | None:
    """Returns the ending that says how a file is read, such as .jsonl.gz, or None."""
    return next((ending for ending in READERS if path.name.lower().endswith(ending)), None)


def file_rows(path: Path, name: str) -> Iterator[dict]:
    """Yields every row of a file as {"source": "name:line", "row": …}, or "unreadable" in place of "row".

    Raises:
        UserError: the file's ending is unknown, or it cannot be read as its ending says.
    """
    ending = known_ending(path)
    if ending is None:
        raise UserError(f"{path} ends in none of {KNOWN_ENDINGS}. Convert it, or name the files to read in data.files")
    try:
        yield from READERS[ending](path, name)
    except (EOFError, zlib.error, OSError) as error:
        if getattr(error, "errno", None):  # an error of the disk, such as no permission; run_stage() explains those
            raise
        raise UserError(f"{path} is damaged or cut short ({error}). Copy or download it again") from None


def folder_files(folder: Path, pattern: str | None) -> list[str]:
    """Returns the relative paths of the files in a folder that match the glob, or without one those of known kinds."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.glob(pattern or "**/*") if path.is_file())
    visible = [name for name in names if not any(part.startswith(".") for part in name.split("/"))]
    chosen = visible if pattern else [name for name in visible if known_ending(Path(name))]
    if not chosen:
        asked = (
            f"data.files: no file in {folder} matches {pattern!r}" if pattern else f"data.path: {folder} holds no data"
        )
        raise UserError(f"{asked}. Put files there that end in {KNOWN_ENDINGS}, or correct the key")
    return chosen


def path_rows(path: Path, pattern: str | None) -> Iterator[dict]:
    """Yields every row of the file data.path, or of the files that data.files chooses in the folder data.path."""
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
