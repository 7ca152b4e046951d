"""Download the data set: params `data` → data/raw.

data/raw/rows.jsonl holds every row as it came, one JSON object a line: {"source": "file:line", "row": {…}}, or
{"source": …, "unreadable": "the text"} for a line that is not JSON, so that `clean` can count what it rejects.
Run it with `dvc repro download_data`.
"""

import ast
import copy
import csv
import hashlib
import json
import platform
import sys
import sysconfig
import textwrap
from collections.abc import Iterable, Iterator
from fnmatch import fnmatch
from itertools import islice
from pathlib import Path

from stages.shared.code import parse
from stages.shared.errors import UserError
from stages.shared.params import Data, Params
from stages.shared.paths import RAW, whole_directory
from stages.shared.stage import Outcome, run_stage

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


def jsonl_rows(path: Path, name: str) -> Iterator[dict]:
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield {"source": f"{name}:{number}", **parsed(line)}


def parsed(line: str) -> dict:
    try:
        return {"row": json.loads(line)}
    except (ValueError, RecursionError):
        return {"unreadable": line.rstrip("\n")}


def json_rows(path: Path, name: str) -> Iterator[dict]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path} is not valid JSON: {error}. A file with one object a line must be named .jsonl"
        ) from None
    if not isinstance(rows, list):
        raise UserError(f"{path} holds a JSON {type(rows).__name__}, not a list of rows")
    return ({"source": f"{name}:{number}", "row": row} for number, row in enumerate(rows, 1))


def csv_rows(path: Path, name: str) -> Iterator[dict]:
    with open(path, encoding="utf-8-sig", errors="replace", newline="") as file:
        csv.field_size_limit(sys.maxsize)  # its 128 kB would end the stage at the first longer text
        reader = csv.DictReader(file)
        columns = reader.fieldnames or []
        if len(set(columns)) < len(columns):
            raise UserError(f"{path} names a column twice in its first line: {', '.join(columns)}. Rename one")
        for row in reader:
            if None in row or None in row.values():
                yield {"source": f"{name}:{reader.line_num}", "unreadable": json.dumps(list(row.values()))}
            else:
                yield {"source": f"{name}:{reader.line_num}", "row": row}


def parquet_rows(path: Path, name: str) -> Iterator[dict]:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
    except pyarrow.ArrowInvalid as error:
        raise UserError(f"{path} is not a Parquet file: {error}") from None
    rows = (row for batch in file.iter_batches(batch_size=1000) for row in batch.to_pylist())
    return ({"source": f"{name}:{number}", "row": row} for number, row in enumerate(rows, 1))


READERS = {".jsonl": jsonl_rows, ".json": json_rows, ".csv": csv_rows, ".parquet": parquet_rows}


def file_rows(path: Path, name: str) -> Iterator[dict]:
    """Every row of a .json, .jsonl, .csv or .parquet file, with where it stood: `name` and the line."""
    if not path.is_file():
        raise UserError(f"data.path: there is no file {path}. Set data.path to a file ending in {', '.join(READERS)}")
    if path.suffix.lower() not in READERS:
        raise UserError(f"data.path: {path} ends in {path.suffix!r}; known are {', '.join(READERS)}")
    return READERS[path.suffix.lower()](path, name)


def hub_rows(data: Data) -> Iterator[dict]:
    """Every row of the files of one split of a hub data set, at the pinned commit."""
    from stages.shared.hub import fetch

    patterns = [f"*{data.split}*{suffix}" for suffix in READERS]
    folder = fetch(data.id, data.revision, "dataset", patterns, "data")
    for path in sorted(folder.rglob("*")):
        # The folder also keeps the files of a split that was asked for before.
        if any(fnmatch(path.relative_to(folder).as_posix(), pattern) for pattern in patterns):
            yield from file_rows(path, path.relative_to(folder).as_posix())


def download_data(data: Data) -> Iterable[dict]:
    """The rows that `data` asks for, at most data.limit of them.

    Raises:
        UserError: a missing or unreadable file, or a hub that does not answer.
    """
    if data.source == "stdlib":
        rows = stdlib_rows(Path(sysconfig.get_path("stdlib")))
    else:
        rows = file_rows(Path(data.path), Path(data.path).name) if data.source == "file" else hub_rows(data)
    return islice(rows, data.limit)


def main(params: Params) -> Outcome:
    count = 0
    with whole_directory(RAW) as folder, open(folder / "rows.jsonl", "w", encoding="utf-8", newline="\n") as file:
        for row in download_data(params.data):
            file.write(json.dumps(row, default=str) + "\n")
            count += 1
        if not count:
            raise UserError(f"data.source: {params.data.source} gave no row at all")
    return Outcome(f"{count} rows from {params.data.source} in {RAW}")


if __name__ == "__main__":
    run_stage("download_data", main)
