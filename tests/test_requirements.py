"""requirements.txt lists what the code imports, pinned; constraints.txt pins the rest."""

import ast
import importlib.metadata
import re
import sys

from tests.conftest import ROOT

# By the trainer, the stages' runner, transformers' converter, and for its data files.
NEEDED_UNSEEN = {"accelerate", "dvc", "protobuf", "mistral-common"}


def pins(name):
    """{distribution: version} of the lines `name==version`."""
    lines = (ROOT / name).read_text().splitlines()
    found = [re.match(r"([\w.-]+)==(\S+)", line) for line in lines if line and not line.startswith(("#", "-"))]
    assert all(found), f"{name} has a line without a pin"
    return {re.sub(r"[-_.]+", "-", match[1]).lower(): match[2] for match in found}


def imported_distributions():
    """Distributions that stages/ imports, ours and Python's own left out."""
    modules = set()
    for path in (ROOT / "stages").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                modules |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                modules.add(node.module.partition(".")[0])
    owners = importlib.metadata.packages_distributions()
    third_party = modules - sys.stdlib_module_names - {"stages"}
    return {re.sub(r"[-_.]+", "-", owners[module][0]).lower() for module in third_party}


def test_what_is_imported_is_listed_and_what_is_listed_is_imported():
    assert pins("requirements.txt").keys() == imported_distributions() | NEEDED_UNSEEN


def test_the_files_do_not_contradict_each_other():
    constraints = pins("constraints.txt")
    listed = pins("requirements.txt") | pins("requirements-dev.txt")
    assert {name: constraints[name] for name in listed.keys() & constraints.keys()} == {
        name: version for name, version in listed.items() if name in constraints
    }


def test_what_runs_here_is_what_is_pinned():
    for name, version in pins("requirements.txt").items():
        assert importlib.metadata.version(name).partition("+")[0] == version
