"""Python code as data: parsed, never run."""

import ast
import warnings


def parse(code: str) -> ast.Module | None:
    """The module's syntax tree, or None where Python's own parser does not take the text."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            return ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
