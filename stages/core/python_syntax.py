"""Python code as data: parsed, never run."""

import ast
import re
import textwrap
import warnings

FENCE = re.compile(
    r"^([ \t]*)(```+|~~~+)[ \t]*(\w*)[^\n]*\n(.*?)(?:^[ \t]*\2[`~]*[ \t]*$|\Z)", re.DOTALL | re.MULTILINE
)
PYTHON = ("python", "python3", "py")


def parse(code: str) -> ast.Module | None:
    """The module's syntax tree, or None where Python's own parser does not take the text."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            return ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def python_in(answer: str) -> list[str]:
    """The fenced blocks marked as Python, or else those with no mark, or else the whole answer."""
    blocks = [(match[3].lower(), textwrap.dedent(match[4])) for match in FENCE.finditer(answer)]
    for marks in (PYTHON, ("",)):
        if code := [block for mark, block in blocks if mark in marks]:
            return code
    return [answer]
