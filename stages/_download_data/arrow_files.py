"""Reads .parquet and .arrow files, and says which row and column cannot be read."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from stages._download_data.text_files import TextSettings
from stages.runtime.errors import UserError

if TYPE_CHECKING:
    import pyarrow

BATCH_ROWS = 1000


def parquet_rows(path: Path, name: str, _: TextSettings) -> Iterator[dict]:
    import pyarrow
    import pyarrow.parquet

    with ExitStack() as stack:
        try:
            file = stack.enter_context(pyarrow.parquet.ParquetFile(path, page_checksum_verification=True))
            schema = file.schema_arrow
        except (pyarrow.ArrowException, OSError) as error:
            raise damaged(path, error, f"{path} is not a Parquet file") from None
        yield from batch_rows(path, name, schema, file.iter_batches(batch_size=BATCH_ROWS))


def arrow_rows(path: Path, name: str, _: TextSettings) -> Iterator[dict]:
    """Yields the rows of an Arrow IPC file, or of a stream as `datasets` writes it."""
    import pyarrow

    with open(path, "rb") as file:
        is_stream = file.read(6) != b"ARROW1"
    with ExitStack() as stack:
        try:
            source = stack.enter_context(pyarrow.OSFile(str(path), "rb"))
            reader = stack.enter_context((pyarrow.ipc.open_stream if is_stream else pyarrow.ipc.open_file)(source))
        except (pyarrow.ArrowException, OSError) as error:
            raise damaged(path, error, f"{path} is not an Arrow file") from None
        batches = reader if is_stream else map(reader.get_batch, range(reader.num_record_batches))
        yield from batch_rows(path, name, reader.schema, small_batches(path, batches))


def small_batches(path: Path, batches: Iterator["pyarrow.RecordBatch"]) -> Iterator["pyarrow.RecordBatch"]:
    """Checks batches and cuts them. Broken offsets in a file could end the process without a word."""
    import pyarrow

    before = 0
    for batch in batches:
        try:
            batch.validate(full=True)
        except pyarrow.ArrowInvalid as error:
            raise first_invalid_row(path, batch, before) or error from None
        before += len(batch)
        for start in range(0, len(batch), BATCH_ROWS):
            yield batch.slice(start, BATCH_ROWS)


def first_invalid_row(path: Path, batch: "pyarrow.RecordBatch", before: int) -> UserError | None:
    """Returns the error that names the first value which is not what its type says, such as text that is not UTF-8."""
    import pyarrow

    for row in range(len(batch)):
        for place, column in enumerate(batch.schema.names):
            try:
                batch.column(place).slice(row, 1).validate(full=True)
            except pyarrow.ArrowInvalid as error:
                return UserError(
                    f"{path}: row {before + row + 1}: the column {column} is damaged: {error}. Copy or download it "
                    "again"
                )
    return None


def damaged(path: Path, error: Exception, words: str) -> Exception:
    """Returns the error for the user. An error of the disk, such as no permission, stays itself."""
    if getattr(error, "errno", None):
        return error
    return UserError(f"{words}: {error}. Copy or download it again")


def batch_rows(
    path: Path, name: str, schema: "pyarrow.Schema", batches: Iterator["pyarrow.RecordBatch"]
) -> Iterator[dict]:
    """Yields the rows of a table as JSON objects.

    Raises:
        UserError: a column is named twice, a type or value has no JSON value, or the file is damaged.
    """
    import pyarrow

    from stages._download_data.arrow_values import NoJsonValueError, check_type, is_json_already, json_values

    names = schema.names
    if len(set(names)) < len(names):
        raise UserError(f"{path} names a column twice: {', '.join(names)}. Rename one")
    try:
        for field in schema:
            check_type(field.name, field.type)
    except NoJsonValueError as error:
        raise UserError(f"{path}: the column {error}. Write the file without it, or with it as text") from None
    plain, count = all(is_json_already(field.type) for field in schema), 0
    while True:
        try:
            batch = next(batches, None)
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
            raise damaged(path, error, f"{path} is damaged after row {count}") from None
        if batch is None:
            return
        try:
            if plain:
                rows = batch.to_pylist()
            else:
                columns = [json_values(batch.column(place), column) for place, column in enumerate(names)]
                rows = [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
        except (NoJsonValueError, UnicodeDecodeError):
            raise first_bad_row(path, batch, count) from None
        for row in rows:
            count += 1
            yield {"source": f"{name}:{count}", "row": row}


def first_bad_row(path: Path, batch: "pyarrow.RecordBatch", before: int) -> UserError:
    """Returns the error that names the first value of the batch that json_values() refuses."""
    from stages._download_data.arrow_values import NoJsonValueError, json_values

    for row in range(len(batch)):
        for place, column in enumerate(batch.schema.names):
            try:
                json_values(batch.column(place).slice(row, 1), column)
            except NoJsonValueError as error:
                return UserError(
                    f"{path}: row {before + row + 1}: the column {error}. Correct the value, or write the file without "
                    "the column"
                )
    raise AssertionError("json_values() refused the batch, but none of its rows")
