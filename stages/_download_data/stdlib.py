"""Rows of the running interpreter's own standard library: each documented function, asked for and answered."""

import ast
import copy
import hashlib
import platform
import textwrap
from collections.abc import Iterator
from pathlib import Path

from stages.core.python_syntax import parse

# Left out of data.source: stdlib. Tests, an editor and a retired converter are not what one asks the library for.
NOT_LIBRARY = {"test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages", "_bundled", "turtledemo"}


def signature(node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    """`def name(arguments) -> result:` as one line."""
    bare = copy.copy(node)
    bare.body, bare.decorator_list = [ast.Pass()], []
    return ast.unparse(bare).rsplit("\n", 1)[0]


def without_docstring(node: ast.FunctionDef | ast.AsyncFunctionDef, lines: list[str]) -> str | None:
    """The function's source, dedented, its docstring taken out; None where that is not just a matter of lines."""
    doc = node.body[0]
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    kept = lines[first - 1 : doc.lineno - 1] + lines[doc.end_lineno : node.end_lineno]
    source = textwrap.dedent("\n".join(kept)).strip("\n")
    expected = copy.copy(node)
    expected.body = node.body[1:]
    found = parse(source)
    return source if found and [ast.dump(node) for node in found.body] == [ast.dump(expected)] else None


def definitions(parent: ast.AST, prefix: str) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """(qualified name, node) of every function below `parent`."""
    for child in ast.iter_child_nodes(parent):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield prefix + child.name, child
        named = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        yield from definitions(child, f"{prefix}{child.name}." if named else prefix)


def functions(text: str, module: str) -> Iterator[tuple[int, dict]]:
    """(line, row) of each documented function with a body, methods and nested functions included."""
    lines = text.split("\n")  # not splitlines(): a form feed is no new line to ast
    for name, node in definitions(parse(text) or ast.Module(), ""):
        documentation = ast.get_docstring(node)
        answer = without_docstring(node, lines) if documentation and len(node.body) > 1 else None
        if answer is not None:
            request = f"Write `{name}` of the Python module `{module}`.\n\n{signature(node)}\n\n{documentation}"
            yield node.lineno, {"prompt": request, "completion": answer}


def stdlib_rows(root: Path) -> Iterator[dict]:
    """Rows of the running interpreter's standard library, in an order that any prefix samples evenly."""
    rows = []
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if NOT_LIBRARY.isdisjoint(relative.parts):
            module = ".".join(relative.with_suffix("").parts).removesuffix(".__init__")
            for line, row in functions(path.read_text(encoding="utf-8"), module):
                rows.append({"source": f"python-{platform.python_version()}/{relative.as_posix()}:{line}", "row": row})
    return iter(sorted(rows, key=lambda row: hashlib.sha256(row["source"].encode()).digest()))
