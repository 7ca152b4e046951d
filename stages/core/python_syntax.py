"""Parses Python code, without running it."""

import ast
import re
import textwrap
import warnings

FENCE = re.compile(
    r"^([ \t]*)(```+|~~~+)[ \t]*(\w*)[^\n]*\n(.*?)(?:^[ \t]*\2[`~]*[ \t]*$|\Z)", re.DOTALL | re.MULTILINE
)
PYTHON = ("python", "python3", "py")


def parse(code: str) -> ast.Module | None:
    """Returns the module's syntax tree, or None if Python's parser does not accept the text."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            return ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def fenced_blocks(answer: str, marks: tuple[str, ...]) -> list[str]:
    """Returns the fenced blocks that are marked as one of `marks`, such as `python`. The mark may be empty."""
    return [textwrap.dedent(match[4]) for match in FENCE.finditer(answer) if match[3].lower() in marks]


def python_in(answer: str) -> list[str]:
    """Returns the fenced blocks that are marked as Python, or else the unmarked ones, or else the whole answer."""
    return fenced_blocks(answer, PYTHON) or fenced_blocks(answer, ("",)) or [answer]


def fenced_python_parses(answer: str) -> bool:
    """Whether all fenced blocks that are marked as Python are Python. True where there are none."""
    return all(parse(code) is not None for code in fenced_blocks(answer, PYTHON))
