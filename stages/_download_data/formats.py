"""Which format the rows have, from the columns of all of them: a column counts where it holds a value."""

import json
from collections import Counter
from dataclasses import dataclass, field

from stages.core.params import Data
from stages.runtime.errors import UserError

# The columns without which a row is not of the format. Others may stand beside them: stages/_clean/formats.py
# reads `input`, `history` and `system` where they are, and leaves the rest, such as a ready-made prompt, alone.
NEEDED = {
    "messages": {"messages"},
    "sharegpt": {"conversations"},
    "prompt-completion": {"prompt", "completion"},
    "alpaca": {"instruction", "output"},
}
SAMPLES, SETS_SHOWN, CHARACTERS = 3, 5, 200
ADVICE = (
    "Set data.format: columns and name the columns in data.columns, such as {user: question, assistant: answer, "
    "system: null}; or rename the columns"
)


def cut(text: str) -> str:
    """At most CHARACTERS of the text, in one line that no terminal takes for a command."""
    shown = text if len(text) <= CHARACTERS else text[: CHARACTERS - 1] + "…"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in shown)


@dataclass
class Survey:
    """{the columns of a row that hold a value: how many rows have just these}, and the first rows of different ones."""

    counts: Counter[frozenset[str]] = field(default_factory=Counter)
    samples: list[str] = field(default_factory=list)

    def add(self, raw: dict) -> None:
        """Counts a row as download_data writes it; what has no columns is left for `clean` to reject."""
        row = raw.get("row")
        if not isinstance(row, dict):
            return
        columns = frozenset(name for name, value in row.items() if value is not None)
        if columns not in self.counts and len(self.samples) < SAMPLES:
            sample = json.dumps(row, default=str, ensure_ascii=False)
            self.samples.append(f"{cut(raw['source'])} {cut(sample)}")
        self.counts[columns] += 1

    def rows_with(self, needed: set[str]) -> int:
        return sum(count for columns, count in self.counts.items() if needed <= columns)

    def found(self) -> str:
        """The columns and how many rows have them, and the samples, as lines of a message."""
        common = self.counts.most_common(SETS_SHOWN)
        lines = [f"  {count} rows: {cut(', '.join(sorted(columns))) or 'no column'}" for columns, count in common]
        more = len(self.counts) - len(common)
        lines += [f"  {more} more combinations of columns"] if more else []
        samples = ["Rows, for example:", *(f"  {sample}" for sample in self.samples)] if self.samples else []
        return "\n".join(["Columns with a value:", *(lines or ["  no row has columns"]), *samples])

    def nearly(self) -> str:
        """For each format that some row has a column of: what is missing there, as lines of a message."""
        lines = []
        for name, needed in NEEDED.items():
            missing = min((needed - columns for columns in self.counts), key=len, default=needed)
            if 0 < len(missing) < len(needed):
                lines.append(f"  {name}: {', '.join(sorted(missing))} is missing")
        return "\n".join(["Nearly fits:", *lines]) if lines else "No format nearly fits."


def recognise(survey: Survey, data: Data) -> str:
    """The format of the rows: the one that data.format names, or with auto the one that they have.

    Raises:
        UserError: no row is of the format; or with auto, the rows have none, several, or not all the same one.
    """
    if data.format == "columns":
        check_columns(survey, data)
        return data.format
    fitting = {name: survey.rows_with(needed) for name, needed in NEEDED.items() if survey.rows_with(needed)}
    if data.format != "auto":
        if data.format in fitting:
            return data.format
        raise UserError(f"data.format: no row is {data.format}.\n{survey.found()}\n{survey.nearly()}\n{ADVICE}")
    if not fitting:
        raise UserError(f"data.format: the rows are of no known format.\n{survey.found()}\n{survey.nearly()}\n{ADVICE}")
    known = sum(count for columns, count in survey.counts.items() if any(n <= columns for n in NEEDED.values()))
    whole = [name for name, rows in fitting.items() if rows == known]
    if len(whole) == 1:  # rows of no format at all are left to clean.max_malformed_rows
        return whole[0]
    counted = ", ".join(f"{name} ({rows} rows)" for name, rows in fitting.items())
    if whole:
        raise UserError(
            f"data.format: the rows can be read as {counted}. Set data.format to the one that is meant\n"
            f"{survey.found()}"
        )
    raise UserError(
        f"data.format: the rows are of different formats: {counted}. Bring them all into one, or set data.format to "
        f"have the others rejected and counted\n{survey.found()}"
    )


def check_columns(survey: Survey, data: Data) -> None:
    """Each column of the mapping holds a value somewhere: a misspelt one does not pass for one that is empty."""
    named = {role: column for role, column in data.columns.model_dump().items() if column is not None}
    absent = [f"{role}: {column}" for role, column in named.items() if not survey.rows_with({column})]
    if absent:
        raise UserError(f"data.columns: no row has {', '.join(absent)}. Correct it\n{survey.found()}")
    if not survey.rows_with({data.columns.user, data.columns.assistant}):
        raise UserError(f"data.columns: no row has both {named['user']} and {named['assistant']}\n{survey.found()}")
