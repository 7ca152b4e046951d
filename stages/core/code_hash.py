"""Hashes of a stage's code that change when its result may change, and not when only its wording does.

A module counts by its syntax tree. Comments, blank lines, docstrings and the literal text of messages are left out, so
that nobody trains a 7B again for a better sentence. What a stage imports from UNHASHED is left out too. The dump of the
tree is our own, since that of `ast` differs between versions of Python.
"""

import ast
import hashlib
from functools import cache
from pathlib import Path

from stages.runtime.errors import UserError

ROOT = Path(__file__).parents[2]  # the repository whose code runs
PACKAGE = Path("stages")
STAGES = ("download_model", "download_data", "clean", "tokenize", "train", "merge", "evaluate", "report")
# What shapes no byte of a result. The schema and the reader of YAML are here because they pass on the values of
# params.yaml as they are, and DVC compares those itself. .dvcignore has the same list: no stage depends on these files.
UNHASHED = (PACKAGE / "runtime", PACKAGE / "core" / "params.py", PACKAGE / "core" / "yaml_files.py")
# This module. DVC runs hash_code after an edit of it, and the hashes say what changed.
HASHING = PACKAGE / "core" / "code_hash.py"
TEMPLATES = (".j2", ".js")
# Calls whose text only a person reads, with the number of arguments from the left that this holds for.
MESSAGES = {"print": 99, "UserError": 99, "NoFigureError": 99, "Outcome": 1, "progress": 99, "plural": 99}
# Expressions that only put text together. Text inside any other expression may have an effect.
TEXT = (ast.Constant, ast.JoinedStr, ast.FormattedValue, ast.BinOp, ast.IfExp)
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def is_docstring(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def format_parts(node: ast.JoinedStr, in_message: bool) -> list[ast.AST]:
    """The parts of an f-string. Versions of Python cut its text into pieces in different ways, so it is put together
    here. In a message only the expressions count."""
    parts: list[ast.AST] = []
    for part in node.values:
        if not isinstance(part, ast.Constant):
            parts.append(part)
        elif in_message or not part.value:
            continue
        elif parts and isinstance(parts[-1], ast.Constant):
            parts[-1] = ast.Constant(parts[-1].value + part.value)
        else:
            parts.append(ast.Constant(part.value))
    return parts


def dump_value(value: object, in_message: bool) -> str:
    if isinstance(value, ast.AST):
        return dump(value, in_message)
    if isinstance(value, list):
        return f"[{','.join(dump_value(item, in_message) for item in value)}]"
    return ascii(value)  # repr() depends on the Unicode tables of the version


def is_message(call: ast.AST) -> bool:
    """Whether only a person reads the text of a call."""
    if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in MESSAGES):
        return False
    files = [keyword.value for keyword in call.keywords if keyword.arg == "file"]
    return all(ast.unparse(file) == "sys.stderr" for file in files)


def dump(node: ast.AST, in_message: bool = False) -> str:
    """A node and all below it as text, the same in every version of Python from 3.11 on."""
    in_message = in_message and isinstance(node, TEXT)
    if in_message and isinstance(node, ast.Constant) and isinstance(node.value, str):
        return "message"
    if is_message(node):
        count = MESSAGES[node.func.id]
        arguments = [dump(argument, place < count) for place, argument in enumerate(node.args)]
        return f"Call({node.func.id},{arguments},{dump_value(node.keywords, False)})"
    fields = dict(ast.iter_fields(node))
    if isinstance(node, ast.JoinedStr):
        fields["values"] = format_parts(node, in_message)
    if isinstance(node, DOCUMENTED) and node.body and is_docstring(node.body[0]):
        fields["body"] = node.body[1:]
    # A newer Python has more fields, such as type_params: they are empty in code that an older one can read.
    named = (f"{name}={dump_value(value, in_message)}" for name, value in fields.items() if value not in (None, []))
    return f"{type(node).__name__}({','.join(named)})"


def parse_module(path: Path) -> ast.Module:
    """The syntax tree of a module. path: relative to ROOT.

    Raises:
        UserError: it is missing, or it is not valid Python.
    """
    try:
        return ast.parse((ROOT / path).read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path} is missing. Restore it from Git") from None
    except (SyntaxError, ValueError) as error:
        line = f":{error.lineno}" if isinstance(error, SyntaxError) else ""
        raise UserError(f"{path}{line} is not valid Python: {getattr(error, 'msg', error)}") from None


@cache
def module_hash(path: Path) -> str:
    """The SHA-256 of a Python file's code without its wording, or of the bytes of another file. Read once a process.

    Raises:
        UserError: a module is missing, or it is not valid Python.
    """
    content = (ROOT / path).read_bytes() if path.suffix != ".py" else dump(parse_module(path)).encode()
    return hashlib.sha256(content).hexdigest()


def imported_names(tree: ast.Module) -> set[str]:
    """What a module imports, anywhere in it, by dotted name. Ruff bans relative imports (TID252)."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


def imported_modules(path: Path) -> set[Path]:
    """The files below stages/ that a module imports itself."""
    names = {name for name in imported_names(parse_module(path)) if name.startswith(f"{PACKAGE}.")}
    files = {Path(*name.split(".")).with_suffix(".py") for name in names}
    return {file for file in files if (ROOT / file).is_file()}


def check_unhashed() -> None:
    """Parses the modules that no hash covers. The stage that imports one may come hours later, and DVC hashes none.

    Raises:
        UserError: one is not valid Python.
    """
    for path in UNHASHED:
        for file in sorted((ROOT / path).glob("*.py")) if path.suffix != ".py" else [ROOT / path]:
            parse_module(file.relative_to(ROOT))


def is_watched(path: Path) -> bool:
    """Whether DVC runs hash_code after an edit of a file in stages/. path: relative to the repository."""
    return not any(path.is_relative_to(unhashed) for unhashed in UNHASHED)


def is_hashed(path: Path) -> bool:
    """Whether an edit of a file in stages/ counts for the stages that import it."""
    return is_watched(path) and path != HASHING


def stage_files(stage: str) -> list[Path]:
    """All files that shape the result of a stage such as `clean`: its module, what that imports directly or through
    others, and the templates in its private package. Sorted, relative to ROOT."""
    pending = {PACKAGE / f"{stage}.py"}
    files: set[Path] = set()
    while pending:
        path = pending.pop()
        files.add(path)
        pending |= {module for module in imported_modules(path) if is_hashed(module)} - files
    package = ROOT / PACKAGE / f"_{stage}"
    templates = {path.relative_to(ROOT) for path in package.glob("[!.]*") if path.suffix in TEMPLATES}
    return sorted(files | templates)


def stage_hashes(stage: str) -> dict[str, str]:
    """{file: hash} of stage_files()."""
    return {str(path): module_hash(path) for path in stage_files(stage)}
