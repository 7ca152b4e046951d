"""Reads .csv and .tsv files. A wrong delimiter, or a quote that swallows rows, stops the stage."""

import csv
import json
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import TextIO

from stages._download_data.text_files import TextSettings, open_text
from stages.runtime.errors import UserError
from stages.runtime.shown import without_private_data

DELIMITERS = {",": "a comma", ";": "a semicolon", "\t": "a tab", "|": "a bar"}
LONGEST_FIELD = 1 << 27  # characters; an unclosed quote would otherwise bring the rest of a large file into memory
# A row has probably swallowed others if it has this many lines in the middle, each a whole row by itself, and this many
# times the lines of any other row.
SWALLOWED_LINES, TIMES_LONGER = 3, 5
COMPARED_ROWS = 20  # so many rows show how long rows are; where more than one in so many is like that, all are meant


class CsvLines:
    """The lines of a file. `row` has those of the row that is being read."""

    def __init__(self, first: str, file: TextIO):
        self.lines, self.row = chain([first], file), []

    def __iter__(self) -> Iterator[str]:
        for line in self.lines:
            self.row.append(line)
            yield line


def csv_rows(path: Path, name: str, reading: TextSettings, delimiter: str = ",") -> Iterator[dict]:
    """Yields the rows of a file whose first line names the columns.

    Args:
        delimiter: what is between the fields if data.delimiter is null.
    """
    csv.field_size_limit(LONGEST_FIELD)  # the default, 128 kB, would stop the stage at a longer text
    with open_text(path, reading, newline="") as file:
        before, header = 0, file.readline()
        delimiter = reading.delimiter or delimiter
        while header.isspace() or (hint := re.fullmatch(r'"?sep=(.)"?\s*', header)):
            if not header.isspace():  # Excel writes such a line, and reads it
                delimiter = hint[1]
            before, header = before + 1, file.readline()
        names = fields_of_line(header, delimiter)
        check_delimiter_found(path, header, delimiter)
        # Some programs write a blank after every delimiter. Without this option a quote after it would not count.
        blanks = len(names) > 1 and all(column.startswith(" ") for column in names[1:])
        lines = CsvLines(header, file)
        reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=blanks, strict=True)
        yield from rows_of_reader(path, name, reader, lines, before)


def fields_of_line(line: str, delimiter: str) -> list[str]:
    return next(csv.reader([line], delimiter=delimiter), [])


def check_delimiter_found(path: Path, header: str, delimiter: str) -> None:
    """Raises UserError if the first line has one column, and several with another delimiter."""
    if len(fields_of_line(header, delimiter)) > 1:
        return
    counts = {other: len(fields_of_line(header, other)) for other in DELIMITERS}
    likely = max(counts, key=counts.__getitem__)
    if counts[likely] > 1:
        shown = without_private_data(header.rstrip())[:80]
        raise UserError(
            f"{path}: with {DELIMITERS.get(delimiter, repr(delimiter))} as delimiter, the first line names only one "
            f"column: {shown!r}. It looks separated by {DELIMITERS[likely]}: set data.delimiter: "
            f"{json.dumps(likely)}"
        )


def rows_of_reader(path: Path, name: str, reader, lines: CsvLines, before: int) -> Iterator[dict]:
    """Yields the rows that a csv.reader finds in `lines`, of which the first one names the columns."""
    columns = next_fields(path, reader, before) or []
    if len(set(columns)) < len(columns):
        shown = without_private_data(", ".join(columns))
        raise UserError(f"{path} names a column twice in its first line: {shown}. Rename one")
    spans = Spans(path, reader.dialect.delimiter, len(columns))
    while True:
        lines.row.clear()
        start = before + reader.line_num + 1
        fields = next_fields(path, reader, before)
        if fields is None:
            break
        if not fields:  # a blank line
            continue
        spans.add(start, lines.row)
        if spans.rows >= COMPARED_ROWS:
            spans.check()
        source = f"{name}:{start}"
        if len(fields) == len(columns):
            yield {"source": source, "row": dict(zip(columns, fields, strict=True))}
        else:
            why = f"the row has {len(fields)} fields, and the first line names {len(columns)} columns"
            yield {"source": source, "unreadable": json.dumps(fields), "why": why}
    spans.check()


def next_fields(path: Path, reader, before: int) -> list[str] | None:
    """Returns the fields of the next row, or None at the end.

    Raises:
        UserError: its quotes are wrong. Where the next row begins is then not certain.
    """
    start = before + reader.line_num + 1
    try:
        return next(reader, None)
    except csv.Error as error:
        rule = 'A quote inside a quoted field is written twice (""), and not as \\"'
        if "expected after" in str(error):
            end = before + reader.line_num
            raise UserError(
                f"{path}, line {end}: after a closing quote comes neither a delimiter nor the end of the line. The row "
                f"begins in line {start}; its opening quote may be wrong. {rule}. Correct the line"
            ) from None
        raise UserError(
            f"{path}, line {start}: a quote in this row is never closed, so the rest of the file would be one field. "
            f"{rule}. Correct the line"
        ) from None


class Spans:
    """Finds a row that has swallowed others, because a quote in it is closed only by a quote of a later row."""

    def __init__(self, path: Path, delimiter: str, columns: int):
        self.path, self.delimiter, self.columns = path, delimiter, columns
        self.longest = 1  # lines of a row that is not suspicious
        self.suspicious = (0, 0)  # lines of the longest other row, and the line in which it begins
        self.rows = self.suspicious_rows = 0

    def add(self, start: int, lines: list[str]) -> None:
        self.rows += 1
        if len(lines) == 1:
            return
        inner = lines[1:-1]
        if self.columns > 1 and len(inner) >= SWALLOWED_LINES and all(map(self.is_row, inner)):
            self.suspicious = max(self.suspicious, (len(lines), start))
            self.suspicious_rows += 1
        else:
            self.longest = max(self.longest, len(lines))

    def is_row(self, line: str) -> bool:
        return len(fields_of_line(line, self.delimiter)) == self.columns

    def check(self) -> None:
        span, start = self.suspicious
        rare = self.suspicious_rows <= max(1, self.rows // COMPARED_ROWS)
        if rare and span >= TIMES_LONGER * self.longest:
            raise UserError(
                f"{self.path}, line {start}: the row that begins here has {span} lines, and no other row has more than "
                f"{self.longest}. Its lines look like rows, which a wrong quote has put into one field. Correct the "
                'quotes: one inside a quoted field is written twice (""). If it is one row, save the file as .jsonl'
            )
