"""Writes docs/architecture.md: the data flow of dvc.yaml, which package imports which, and every module.

    python -m tools.architecture           # writes the page
    python -m tools.architecture --check   # exits with 1 if the page is out of date, and shows what differs

It reads dvc.yaml and the import statements. An import in a direction that must not occur is an error.
"""

from stages.runtime.command import command_parser, explained

import difflib
import re
import sys
from pathlib import Path

from stages.core.paths import write_text
from stages.core.yaml_files import read_yaml
from stages.runtime.errors import UserError
from tools._architecture.modules import SHARED, TOPS, Module, check_rules, package_of, read_modules
from tools._architecture.pictures import data_flow, expand, rooms

PAGE = Path("docs/architecture.md")
STEP = 100  # lines; exact numbers would make the page out of date after most edits
MANY = 12  # packages; more are counted, not named
SHOWN = 20  # lines of difference
TEXT = """\
# Architecture

`python -m tools.architecture` writes this page from dvc.yaml and the import statements.
[CONTRIBUTING.md](../CONTRIBUTING.md) says where to add something. [experiments.md](experiments.md) says which stages a
changed value runs.

## How data flows
A box is a stage. `stages/<stage>.py` is its code, and `dvc repro <stage>` runs it. A round box is a file or folder that
stages write and DVC keeps. A dashed one is yours: `model.path` and `data.path` are keys of params.yaml that name a file
or folder. Words at an arrow name the files that the stage reads from a folder. Without words it reads all of them.

```mermaid
{data_flow}
```

The picture leaves out two things. Most stages write files to metrics/ too, and `report` reads them all. The stage
`hash_code` writes hashes of the code first, and each other stage depends on those of its own code.

| stage | sections of params.yaml that run it again |
|---|---|
{params}

## Which package imports which
```mermaid
{rooms}
```

An arrow points from a package to one that it imports. "By report" means that only this stage or tool does so, and
"only profile" that it imports nothing else there. Other directions are not allowed: an import in such a direction stops
this command, and a test fails.

- No stage imports another stage. Only `bench/` imports a stage, because it measures them.
- Only its stage imports a private package `stages/_<stage>/`. `bench/` may import all of them.{shared}
- `stages/core/` imports only `stages/runtime/`, and `stages/runtime/` only `stages/core/`.
- Of `stages/runtime/` the code that computes results uses only the names that `tests/runtime/test_border.py` lists.
- Nothing in `stages/` imports `tools/` or `bench/`. No tool imports `bench/`.

## Every module
Lines are rounded up to the next {step}.
{tables}"""


def escaped(text: str) -> str:
    """Returns text that Markdown shows as it is in a cell of a table. Code in backticks stays code."""
    marked = re.sub(r"`[^`]*`|[\\*_\[\]<>]", lambda match: match[0] if "`" in match[0] else f"\\{match[0]}", text)
    return marked.replace("|", r"\|")


def listed(packages: set[Path]) -> str:
    if len(packages) > MANY:
        return f"{len(packages)} packages"
    return ", ".join(f"`{package}`" for package in sorted(packages)) or "nothing"


def table(package: Path, modules: dict[Path, Module]) -> str:
    """Returns the section of one package."""
    own = [module for module in modules.values() if package_of(module.path) == package]
    imports = {package_of(target) for module in own for target in module.imports} - {package}
    importers = {package_of(m.path) for m in modules.values() if package in map(package_of, m.imports)} - {package}
    lines = ["", f"### {package}/", f"Imports: {listed(imports)}.", f"Imported by: {listed(importers)}.", ""]
    lines += ["| module | what it does | lines |", "|---|---|---:|"]
    for module in own:
        name, size = module.path.relative_to(package), -(-module.lines // STEP) * STEP
        lines.append(f"| [{name}](../{module.path}) | {escaped(module.summary)} | {size} |")
    return "\n".join(lines)


def page(root: Path) -> str:
    """Returns docs/architecture.md.

    Raises:
        UserError: an import takes a direction that must not occur, or a file cannot be read.
    """
    modules = read_modules(root)
    check_rules(modules)
    packages = sorted({package_of(path) for path in modules}, key=lambda path: (TOPS.index(path.parts[0]), path))
    stages = expand(read_yaml(root / "dvc.yaml")["stages"])
    return TEXT.format(
        data_flow=data_flow(stages),
        params="\n".join(f"| {name} | {', '.join(stage['params'])} |" for name, stage in stages.items()),
        rooms=rooms(modules),
        shared="".join(f"\n  {listed(tools)} may import `{package}`." for package, tools in SHARED.items()),
        step=STEP,
        tables="\n".join(table(package, modules) for package in packages) + "\n",
    )


def main(arguments: list[str]) -> str:
    parser = command_parser("tools.architecture", __doc__)
    parser.add_argument("--check", action="store_true", help=f"exit with 1 if {PAGE} is out of date; write nothing")
    options = parser.parse_args(arguments)
    before, after = PAGE.read_text(encoding="utf-8") if PAGE.exists() else "", page(Path())
    if before == after:
        return f"{PAGE} is up to date"
    if options.check:
        changes = list(
            difflib.unified_diff(before.splitlines(), after.splitlines(), "committed", "now", n=0, lineterm="")
        )
        raise UserError("\n".join([f"{PAGE} is out of date. Run python -m tools.architecture", *changes[:SHOWN]]))
    write_text(PAGE, after)
    return f"wrote {PAGE}"


if __name__ == "__main__":
    with explained("architecture"):
        print(main(sys.argv[1:]))
