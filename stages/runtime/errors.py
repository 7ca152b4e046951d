"""The one exception whose message goes to the user without a traceback."""


def readable(text: str) -> str:
    """Text of unknown origin for a terminal: control characters, newlines apart, are spelled out."""
    return "".join(char if char.isprintable() or char == "\n" else repr(char)[1:-1] for char in text)


class UserError(Exception):
    """A mistake that the user can mend: the message says what was wrong, where, and what to do."""

    def __str__(self) -> str:
        # It may quote a data set's columns or the names of files, which are to colour and rename no terminal.
        return readable(super().__str__())
