"""Reads what mutmut found: which mutants the tests noticed, and what the others change."""

import ast
import difflib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

KILLED, TIMEOUT = "killed", "timeout"
# mutmut's exit codes: of pytest, of a process that crashed (-6, -11), and of one that took too long.
STATUS = dict.fromkeys((1, 2, 3, -6, -11), KILLED) | dict.fromkeys((36, -24, 24, 152, 255), TIMEOUT)
WORDS = re.compile(r"[A-Za-z,] [A-Za-z]")  # a text with a blank between words is for people


@dataclass(frozen=True)
class Mutant:
    """A changed line. `before` and `after` are without their indentation."""

    name: str
    file: str
    function: str
    line: int
    before: str
    after: str
    status: str
    is_wording: bool

    @property
    def change(self) -> str:
        return f"{self.before} → {self.after}"


def function_of(key: str) -> str:
    """`Class.method` or `function` of a mutant's name, such as `stages.core.prompts.xǁEncoderǁturns__mutmut_3`."""
    name = key.rpartition(".")[2].rpartition("__mutmut_")[0]
    return name.removeprefix("x_") if name.startswith("x_") else ".".join(name.split("ǁ")[1:])


@cache
def functions(path: Path) -> dict[str, tuple[list[str], ast.AST, int]]:
    """{name: (its lines, its syntax tree, number of its first line)} of functions and methods."""
    source = path.read_text("utf-8")
    lines, named = source.split("\n"), {}
    for node in ast.parse(source).body:
        members = node.body if isinstance(node, ast.ClassDef) else [node]
        for member in members:
            if isinstance(member, ast.FunctionDef):
                name = f"{node.name}.{member.name}" if node is not member else member.name
                named[name] = (lines[member.lineno - 1 : member.end_lineno], member, member.lineno)
    return named


def texts(tree: ast.AST) -> list[str]:
    return [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]


def is_wording(before: ast.AST, after: ast.AST) -> bool:
    """Whether the two differ only in a text for people."""
    pairs = list(zip(texts(before), texts(after), strict=False))
    changed = [old for old, new in pairs if old != new]
    same_otherwise = len(texts(before)) == len(texts(after)) and len(changed) == 1
    return same_otherwise and bool(WORDS.search(changed[0]))


def read_mutants(folder: Path, file: str, wanted: tuple[str, ...]) -> Iterator[Mutant]:
    """Yields the mutants of the wanted functions of a file; () means all.

    Args:
        folder: The sandbox in which mutmut ran.
    """
    codes = json.loads((folder / "mutants" / f"{file}.meta").read_text())["exit_code_by_key"]
    made, originals = functions(folder / "mutants" / file), functions(folder / file)
    for key, code in codes.items():
        function = function_of(key)
        if wanted and function not in wanted:
            continue
        owner = f"{function.rpartition('.')[0]}." if "." in function else ""
        mangled = key.rpartition(".")[2]
        before, before_tree, _ = made[f"{owner}{mangled.rpartition('__mutmut_')[0]}__mutmut_orig"]
        after, after_tree, _ = made[f"{owner}{mangled}"]
        start = originals[function][2]
        place, old, new = first_change(before, after)
        yield Mutant(
            name=key,
            file=file,
            function=function,
            line=start + place,
            before=old,
            after=new,
            status=STATUS.get(code, f"survived ({code})"),
            is_wording=is_wording(before_tree, after_tree),
        )


def first_change(before: list[str], after: list[str]) -> tuple[int, str, str]:
    """(index of the first changed line after the signature, changed lines before, changed lines after)."""
    clean = [[re.sub(r"\bx(_|ǁ\w+ǁ)(\w+?)__mutmut_\w+", r"\2", line) for line in lines] for lines in (before, after)]
    for kind, first, last, other_first, other_last in difflib.SequenceMatcher(
        None, *clean, autojunk=False
    ).get_opcodes():
        if kind != "equal":
            old, new = clean[0][first:last], clean[1][other_first:other_last]
            return first, *(" ".join(line.strip() for line in lines) for lines in (old, new))
    return 0, "", ""
