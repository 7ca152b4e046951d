"""Recognises the format of the rows by their columns. A column counts in the rows where it holds a value."""

import json
from collections import Counter
from dataclasses import dataclass, field

from stages.core.params import Data
from stages.runtime.counts import plural
from stages.runtime.errors import UserError

# A row of the format has all of these columns. It may have more: stages/_clean/formats.py reads `input`, `history` and
# `system` too, and ignores the rest, such as a ready-made prompt.
NEEDED = {
    "messages": {"messages"},
    "sharegpt": {"conversations"},
    "prompt-completion": {"prompt", "completion"},
    "alpaca": {"instruction", "output"},
    "text": {"text"},
}
SHOWN_SAMPLES, SHOWN_COLUMN_SETS, SAMPLE_CHARACTERS = 3, 5, 200
FORMAT_ADVICE = (
    "Set data.format: columns and name the columns in data.columns, such as {user: question, assistant: answer, "
    "system: null}; or rename the columns"
)


def shorten(text: str) -> str:
    """Returns at most SAMPLE_CHARACTERS of the text, on one line and without control characters."""
    start = text if len(text) <= SAMPLE_CHARACTERS else text[: SAMPLE_CHARACTERS - 1] + "…"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in start)


@dataclass
class Survey:
    """Counts which columns hold a value in how many rows.

    `counts` is {the columns of a row: how many rows have exactly these}. `samples` has the first row of some of them.
    """

    counts: Counter[frozenset[str]] = field(default_factory=Counter)
    samples: list[str] = field(default_factory=list)

    def add(self, raw: dict) -> None:
        """Counts a row as download_data writes it. A row without columns is left for `clean` to reject."""
        row = raw.get("row")
        if not isinstance(row, dict):
            return
        columns = frozenset(name for name, value in row.items() if value is not None)
        if columns not in self.counts and len(self.samples) < SHOWN_SAMPLES:
            sample = json.dumps(row, default=str, ensure_ascii=False)
            self.samples.append(f"{shorten(raw['source'])} {shorten(sample)}")
        self.counts[columns] += 1

    def rows_with(self, needed: set[str]) -> int:
        return sum(count for columns, count in self.counts.items() if needed <= columns)

    def rows_with_text_and_more(self) -> int:
        """Counts the rows of the format `text` that have the columns of another format too."""
        others = [needed for name, needed in NEEDED.items() if name != "text"]
        return sum(
            count
            for columns, count in self.counts.items()
            if NEEDED["text"] <= columns and any(needed <= columns for needed in others)
        )

    def columns_found(self) -> str:
        """Lists the columns, how many rows have them, and the samples, as lines of a message."""
        common = self.counts.most_common(SHOWN_COLUMN_SETS)
        lines = [
            f"  {plural(count, 'row')}: {shorten(', '.join(sorted(columns))) or 'no column'}"
            for columns, count in common
        ]
        hidden = len(self.counts) - len(common)
        lines += [f"  {plural(hidden, 'more combination')} of columns"] if hidden else []
        samples = ["Rows, for example:", *(f"  {sample}" for sample in self.samples)] if self.samples else []
        return "\n".join(["Columns with a value:", *(lines or ["  no row has columns"]), *samples])

    def nearly_fitting(self) -> str:
        """Lists the columns that are missing for each format that some row has a column of, as lines of a message."""
        lines = []
        for name, needed in NEEDED.items():
            missing = min((needed - columns for columns in self.counts), key=len, default=needed)
            if 0 < len(missing) < len(needed):
                lines.append(f"  {name}: {', '.join(sorted(missing))} is missing")
        return "\n".join(["Nearly fits:", *lines]) if lines else "No format nearly fits."


COLUMNS_ADVICE = "Correct it, or have the format recognised: -S data.format=auto -S data.columns=null"


def recognise(survey: Survey, data: Data) -> str:
    """Returns the format that data.format names, or the one that the rows have if data.format is auto.

    Raises:
        UserError: no row is of the named format; or with auto, the rows fit no format, several, or different ones.
    """
    if data.format == "columns":
        check_columns(survey, data)
        return data.format
    columns_and_advice = f"{survey.columns_found()}\n{survey.nearly_fitting()}\n{FORMAT_ADVICE}"
    fitting = {name: survey.rows_with(needed) for name, needed in NEEDED.items() if survey.rows_with(needed)}
    if data.format == "auto" and "text" in fitting:
        # Many data sets have a ready-made prompt in a column `text`, so it is read only where there is nothing else.
        fitting["text"] -= survey.rows_with_text_and_more()
        fitting = {name: rows for name, rows in fitting.items() if rows}
    if data.format != "auto":
        if data.format in fitting:
            return data.format
        raise UserError(f"data.format: no row is {data.format}.\n{columns_and_advice}")
    if not fitting:
        raise UserError(f"data.format: the rows are of no known format.\n{columns_and_advice}")
    known = sum(count for columns, count in survey.counts.items() if any(n <= columns for n in NEEDED.values()))
    whole = [name for name, rows in fitting.items() if rows == known]
    if len(whole) == 1:  # clean.max_malformed_rows decides about rows of no format
        return whole[0]
    counted = ", ".join(f"{name} ({plural(rows, 'row')})" for name, rows in fitting.items())
    if whole:
        raise UserError(
            f"data.format: the rows can be read as {counted}. Set data.format to the one that you mean\n"
            f"{survey.columns_found()}"
        )
    raise UserError(
        f"data.format: the rows are of different formats: {counted}. Convert them to one, or set data.format: the "
        f"rows of other formats are then rejected and counted\n{survey.columns_found()}"
    )


def check_columns(survey: Survey, data: Data) -> None:
    """Checks that each column in data.columns has a value in some row, so that a misspelt name is noticed.

    Raises:
        UserError: a column has no value in any row, or no row has both a user and an assistant text.
    """
    named = {role: column for role, column in data.columns.model_dump().items() if column is not None}
    absent = [f"{role}: {column}" for role, column in named.items() if not survey.rows_with({column})]
    if absent:
        raise UserError(f"data.columns: no row has {', '.join(absent)}. {COLUMNS_ADVICE}\n{survey.columns_found()}")
    if not survey.rows_with({data.columns.user, data.columns.assistant}):
        raise UserError(
            f"data.columns: no row has both {named['user']} and {named['assistant']}\n{survey.columns_found()}"
        )
