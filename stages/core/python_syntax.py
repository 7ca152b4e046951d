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


def python_in(answer: str) -> list[str]:
    """Returns the fenced blocks that are marked as Python, or else the unmarked ones, or else the whole answer."""
    blocks = [(match[3].lower(), textwrap.dedent(match[4])) for match in FENCE.finditer(answer)]
    for marks in (PYTHON, ("",)):
        if code := [block for mark, block in blocks if mark in marks]:
            return code
    return [answer]
