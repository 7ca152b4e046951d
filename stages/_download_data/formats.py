"""Recognises the format of the rows by their columns. A column counts in the rows where it holds a value."""

import ast
import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from stages._download_data.columns import FORMATS, MEANINGFUL, Reading, has_meaning, optional_columns, readings
from stages.core.params import Data
from stages.core.python_syntax import parse
from stages.runtime.counts import plural
from stages.runtime.errors import UserError
from stages.runtime.shown import without_private_data

SHOWN_SAMPLES, SHOWN_COLUMN_SETS, SAMPLE_CHARACTERS = 3, 5, 200
FORMAT_ADVICE = (
    "Set data.format: columns and name the columns in data.columns, such as {user: question, assistant: answer, "
    "system: null}; or rename the columns"
)
COLUMNS_ADVICE = "Correct it, or have the format recognised: -S data.format=auto -S data.columns=null"
IGNORE_ADVICE = "To leave it unread instead, name it in data.ignore_columns"
# How a text begins that another program has already put into a prompt format.
RENDERED = re.compile(
    r"\s*(?:<s>|<bos>|<\|begin_of_text\|>)?\s*(?:"
    r"(?P<Mistral>\[INST\])|(?P<ChatML><\|im_start\|>)|(?P<Llama><\|start_header_id\|>)|(?P<Gemma><start_of_turn>)|"
    r"(?P<Zephyr><\|(?:system|user|assistant)\|>)|"
    r"(?P<Alpaca>###\s?(?:Instruction|Human|User)\s?:|Below is an instruction that describes a task)|"
    r"(?P<Vicuna>(?:USER|User|HUMAN|Human):(?s:.*?)(?:ASSISTANT|Assistant):))"
)


def shorten(text: str) -> str:
    """Returns at most SAMPLE_CHARACTERS of the text, on one line and without control characters."""
    start = text if len(text) <= SAMPLE_CHARACTERS else text[: SAMPLE_CHARACTERS - 1] + "…"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in start)


def are_tests(value: object) -> bool:
    """Whether the value of a column `tests` is Python that can fail: a text or a list of lines with a call or assert.

    A word or a number is Python too, but no test.
    """
    lines = value if isinstance(value, list) else [value]
    if not all(isinstance(line, str) for line in lines):
        return False
    tree = parse("\n".join(lines))
    return tree is not None and any(isinstance(node, ast.Call | ast.Assert | ast.Raise) for node in ast.walk(tree))


