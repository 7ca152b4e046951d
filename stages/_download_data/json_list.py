"""The elements of a JSON list, of which one at a time is in memory. Python's own parser reads them, as it reads a line
of .jsonl: streaming ones differ from it in what they take for a number, and make question marks of lone surrogates."""

import json
import re
from collections.abc import Iterator
from typing import TextIO

CHUNK = 1 << 20  # characters
CUT = 16  # characters, more than any literal or escape: where the end tears one, the error is that near to it
BLANKS = re.compile(r"[ \t\n\r]*")  # json's, fewer than str.strip's


class Text:
    """What was read of a file and is not yet parsed."""

    def __init__(self, file: TextIO):
        self.file, self.text, self.at = file, "", 0

    def more(self) -> bool:
        """Reads on, as much again as is held: an element of any length is so parsed a few times at most."""
        new = self.file.read(max(CHUNK, len(self.text) - self.at))
        if new:
            self.text, self.at = self.text[self.at :] + new, 0
        return bool(new)

    def next(self) -> str:
        """The next character that is no blank, or "" at the end."""
        while True:
            self.at = BLANKS.match(self.text, self.at).end()
            if self.at < len(self.text):
                return self.text[self.at]
            if not self.more():
                return ""

    def value(self, decoder: json.JSONDecoder) -> object:
        self.next()
        while True:
            try:
                value, end = decoder.raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                torn = error.pos >= len(self.text) - CUT or error.msg.startswith("Unterminated string")
                if torn and self.more():
                    continue
                raise
            follows = BLANKS.match(self.text, end).end()
            if self.text[follows : follows + 1] in (",", "]") or not self.more():  # else a number may go on
                self.at = end
                return value


def elements(file: TextIO, decoder: json.JSONDecoder) -> Iterator[object]:
    """The elements, in order.

    Raises:
        TypeError: it is JSON, but no list; its only argument is the type's name.
        ValueError: it is no JSON, with the number of the element where that shows.
    """
    text = Text(file)
    if text.next() != "[":
        value = text.value(decoder)
        if text.next():
            raise ValueError("there is more after the first value")
        raise TypeError(type(value).__name__)
    text.at += 1
    number, follows = 1, text.next()
    while follows != "]":
        try:
            yield text.value(decoder)
        except json.JSONDecodeError as error:
            raise ValueError(f"{error.msg} in row {number}") from None
        follows = text.next()
        if follows not in {",", "]"}:
            raise ValueError(f"after row {number} there is {follows or 'the end'!r}, no comma or bracket")
        if follows == ",":
            number, text.at = number + 1, text.at + 1
    text.at += 1
    if text.next():
        raise ValueError("there is more after the list")
