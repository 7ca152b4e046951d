"""Which package imports which, read from the import statements, and the directions that no import may take."""

import ast
from dataclasses import dataclass
from pathlib import Path

from stages.core.code_hash import imported_names
from stages.runtime.errors import UserError

TOPS = ("stages", "tools", "bench")
# {room: the rooms that it may import}, from the top of the picture to its bottom. No stage imports another stage.
MAY_IMPORT = {
    "bench": {"bench", "tools", "stages", "private", "comparison", "core", "runtime"},
    "tools": {"tools", "private", "comparison", "core", "runtime"},
    "stages": {"private", "comparison", "core", "runtime"},
    "private": {"private", "comparison", "core", "runtime"},
    "comparison": {"comparison", "core", "runtime"},
    "core": {"core", "runtime"},
    "runtime": {"core", "runtime"},
}
# Private packages of stages that others may import too. bench/ may import any: it measures them.
SHARED = {
    Path("stages/_clean"): {Path("stages/runtime"), Path("tools/_profile")},  # a message shows no secret
    Path("stages/_download_model"): {Path("tools/_doctor"), Path("tools/_generate")},
}


@dataclass(frozen=True)
class Module:
    """A module: the first sentence of its docstring, its number of lines, and the modules of ours that it imports."""

    path: Path
    summary: str
    lines: int
    imports: frozenset[Path]


def package_of(path: Path) -> Path:
    """`stages/core` for stages/core/fused/x.py too, `stages` for stages/clean.py."""
    return Path(*path.parts[: min(2, len(path.parts) - 1)])


def room_of(path: Path) -> str:
    """The key of MAY_IMPORT that a module belongs to."""
    if path.parts[0] != "stages":
        return path.parts[0]
    folder = package_of(path).name
    return "private" if folder.startswith("_") else folder


def first_sentence(tree: ast.Module) -> str:
    paragraph = " ".join((ast.get_docstring(tree) or "").partition("\n\n")[0].split())
    return paragraph.partition(". ")[0].removesuffix(".")


def read_modules(root: Path) -> dict[Path, Module]:
    """{path: module} of all packages, without empty files, relative to `root`.

    Raises:
        UserError: a module is not valid Python.
    """
    files = sorted(path for top in TOPS for path in (root / top).rglob("*.py") if path.stat().st_size)
    known = {path.relative_to(root) for path in files}
    modules = {}
    for path in files:
        name = path.relative_to(root)
        text = path.read_text(encoding="utf-8")
        try:
            tree = ast.parse(text)
        except SyntaxError as error:
            raise UserError(f"{name}:{error.lineno} is not valid Python: {error.msg}") from None
        imports = {Path(*dotted.split(".")).with_suffix(".py") for dotted in imported_names(tree)} & known
        modules[name] = Module(name, first_sentence(tree), len(text.splitlines()), frozenset(imports))
    return modules


def why_wrong(module: Path, target: Path) -> str | None:
    """Returns the rule that an import breaks, or None."""
    here, there = package_of(module), package_of(target)
    room, other = room_of(module), room_of(target)
    if here in SHARED.get(there, ()):
        return None
    if other not in MAY_IMPORT[room]:
        return f"a module of {here} may not import one of {there}"
    own = here if room == "private" else Path("stages", f"_{module.stem}")
    if other == "private" and room != "bench" and there != own:
        return f"only {there.name.removeprefix('_')}.py may import {there}"
    return None


def check_rules(modules: dict[Path, Module]) -> None:
    """Raises:
    UserError: one line for each import in a direction that must not occur.
    """
    pairs = [(module.path, target) for module in modules.values() for target in sorted(module.imports)]
    wrong = [f"{path} imports {target}: {why}" for path, target in pairs if (why := why_wrong(path, target))]
    if wrong:
        raise UserError("\n".join([*wrong, "Move what both need into a package that both may import"]))
