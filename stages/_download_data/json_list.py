"""Reads a JSON list with one element at a time in memory.

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
BLANKS = re.compile(r"[ \t\n\r]*")  # what JSON calls whitespace; str.strip takes more


class JsonText:
    """The text of a file that was read and is not yet parsed."""

    def __init__(self, file: TextIO):
        self.file, self.text, self.at = file, "", 0

    def read_more(self) -> bool:
        """Reads at least as much as is held, so that a long element is parsed only a few times."""
        new = self.file.read(max(CHUNK_CHARACTERS, len(self.text) - self.at))
        if new:
            self.text, self.at = self.text[self.at :] + new, 0
        return bool(new)

    def next_character(self) -> str:
        """Returns the next character that is not blank, or "" at the end."""
        while True:
            self.at = BLANKS.match(self.text, self.at).end()
            if self.at < len(self.text):
                return self.text[self.at]
            if not self.read_more():
                return ""

    def next_value(self, decoder: json.JSONDecoder) -> object:
        self.next_character()
        while True:
            try:
                value, end = decoder.raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                torn = error.pos >= len(self.text) - TORN_CHARACTERS or error.msg.startswith("Unterminated string")
                if torn and self.read_more():
                    continue
                raise
            after = BLANKS.match(self.text, end).end()
            # Without a comma or bracket after it, a number may have more digits in the next chunk.
            if self.text[after : after + 1] in (",", "]") or not self.read_more():
                self.at = end
                return value


def list_elements(file: TextIO, decoder: json.JSONDecoder) -> Iterator[object]:
    """Yields the elements in order.

    Raises:
        TypeError: the file holds JSON that is not a list; the only argument is the name of its type.
        ValueError: the file does not hold JSON; the message has the number of the element where it is known.
    """
    text = JsonText(file)
    if text.next_character() != "[":
        value = text.next_value(decoder)
        if text.next_character():
            raise ValueError("there is more after the first value")
        raise TypeError(type(value).__name__)
    text.at += 1
    number, follows = 1, text.next_character()
    while follows != "]":
        try:
            yield text.next_value(decoder)
        except json.JSONDecodeError as error:
            raise ValueError(f"{error.msg} in row {number}") from None
        follows = text.next_character()
        if follows not in {",", "]"}:
            raise ValueError(f"after row {number} comes {follows or 'the end'!r}, not a comma or bracket")
        if follows == ",":
            number, text.at = number + 1, text.at + 1
    text.at += 1
    if text.next_character():
        raise ValueError("there is more after the list")
