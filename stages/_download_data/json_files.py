"""Reads .jsonl and .json files, also where people put several values on a line, or one value on several lines."""

import json
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TextIO

from stages._download_data.columns import readings
from stages._download_data.json_list import (
    BLANKS,
    DECODER,
    JsonText,
    elements,
    is_turn,
    list_elements,
    members,
)
from stages._download_data.text_files import TextSettings, open_text
from stages.runtime.errors import UserError

Numbered = tuple[int, str]  # a line and its number
LONGEST_LINE = 1 << 22  # characters; a longer line that begins a list is read element by element
# Keys under which files keep their list of rows, next to others such as `version`.
LIST_KEYS = {"data", "rows", "dataset", "examples", "instances", "items", "records", "samples", "entries", "train"}


def why_not(error: Exception) -> str:
    """Says why a line does not parse."""
    if isinstance(error, json.JSONDecodeError):
        if ends_inside_string(error):
            return "the line ends inside a string"
        place = min(error.pos, len(error.doc.rstrip()))  # not in the line that would come next
        column = place - error.doc.rfind("\n", 0, place)
        return f"column {column}: {error.msg}"
    return "it is nested too deeply" if isinstance(error, RecursionError) else str(error)


def ends_inside_string(error: json.JSONDecodeError) -> bool:
    at_end = error.pos >= len(error.doc.rstrip("\n"))
    return error.msg.startswith("Unterminated string") or (at_end and error.msg.startswith("Invalid control"))


def jsonl_rows(path: Path, name: str, reading: TextSettings) -> Iterator[dict]:
    if is_one_list(path, reading):
        yield from json_rows(path, name, reading)
        return
    with open_text(path, reading) as file:
        lines = NumberedLines(file)
        for number, line in lines:
            try:
                row = DECODER.decode(line)
            except (ValueError, RecursionError) as error:
                if not line.isspace():
                    yield from broken_line((number, line), error, lines, f"{name}:{number}")
                continue
            if type(row) is list:
                yield from rows_of_list(row, f"{name}:{number}")
            else:
                yield {"source": f"{name}:{number}", "row": row}


class NumberedLines:
    """The lines of a file with their numbers. Some may be put back."""

    def __init__(self, file: TextIO):
        self.lines, self.waiting = enumerate(file, 1), deque()

    def __iter__(self) -> Iterator[Numbered]:
        return self

    def __next__(self) -> Numbered:
        return self.waiting.popleft() if self.waiting else next(self.lines)

    def put_back(self, lines: list[Numbered]) -> None:
        self.waiting.extendleft(reversed(lines))


def rows_of_list(values: list, source: str) -> Iterator[dict]:
    """Yields a line that holds a list: each of its rows, or the whole as one row, such as a list of turns."""
    if values and all(isinstance(value, dict) and not is_turn(value) for value in values):
        yield from numbered_rows(values, source)
    else:
        yield {"source": source, "row": values}


def numbered_rows(values: list, source: str, more: bool = False) -> Iterator[dict]:
    """Yields the rows of one line, the second one with the source `file:line#2`.

    Args:
        more: whether another row follows on the line.
    """
    several = more or len(values) > 1
    return ({"source": f"{source}#{n}" if several else source, "row": row} for n, row in enumerate(values, 1))


def broken_line(start: Numbered, error: Exception, lines: NumberedLines, source: str) -> Iterator[dict]:
    """Yields the rows of a line that is not one JSON value: several objects, or the beginning of a longer one.

    Args:
        lines: the lines after it. What is read too much is put back.
    """
    number, line = start
    why = why_not(error)
    if isinstance(error, json.JSONDecodeError):
        rows, rest = objects_of_line(line) if error.msg == "Extra data" else ([], line)
        if not rest:
            yield from numbered_rows(rows, source)
            return
        if may_continue(rest):
            if rows:
                yield from numbered_rows(rows, source, more=True)
                # The blanks keep the columns right.
                lines.put_back([(number, " " * (len(line) - len(rest)) + rest)])
                return
            row, why = value_over_lines(start, why, lines)
            if why is None:
                yield {"source": source, "row": row}
                return
    yield {"source": source, "unreadable": line.rstrip("\n"), "why": why}


def may_continue(line: str) -> bool:
    """Tells whether a line begins an object or list that is right as far as it goes."""
    try:
        DECODER.decode(line)
    except json.JSONDecodeError as error:
        return line.lstrip()[:1] in ("{", "[") and reaches_end(error, line) and not ends_inside_string(error)
    except (ValueError, RecursionError):
        pass
    return False


def reaches_end(error: json.JSONDecodeError, text: str) -> bool:
    """Tells whether the text is right as far as it goes, so that more of it may follow."""
    return error.pos >= len(text.rstrip()) - 1


def objects_of_line(line: str) -> tuple[list[dict], str]:
    """Returns the objects with which the line begins, and the rest of it from the first thing that is none."""
    rows, at = [], BLANKS.match(line).end()
    while at < len(line):
        try:
            row, end = DECODER.raw_decode(line, at)
        except (ValueError, RecursionError):
            break
        if not isinstance(row, dict):
            break
        rows.append(row)
        at = BLANKS.match(line, end).end()
    return rows, line[at:]


