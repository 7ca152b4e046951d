"""Reads JSON text with one element of a list at a time in memory.

Python's own parser reads each element, as it reads a line of .jsonl. Streaming parsers accept other numbers and turn
lone surrogates into question marks.
"""

import json
import re
from collections.abc import Iterator
from typing import TextIO

CHUNK_CHARACTERS = 1 << 20
# More characters than any literal or escape has: a parser that fails this near to the end may lack the rest.
TORN_CHARACTERS = 16
NUMBER_END = re.compile(r"[.eE+-]{0,2}")  # what follows a number that may have more digits in the next chunk
NUMBER_CHARACTERS = "0123456789.eE+-"
BLANKS = re.compile(r"[ \t\n\r]*")  # what JSON calls whitespace; str.strip takes more


def object_without_repeated_keys(pairs: list[tuple[str, object]]) -> dict:
    """Makes an object of its pairs. Python itself would keep only the last value of a key that comes twice."""
    row = dict(pairs)
    if len(row) < len(pairs):
        raise ValueError(f"the object with the keys {', '.join(name for name, _ in pairs)} has one of them twice")
    return row


def constant(name: str) -> None:
    """Reads NaN as null: pandas and others write it where a value is missing. JSON itself has none of these."""
    if name != "NaN":
        raise ValueError(f"{name} is not a JSON value")


class TooLargeError(ValueError):
    """A number has no fp64 value. Of a number that is not read to its end yet, the whole may have one."""


def finite(digits: str) -> float:
    number = float(digits)
    if number in (float("inf"), float("-inf")):
        raise TooLargeError(f"the number {digits[:30]} is too large")
    return number


DECODER = json.JSONDecoder(object_pairs_hook=object_without_repeated_keys, parse_constant=constant, parse_float=finite)


def is_turn(value: object) -> bool:
    """Tells whether an element of a list is a turn of a conversation, not a row."""
    return isinstance(value, dict) and not {"role", "from"}.isdisjoint(value)


class JsonText:
    """The text of a file that was read and is not yet parsed."""

    def __init__(self, file: TextIO):
        self.file, self.text, self.at = file, "", 0
        self.lines, self.columns = 0, 0  # before self.text: whole lines, and characters of the line that is not whole

    def read_more(self) -> bool:
        """Reads at least as much as is held, so that a long element is parsed only a few times."""
        new = self.file.read(max(CHUNK_CHARACTERS, len(self.text) - self.at))
        if new:
            self.lines, self.columns = self.place(self.at)
            self.text, self.at = self.text[self.at :] + new, 0
        return bool(new)

    def place(self, at: int) -> tuple[int, int]:
        """Returns how many whole lines come before a place in self.text, and how many characters of its own line."""
        newlines = self.text.count("\n", 0, at)
        column = at - self.text.rfind("\n", 0, at) - 1 if newlines else self.columns + at
        return self.lines + newlines, column

    def where(self, at: int | None = None) -> str:
        line, column = self.place(self.at if at is None else at)
        return f"line {line + 1}, column {column + 1}"

    def next_character(self) -> str:
        """Returns the next character that is not blank, or "" at the end."""
        while True:
            self.at = BLANKS.match(self.text, self.at).end()
            if self.at < len(self.text):
                return self.text[self.at]
            if not self.read_more():
                return ""

    def next_value(self) -> object:
        """Returns the next value.

        Raises:
            ValueError: it is not JSON; the message has its line and column.
        """
        self.next_character()
        while True:
            try:
                value, end = DECODER.raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                torn = error.pos >= len(self.text) - TORN_CHARACTERS or error.msg.startswith("Unterminated string")
                if torn and self.read_more():
                    continue
                raise ValueError(f"{error.msg} ({self.where(error.pos)})") from None
            except TooLargeError:
                if self.text[-1] in NUMBER_CHARACTERS and self.read_more():
                    continue
                raise
            if self.text[end - 1].isdigit() and NUMBER_END.fullmatch(self.text, end) and self.read_more():
                continue
            self.at = end
            return value

    def expect(self, characters: str, after: str) -> str:
        """Takes one of the characters and returns it."""
        follows = self.next_character()
        if not follows or follows not in characters:
            found = repr(follows) if follows else "the end"
            wanted = " or ".join(repr(character) for character in characters)
            raise ValueError(f"after {after} comes {found}, not {wanted} ({self.where()})")
        self.at += 1
        return follows


def elements(text: JsonText) -> Iterator[object]:
    """Yields the elements of the list that comes next.

    Raises:
        ValueError: it is not JSON; the message has the number of the element, its line and column.
    """
    text.expect("[", "the beginning")
    number, follows = 1, ","
    if text.next_character() == "]":
        text.at += 1
        return
    while follows == ",":
        try:
            yield text.next_value()
        except ValueError as error:
            raise ValueError(f"{error} in row {number}") from None
        follows = text.expect(",]", f"row {number}")
        number += 1


def list_elements(text: JsonText) -> Iterator[object]:
    """Yields the elements of a list after which the file ends.

    Raises:
        ValueError: the file does not hold such a list.
    """
    yield from elements(text)
    if text.next_character():
        raise ValueError(f"there is more after the list ({text.where()})")


def members(text: JsonText) -> Iterator[str]:
    """Yields each key of the object that comes next. The caller then takes the value from `text`."""
    text.expect("{", "the beginning")
    if text.next_character() == "}":
        text.at += 1
        return
    follows = ","
    while follows == ",":
        if text.next_character() != '"':
            raise ValueError(f"Expecting property name enclosed in double quotes ({text.where()})")
        key = text.next_value()
        text.expect(":", f"the key {key!r}")
        yield key
        follows = text.expect(",}", f"the value of {key!r}")