@dataclass
class Survey:
    """Counts which columns hold a value in how many rows, without those of data.ignore_columns.

    `counts` is {the columns of a row: how many rows have exactly these}. `samples` has the first row of some of them.
    """

    ignored: Iterable[str] = ()
    counts: Counter[frozenset[str]] = field(default_factory=Counter)
    samples: list[str] = field(default_factory=list)
    meaningful: Counter[str] = field(default_factory=Counter)  # {column: rows that cannot be read without it}
    rendered: Counter[tuple[str, str]] = field(default_factory=Counter)  # {(column, prompt format): rows}
    nested: Counter[tuple[str, str]] = field(default_factory=Counter)  # {(column, format of the object in it): rows}
    unreadable: int = 0
    first_unreadable: str = ""  # where the first row is that cannot be read, and why
    tests: Counter[bool] = field(default_factory=Counter)  # {whether the value of `tests` is Python: rows}

    def add(self, raw: dict) -> None:
        """Counts a row as download_data writes it. A row without columns is left for `clean` to reject."""
        row = raw.get("row")
        if "unreadable" in raw:
            self.unreadable += 1
            self.first_unreadable = self.first_unreadable or f"{raw['source']}: {raw['why']}"
        if isinstance(row, list) and row and all(isinstance(said, dict) for said in row):  # a list of turns
            row = {"messages": row}
        if not isinstance(row, dict):
            return
        row = {name: value for name, value in row.items() if value is not None and name not in self.ignored}
        columns = frozenset(row)
        if columns not in self.counts and len(self.samples) < SHOWN_SAMPLES:
            # Redacted before it is cut, since half a key is not found.
            sample = without_private_data(json.dumps(raw["row"], ensure_ascii=False))
            self.samples.append(f"{shorten(raw['source'])} {shorten(sample)}")
        self.counts[columns] += 1
        for name, value in row.items():
            if isinstance(value, str):
                if match := RENDERED.match(value):
                    self.rendered[name, match.lastgroup] += 1
            elif isinstance(value, dict):
                self.nested.update((name, reading.format) for reading in readings(frozenset(value)))
            if has_meaning(name, value):
                self.meaningful[name] += 1
        if "tests" in row and row["tests"] not in ("", []):
            self.tests[are_tests(row["tests"])] += 1

    def rows_with(self, needed: Iterable[str]) -> int:
        return sum(count for columns, count in self.counts.items() if columns >= set(needed))

    def has_tests(self) -> bool:
        """Whether the column `tests` is read as tests: most of its values are Python that can fail."""
        return self.tests[True] > self.tests[False]

    def columns(self) -> set[str]:
        return set().union(*self.counts)

    def columns_found(self) -> str:
        """Lists the columns, how many rows have them, and the samples, as lines of a message."""
        common = self.counts.most_common(SHOWN_COLUMN_SETS)
        lines = [
            f"  {plural(count, 'row')}: {shorten(listed(sorted(columns))) or 'no column'}" for columns, count in common
        ]
        hidden = len(self.counts) - len(common)
        lines += [f"  {plural(hidden, 'more combination')} of columns"] if hidden else []
        samples = ["Rows, for example:", *(f"  {sample}" for sample in self.samples)] if self.samples else []
        if self.unreadable:
            lines.append(f"  {plural(self.unreadable, 'row')} cannot be read. The first: {self.first_unreadable}")
        found = "\n".join(["Columns with a value:", *(lines or ["  no row has columns"]), *samples])
        return without_private_data(found)

    def nearly_fitting(self) -> str:
        """Lists what is missing for each format that some row has a column of, as lines of a message."""
        lines = []
        for name, parts in FORMATS.items():
            lacking = [
                [names for names in parts.values() if not {column.casefold() for column in columns} & set(names)]
                for columns in self.counts
            ]
            missing = min(lacking, key=len, default=[])
            if 0 < len(missing) < len(parts):
                lines.append(f"  {name}: {' or '.join(missing[0])} is missing")
        lines += [f"  {column!r} has a blank at an end. Take the blanks out" for column in blank_ended(self.columns())]
        for (column, name), count in self.nested.items():
            lines.append(f"  {name}: {plural(count, 'row')} of it in the object {shorten(column)}. Move it up")
        return "\n".join(["Nearly fits:", *lines]) if lines else "No format nearly fits."


def blank_ended(columns: Iterable[str]) -> list[str]:
    return sorted(column for column in columns if column != column.strip())


def listed(columns: Iterable[str]) -> str:
    """Lists names of columns. An empty name, and one with a blank at an end, is quoted."""
    return ", ".join(name if name and name == name.strip() else repr(name) for name in columns)


def recognise(survey: Survey, data: Data) -> dict:
    """Returns the format that data.format names, or the one that the rows have if data.format is auto.

    Returns:
        {"format": its name, "columns": {part of the conversation: [columns]}, "tests": whether `tests` is read,
        "ignored": data.ignore_columns}.

    Raises:
        UserError: no row is of the named format; or with auto, the rows fit no format, several, or different ones. Or
            a column that is not read changes what the rows mean.
    """
    if data.format == "columns":
        check_columns(survey, data)
        parts = {role: [column] for role, column in data.columns.model_dump().items() if column is not None}
        name = data.format
    else:
        reading = choose(survey, data)
        name, parts = reading.format, optional_columns(reading, survey.columns())
    check_meaning(survey, {column for columns in parts.values() for column in columns})
    return {"format": name, "columns": parts, "tests": survey.has_tests(), "ignored": data.ignore_columns}


