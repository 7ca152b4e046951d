"""Makes rows from Python's own standard library: a prompt that asks for a documented function, and its source."""

import ast
import copy
import hashlib
import platform
import textwrap
from collections.abc import Iterator
from pathlib import Path

from stages.core.python_syntax import parse

# Folders that data.source: stdlib leaves out: tests, an editor, a retired converter and installed packages.
EXCLUDED_FOLDERS = {"test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages", "_bundled", "turtledemo"}


def signature(node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    """Returns `def name(arguments) -> result:` on one line."""
    bare = copy.copy(node)
    bare.body, bare.decorator_list = [ast.Pass()], []
    return ast.unparse(bare).rsplit("\n", 1)[0]


def without_docstring(node: ast.FunctionDef | ast.AsyncFunctionDef, lines: list[str]) -> str | None:
    """Returns the function's dedented source without its docstring, or None if removing whole lines changes more."""
    doc = node.body[0]
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    kept = lines[first - 1 : doc.lineno - 1] + lines[doc.end_lineno : node.end_lineno]
    source = textwrap.dedent("\n".join(kept)).strip("\n")
    expected = copy.copy(node)
    expected.body = node.body[1:]
    tree = parse(source)
    return source if tree and [ast.dump(node) for node in tree.body] == [ast.dump(expected)] else None


def function_definitions(parent: ast.AST, prefix: str) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Yields (qualified name, node) for every function inside `parent`, nested ones too."""
    for child in ast.iter_child_nodes(parent):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield prefix + child.name, child
        named = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        yield from function_definitions(child, f"{prefix}{child.name}." if named else prefix)


def documented_functions(text: str, module: str) -> Iterator[tuple[int, dict]]:
    """Yields (line, row) for each documented function with a body, methods and nested functions too."""
    lines = text.split("\n")  # not splitlines(), which ends a line at a form feed; ast does not
    for name, node in function_definitions(parse(text) or ast.Module(), ""):
        documentation = ast.get_docstring(node)
        answer = without_docstring(node, lines) if documentation and len(node.body) > 1 else None
        if answer is not None:
            request = f"Write `{name}` of the Python module `{module}`.\n\n{signature(node)}\n\n{documentation}"
            yield node.lineno, {"prompt": request, "completion": answer}


def stdlib_rows(root: Path) -> Iterator[dict]:
    """Yields the rows of the library in the folder `root`, in an order in which any prefix is an even sample."""
    rows = []
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if EXCLUDED_FOLDERS.isdisjoint(relative.parts):
            module = ".".join(relative.with_suffix("").parts).removesuffix(".__init__")
            for line, row in documented_functions(path.read_text(encoding="utf-8"), module):
                rows.append({"source": f"python-{platform.python_version()}/{relative.as_posix()}:{line}", "row": row})
    return iter(sorted(rows, key=lambda row: hashlib.sha256(row["source"].encode()).digest()))
