"""The one exception whose message goes to the user without a traceback."""


def readable(text: str) -> str:
    """Spells out control characters except newlines, so that a terminal may show a text of unknown origin."""
    return "".join(char if char.isprintable() or char == "\n" else repr(char)[1:-1] for char in text)


class UserError(Exception):
    """A mistake that the user can correct. The message says what is wrong, where, and what to do."""

    def __str__(self) -> str:
        # A message may quote columns or file names, and their control characters must not change the terminal.
        return readable(super().__str__())