def choose(survey: Survey, data: Data) -> Reading:
    """Chooses the one way in which the rows can be read."""
    auto = data.format == "auto"
    formats = FORMATS if auto else (data.format,)
    found = {columns: readings(columns, formats) for columns in survey.counts}
    fitting: Counter[Reading] = Counter()
    for columns, count in survey.counts.items():
        fitting.update(dict.fromkeys(found[columns], count))
    advice = f"{survey.columns_found()}\n{survey.nearly_fitting()}\n{FORMAT_ADVICE}"
    if auto:
        check_rendered(survey, fitting)
    if not fitting:
        check_meaning(survey, set())
        if auto:
            raise UserError(f"data.format: the rows are of no known format.\n{advice}")
        raise UserError(f"data.format: no row is {data.format}.\n{advice}")
    known = sum(count for columns, count in survey.counts.items() if fitting.keys() & found[columns])
    whole = [reading for reading, rows in fitting.items() if rows == known]
    if len(whole) == 1:  # clean.max_malformed_rows decides about rows of no format
        return whole[0]
    twice = len({reading.format for reading in fitting}) < len(fitting)  # one format, with different columns
    counted = ", ".join(f"{r if twice else r.format} ({plural(rows, 'row')})" for r, rows in fitting.items())
    if whole:
        raise UserError(
            f"data.format: the rows can be read as {counted}. Set data.format to the one that you mean, or name the "
            f"columns to leave unread in data.ignore_columns\n{survey.columns_found()}"
        )
    raise UserError(
        f"data.format: the rows are of different formats: {counted}. Convert them to one, or set data.format: the "
        f"rows of other formats are then rejected and counted\n{survey.columns_found()}"
    )


def check_rendered(survey: Survey, fitting: Counter[Reading]) -> None:
    """Checks that no text to be read was put into a prompt format before. Drops `inst` or `text`, whichever is wrong.

    Raises:
        UserError: texts are in another format than Mistral's, or only some are, or those of a user's column are.
    """
    for reading in [*fitting]:
        column = reading.needed[0][1]
        formats = {name: rows for (of, name), rows in survey.rendered.items() if of == column}
        if reading.format in ("inst", "text"):
            if formats and formats.get("Mistral") != fitting[reading]:
                explain_rendered(column, formats)
            if bool(formats) == (reading.format == "text"):
                del fitting[reading]
        elif reading.needed[0][0] == "user" and sum(formats.values()) == survey.rows_with([column]):
            explain_rendered(column, formats)
    if not fitting:
        for (column, name), rows in survey.rendered.items():
            explain_rendered(column, {name: rows})


def explain_rendered(column: str, formats: dict[str, int]) -> None:
    counted = ", ".join(f"{name} ({plural(rows, 'row')})" for name, rows in formats.items())
    raise UserError(
        f"data.format: {shorten(column)} holds text that is already in a prompt format: {counted}. It would be put "
        "into another one. Bring the turns themselves as messages, a list of {role, content}. If the text is meant as "
        "it is, set data.format to the format of the columns"
    )


def check_meaning(survey: Survey, read: set[str]) -> None:
    """Raises UserError if a column that is not read changes what the rows mean, such as `label`."""
    left = {column: rows for column, rows in survey.meaningful.items() if column not in read}
    for advice in {MEANINGFUL[column.casefold()]: None for column in left}:
        counted = ", ".join(f"{c} ({plural(left[c], 'row')})" for c in left if MEANINGFUL[c.casefold()] == advice)
        raise UserError(f"data: {counted} would not be read. {advice}. {IGNORE_ADVICE}\n{survey.columns_found()}")


def check_columns(survey: Survey, data: Data) -> None:
    """Checks that each column in data.columns has a value in some row, so that a misspelt name is noticed.

    Raises:
        UserError: a column has no value in any row, or no row has both a user and an assistant text.
    """
    named = {role: column for role, column in data.columns.model_dump().items() if column is not None}
    absent = [f"{role}: {column}" for role, column in named.items() if not survey.rows_with([column])]
    if absent:
        raise UserError(f"data.columns: no row has {', '.join(absent)}. {COLUMNS_ADVICE}\n{survey.columns_found()}")
    if not survey.rows_with([data.columns.user, data.columns.assistant]):
        raise UserError(
            f"data.columns: no row has both {named['user']} and {named['assistant']}\n{survey.columns_found()}"
        )


def describe_layout(layout: dict, survey: Survey) -> tuple[str, str]:
    """Returns texts for the stage's closing line: the format with the columns it is read from; and what tests are."""
    columns = "; ".join(f"{part}: {listed(names)}" for part, names in layout["columns"].items())
    tests = ""
    if survey.tests:
        tests = f"; {survey.tests[True]:,} of {plural(survey.tests.total(), 'value')} of tests are tests in Python, so "
        tests += "the column is read" if layout["tests"] else "the column is not read"
    return f"{layout['format']} ({shorten(columns)})", tests
