"""A copy of the repository for mutmut, where texts for people are marked so that it leaves them as they are."""

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from tools._mutants.areas import Area

MARK = "  # pragma: no mutate"
ENTRY = "from mutmut.__main__ import cli; cli()"  # `python -m mutmut` would run its module twice
MAKE = """
import mutmut.__main__ as mutmut
from pathlib import Path

mutmut.set_mutant_under_test("mutant_generation")
Path("mutants").mkdir(exist_ok=True)
mutmut.copy_src_dir()
mutmut.copy_also_copy_files()
mutmut.setup_source_paths()
mutmut.store_lines_covered_by_tests()
mutmut.create_mutants(1)
"""  # the first steps of `mutmut run`, which has no option to stop after them
# Words in the names of tests that are left out. The first two start processes, into which mutmut does not follow. The
# others draw thousands of samples, which takes seconds.
UNFIT = ("workers", "without_importing", "holds_the_truth", "promise_too_much")
# Some tests read what is committed.
COMMIT = "git -c user.name=mutants -c user.email= -c commit.gpgsign=false commit --quiet --message copy"
ARGUMENTS = ["-p", "no:cacheprovider", "-k", " and ".join(f"not {word}" for word in UNFIT), "--timeout=60"]
SECONDS, TIMES = 10.0, 5.0  # a mutant may take so many times the tests' usual time and so many seconds
CONFIG = """
[tool.mutmut]
source_paths = ["stages"]
only_mutate = {files}
also_copy = {copied}
pytest_add_cli_args = {arguments}
pytest_add_cli_args_test_selection = {tests}
process_isolation = "forkserver"  # a fork of a process in which torch has started threads could wait for ever
timeout_constant = {constant}
timeout_multiplier = {multiplier}
track_dependencies = false
use_git_change_detection = false
on_dependency_change = "ignore"
"""


def is_for_people(node: ast.AST) -> bool:
    """Whether a statement only speaks to people: it raises, prints, or begins to show progress."""
    if isinstance(node, ast.With):
        return any(called_name(item.context_expr) == "progress" for item in node.items)
    return isinstance(node, ast.Raise) or (isinstance(node, ast.Expr) and called_name(node.value) == "print")


def called_name(node: ast.AST) -> str | None:
    return node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else None


def marked(source: str) -> str:
    """The source with mutmut's mark on each line of the statements that are for people."""
    lines = source.split("\n")
    for node in ast.walk(ast.parse(source)):
        if is_for_people(node):
            last = node.body[0].lineno - 1 if isinstance(node, ast.With) else node.end_lineno
            for number in range(node.lineno - 1, last):
                lines[number] += MARK
    result = "\n".join(lines)
    if ast.dump(ast.parse(result)) != ast.dump(ast.parse(source)):
        raise ValueError("a mark changed the code")
    return result


def failure(folder: Path, area: Area) -> str:
    """What pytest says about the first failing test of the unchanged code; empty if all pass. mutmut hides it."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--rootdir=.", "--tb=short", *ARGUMENTS, *area.tests]
    environment = os.environ | {"MUTANT_UNDER_TEST": ""}
    done = subprocess.run(command, cwd=folder / "mutants", env=environment, capture_output=True, text=True, check=False)  # noqa: S603
    return done.stdout[-3000:] + done.stderr[-1000:] if done.returncode else ""


def make_sandbox(root: Path, folder: Path, area: Area) -> None:
    """Copies the repository's files to `folder`, commits them there, and adds mutmut's settings."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)  # noqa: S603
    for name in filter(None, listed.stdout.split("\0")):
        if (root / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, folder / name)
    for command in ("git init --quiet", "git add --all", COMMIT):
        subprocess.run(command.split(), cwd=folder, check=True)  # noqa: S603
    files = sorted(area.code)
    for file in files:
        (folder / file).write_text(marked((folder / file).read_text("utf-8")), "utf-8")
    shutil.copy2(Path(__file__).with_name("plugin.py"), folder / "conftest.py")
    settings = {
        "files": json.dumps(files),
        "copied": json.dumps(sorted(path.name for path in folder.iterdir())),
        "arguments": json.dumps(ARGUMENTS),
        "tests": json.dumps(sorted(area.tests)),
    }
    with open(folder / "pyproject.toml", "a", encoding="utf-8") as project:
        project.write(CONFIG.format(**settings, constant=SECONDS, multiplier=TIMES))
