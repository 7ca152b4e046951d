"""Reads the rows of data files, each with the file and line that it came from."""

import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from stages._download_data.arrow_files import arrow_rows, parquet_rows
from stages._download_data.csv_files import csv_rows
from stages._download_data.data_folders import folder_files
from stages._download_data.json_files import json_rows, jsonl_rows
from stages._download_data.text_files import TextSettings, explain_bad_byte
from stages.runtime.errors import UserError
from stages.runtime.integrity import check_plain_files

TEXT_READERS = {".jsonl": jsonl_rows, ".json": json_rows, ".csv": csv_rows, ".tsv": partial(csv_rows, delimiter="\t")}
COMPRESSED_READERS = {name + packed: reader for packed in (".gz", ".zst") for name, reader in TEXT_READERS.items()}
READERS = {**TEXT_READERS, ".parquet": parquet_rows, ".arrow": arrow_rows, **COMPRESSED_READERS}
KNOWN_ENDINGS = f"{', '.join(TEXT_READERS)}, each also with .gz or .zst, .parquet and .arrow"


def known_ending(path: Path) -> str | None:
    """Returns the ending that says how a file is read, such as .jsonl.gz, or None."""
    return next((ending for ending in READERS if path.name.lower().endswith(ending)), None)


def file_rows(path: Path, name: str, reading: TextSettings = TextSettings()) -> Iterator[dict]:  # noqa: B008, it is immutable
    """Yields every row of a file as {"source": "name:line", "row": …}.

    A row that cannot be read has "unreadable" with its text and "why", in place of "row".

    Raises:
        UserError: the file's ending is unknown, or it cannot be read as its ending and `reading` say.
    """
    ending = known_ending(path)
    if ending is None:
        raise UserError(f"{path} ends in none of {KNOWN_ENDINGS}. Convert it, or name the files to read in data.files")
    try:
        yield from READERS[ending](path, name, reading)
    except UnicodeDecodeError:
        raise explain_bad_byte(path, reading) from None
    except (EOFError, zlib.error, OSError) as error:
        if getattr(error, "errno", None):  # an error of the disk, such as no permission; run_stage() explains those
            raise
        raise UserError(f"{path} is damaged or cut short ({error}). Copy or download it again") from None


def path_rows(
    path: Path,
    pattern: str | None,
    split: str = "train",
    reading: TextSettings = TextSettings(),  # noqa: B008, it is immutable
) -> Iterator[dict]:
    """Yields every row of the file data.path, or of the files that data.files chooses in the folder data.path.

    Args:
        split: the part that is read of a DatasetDict which `datasets` saved there.
    """
    if path.is_dir():
        names = folder_files(path, pattern, split, lambda file: known_ending(file) is not None)
        if not names:
            asked = (
                f"data.files: no file in {path} matches {pattern!r}" if pattern else f"data.path: {path} holds no data"
            )
            raise UserError(f"{asked}. Put files there that end in {KNOWN_ENDINGS}, or correct the key")
        for name in names:
            yield from file_rows(path / name, name, reading)
        return
    check_plain_files({"data.path": path})
    if not path.is_file():
        raise UserError(f"data.path: there is no file or folder {path}. Set it to one")
    if pattern:
        raise UserError(
            f"data.files: {pattern} chooses files of a folder, but data.path {path} is a file. Set it to null"
        )
    yield from file_rows(path, path.name, reading)