def value_over_lines(start: Numbered, why: str, lines: NumberedLines) -> tuple[object, str | None]:
    """Reads a value that continues on the next lines, such as a pretty-printed object.

    It reads one more line, then two, four, eight…, so that a long value is parsed only a few times.

    Args:
        why: why the first line does not parse. It is returned if the next line is a value of its own.

    Returns:
        The value and None; or None and why there is none. Then all lines after the first are put back.
    """
    number, text = start
    more: list[Numbered] = []
    while new := [line for _, line in zip(range(max(1, len(more))), lines, strict=False)]:
        more += new
        text += "".join(line for _, line in new)
        try:
            value, end = DECODER.raw_decode(text, BLANKS.match(text).end())
        except (ValueError, RecursionError) as failure:
            if isinstance(failure, json.JSONDecodeError) and reaches_end(failure, text):
                continue
            if not parses(more[0][1]):
                line = number + (failure.lineno - 1 if isinstance(failure, json.JSONDecodeError) else 0)
                why = f"the value that begins here does not parse: line {line}, {why_not(failure)}"
            break
        rest = text[end:].partition("\n")[0]
        if rest.strip() and rest.lstrip()[0] not in "{[":
            why = f"after the value that begins here comes {rest.strip()[:10]!r}"
            break
        left = more[text.count("\n", 0, end) :]
        if rest.strip():  # another value begins on the last line; the blanks keep its columns right
            last = number + text.count("\n", 0, end)
            left.insert(0, (last, " " * (end - text.rfind("\n", 0, end) - 1) + rest + "\n"))
        lines.put_back(left)
        return value, None
    lines.put_back(more)
    return None, why


def parses(line: str) -> bool:
    try:
        DECODER.decode(line)
    except (ValueError, RecursionError):
        return False
    return True


def is_one_list(path: Path, reading: TextSettings) -> bool:
    """Tells whether a file of JSON Lines is one list of rows: over several lines, or all of it on one line."""
    with open_text(path, reading) as file:
        pieces = (piece for piece in iter(partial(file.readline, LONGEST_LINE), "") if piece.strip())
        first = next(pieces, "")
        if not first.lstrip().startswith("[") or (next(pieces, None) is not None and parses(first)):
            return False
    with open_text(path, reading) as file:
        try:
            return not is_turn(next(list_elements(JsonText(file)), None))
        except (ValueError, RecursionError):
            return False


@dataclass
class Member:
    """What is known of a value in the one object of a .json file."""

    kind: type
    size: int = 0
    holds_rows: bool = False  # a list of objects that are no turns
    holds_values: bool = False  # a list without objects
    keys: frozenset[str] = frozenset()


def json_rows(path: Path, name: str, reading: TextSettings) -> Iterator[dict]:
    """Reads a list of rows, an object that holds such a list, one row, or JSON Lines."""
    try:
        with open_text(path, reading) as file:
            text = JsonText(file)
            first = text.next_character()
            if first == "[":
                rows = list_elements(text)
                yield from ({"source": f"{name}:{number}", "row": row} for number, row in enumerate(rows, 1))
                return
            if first != "{":
                raise UserError(f"{path} holds a JSON {type(text.next_value()).__name__}, not rows")
            found = {key: look_at_value(text) for key in members(text)}
            is_lines = bool(text.next_character())
        if is_lines:
            yield from jsonl_rows(path, name, reading)
            return
        with open_text(path, reading) as file:
            text = JsonText(file)
            key = list_of_rows(found, path)
            rows = [text.next_value()] if key is None else elements_under(text, key)
            yield from ({"source": f"{name}:{number}", "row": row} for number, row in enumerate(rows, 1))
    except UnicodeDecodeError:
        raise
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON: {why_not(error)}") from None


def look_at_value(text: JsonText) -> Member:
    """Takes a value of the text and keeps only what list_of_rows() needs. A list is read one element at a time."""
    if text.next_character() != "[":
        value = text.next_value()
        return Member(type(value), keys=frozenset(value) if isinstance(value, dict) else frozenset())
    member = Member(list, holds_rows=True, holds_values=True)
    for value in elements(text):
        member.size += 1
        member.holds_values &= not isinstance(value, dict)
        member.holds_rows &= isinstance(value, dict) and not is_turn(value)
    member.holds_rows &= member.size > 0
    return member


def list_of_rows(found: dict[str, Member], path: Path) -> str | None:
    """Returns the key of the list that holds the rows. None: the object itself is one row.

    Raises:
        UserError: there are several such lists, or the object holds columns.
    """
    if readings(frozenset(found)) and not holds_columns(found):
        return None
    lists = [key for key, member in found.items() if member.holds_rows]
    if len(lists) > 1:
        raise UserError(f"{path} holds several lists of rows: {', '.join(lists)}. Save the one to use as its own file")
    if lists and (len(found) == 1 or lists[0].lower() in LIST_KEYS):
        return lists[0]
    if holds_columns(found):
        raise UserError(
            f"{path} holds columns, not rows: {', '.join(found)}. Save it as a list of rows; in pandas, "
            'to_json(…, orient="records", lines=True) writes .jsonl'
        )
    return None


def holds_columns(found: dict[str, Member]) -> bool:
    """Tells whether each value holds a column: a list without objects, or {number: value}, all of one length."""
    values = list(found.values())
    if len(values) < 2:
        return False
    if all(value.size and value.holds_values for value in values):
        return len({value.size for value in values}) == 1
    numbers = {value.keys for value in values}
    return len(numbers) == 1 and bool(values[0].keys) and all(key.isdigit() for key in values[0].keys)


def elements_under(text: JsonText, wanted: str) -> Iterator[object]:
    """Yields the elements of the list under a key of the object that comes next."""
    for key in members(text):
        yield from elements(text) if key == wanted else ()
        if key != wanted:
            text.next_value()
